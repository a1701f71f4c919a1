"""Dry runs: what would be computed is noted, answers are made up, and the store stays as it is."""

from __future__ import annotations

import math

import pytest
import stores
import tiny
from stores import CHOICE, LIMIT, WRITTEN

import depthlens as dl
from depthlens.store import dry_run


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("llama-gqa", max_position_embeddings=8192)


def baseline(result):
    (row,) = result.primary().baselines.to_dict("records")
    return row["baseline"]


@pytest.mark.parametrize("task", [CHOICE, WRITTEN])
def test_the_whole_model_is_right_and_others_are_not_always(lens, task):
    with dry_run.counting(measured=False) as run:
        made_up = dl.layer_sweep(lens, task, limit=20, store=None, progress=False)
    assert baseline(made_up) == 1.0
    summary = made_up.primary().summary
    assert summary.loc[summary["condition"] != "baseline", "value"].between(0.1, 0.9).all()
    (line,) = run.lines
    assert line["rows"] == sum(
        row["rows"]
        for row in dl.plan(lens, task, "layers", limit=20, store=None, measured=False).table.to_dict("records")
    )
    assert line["seconds"] is None, "nothing was tried"


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


def test_without_a_store_everything_is_computed_again(lens):
    with dry_run.counting(measured=False) as run:
        stores.run(lens, None, tasks=[CHOICE])
        stores.run(lens, None, tasks=[CHOICE])
    assert [line["rows"] for line in run.lines] == [6 * LIMIT * 4] * 2


def test_of_numbers_one_batch_stands_for_all(lens, tmp_path):
    texts = ["The first text is short.", "A second one.", "And here is the third, which is longer."]
    real = dl.depth_geometry(lens, texts=texts, store=None, progress=False)
    with dry_run.counting() as run:
        made_up = dl.depth_geometry(lens, texts=texts, store=str(tmp_path), progress=False)
    assert stores.parts(tmp_path) == [] and made_up.influences.shape == real.influences.shape
    (line,) = run.lines
    assert line["rows"] % len(texts) == 0 and line["rows"] > 0
    assert line["seconds"] == pytest.approx(len(texts) * line["spent"]) and math.isfinite(line["seconds"])


def test_afterwards_all_is_real_also_after_an_error(lens):
    real = stores.run(lens, None, tasks=[CHOICE])
    with pytest.raises(RuntimeError, match="stop"), dry_run.counting(measured=False):
        assert dry_run.current() is not None
        raise RuntimeError("stop")
    assert dry_run.current() is None
    assert stores.run(lens, None, tasks=[CHOICE]).docs.equals(real.docs)


def test_processes_of_one_folder_know_what_others_counted(tmp_path, lens):
    first = dry_run.DryRun(tmp_path)
    assert first.counted([1, 2]) == [False, False]
    first.note(name="one", rows=2)
    second = dry_run.DryRun(tmp_path)
    assert second.counted([2, 3]) == [True, False]
    assert (tmp_path / dry_run.LINES).read_text() == '{"name": "one", "rows": 2}\n'
