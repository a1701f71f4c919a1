"""Processes that are killed, or share a store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

nightly = pytest.mark.nightly
OTHERS = ("offload", "donor", "sampling")


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
    def test_four_at_once_are_as_one(self, tmp_path):
        found = self.script("together", tmp_path)
        assert found["equal"] and found["rows"] > 1000
