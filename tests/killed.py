"""Sweeps that are killed, share a store, or run out of room, in processes of their own.

    python tests/killed.py kills FOLDER --kills 50      SIGKILL at random moments, resumed until done
    python tests/killed.py together FOLDER              four processes, overlapping conditions, one store

Children are forked from a process that has loaded the model, so that 50 of them do not import torch 50 times. Each
prints nothing; what it computes it notes in a log, a line a pack, before it starts on it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

import depthlens as dl
from depthlens import budget, engine

TASKS = ["organism_one_hop", "organism_two_hop_generative"]
STATES, KEYS = 2 << 20, 4 << 20  # bytes: small, so that a sweep has many packs
LIMIT = 12


def sweep(lens: Any, store: str | None, ablate: Any = "heads", limit: int = LIMIT) -> Any:
    """The sweep that is killed."""
    return dl.condition_sweep(lens, TASKS, ablate, limit=limit, store=store, progress=False)


def noting(log: Path) -> None:
    """Note every pack before it is computed: how many rows, of which conditions and requests."""
    before = engine.Engine._giving_way

    def noted(self: Any, members: list[int], group: list[int], run: Any, rows: Any, *rest: Any) -> None:
        addresses = [[rows._addresses[c], rows._digests[r]] for c in group for r in members]
        with open(log, "ab", buffering=0) as file:  # one write: whole lines, also from several processes
            file.write(json.dumps(addresses).encode() + b"\n")
        before(self, members, group, run, rows, *rest)

    engine.Engine._giving_way = noted


def fork(work: Callable[[], object]) -> int:
    """A child that does the work and ends with 0, or 1 where it raised."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def kills(lens: Any, folder: Path, wanted: int, seed: int = 0) -> dict[str, Any]:
    """Kill a sweep at random moments and resume it, as often as wanted; new stores as sweeps come to their end.

    Returns:
        Sweeps that came to their end, kills, whether every result was that of an undisturbed sweep, and the most packs
        that were computed again for a kill.
    """
    start = time.monotonic()
    undisturbed = sweep(lens, None)
    lasts = time.monotonic() - start
    chance = random.Random(seed)
    done, killed, equal, worst = 0, 0, True, 0.0
    while killed < wanted or not done:
        store, log, out = (folder / f"{kind}-{done}" for kind in ("store", "log", "out"))
        mine = 0

        def work(store: Path = store, log: Path = log, out: Path = out) -> None:
            noting(log)
            sweep(lens, str(store)).save(out)

        while not (out / "docs.parquet").exists():
            pid = fork(work)
            if killed < wanted:
                time.sleep(chance.uniform(0, lasts / 2))
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if os.WIFSIGNALED(status):
                mine, killed = mine + 1, killed + 1
            elif status:
                raise SystemExit(f"a sweep ended by itself with {status}")
        found = dl.Result.load(out)
        equal &= found.docs.equals(undisturbed.docs)
        packs = [tuple(map(tuple, json.loads(line))) for line in log.read_text().splitlines()]
        again = len(packs) - len(set(packs))
        worst = max(worst, again / max(1, mine))
        done += 1
    return {"sweeps": done, "kills": killed, "equal": equal, "packs_again_per_kill": worst, "packs": len(set(packs))}


def together(lens: Any, folder: Path, n: int = 4) -> dict[str, Any]:
    """Several processes, overlapping conditions, one store, started at once.

    Returns:
        Whether their results are those of one process, and rows that were computed twice.
    """
    dims = lens.dims
    heads = [f"L{layer}.H{head}" for layer in range(dims.n_layers) for head in range(dims.n_heads)]
    parts = [heads[i * 4 : i * 4 + 12] for i in range(n)]
    alone = [sweep(lens, None, part) for part in parts]
    store, log = folder / "store", folder / "log"

    def work(i: int) -> None:
        noting(log)
        sweep(lens, str(store), parts[i]).save(folder / f"out-{i}")

    pids = [fork(lambda i=i: work(i)) for i in range(n)]
    ended = [os.waitpid(pid, 0)[1] for pid in pids]
    if any(ended):
        raise SystemExit(f"the sweeps ended with {ended}")
    found = [dl.Result.load(folder / f"out-{i}") for i in range(n)]
    rows = [tuple(row) for line in log.read_text().splitlines() for row in json.loads(line)]
    equal = all(f.docs.equals(a.docs) for f, a in zip(found, alone, strict=True))
    return {"processes": n, "equal": equal, "rows": len(set(rows)), "rows_twice": len(rows) - len(set(rows))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "together"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # a forked process must not inherit a pool of threads
    budget.CPU_STATE_BYTES, budget.CPU_KEY_BYTES = STATES, KEYS
    args.folder.mkdir(parents=True, exist_ok=True)
    lens = dl.load("organism")
    found = kills(lens, args.folder, args.kills, args.seed) if args.what == "kills" else together(lens, args.folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
