"""Verdicts of runs side by side: estimates are compared, never verdicts."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from made_layer_sweeps import FEW, FLAT
from made_runs import verdicts

from depthlens.analysis import run_settings, run_verdicts
from depthlens.analysis.run_families import Run
from depthlens.analysis.run_settings import COLUMNS

NO_SETTINGS = pd.DataFrame(columns=COLUMNS).astype({"equal": "bool"})


def part(effect, low, high, *, claim="C1", what="a share", verdict="undecided", tasks="letters acc"):
    return {
        **{"claim": claim, "part": "a", "what": what, "view": "all layers", "effect": effect, "ci_low": low},
        **{"ci_high": high, "threshold": 0.5, "unit": "of layers", "n": 100, "seeds": 3, "tasks": tasks},
        **{"verdict": verdict, "claim_verdict": verdict, "why": ""},
    }


def compared(*runs, settings=NO_SETTINGS, stages=False):
    made = [Run(name, {}, {"": pd.DataFrame(parts)}) for name, parts in zip("abc", runs, strict=False)]
    return run_verdicts.compare(made, settings, stages)


def test_the_difference_of_two_estimates_comes_from_both_intervals():
    table, notes = compared([part(0.2, 0.1, 0.35)], [part(0.8, 0.6, 0.9)])
    row = table.set_index("run").loc["b"]
    assert notes == [] and row["reference"] == "a" and table.set_index("run").loc["a", "reference"] == ""
    assert row["difference"] == pytest.approx(0.6)
    assert row["difference_low"] == pytest.approx(0.6 - math.hypot(0.8 - 0.6, 0.35 - 0.2))
    assert row["difference_high"] == pytest.approx(0.6 + math.hypot(0.9 - 0.8, 0.2 - 0.1))
    assert row["shown"] and row["p_adjusted"] < 0.001
    touching, _ = compared([part(0.5, 0.4, 0.6)], [part(0.5 + 0.1 * math.sqrt(2), 0.4 + 0.1 * math.sqrt(2), 0.9)])
    assert touching["p_adjusted"].iloc[1] == pytest.approx(0.05), "the interval ends at 0"


def test_p_values_are_corrected_over_parts_and_pairs():
    parts = [
        [part(e, e - 0.1, e + 0.1, claim=c) for c, e in (("C1", x), ("C2", y))] for x, y in ((0.2, 0.2), (0.36, 0.9))
    ]
    one, both = compared(parts[0][:1], parts[1][:1])[0], compared(*parts)[0]
    alone = one["p_adjusted"].iloc[1]
    assert alone < 0.05 and both.set_index(["run", "claim"]).loc[("b", "C1"), "p_adjusted"] == pytest.approx(alone)
    assert compared(parts[0][:1], parts[1][:1], parts[1][:1])[0]["p_adjusted"].iloc[1] == pytest.approx(2 * alone)
    assert not compared(parts[0][:1], parts[1][:1], parts[1][:1], stages=True)[0]["shown"].iloc[2]


def test_estimates_of_something_else_are_not_compared():
    table, notes = compared([part(0.2, 0.1, 0.3)], [part(0.8, 0.7, 0.9, what="another share")])
    assert not table["shown"].any() and not table["reference"].any()
    assert notes == ["C1a of b and a are of other tasks, views or thresholds, and are not compared"]


def test_settings_of_a_task_that_one_run_lacks_keep_nothing_from_being_compared():
    """The task of the first run and the third is no part of the second."""
    rows = [("", "facts", "num_fewshot", "decides", False, run, value) for run, value in (("a", "0"), ("c", "5"))]
    settings, parts = pd.DataFrame(rows, columns=COLUMNS), [part(0.2, 0.1, 0.3)]
    table, notes = compared(parts, parts, parts, settings=settings)
    assert table.set_index("run")["reference"].to_dict() == {"a": "", "b": "a", "c": ""}
    assert notes == ["verdicts of c are not compared with a: a and c differ in num_fewshot of facts 0 and 5"]


def test_parts_of_real_verdicts_have_what_is_compared():
    runs = [verdicts(loss, name).parts for name, loss in (("few", FEW), ("flat", FLAT))]
    table, notes = compared(*(parts.assign(claim_verdict="") for parts in runs))
    assert notes == [] and set(run_verdicts.PART) <= set(table.columns)
    shown = table[table["shown"]]
    assert set(shown["claim"] + shown["part"]) == {"C1b", "C1d"}, "the costliest later layer"


def test_settings_that_begin_alike_are_told_apart():
    """A value is shown in a short line; two long ones that differ at their end have different lines."""
    begins = {"anatomy": {"file": "x" * 80}}
    one, other = (run_settings.text(begins | {"version": version}) for version in (1, 2))
    assert one != other and max(len(one), len(other)) <= 60
