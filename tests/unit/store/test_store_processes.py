"""Processes that are killed, or share a store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tiny
from stores import CHOICE, LIMIT, counts, run

import depthlens as dl
from depthlens import ablations
from depthlens.store import answer_cache, answer_rows
from depthlens.store.reservations import Reservations

nightly = pytest.mark.nightly
OTHERS = ("offload", "donor", "sampling")


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("llama-gqa", max_position_embeddings=4096)


class TestProcesses:
    """`killed.py` forks its children from one that has imported everything; by hand with 50 kills of a real model."""

    def script(self, *arguments: object) -> dict:
        path = Path(__file__).parents[2] / "killed.py"
        done = subprocess.run(
            [sys.executable, str(path), *map(str, arguments)],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["plain", "generation", *(pytest.param(k, marks=nightly) for k in OTHERS)])
    def test_stopped_three_times_the_result_is_that_of_an_undisturbed_sweep(self, tmp_path, kind):
        found = self.script("stops", tmp_path, "--kind", kind, "--kills", 3)
        assert found["kills"] == 3 and found["equal"]
        assert found["rows_again"] <= found["kills"] * found["most_rows_of_a_pack"], "a stop loses at most one pack"

    @pytest.mark.nightly
    def test_four_at_once_are_as_one_and_do_nothing_twice(self, tmp_path):
        found = self.script("together", tmp_path)
        assert found["equal"] and found["rows"] > 1000 and found["rows_twice"] == 0


class TestReservations:
    def test_a_sweep_waits_for_rows_that_another_computes(self, lens, tmp_path):
        """The other's reservation is held here; its rows come, or it gives up, and the sweep ends either way."""
        alone = run(lens, None, tasks=[CHOICE])
        at = answer_cache.AnswerStore(str(tmp_path), lens).entry(CHOICE)
        seen = []
        done = threading.Event()

        def swept() -> None:
            seen.append(run(lens, tmp_path, tasks=[CHOICE]))
            done.set()

        prepared = dl.tasks.prepare(lens, dl.load_tasks([CHOICE]), limit=LIMIT)[0]
        conditions = ablations.expand("layers", lens.dims)
        everything = {
            "conditions": [str(c) for c in conditions],
            "requests": [answer_rows.digest(q) for q in prepared.requests],
        }
        with Reservations(at.entry.reservations_folder).reserve(lambda others: (None, everything)):
            thread = threading.Thread(target=swept)
            thread.start()
            assert not done.wait(1.5)
        thread.join(60)
        assert seen[0].docs.equals(alone.docs) and counts(seen[0])[1] == 6 * LIMIT * 4
