"""Nothing damaged is believed, and nothing is torn where there is no room."""

from __future__ import annotations

import errno
import logging
import random
from pathlib import Path

import pandas as pd
import pytest
from stores import CHOICE, counts, flip, parts, run

from depthlens import cli
from depthlens.errors import UserError
from depthlens.store import files, inspection
from depthlens.store import parts as store_parts
from depthlens.store.parts import Store


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


def test_no_room_is_one_line_and_nothing_is_torn(lens, tmp_path, small_packs, monkeypatch):
    write, n = files.write_files, 0

    def half(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    def full(folder, to_write):
        nonlocal n
        n += any(name.endswith(".parquet") for name in to_write)
        write(folder, to_write if n < 3 else dict.fromkeys(to_write, half))

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_files", full)
        said = "cannot be written: No space left on device; what it held is whole: make room or name another store"
        with pytest.raises(UserError, match=said):
            run(lens, tmp_path, tasks=[CHOICE])
    assert len(parts(tmp_path)) == 2 and not list(tmp_path.rglob(".new-*"))
    assert inspection.verify(Store(str(tmp_path))) == inspection.Verified(n_parts=2)
    resumed = run(lens, tmp_path, tasks=[CHOICE])
    assert counts(resumed)[0] > 0 and resumed.docs.equals(run(lens, None, tasks=[CHOICE]).docs)
