"""Every object of results comes back from its folder as it was, and no folder is left half written."""

from __future__ import annotations

import json
import os
import warnings

import made_results
import numpy as np
import pandas as pd
import pytest

import depthlens as dl
from depthlens.errors import UserError

N, N_LAYERS, N_HEADS = 40, 6, 2
EARLY = [0.9, 0.6, 0.2, 0.1, 0.0, 0.0]


def sweep(model: str = "base", task: str = "t", *, suffix: str = "", heads: bool = False, seed: int = 0) -> dl.Result:
    """Right answers that are lost with the probabilities `EARLY` without each layer (or both heads of each layer)."""
    rng = np.random.default_rng(seed)
    scores = {"baseline": (right := rng.random(N) < 0.9)}
    for layer, loss in enumerate(EARLY):
        for name in [f"L{layer}.H{h}" for h in range(N_HEADS)] if heads else [f"L{layer}{suffix}"]:
            scores[name] = right & (rng.random(N) >= loss)
    made = made_results.result({task: scores}, model=model, n_layers=N_LAYERS, n_heads=N_HEADS)
    return dl.Result(made.docs.assign(response="1 + 1 = 3"), made.record)


def curve() -> dl.RemovalCurve:
    tables = pd.DataFrame({"list": ["a"], "k": [1], "value": [0.5]}), pd.DataFrame({"list": ["a"], "n_draws": [10]})
    tests = pd.DataFrame({"list": ["a"], "task": ["t"], "separates": [True], "p_value": [0.1]})
    return dl.RemovalCurve(*tables, tests, sweep(heads=True), {"lists": {"a": [(0, 1)]}, "k": [1], "n_draws": 10})


def greedy() -> dl.Greedy:
    steps = pd.DataFrame({"step": [0, 1], "layer": pd.array([None, 5], "Int64"), "delta": [0.0, -0.02]})
    steps = steps.assign(removed=["baseline", "L5"], ci_low=-0.1, ci_high=0.1, n=20, within=True)
    record = {"task": "t", "metric": "acc", "tolerance": 0.1, "n_layers": N_LAYERS}
    return dl.Greedy(steps, sweep(), "enough", record)


def geometry() -> dl.Geometry:
    table = pd.DataFrame({"layer": range(N_LAYERS), "influence": np.linspace(0, 1, N_LAYERS)})
    return dl.Geometry(table.assign(size=1), table, table.assign(rank=[1.5] * N_LAYERS), {"texts": 3})


def scores(seed: int = 0, **record) -> dl.HeadScores:
    cases = np.random.default_rng(seed).normal(1, 1, (20, N_LAYERS, N_HEADS))
    record = {"model": {"name": "m"}, **record}
    return dl.HeadScores.of_cases("loss", "nats", cases, record, tested=True, heads=[(1, 0), (2, 1), (3, 0)])


def reasoning() -> dl.ReasoningScores:
    return dl.ReasoningScores(*(scores(i) for i in range(5)), {"model": {"name": "m"}})


MADE = {
    "result": sweep,
    "curve": curve,
    "greedy": greedy,
    "geometry": geometry,
    "head scores": scores,
    "reasoning scores": reasoning,
    "verdicts": lambda: dl.claims.judge(dl.claims.Evidence(letters=sweep()), n_boot=200),
    "centres": lambda: dl.analysis.centre_of_mass(sweep(), n_boot=50),
    "comparison": lambda: dl.analysis.compare_models(sweep(), sweep("d", seed=1), n_boot=50),
}


@pytest.mark.parametrize("name", MADE)
def test_an_object_comes_back_as_it_was(name, tmp_path):
    made = MADE[name]()
    made.save(tmp_path / "out")
    back = type(made).load(tmp_path / "out")
    before, after = made.contents(), back.contents()
    assert before.records == after.records and set(before.tables) == set(after.tables)
    for file, table in before.tables.items():
        pd.testing.assert_frame_equal(after.tables[file], table, check_exact=True)
    if name not in ("geometry", "curve"):  # the first says nothing, the second is not complete here
        assert back.describe() == made.describe() and all(line.endswith(".") for line in made.describe())
    made.save(tmp_path / "out")  # the same may be written again
    if name in ("curve", "greedy"):
        inside = dl.Result.load(tmp_path / "out")
        pd.testing.assert_frame_equal(inside.docs, made.result.docs, check_exact=True)
        assert inside.record == made.result.record


