"""Tests by betting: the capital is that of a gambler, intervals cover at every time, no null is forgotten."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from depthlens.analysis import betting

SAME = 1e-12


def test_capital_is_that_of_a_gambler_who_splits_it_over_all_bets():
    values = np.random.default_rng(0).uniform(-1, 1, 50)
    purses = betting.WEIGHTS
    for value in values:
        purses = purses * (1 + betting.BETS * value)
    found = betting.log_capital(betting.log_gains(values))
    assert found == pytest.approx(np.log(purses.sum()), abs=SAME)


def test_batches_and_order_do_not_matter():
    values = np.random.default_rng(1).uniform(-1, 1, (40, 3))
    parts = betting.log_gains(values[:7]) + betting.log_gains(values[7:])
    assert np.allclose(parts, betting.log_gains(values[::-1]), atol=SAME)


@pytest.mark.parametrize("n_games", [500, pytest.param(2000, marks=pytest.mark.nightly)])
def test_a_fair_game_rarely_makes_rich(n_games):
    rng = np.random.default_rng(2)
    alpha = 0.05
    values = rng.choice([-1.0, 0.0, 1.0], (400, n_games), p=[0.1, 0.8, 0.1])
    gains = np.cumsum(np.log1p(values[..., None] * betting.BETS), axis=0)
    reached = (betting.log_capital(gains) >= np.log(1 / alpha)).any(axis=0)  # at any time
    assert 0 < reached.mean() <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / n_games)


def test_the_interval_has_the_means_that_no_bet_refutes():
    values = np.random.default_rng(3).choice([0.0, 1.0], 200, p=[0.7, 0.3])
    low, high = betting.anytime_interval(values, 0.05)
    assert low < values.mean() < high
    for end, sign in ((low, 1), (high, -1)):
        for mean, refuted in ((end - sign * 1e-6, True), (end + sign * 1e-6, False)):
            x = sign * (values - mean) / (1 + sign * mean)
            assert (betting.log_capital(betting.log_gains(x)) >= np.log(2 / 0.05)) == refuted


@pytest.mark.parametrize(("n", "most"), [(20, 6), pytest.param(100, 19, marks=pytest.mark.nightly)])
def test_the_interval_covers_at_all_times_together(n, most):
    rng = np.random.default_rng(4)
    missed = 0
    for _ in range(n):
        values = rng.choice([-1.0, 0.0, 1.0], 300, p=[0.05, 0.6, 0.35])
        intervals = [betting.anytime_interval(values[:k], 0.1) for k in (5, 20, 60, 150, 300)]
        missed += any(not low <= 0.3 <= high for low, high in intervals)
    assert missed <= most  # a tenth is allowed, and three standard errors more


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
