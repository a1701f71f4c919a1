"""Dry runs: what would be computed is noted, answers are made up, and the store stays as it is."""

from __future__ import annotations

import pytest
import stores
from stores import CHOICE, LIMIT

from depthlens.store import dry_run


def test_the_store_is_read_and_not_written(lens, tmp_path):
    stores.run(lens, tmp_path, "L0,L1", tasks=[CHOICE])
    before = stores.parts(tmp_path)
    with dry_run.counting(measured=False) as run:
        stores.run(lens, tmp_path, tasks=[CHOICE])
        stores.run(lens, tmp_path, tasks=[CHOICE])
    assert stores.parts(tmp_path) == before
    first, second = run.lines
    assert (first["known"], first["rows"]) == (3 * LIMIT * 4, 3 * LIMIT * 4)
    assert (second["known"], second["rows"]) == (6 * LIMIT * 4, 0), "what was counted would be there by now"


def test_afterwards_all_is_real_also_after_an_error(lens):
    real = stores.run(lens, None, tasks=[CHOICE])
    with pytest.raises(RuntimeError, match="stop"), dry_run.counting(measured=False):
        assert dry_run.current() is not None
        raise RuntimeError("stop")
    assert dry_run.current() is None
    assert stores.run(lens, None, tasks=[CHOICE]).docs.equals(real.docs)
