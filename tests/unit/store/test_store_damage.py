"""Nothing damaged is believed, and nothing is torn where there is no room."""

from __future__ import annotations

import logging
import random
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import tiny
from stores import CHOICE, counts, flip, parts, run

from depthlens import cli
from depthlens.store import inspection
from depthlens.store import parts as store_parts
from depthlens.store.parts import Store


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("llama-gqa", max_position_embeddings=4096)


@pytest.fixture
def small_packs(monkeypatch):
    """So that a sweep has several packs."""
    monkeypatch.setattr("depthlens.engine.memory_budget.CPU_STATE_BYTES", 1 << 14)
    monkeypatch.setattr("depthlens.engine.memory_budget.CPU_KEY_BYTES", 1 << 20)


class TestDamage:
    @pytest.fixture
    def at(self, lens, tmp_path, small_packs) -> Path:
        run(lens, tmp_path / "s")
        assert len(parts(tmp_path / "s")) >= 4
        return tmp_path / "s"

    def recovers(self, lens, at: Path, damaged: list[Path], caplog) -> None:
        with caplog.at_level(logging.WARNING):
            again = run(lens, at)
        for path in damaged:
            assert f"part {path.parent.parent.name}/{path.parent.name}/{path.name} is damaged" in caplog.text
            assert (at / "damaged" / f"{path.parent.parent.name}.{path.parent.name}.{path.name}").exists()
        assert counts(again)[1] > 0
        assert again.docs.equals(run(lens, None).docs)
        assert counts(run(lens, at))[1] == 0  # whole again

    def test_parts_cut_off_at_a_random_byte(self, lens, at, caplog):
        chance = random.Random(1)
        for path in parts(at):
            path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])
        self.recovers(lens, at, parts(at), caplog)

    @pytest.mark.parametrize("seed", range(2))
    def test_one_bit_flipped(self, lens, at, caplog, seed):
        chance = random.Random(seed)
        path = chance.choice(parts(at))
        flip(path, chance.randrange(path.stat().st_size), chance.randrange(8))
        self.recovers(lens, at, [path], caplog)

    def test_a_part_of_another_schema(self, lens, at, caplog):
        path = parts(at)[0]
        foreign = path.with_name("x.parquet")
        pd.DataFrame({"condition": ["L0"], "value": [1.0]}).to_parquet(foreign)
        named = foreign.rename(path.with_name(f"{store_parts.part_digest(foreign.read_bytes())}.parquet"))
        with caplog.at_level(logging.WARNING):
            assert counts(run(lens, at))[1] == 0
        assert not named.exists() and "its columns are condition, value" in caplog.text

    def test_verify_names_them_and_ends_with_1(self, lens, at, capsys):
        path = parts(at)[0]
        flip(path, 40)
        n = len(parts(at))
        for code, damaged in ((1, 1), (0, 0)):
            with pytest.raises(SystemExit) as end:
                cli.main(["store", "verify", "--store", str(at)])
            out, err = capsys.readouterr()
            assert end.value.code == code and out == f"{n} parts, {damaged} damaged\n"
            assert (path.name in err) == bool(damaged)
            n -= damaged


def child(body: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run a program that sweeps the tiny model, in a process of its own."""
    program = (
        "import sys, os, pathlib, torch; torch.set_num_threads(1); sys.path.insert(0, 'tests')\n"
        "import tiny, depthlens as dl\n"
        "from depthlens import cli\n"
        "from depthlens.engine import memory_budget\n"
        "from depthlens.store.answer_rows import AnswerRows\n"
        "memory_budget.CPU_STATE_BYTES = 1 << 14\n"
        "lens = tiny.lens('llama-gqa', max_position_embeddings=4096)\n"
        "def run(store, limit=3):\n"
        "    asked = {'limit': limit, 'store': store, 'progress': False}\n"
        "    return dl.condition_sweep(lens, 'capitals_continuation', 'layers', **asked)\n"
        f"{body}"
    )
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=300)


@pytest.mark.slow
class TestNoRoom:
    def test_no_room_is_one_line_and_nothing_is_torn(self, lens, tmp_path, small_packs):
        """A limit on the size of files stands for a full disk: writes fail in the middle."""
        body = (
            "import resource\n"
            "run(None, 1)\n"
            "put, n = AnswerRows.put, 0\n"
            "def counted(self, *a):\n"
            "    global n\n"
            "    n += 1\n"
            "    if n == 3: resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))\n"
            "    put(self, *a)\n"
            "AnswerRows.put = counted\n"
            "try: run(sys.argv[1])\n"
            "except dl.UserError as e: print(e)\n"
        )
        done = child(body, tmp_path / "s")
        assert re.fullmatch(
            r"store '.*' cannot be written: File too large; what it held is whole: make room or name another store, "
            r"and run again to go on\n",
            done.stdout,
        ), done
        assert len(parts(tmp_path / "s")) == 2 and not list((tmp_path / "s").rglob(".new-*"))
        assert inspection.verify(Store(str(tmp_path / "s"))) == inspection.Verified(n_parts=2)
        resumed = run(lens, tmp_path / "s", tasks=[CHOICE])
        assert counts(resumed)[0] > 0 and resumed.docs.equals(run(lens, None, tasks=[CHOICE]).docs)
