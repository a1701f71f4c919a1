"""Sweeps that are stopped at random moments by SIGKILL, SIGTERM and SIGINT and resumed, in processes of their own.

    python tests/killed.py FOLDER --kind plain --kills 12

Kinds: plain, offload, donor (its weights come from a folder), generation, sampling; of a tiny model. Children are
forked from a process that has imported everything. What a child has kept is the number of parts in its store.
"""

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pandas as pd
import tiny
import torch
from stores import parts
from tqdm import tqdm

import depthlens as dl
from depthlens.store import answer_cache

KINDS = ("plain", "offload", "donor", "generation", "sampling")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def fork(work: Callable[[], object]) -> int:
    """A child that does the work and ends with 0, or with what it was stopped with."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as commands do
        signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background of a script ignore it
        work()
        code = 0
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        # torch turns an interrupt, while safetensors makes a tensor, into an error of its own
        code = 130 if "could not determine the shape of object type" in str(error) else 1
        traceback.print_exc()  # the child ends below, without a word
        raise
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def sweep(kind: str, model: str, donor: str, store: str) -> dl.Result:
    lens = dl.load(model, offload="disk" if kind == "offload" else None)
    task = "capitals_generative" if kind in ("generation", "sampling") else "capitals_continuation"
    options: dict[str, Any] = {"donor": donor} if kind == "donor" else {}
    options |= {"gen_kwargs": {"temperature": 1.2, "top_p": 0.9}} if kind == "sampling" else {}
    ablate = "layers@donor" if kind == "donor" else "layers"
    return dl.condition_sweep(lens, task, ablate, limit=8, store=store, progress=False, **options)


def equal(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Texts and right answers are equal, log-likelihoods but for what other batches round (float32)."""
    same = one.drop(columns="value").equals(other.drop(columns="value"))
    return same and bool(np.allclose(one["value"], other["value"], rtol=0, atol=1e-4))


def stops(kind: str, model: str, donor: str, folder: Path, wanted: int) -> dict[str, Any]:
    """Stop a sweep at random moments and resume it, as often as wanted; new stores as sweeps come to their end.

    Returns:
        Kills, and whether every result was that of an undisturbed sweep.
    """
    start = time.monotonic()
    assert os.waitpid(fork(lambda: sweep(kind, model, donor, str(folder / "alone")).save(folder / "wanted")), 0)[1] == 0
    lasts = time.monotonic() - start
    undisturbed = dl.Result.load(folder / "wanted").docs
    chance = random.Random(0)
    done, killed, same = 0, 0, True
    while killed < wanted or not done:
        store, out = folder / f"store-{done}", folder / f"out-{done}"
        while not (out / "docs.parquet").exists():
            known = len(parts(store))
            pid = fork(lambda store=store, out=out: sweep(kind, model, donor, str(store)).save(out))
            if killed < wanted:
                while chance.random() < 0.999 and len(parts(store)) == known and not ended(pid):
                    time.sleep(0.003)  # now and then it is stopped before it computes anything
                time.sleep(chance.uniform(0, lasts / 4))
                os.kill(pid, SIGNALS[killed % len(SIGNALS)])
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if code in (-signal.SIGKILL, 130):
                killed += 1
            elif code:
                raise SystemExit(f"a sweep ended by itself with {code}")
        same &= equal(dl.Result.load(out).docs, undisturbed)
        done += 1
    return {"kills": killed, "equal": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=KINDS, default="plain")
    parser.add_argument("--kills", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is shared by children: one that is killed would keep it for ever
    tqdm.monitor_interval = 0  # a thread that may hold the lock while a child is forked
    answer_cache.KEEP_SECONDS = 0.02  # what a pack may take; the library's own: 10
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, scale in (("model", 1), ("donor", 2)):
        made = tiny.model("llama-gqa", max_position_embeddings=4096)
        made.model.layers[1].mlp.up_proj.weight.data.mul_(scale)
        made.save_pretrained(args.folder / name)
        tiny.tokenizer().save_pretrained(args.folder / name)
    model, donor = str(args.folder / "model"), str(args.folder / "donor")
    print(json.dumps(stops(args.kind, model, donor, args.folder, args.kills)))


if __name__ == "__main__":
    main()
