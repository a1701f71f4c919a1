"""Critical conditions found automatically: the same as by hand, with a stability that means something."""

import made_results
import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, rankdata

from depthlens.analysis import stats
from depthlens.analysis.bootstrap import draws
from depthlens.analysis.max_t import threshold
from depthlens.analysis.results import Result
from depthlens.analysis.stability import COLUMNS, critical_in_resamples, critical_stability, rank_intervals


def sweep(lost, *, continuous=False, min_effect=0.0, **options):
    """A sweep of layers with these probabilities of losing a right answer (or so many nats, if continuous)."""
    kind = {"noise": 0.3, "chance": None} if continuous else {"chance": 0.25}
    make = made_results.nats if continuous else made_results.sweep
    return make(lost, info={"min_effect": min_effect}, n_layers=len(lost), **kind | options)


LOST = [0.8, 0.0, 0.4, 0.0, 0.05, 0.2]


@pytest.mark.parametrize(("better", "continuous"), [(True, False), (True, True), (False, False)])
def test_the_conditions_and_losses_are_those_of_the_summary(better, continuous):
    result = sweep(LOST, continuous=continuous, **({} if better else {"better": False, "chance": 0.75}))
    table = critical_stability(result, n_boot=50, seed=1).table
    wanted = result.critical()
    assert list(table.columns) == COLUMNS
    assert set(table["condition"]) == set(wanted["condition"]) >= {"L0", "L2"}
    rows = wanted.set_index("condition").loc[table["condition"]]
    assert table["loss"].to_numpy() == pytest.approx(rows["delta"].abs().to_numpy())
    assert (table["ci_low"] <= table["loss"]).all() and (table["loss"] <= table["ci_high"]).all()
    assert table["p_adjusted"].to_numpy() == pytest.approx(rows["p_adjusted"].to_numpy())
    assert list(table["rank"][:2]) == [1, 2]
    assert (table["rank_low"] <= table["rank"]).all() and (table["rank"] <= table["rank_high"]).all()
    pd.testing.assert_frame_equal(critical_stability(result, n_boot=50, seed=1).table, table)
    assert continuous or not critical_stability(result, n_boot=50, seed=2).table.equals(table)


@pytest.mark.parametrize("continuous", [True, False])
def test_a_resample_has_to_pass_the_threshold_of_the_sample(continuous):
    result = sweep(LOST, continuous=continuous, n=30, min_effect=0.02)
    values = result.docs.pivot(index="condition", columns="doc_id", values="value")
    loss = (values.loc["baseline"] - values.drop(index="baseline")).to_numpy()
    counts = draws(30, 20, 3)
    needed = threshold(loss, symmetric=not continuous, alpha=0.05)
    again, mean = critical_in_resamples(loss, counts, not continuous, 0.05, 0.02)
    for row, found, means in zip(counts.astype(int), again, mean, strict=True):
        drawn = np.repeat(loss, row, axis=1)
        sums = drawn.sum(1) / np.sqrt(np.square(drawn).mean(1) + 1e-300)
        alone = True if continuous else stats.mcnemar_p((drawn > 0).sum(1), (drawn < 0).sum(1)) < 0.05
        assert list(found) == list((sums > needed) & (drawn.mean(1) > 0.02) & alone)
        assert means == pytest.approx(drawn.mean(1))


def test_stability_is_high_far_from_the_border_and_about_half_at_it():
    far = critical_stability(sweep([0.8, 0.0, 0.0], n=60)).table.set_index("condition")
    assert far.loc["L0", "stability"] > 0.99
    assert far.loc["L0", "rank_low"] == far.loc["L0", "rank_high"] == 1
    n, right = 60, np.ones(60)
    # 7 of 7 lost: p = 0.016; 6 would do, 5 would not, and nothing else ever changes
    result = made_results.result({"t": {"baseline": right, "L0": np.arange(n) >= 7, "L1": right, "L2": right}})
    (row,) = critical_stability(result, n_boot=4000).table.itertuples()
    # the number of lost documents in a resample is binomial
    assert row.stability == pytest.approx(binom.sf(5, n, 7 / n), abs=0.03)


def test_nothing_is_critical_at_chance_or_without_loss():
    guess = critical_stability(sweep(LOST, accuracy=0.25), n_boot=20)
    assert guess.table.empty and "at chance, cannot judge" in guess.describe()[0]
    nothing = critical_stability(sweep([0.0] * 4), n_boot=20)
    assert nothing.table.empty and list(nothing.table.columns) == COLUMNS
    assert "**0 of 4** layers critical (n = 60): none is proven" in nothing.describe()[0]
    tiny = sweep([0.02, 1.0], continuous=True, n=4000, min_effect=0.05)
    assert list(critical_stability(tiny, n_boot=20).table["condition"]) == ["L1"], "below the smallest effect"


def test_every_task_has_its_own_rows_and_sentence():
    results = [sweep(LOST, task=t, seed=i) for i, t in enumerate("xy")]
    record = results[0].record | {"tasks": {k: v for r in results for k, v in r.record["tasks"].items()}}
    stability = critical_stability(Result(pd.concat([r.docs for r in results]), record), n_boot=50)
    alone = critical_stability(results[1], n_boot=50).table
    part = stability.table[stability.table["task"] == "y"].reset_index(drop=True)
    pd.testing.assert_frame_equal(part, alone)
    lines = stability.describe()
    assert len(lines) == 2 and "L0 costs 0." in lines[0] and "of resamples, rank 1 [1, 1] of 6" in lines[0]


@pytest.mark.nightly
@pytest.mark.parametrize("n", [30, 100])
def test_rank_intervals_cover_the_true_ranks(n):
    """Twenty conditions, six of which cost something. A bootstrap of ranks covers in too few samples."""
    rng = np.random.default_rng(0)
    true = np.r_[1.0, 0.8, 0.6, 0.5, 0.4, 0.2, 1e-3 * np.arange(14)[::-1]]
    covered, naive, samples = [], [], 60
    for i in range(samples):
        loss = true + rng.standard_normal((n, 1)) * 0.5 + rng.standard_normal((n, 20))
        means = draws(n, 200, i) @ loss / n
        low, high = rank_intervals(means, np.arange(20))
        covered.append((low <= np.arange(1, 21)) & (np.arange(1, 21) <= high))
        ends = np.quantile(rankdata(-means[1:], axis=1), [0.025, 0.975], axis=0)
        naive.append((ends[0] <= np.arange(1, 21)) & (np.arange(1, 21) <= ends[1]))
    assert np.mean(covered, axis=0).min() >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / samples)
    assert np.mean(naive, axis=0).min() < 0.9
