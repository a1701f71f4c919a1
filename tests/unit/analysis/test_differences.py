"""Differences are tested as such: published cases, and error rates and power by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as sps

from depthlens.analysis.differences import interaction, non_inferiority, relative_losses
from depthlens.analysis.stats import tango_interval
from depthlens.errors import UserError


def means(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values.mean(0), values - values.mean(0)


def test_one_difference_is_welchs_test_and_interval():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((40, 1)) + 0.6, 2 * rng.standard_normal((25, 1))
    found = interaction(means(a), means(b), paired=False, n_draws=100_000)
    test = sps.ttest_ind(a[:, 0], b[:, 0], equal_var=False)
    assert found.p_adjusted[0] == pytest.approx(test.pvalue, abs=0.02)
    assert [found.low[0], found.high[0]] == pytest.approx(list(test.confidence_interval()), abs=0.08)


def test_relative_losses_and_their_noise():
    loss, room = np.array([[1.0, 0], [1, 1], [0, 0], [1, 0]]), np.array([0.75, 0.75, -0.25, 0.75])
    share, parts = relative_losses(loss, room)
    assert share == pytest.approx([1.5, 0.5])
    assert parts.mean(0) == pytest.approx([0, 0], abs=1e-12)
    assert parts[0] == pytest.approx([(1 - 1.5 * 0.75) / 0.5, (0 - 0.5 * 0.75) / 0.5])
    with pytest.raises(UserError, match="nothing to take shares of"):
        relative_losses(loss, room - 1)


def protocol(n: int, lost: np.ndarray, rng: np.random.Generator, hard: np.ndarray | None = None):
    """Losses and room of a task of four options with a baseline of 0.8; a layer breaks an answer to a guess."""
    hard = rng.random(n) if hard is None else hard
    right = rng.random(n) < 0.8
    broken = 0.5 * hard[:, None] + 0.5 * rng.random((n, len(lost))) < lost
    after = np.where(broken, rng.random((n, len(lost))) < 0.25, right[:, None])
    return right[:, None].astype(float) - after, right - 0.25


@pytest.mark.parametrize("samples", [25, pytest.param(150, marks=pytest.mark.nightly)])
@pytest.mark.parametrize(("paired", "n"), [(True, 30), (False, 30), (True, 100)])
def test_equal_damage_is_rarely_called_a_difference(paired, n, samples):
    """30 layers, half of them damaging both tasks alike. Comparing two p-values finds a difference in most samples."""
    rng = np.random.default_rng(0)
    lost = np.linspace(0, 0.6, 30)
    wrong = compared = 0
    for _ in range(samples):
        hard = rng.random(n) if paired else None
        tasks = [protocol(n, lost, rng, hard) for _ in range(2)]
        found = interaction(*(relative_losses(*task) for task in tasks), paired=paired, n_draws=400)
        wrong += (found.p_adjusted < 0.05).any()
        significant = [sps.ttest_1samp(loss, 0, axis=0).pvalue * 30 < 0.05 for loss, _ in tasks]
        compared += (significant[0] != significant[1]).any()
    assert wrong / samples <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / samples)
    assert compared / samples > 0.8, "artefact A6: it should show what is mended here"


@pytest.mark.slow
def test_a_difference_is_found_and_its_intervals_hold_it_together():
    rng = np.random.default_rng(1)
    low, high = np.full(20, 0.1), np.r_[np.full(5, 0.6), np.full(15, 0.1)]
    found, covered, samples = 0.0, 0, 50
    shares = [relative_losses(*protocol(400_000, lost[[0, -1]], rng))[0] for lost in (high, low)]
    true = np.r_[np.full(5, shares[0][0] - shares[1][0]), np.zeros(15)]
    for _ in range(samples):
        tasks = [protocol(150, lost, rng) for lost in (high, low)]
        result = interaction(*(relative_losses(*task) for task in tasks), paired=False, n_draws=300)
        found += (result.p_adjusted[:5] < 0.05).mean() / samples
        covered += ((result.low <= true) & (true <= result.high)).all()
    assert found > 0.8 and covered / samples >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / samples)


def test_groups_that_cannot_be_compared_are_refused():
    one, many = means(np.ones((1, 3))), means(np.random.default_rng(0).random((9, 3)))
    with pytest.raises(UserError, match="a difference needs two in each"):
        interaction(one, many, paired=False)
    with pytest.raises(UserError, match="9 and 8 documents are not paired"):
        interaction(many, means(np.random.default_rng(1).random((8, 3))), paired=True)


def test_effects_without_any_noise_are_not_compared():
    same = np.full((30, 2), 0.5)
    found = interaction(means(same), means(same), paired=True)
    assert (found.p_adjusted == 1).all()


# -- non-inferiority ---------------------------------------------------------------------------------------


def test_one_block_of_right_and_wrong_answers_agrees_with_tangos_interval():
    loss = np.r_[np.ones(3), -np.ones(4), np.zeros(193)][:, None]
    low = float(tango_interval(3, 4, 200)[0])  # of the change: the loss is at most -low
    assert non_inferiority(loss, None, -low)[0] == pytest.approx(0.025, abs=1e-6)


def test_nothing_changed_on_few_documents_does_not_show_that_nothing_changes():
    assert non_inferiority(np.zeros((20, 1)), None, 0.05)[0] > 0.05
    assert non_inferiority(np.zeros((200, 1)), None, 0.05)[0] < 0.01


def rare_losses(n: int, m: int, mean: float, rng: np.random.Generator) -> np.ndarray:
    return mean * rng.exponential(1, (n, m))


@pytest.mark.parametrize("n", [30, pytest.param(100, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("kind", ["binary", "nats", "share of the score"])
def test_a_loss_at_the_margin_is_rarely_called_smaller(kind, n):
    rng = np.random.default_rng(0)
    samples, wrong = 150, 0
    for _ in range(samples):
        if kind == "nats":
            loss, room, margin = rare_losses(n, 20, 0.1, rng), None, 0.1
        else:
            right = rng.random(n) < 0.85
            loss = right[:, None] * (rng.random((n, 20)) < 0.1 * 0.6 / 0.85)
            room, margin = right - 0.25, 0.1
            if kind == "binary":
                room, margin = None, 0.06
        wrong += (non_inferiority(loss.astype(float), room, margin) < 0.05).any()
    assert wrong / samples <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / samples)


def test_a_small_loss_is_shown_to_be_small():
    rng = np.random.default_rng(0)
    loss = rare_losses(150, 20, 0.03, rng)
    loss[:, 10:] += 0.5
    p = non_inferiority(loss, None, 0.1)
    assert (p[:10] < 0.05).all() and (p[10:] == 1).all()
    with pytest.raises(UserError, match="margin 0.0 is not above 0"):
        non_inferiority(loss, None, 0.0)
