"""Removal curves and scores of heads, written by hand: words, order, files, verdicts, roles, losses."""

import made_results
import numpy as np
import pytest
import scipy.stats as sps
from made_results import head_scores, removal_curve

import depthlens as dl
from depthlens.analysis.heads import curves
from depthlens.analysis.heads.curves import Costs, interaction_table
from depthlens.analysis.numbers.means import UNLIMITED, mean

N = 20


def test_separations_and_dissociations():
    lines = removal_curve().describe()
    assert len(lines) == 6 + 3
    assert "separates from random heads" in lines[0] and "does not separate" in lines[1] and "cannot judge" in lines[4]
    assert lines[6].startswith("Double dissociation of retrieval and reasoning") and "cannot judge" in lines[7]


def test_differences_by_hand():
    made = removal_curve(("copy", "sums"))
    (row,) = made.interactions.itertuples()
    share = 1 - 0.25  # above chance
    assert row.on_task == pytest.approx((19 - 2) / N / share) and row.on_other == pytest.approx((19 - 3) / N / share)
    assert row.effect == pytest.approx(row.on_task + row.on_other) and row.double
    copy, _ = curves.costs(made.result.every_losses.values(), made.record)
    ratio = copy.lists["retrieval"] - copy.random["retrieval"] * 3
    assert ratio.value == pytest.approx((20 - 2) / N - 3 * (20 - 18.5) / N)
    # by document: 2 keep their answer, 16 lose it, and 2 lose it to one or both of the random heads, too
    by_document = np.r_[[0.0] * 2, [1.0] * 16, 1 - 1.5, 1 - 3]
    imaginary = 2 * (0.5 / N) ** 2 * (1 + 3**2)  # half a document lost and half one won, of the list and three times
    half = sps.t.ppf(0.975, N - 1) * np.sqrt(by_document.var(ddof=1) / N + imaginary)
    assert ratio.interval() == pytest.approx((ratio.value - half, ratio.value + half))
    assert copy.lists["retrieval"].value == pytest.approx(18 / N) and copy.lists["retrieval"].n == N


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
            drawn = {"a": 0.3 + rng.normal(size=30), "b": (0.0 if one_only else 0.3) + rng.normal(size=30)}
            units = [f"{task}:{i}" for i in range(30)]
            lists = {name: mean(values, units, limits=UNLIMITED) for name, values in drawn.items()}
            costs.append(Costs(task, "answer_logprob", False, lists, lists, None))
        (row,) = interaction_table(costs).itertuples()
        double.append(row.double)
        crossed.append(row.p_value < 0.05)
    at_most = 0.05 + 3 * np.sqrt(0.05 * 0.95 / n)
    assert np.mean(double) <= at_most and np.mean(crossed) <= at_most


VALUES, CRITICAL = [[0.1, 0.5], [0.5, np.nan]], np.array([[False, True], [True, False]])


def test_top_is_sorted_and_leaves_out_what_was_not_measured():
    scores = head_scores(VALUES)
    assert scores.top(3) == [(0, 1), (1, 0), (0, 0)] and scores.top(1) == [(0, 1)]


def test_means_intervals_and_verdicts_over_cases():
    rng = np.random.default_rng(0)
    cases = rng.normal(0, 1, (30, 2, 3))
    cases[:, 1, 2] += 3
    scores = dl.HeadScores.of_cases("test", "nats", cases, {}, tested=True)
    assert np.allclose(scores.values, cases.mean(0)) and scores.n == 30
    assert np.argwhere(scores.critical).tolist() == [[1, 2]]
    half = sps.t.ppf(0.975, 29) * sps.sem(cases)
    assert np.allclose([scores.grid("high") - scores.values, scores.values - scores.grid("low")], half)
    assert not dl.HeadScores.of_cases("test", "nats", -cases, {}, tested=True).critical.any()  # gains are not critical
    assert dl.HeadScores.of_cases("test", "", cases, {}, tested=False).critical is None


def test_an_interval_of_bounded_scores_has_a_width():
    cases = np.zeros((30, 1, 2))
    cases[:3, 0, 0] = 1.0
    scores = dl.HeadScores.of_cases("test", "", cases, {}, tested=False, limits=(0.0, 1.0))
    assert (scores.grid("low") <= scores.values).all() and (scores.values < scores.grid("high")).all()
    assert "[" in scores.describe()[0] and "nan" not in scores.describe()[0]
    alone = dl.HeadScores.of_cases("test", "", cases[:1], {}, tested=False)
    assert alone.frame["low"].isna().all() and "[" not in alone.describe()[0], "one case has no interval"


N_LAYERS, N_HEADS, N_DOCS = 3, 4, 40


def sweep(effect, task="t", metric="answer_logprob", noise=0.01, heads=None, **options):
    """A head sweep where removing a head changes the score by ``effect`` [layer, head]."""
    costs = {"L{}.H{}".format(*at): -effect[at] for at in heads or np.ndindex(N_LAYERS, N_HEADS)}
    sizes = {"n": N_DOCS, "n_layers": N_LAYERS, "n_heads": N_HEADS, "task": task, "metric": metric, "noise": noise}
    return made_results.nats(costs, **sizes | options)


@pytest.fixture
def effect():
    made = np.zeros((N_LAYERS, N_HEADS))
    made[1, 2], made[2, 0] = -0.9, -0.5  # nats, of which 1 a document counts
    return made


def test_losses_are_positive_where_the_score_falls(effect):
    found = sweep(effect).head_losses()
    assert found.values == pytest.approx(-effect, abs=0.01) and found.n == N_DOCS
    assert found.unit == "nats, at most 1 a document"
    assert found.top(2) == [(1, 2), (2, 0)]
    assert set(zip(*np.nonzero(found.critical), strict=True)) == {(1, 2), (2, 0)}
    assert found.frame.eval("low <= value <= high").all()
    worse_is_up = sweep(-effect, metric="nats", better=False).head_losses()
    assert worse_is_up.values == pytest.approx(-effect, abs=0.01) and worse_is_up.frame.eval("low <= high").all()
    assert sweep(effect, method="attribution").head_losses().name.startswith("estimated loss")


def test_heads_that_were_not_swept_have_no_loss(effect):
    found = sweep(effect, heads=[(1, h) for h in range(N_HEADS)]).head_losses()
    assert np.isnan(found.values[[0, 2]]).all() and np.isfinite(found.values[1]).all()
    assert found.top(1) == [(1, 2)]


def test_agreement_is_spearmans_of_heads_in_any_order(effect):
    rng = np.random.default_rng(1)
    spread = rng.permutation(effect.size).reshape(effect.shape) / 40
    found = dl.agreement(sweep(spread), sweep(spread * 3, method="attribution"))
    same = found.table.iloc[0]
    assert same.spearman == pytest.approx(1) and same.p_value < 0.01 and same.n_parts == N_LAYERS * N_HEADS
    opposite = dl.agreement(sweep(spread), sweep(-spread)).table.iloc[0]
    assert opposite.spearman == pytest.approx(-1) and opposite.p_value < 0.01
    assert len(dl.agreement(sweep(spread), sweep(spread, task="u")).table) == 0
    tasks = dl.agreement(dl.concat([sweep(spread), sweep(spread * 3, task="u")]))
    assert tasks.table["n_parts"].tolist() == [N_LAYERS * N_HEADS] and tasks.describe()[0].startswith("Heads by t and")
