"""What a removal curve says in words, on a curve written by hand."""

from __future__ import annotations

import pandas as pd
import pytest

import depthlens as dl
from depthlens.analysis.results import DOCS_COLUMNS
from depthlens.errors import UserError

N = 20
# right answers of 20 without nothing, without each list (one head each), and without the random heads L0.H2 and L0.H3
RIGHT = {
    "copy": {"baseline": 20, "L0.H0": 2, "L0.H1": 19, "L0.H2": 19, "L0.H3": 18},
    "sums": {"baseline": 20, "L0.H0": 19, "L0.H1": 3, "L0.H2": 19, "L0.H3": 18},
    "guess": {"baseline": 5, "L0.H0": 5, "L0.H1": 5, "L0.H2": 5, "L0.H3": 5},
}
LISTS = {"retrieval": "L0.H0", "reasoning": "L0.H1"}


def curve(tasks=tuple(RIGHT)) -> dl.RemovalCurve:
    rows, points, band, tests = [], [], [], []
    for task in tasks:
        for condition, n_right in RIGHT[task].items():
            head = None if condition == "baseline" else int(condition[-1])
            layer = None if head is None else 0
            rows += [("m", task, "acc", condition, layer, head, i, float(i < n_right), "") for i in range(N)]
        for name, condition in LISTS.items():
            value, random = RIGHT[task][condition] / N, [RIGHT[task][c] / N for c in ("L0.H2", "L0.H3")]
            points += [(name, task, "acc", 0, RIGHT[task]["baseline"] / N), (name, task, "acc", 1, value)]
            band += [(name, task, "acc", k, min(random), max(random), 2) for k in (0, 1)]
            separates, at_chance = value < min(random), task == "guess"
            numbers = (value, sum(random) / 2, min(random), max(random), 1 / 3)
            tests.append((name, task, "acc", True, *numbers, separates, at_chance))
    keys = ["list", "task", "metric"]
    numbers = ["value", "random", "low", "high", "p_value"]
    tables = (
        pd.DataFrame(points, columns=[*keys, "k", "value"]),
        pd.DataFrame(band, columns=[*keys, "k", "low", "high", "n_draws"]),
        pd.DataFrame(tests, columns=[*keys, "higher_is_better", *numbers, "separates", "at_chance"]),
    )
    metrics = {"metrics": {"acc": {"higher_is_better": True, "chance": 0.25}}}
    result = dl.Result(pd.DataFrame(rows, columns=DOCS_COLUMNS), {"tasks": dict.fromkeys(tasks, metrics)})
    lists = {name: [(0, int(condition[-1]))] for name, condition in LISTS.items()}
    draws = {name: [[(0, 2)], [(0, 3)]] for name in LISTS}
    return dl.RemovalCurve(*tables, result, {"lists": lists, "draws": draws, "k": [1], "n_draws": 2})


def test_separations_and_dissociations():
    lines = curve().describe()
    assert len(lines) == 6 + 1
    assert lines[0].startswith(
        "retrieval on copy (acc): separates from random heads; k = 1: 0.1 against 0.925 [0.9, 0.95"
    )
    assert lines[0].endswith("outside the band at k = 1.")
    assert lines[1].startswith("reasoning on copy (acc): does not separate from random heads;")
    assert "at chance, cannot judge" in lines[4]
    assert lines[6] == "Double dissociation of retrieval and reasoning between copy and sums."


def test_what_a_list_is_specific_to():
    made = curve()
    retrieval, reasoning = made.describe(specific_to="copy")
    assert retrieval.startswith("retrieval costs, beyond random heads of the same layers, 0.82 [")
    assert retrieval.endswith(": specific to copy.")
    assert reasoning.endswith(": no more than random heads there, so not specific to copy.")
    (row,) = made.excess.query("list == 'retrieval' and task == 'copy'").itertuples()
    assert row.excess == pytest.approx((19 + 18) / 2 / N - 2 / N) and row.ci_low < row.excess < row.ci_high
    for sentence in made.describe(specific_to="guess"):
        assert sentence.endswith("at chance, so that its specificity cannot be judged.")
    with pytest.raises(UserError, match="unknown task 'facts'"):
        made.describe(specific_to="facts")
    with pytest.raises(UserError, match="the curve has the task copy alone"):
        curve(tasks=("copy",)).describe(specific_to="copy")
