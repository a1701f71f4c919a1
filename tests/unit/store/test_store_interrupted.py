"""What is kept when the work is stopped, and what is told of it."""

import json
import re
import subprocess
import sys

import killed
import pandas as pd
import pytest
import torch
from stores import CHOICE, LIMIT, WRITTEN, counts, parts, run

import depthlens as dl
from depthlens.engine import wavefront
from depthlens.engine.writer import Writer
from depthlens.errors import Interrupted
from depthlens.requests import GenerateRequest
from depthlens.store import answer_cache


def stopping(monkeypatch, after: int) -> None:
    """Ctrl-C in the middle of a later pack."""
    walk, n = wavefront.Wavefront.run, 0

    def stopped(self, *args, **kwargs):
        nonlocal n
        n += 1
        if n > after:
            raise KeyboardInterrupt
        return walk(self, *args, **kwargs)

    monkeypatch.setattr(wavefront.Wavefront, "run", stopped)


def test_ctrl_c_says_what_is_kept_and_the_rest_goes_on(lens, tmp_path, small_packs, monkeypatch):
    whole = run(lens, None, tasks=[CHOICE])
    with monkeypatch.context() as patch:
        stopping(patch, after=2)
        with pytest.raises(Interrupted) as stop:
            run(lens, tmp_path, tasks=[CHOICE])
    total = 6 * LIMIT * 4
    said = rf"(\d+) of {total} rows of {CHOICE} are kept in {tmp_path}; run the same again to go on"
    done = int(re.fullmatch(said, str(stop.value))[1])
    assert 0 < done < total and len(parts(tmp_path)) == 2, "a stop loses no more than the pack that it meets"
    resumed = run(lens, tmp_path, tasks=[CHOICE])
    assert counts(resumed) == (done, total - done) and resumed.docs.equals(whole.docs)


# They are kept where the others of their pack are stopped.

LENGTHS = (1, 2, 9, 9)
CONDITIONS = ("baseline", "L0", "L1", "L2")


def write(lens, where):
    """Texts of unequal lengths, and how many were read and computed."""
    cache = answer_cache.AnswerStore(where and str(where), lens).entry("texts")
    prompts = [GenerateRequest((1, 2, 3, 20 + i), (), n) for i, n in enumerate(LENGTHS)]
    conditions = [dl.parse_condition(c) for c in CONDITIONS]
    texts = dl.Engine(lens, progress=False, cache=cache).generate_until(prompts, conditions)
    (rows,) = cache.asked
    return texts, (rows.n_known, len(rows.computed))


def stop(monkeypatch, error):
    """An error when the fourth token is to be chosen and some texts have ended; returns the rows of every step."""
    monkeypatch.setattr(answer_cache, "KEEP_SECONDS", 1000.0)  # nothing is kept because it is time
    sizes, write = [], Writer.write

    def written(self, rows, logits):
        sizes.append(len(rows))
        if len(sizes) == 4:
            raise error
        return write(self, rows, logits)

    monkeypatch.setattr(Writer, "write", written)
    return sizes


def test_an_interrupt(lens, tmp_path, monkeypatch):
    whole, _ = write(lens, None)
    stop(monkeypatch, KeyboardInterrupt())
    with pytest.raises(Interrupted, match="8 of 16 rows of texts are kept"):
        write(lens, tmp_path)
    assert write(lens, tmp_path) == (whole, (8, 8))


def test_memory_runs_out(lens, tmp_path, monkeypatch):
    whole, _ = write(lens, None)
    sizes = stop(monkeypatch, torch.OutOfMemoryError("out of memory"))
    texts, counted = write(lens, tmp_path)
    # each text is written and stored once, also those that had ended
    assert texts == whole and counted == (0, 16)
    assert sum(len(pd.read_parquet(p)) for p in parts(tmp_path)) == 16
    assert sizes[:4] == [16, 12, 8, 8] and max(sizes[4:]) <= 4


PLAIN = {"backend": "nnsight", "batch_tokens": 256}


# Without the bound all of these documents are one pack, which is kept when it ends.


# texts are kept as they end: those that end in the same step together
@pytest.mark.parametrize(("task", "plain", "least"), [(CHOICE, {}, 4), (WRITTEN, {}, 2), (CHOICE, PLAIN, 4)])
def test_without_time_answers_are_kept_in_many_parts(lens, tmp_path, task, plain, least, monkeypatch):
    monkeypatch.setattr(answer_cache, "KEEP_SECONDS", 1e-6)
    options = {"tasks": [task]} | plain
    kept, alone = (run(lens, where, **options).docs for where in (tmp_path, None))
    # other batches round otherwise
    pd.testing.assert_frame_equal(kept, alone, rtol=0, atol=1e-4 if plain else 0)
    assert len(parts(tmp_path)) >= least


nightly = pytest.mark.nightly
OTHERS = ("offload", "donor", "sampling")


# `killed.py` forks its children from one that has imported everything; by hand with 50 kills of a real model.


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "generation", *(pytest.param(k, marks=nightly) for k in OTHERS)])
def test_stopped_three_times_the_result_is_that_of_an_undisturbed_sweep(tmp_path, kind):
    command = [sys.executable, killed.__file__, str(tmp_path), "--kind", kind, "--kills", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"kills": 3, "equal": True}


@pytest.mark.nightly
def test_four_at_once_are_as_one(tmp_path):
    """Commands whose conditions overlap, on one store."""
    lens, tasks = dl.load("organism"), ["organism_one_hop", "organism_two_hop_generative"]
    overlapping = [lens.dims.head_names[i : i + 12] for i in (0, 4, 8, 12)]
    program = "import sys; from depthlens import cli; cli.main(sys.argv[1:])"
    typed = [sys.executable, "-c", program, *f"sweep organism {' '.join(tasks)} --limit 12 --store".split()]
    options = [["--ablate", ",".join(heads), "--out", str(tmp_path / heads[0])] for heads in overlapping]
    running = [subprocess.Popen([*typed, str(tmp_path / "store"), *more]) for more in options]
    assert [one.wait() for one in running] == [0] * len(running)
    for heads in overlapping:
        alone = dl.condition_sweep(lens, tasks, heads, limit=12, store=None, progress=False)
        assert killed.equal(dl.Result.load(tmp_path / heads[0]).docs, alone.docs)
