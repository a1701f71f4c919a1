"""Nothing damaged is believed, and nothing is torn where there is no room."""

import errno
import logging
import random
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from refusals import refused
from stores import CHOICE, counts, flip, parts, run


@pytest.fixture
def at(lens, tmp_path, small_packs) -> Path:
    run(lens, tmp_path / "s")
    assert len(parts(tmp_path / "s")) >= 4
    return tmp_path / "s"


def recovers(lens, at: Path, damaged: list[Path], caplog) -> None:
    with caplog.at_level(logging.WARNING):
        again = run(lens, at)
    for path in damaged:
        assert f"part {path.parent.parent.name}/{path.parent.name}/{path.name} cannot be read" in caplog.text
    assert counts(again)[1] > 0
    assert again.docs.equals(run(lens, None).docs)
    assert counts(run(lens, at))[1] == 0  # whole again


def test_parts_cut_off_at_a_random_byte(lens, at, caplog):
    chance = random.Random(1)
    for path in parts(at):
        path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])
    recovers(lens, at, parts(at), caplog)


@pytest.mark.parametrize("seed", range(8))
def test_a_bit_flipped_anywhere_gives_no_wrong_answer(lens, at, seed):
    """What describes the pages has no checksum: such a part may be read, and reads as it was written."""
    chance = random.Random(seed)
    path = chance.choice(parts(at))
    flip(path, chance.randrange(path.stat().st_size), chance.randrange(8))
    assert run(lens, at).docs.equals(run(lens, None).docs)


def test_a_part_of_another_schema(lens, at, caplog):
    path = parts(at)[0]
    pd.DataFrame({"condition": ["L0"], "value": [1.0]}).to_parquet(path.with_name("x.parquet"))
    with caplog.at_level(logging.WARNING):
        assert counts(run(lens, at))[1] == 0
    assert "x.parquet cannot be read" in caplog.text


def test_no_room_is_one_line_and_nothing_is_torn(lens, tmp_path, small_packs, monkeypatch):
    write, n = pq.write_table, 0

    def full(table, file, **options):
        nonlocal n
        n += 1
        if n < 3:
            return write(table, file, **options)
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", full)
        said = "cannot be written .*No space left on device.*; make room or name another store"
        refused(said, run, lens, tmp_path, tasks=[CHOICE])
    assert len([path for path in parts(tmp_path) if not path.name.startswith(".")]) == 2
    resumed = run(lens, tmp_path, tasks=[CHOICE])
    assert counts(resumed)[0] > 0 and resumed.docs.equals(run(lens, None, tasks=[CHOICE]).docs)
