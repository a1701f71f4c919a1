"""What a removal curve says in words, on a curve written by hand."""

from __future__ import annotations

from dataclasses import replace

import made_results
import numpy as np
import pandas as pd
import pytest

import depthlens as dl
from depthlens.analysis.removal_contrasts import Costs, interaction_table, one_mean, sum_of_means
from depthlens.analysis.stats import mean_intervals
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
    points, band, tests, scores = [], [], [], {}
    for task in tasks:
        scores[task] = {condition: np.arange(N) < n_right for condition, n_right in RIGHT[task].items()}
        for name, condition in LISTS.items():
            value, random = RIGHT[task][condition] / N, [RIGHT[task][c] / N for c in ("L0.H2", "L0.H3")]
            points += [(name, task, "acc", 0, RIGHT[task]["baseline"] / N), (name, task, "acc", 1, value)]
            band += [(name, task, "acc", k, min(random), max(random), 2) for k in (0, 1)]
            separates, at_chance = value < min(random), task == "guess"
            numbers = (value, sum(random) / 2, min(random), max(random), 0.04 if separates else 0.5, 0.04)
            tests.append((name, task, "acc", True, *numbers, separates, at_chance))
    keys, numbers = ["list", "task", "metric"], ["value", "random", "low", "high", "p_value", "smallest_p"]
    tables = (
        pd.DataFrame(points, columns=[*keys, "k", "value"]),
        pd.DataFrame(band, columns=[*keys, "k", "low", "high", "n_draws"]),
        pd.DataFrame(tests, columns=[*keys, "higher_is_better", *numbers, "separates", "at_chance"]),
    )
    lists = {name: [(0, int(condition[-1]))] for name, condition in LISTS.items()}
    draws = {name: [[(0, 2)], [(0, 3)]] for name in LISTS}
    record = {"lists": lists, "draws": draws, "k": [1], "n_draws": 2, "n_lists": {}}
    return dl.RemovalCurve(*tables, made_results.result(scores), record)


def test_separations_and_dissociations():
    lines = curve().describe()
    assert len(lines) == 6 + 3
    separates = "retrieval on copy (acc): separates from random heads; k = 1: 0.1 against 0.925 [0.9, 0.95"
    assert lines[0].startswith(separates) and lines[0].endswith("outside the band at k = 1.")
    assert lines[1].startswith("reasoning on copy (acc): does not separate from random heads;")
    assert "at chance, cannot judge" in lines[4]
    double = "Double dissociation of retrieval and reasoning between copy and sums: interaction 2.2 ["
    assert lines[6].startswith(double)
    assert lines[7] == "retrieval and reasoning between copy and guess: at chance, cannot judge."


def test_what_a_list_is_specific_to():
    made = curve()
    retrieval, reasoning = made.describe(specific_to="copy")
    assert retrieval.startswith("retrieval costs, beyond random heads of the same layers, 0.82 [")
    assert ", difference to sums 1.1 [" in retrieval and retrieval.endswith(": specific to copy.")
    assert reasoning.endswith(": not shown to be more than random heads cost, so not specific to copy.")
    (row,) = made.excess.query("list == 'retrieval' and task == 'copy'").itertuples()
    assert row.excess == pytest.approx((19 + 18) / 2 / N - 2 / N) and row.ci_low < row.excess < row.ci_high
    for sentence in made.describe(specific_to="guess"):
        assert sentence.endswith("at chance, so that its specificity cannot be judged.")
    with pytest.raises(UserError, match="unknown task 'facts'"):
        made.describe(specific_to="facts")
    with pytest.raises(UserError, match="the curve has the task copy alone"):
        curve(tasks=("copy",)).describe(specific_to="copy")


def test_differences_by_hand():
    made = curve(("copy", "sums"))
    (row,) = made.interactions.itertuples()
    share = 1 - 0.25  # above chance
    assert row.on_task == pytest.approx((19 - 2) / N / share) and row.on_other == pytest.approx((19 - 3) / N / share)
    assert row.effect == pytest.approx(row.on_task + row.on_other) and row.double
    (row,) = made.specificity.query("list == 'retrieval' and task == 'copy'").itertuples()
    assert row.effect == pytest.approx(((18.5 - 2) - (18.5 - 19)) / N / share)
    (row,) = made.ratio.query("list == 'retrieval' and task == 'copy'").itertuples()
    assert row.effect == pytest.approx((20 - 2) / N - 3 * (20 - 18.5) / N)
    # by document: 2 keep their answer, 16 lose it, and 2 lose it to one or both of the random heads, too
    by_document = np.r_[[0.0] * 2, [1.0] * 16, 1 - 1.5, 1 - 3]
    low, high = (float(bound[0]) for bound in mean_intervals(by_document[None]))
    assert (row.ci_low, row.ci_high) == pytest.approx((low, high))
    (row,) = made.ratio.query("list == 'reasoning' and task == 'copy'").itertuples()
    assert row.effect == pytest.approx((20 - 19) / N - 3 * (20 - 18.5) / N)


def test_documents_of_two_tasks_are_paired_where_they_ask_the_same():
    made, noise = curve(("copy", "sums")), np.random.default_rng(0).normal(scale=3, size=N)
    docs = made.result.docs
    value = docs["value"] + np.where(docs["condition"] == "L0.H0", noise[docs["doc_id"]], 0)
    unknown = dl.Result(docs.assign(value=value), made.result.record)
    known = made_results.same_documents(unknown)
    rows = [replace(made, result=result).interactions.iloc[0] for result in (known, unknown)]
    widths = [row["ci_high"] - row["ci_low"] for row in rows]
    # the noise of list 1 is in both terms with opposite signs, so that pairing removes half of the variance
    assert widths[0] < 0.8 * widths[1]


def test_sums_of_two_means_keep_their_level():
    rng = np.random.default_rng(1)
    found = [
        sum_of_means(rng.exponential(size=40) - 1, 2 * (rng.random(25) < 0.3) - 0.6) for _ in range(400)
    ]  # fmt: skip
    covered = np.mean([low <= 0 <= high for _, low, high, _ in found])
    assert 0.91 <= covered <= 0.98 and np.mean([p < 0.05 for *_, p in found]) == pytest.approx(1 - covered)
    still = sum_of_means(np.zeros(20), np.zeros(30))
    assert still[0] == 0 and still[1] < 0 < still[2] and still[3] == 1, "no interval has zero width"
    assert np.isnan(one_mean(np.array([np.nan, 1.0]))[0])


@pytest.mark.parametrize("n", [40, pytest.param(200, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("one_only", [True, False])
def test_a_difference_of_significances_is_no_dissociation(one_only, n):
    """Two lists that cost the same on both tasks, or one of them more on both: no interaction.

    Reading it off two rank tests called these doubly dissociated where noise made one of each pair significant.
    """
    rng, double, crossed = np.random.default_rng(2), [], []
    for _ in range(n):
        costs = []
        for task in ("one", "two"):
            lists = {"a": 0.3 + rng.normal(size=30), "b": (0.0 if one_only else 0.3) + rng.normal(size=30)}
            costs.append(Costs(task, "answer_logprob", False, lists, lists, 1.0, (task,)))
        (row,) = interaction_table(costs).itertuples()
        double.append(row.double)
        crossed.append(row.p_value < 0.05)
    at_most = 0.05 + 3 * np.sqrt(0.05 * 0.95 / n)
    assert np.mean(double) <= at_most and np.mean(crossed) <= at_most
