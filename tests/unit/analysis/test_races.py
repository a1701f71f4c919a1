"""Races and their tests by betting: what they decide is rarely wrong, both ways, and at every time."""

from itertools import product

import numpy as np
import pytest
import simulated_races
from made_results import race
from simulated_races import MARGIN

from depthlens.analysis.numbers import betting
from depthlens.analysis.numbers.betting import CRITICAL, SPARED, UNDECIDED


def run(rng, mean, n):
    """The decisions of a race by waves of 50 on parts with these means, and the documents that each took."""
    mean = np.asarray(mean)
    losses = simulated_races.binary(rng, mean, np.maximum(mean + 0.02, 0.06), n)
    return simulated_races.race(losses, lambda seen: seen + 50)


def test_both_decisions_and_early_ones_where_the_effect_is_large():
    mean = [0.6, 0.3, 0.0, 0.0, 0.02]
    decided, seen = run(np.random.default_rng(0), mean, 2000)
    assert decided == [CRITICAL, CRITICAL, SPARED, SPARED, SPARED]
    assert seen[0] == 50 and max(seen[2:]) <= 500


@pytest.mark.parametrize(("n", "most"), [(30, 5), pytest.param(200, 19, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("mean", [0.0, MARGIN])
def test_family_wise_errors(mean, n, most):
    wrong = 0
    for seed in range(n):
        decided, _ = run(np.random.default_rng(seed), [mean] * 10, 400)
        wrong += (CRITICAL if mean == 0 else SPARED) in decided
    assert wrong <= most  # 5% are allowed, and three standard errors more


def test_sentences_and_lists():
    found = race([CRITICAL, SPARED, SPARED, UNDECIDED])
    assert found.of(SPARED) == ["L1", "L2"] and found.of(CRITICAL, "t") == ["L0"]
    first, last = found.describe()
    assert first.startswith("t (acc): of 4 conditions **1** cost something, **2** cost less than 0.1, 1 are undecided")
    assert "after 20 to 23 of 200 documents (mean 22)" in first and last.endswith("is at most 0.05.")
    assert "do not show the whole model to be above chance" in race(2 * [betting.AT_CHANCE]).describe()[0]
    text, page = repr(found), found._repr_html_()
    assert "describe() says it in words" in text and "<td>critical</td>" in page
    assert "40 more rows in .decisions" in repr(race([SPARED] * 100))


SAME = 1e-12


def test_capital_is_that_of_a_gambler_who_splits_it_over_all_bets():
    values = np.random.default_rng(0).uniform(-1, 1, 50)
    purses = betting.WEIGHTS
    assert purses.sum() == pytest.approx(1) and (purses > 0).all() and (abs(betting.BETS) < 1).all(), "a fair game"
    for value in values:
        purses = purses * (1 + betting.BETS * value)
    found = betting.log_capital(betting.log_gains(values))
    assert found == pytest.approx(np.log(purses.sum()), abs=SAME)


def test_the_interval_has_the_means_that_no_bet_refutes():
    values = np.random.default_rng(3).choice([0.0, 1.0], 200, p=[0.7, 0.3])
    low, high = betting.anytime_interval(values, 0.05)
    assert low < values.mean() < high
    for end, sign in ((low, 1), (high, -1)):
        for mean, refuted in ((end - sign * 1e-6, True), (end + sign * 1e-6, False)):
            x = sign * (values - mean) / (1 + sign * mean)
            assert (betting.log_capital(betting.log_gains(x)) >= np.log(2 / 0.05)) == refuted


def test_without_values_everything_is_possible():
    assert betting.anytime_interval(np.array([]), 0.05) == (-1.0, 1.0)
    low, high = betting.anytime_interval(np.zeros(3), 0.05)
    assert -1 < low < 0 < high < 1 and low == pytest.approx(-high, abs=1e-9)


def test_closed_testing_by_all_subsets():
    rng = np.random.default_rng(5)
    alpha = 0.1
    for _ in range(50):
        capitals = np.exp(rng.normal(1.5, 2.5, (5, 2)))
        expected = np.zeros((5, 2), dtype=bool)
        for group, null in product(range(5), range(2)):
            averages = []
            for others in product((None, 0, 1), repeat=4):  # no null of a group, or one of them
                chosen = [capitals[group, null]]
                rest = [g for g in range(5) if g != group]
                chosen += [capitals[g, o] for g, o in zip(rest, others, strict=True) if o is not None]
                averages.append(np.mean(chosen))
            expected[group, null] = min(averages) >= 1 / alpha
        assert np.array_equal(betting.closed_rejections(np.log(capitals), alpha), expected)