@pytest.mark.parametrize("name", ["result", "curve", "verdicts", "head scores", "centres"])
def test_other_folders_full_disks_and_damaged_files_are_one_line(name, tmp_path, monkeypatch):
    made = MADE[name]()

    def refused(call, message):
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)

    other, own, file = tmp_path / "other", tmp_path / "own", tmp_path / "own" / made.RECORD
    other.mkdir()
    (other / "record.json").write_text('{"profile": "demo"}')
    refused(lambda: made.save(other), "holds a record.json of something else; name another folder")
    assert len(list(other.iterdir())) == 1
    made.save(other, overwrite=True)
    assert type(made).load(other).contents().records == made.contents().records

    made.save(own)
    before, calls = {path.name: path.read_bytes() for path in own.iterdir()}, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == len(before):  # the last file
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        refused(lambda: made.save(own, overwrite=True), "cannot write to .*No space left on device")
    assert {path.name: path.read_bytes() for path in own.iterdir()} == before
    for content, message in (("{half", f"cannot read {made.RECORD} in "), ("[1]", "is not a JSON object")):
        file.write_text(content)
        refused(lambda: type(made).load(own), message)
    file.unlink()
    refused(
        lambda: type(made).load(own), f"holds no {made.RECORD}; give a folder that {type(made).__name__}.save wrote"
    )


def test_other_settings_and_other_kinds_do_not_replace_each_other(tmp_path):
    scores(limit=2).save(tmp_path / "scores")
    with pytest.raises(UserError, match=r"holds another result \(limit 2, not 3\)"):
        scores(limit=3).save(tmp_path / "scores")
    reasoning().save(tmp_path / "reasoning")
    with pytest.raises(UserError, match="holds a record.json of something else"):
        geometry().save(tmp_path / "reasoning")
    with pytest.raises(UserError, match="holds no heads.parquet; give a folder that HeadScores.save wrote"):
        dl.HeadScores.load(tmp_path / "reasoning")
    dl.critical_stability(sweep(), n_boot=50).save(tmp_path / "table")
    with pytest.raises(UserError, match=r"holds another result \(made_by critical_stability, not centre_of_mass\)"):
        dl.analysis.centre_of_mass(sweep(), n_boot=50).save(tmp_path / "table")


def test_head_scores_of_version_01_are_read(tmp_path):
    made = scores()
    made.save(tmp_path)
    path = tmp_path / "record.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "kind"}))
    pd.testing.assert_frame_equal(dl.HeadScores.load(tmp_path).frame, made.frame)


def test_a_result_that_replaced_another_is_not_taken_for_the_curves_own(tmp_path):
    made = curve()
    made.save(tmp_path)
    made.result.select(conditions=["L0.H0"]).save(tmp_path, overwrite=True)
    with pytest.raises(UserError, match="removal_curve.json and record.json belong to different results"):
        dl.RemovalCurve.load(tmp_path)
    other = dl.Greedy(greedy().steps, greedy().result, "enough", greedy().record | {"tolerance": 0.2})
    greedy().save(tmp_path / "greedy")
    with pytest.raises(UserError, match=r"holds another result \(tolerance 0.1, not 0.2\)"):
        other.save(tmp_path / "greedy")


def test_a_table_shows_itself_rounded():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = dl.analysis.centre_of_mass(sweep(), n_boot=50)
    centre = made.table["centre"].item()
    assert f"{centre:.3f}" in repr(made) and f"{centre:.3f}" in made._repr_html_() and "<table" in made._repr_html_()
    assert made.record["made_by"] == "centre_of_mass" and made.record["made_from"][0]["tasks"] == ["t"]
