"""Rank correlations of noisy profiles: the numbers by hand, and simulated coverage and error rates."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from depthlens.analysis import rank_correlations
from depthlens.analysis.rank_correlations import correlate, in_words, ranks, shift_p

N_LAYERS, N_HEADS = 30, 9
LAYERS = np.arange(N_LAYERS)
# of 200 samples of a true rate of 0.05: 0.095 or fewer in 99.5% of runs
FALSE = 0.095


def profiles(rho, rng, n_parts=N_LAYERS):
    """Two true profiles whose Spearman correlation is ``rho`` on average, and what it is."""
    pearson = 2 * np.sin(np.pi * rho / 6)
    x = rng.normal(size=n_parts)
    y = pearson * x + np.sqrt(1 - pearson**2) * rng.normal(size=n_parts)
    return x, y, float(ranks(x) @ ranks(y))


def losses(profile, n, noise, rng, shared=0.0):
    """A document multiplies the profile by a weight of its own, and each part has noise. [document, part]"""
    return rng.exponential(size=n)[:, None] * profile + noise * rng.normal(size=(n, len(profile))) + shared


def test_it_is_spearmans_of_the_means_and_exact_without_noise():
    rng = np.random.default_rng(0)
    x, y, rho = profiles(0.6, rng)
    a, b = np.tile(x, (12, 1)), np.tile(y, (12, 1))
    found = correlate(a, b, LAYERS)
    assert found.spearman == pytest.approx(spearmanr(x, y).statistic) == pytest.approx(rho)
    assert found.reliability == found.other_reliability == pytest.approx(1) and found.ceiling == pytest.approx(1)
    assert found.corrected == pytest.approx(rho) and found.ci_low < rho < found.ci_high
    assert (found.n_parts, found.n, found.note) == (N_LAYERS, 12, "")
    assert correlate(a, y, LAYERS).corrected == pytest.approx(rho)
    assert correlate(a * 1e-12, -b, LAYERS).spearman == pytest.approx(-rho), "no unit is rounded away"


@pytest.fixture
def always_corrected(monkeypatch):
    """Correct whatever part of the order is measured: these layers all do something."""
    monkeypatch.setattr(rank_correlations, "MEASURED", 0.0)


@pytest.mark.usefixtures("always_corrected")
def test_the_ceiling_is_what_two_measurements_of_one_truth_reach():
    rng = np.random.default_rng(1)
    x, _, _ = profiles(0, rng)
    found = [correlate(losses(x, 40, 3, rng), losses(x, 40, 3, rng), LAYERS) for _ in range(40)]
    assert np.mean([f.spearman for f in found]) == pytest.approx(np.mean([f.ceiling for f in found]), abs=0.03)
    assert np.mean([f.spearman for f in found]) < 0.85
    assert np.nanmean([f.corrected for f in found]) > 0.9


@pytest.mark.parametrize("known", [False, True])
def test_nothing_is_corrected_where_most_of_an_order_is_noise(known):
    """Six layers cost much and 24 next to nothing: their order is another one under each mode, which no half shows."""
    rng, given = np.random.default_rng(10), []
    for _ in range(8):
        large = rng.random(N_LAYERS).argsort() < 6
        x, y = (np.where(large, 1 + rng.random(N_LAYERS), 0.01 * rng.random(N_LAYERS)) for _ in range(2))
        found = correlate(losses(x, 40, 0.1, rng), y if known else losses(y, 40, 0.1, rng), LAYERS)
        assert found.ceiling > 0.4, "the large ones are measured well"
        given.append(np.isfinite(found.ci_low))
    assert np.mean(given) < 0.2 and "below the 90% that" in found.note and found.note in in_words(found)


def test_ties_measure_no_order():
    """All documents lose at six layers, and none at the others: halves agree that 24 layers tie."""
    a = np.zeros((40, N_LAYERS))
    a[:, :6] = np.arange(1, 7)
    found = correlate(a, a, LAYERS)
    assert found.reliability == pytest.approx(1) and found.ceiling == pytest.approx(1) and np.isnan(found.corrected)
    assert "48% of the order of a profile is measured" in found.note


@pytest.mark.parametrize(("n_layers", "kind"), [(12, "independent"), (30, "random walk")])
def test_unrelated_profiles_are_rarely_called_related(n_layers, kind):
    rng = np.random.default_rng(4)
    p, rho = [], []
    for _ in range(200):
        a, b = rng.normal(size=(2, n_layers))
        if kind == "random walk":
            a, b = a.cumsum(), b.cumsum()
        p.append(shift_p(ranks(a), ranks(b), np.arange(n_layers))[0])
        rho.append(abs(ranks(a) @ ranks(b)))
    assert 0 < np.mean(np.array(p) <= 0.05) <= FALSE
    if kind == "random walk":
        assert np.mean(np.array(rho) > 0.5) > 0.3, "which is why a correlation alone proves nothing"


def test_heads_of_a_layer_are_shifted_together():
    rng = np.random.default_rng(5)
    by_layer = rng.normal(size=(2, N_LAYERS, 1)) + 0.3 * rng.normal(size=(2, N_LAYERS, N_HEADS))
    layers = np.repeat(LAYERS, N_HEADS)
    a, b = (ranks(x.ravel()) for x in by_layer)
    p, smallest, note = shift_p(a, b, layers)
    assert smallest == 1 / (2 * N_LAYERS) and p * 2 * N_LAYERS == pytest.approx(round(p * 2 * N_LAYERS)) and not note
    assert shift_p(a, a, layers)[0] == smallest
    p, _, note = shift_p(a[1:], b[1:], layers[1:])
    assert np.isnan(p) and "sweep equally many parts of each of at least three layers" in note


def test_what_cannot_be_told_is_not_told():
    rng = np.random.default_rng(6)
    x, y, _ = profiles(0.9, rng)
    noise = correlate(rng.normal(size=(40, N_LAYERS)), np.tile(y, (40, 1)), LAYERS)
    assert np.isnan([noise.corrected, noise.ci_low, noise.ci_high]).all() and "more than noise" in noise.note
    assert 0 <= noise.ceiling < 0.8 and "more than noise" in in_words(noise)
    flat = correlate(np.ones((40, N_LAYERS)), np.tile(y, (40, 1)), LAYERS)
    assert np.isnan(flat.spearman) and "cannot judge: all parts have the same number" in in_words(flat)
    few = correlate(np.tile(x, (7, 1)), np.tile(y, (7, 1)), LAYERS)
    assert np.isnan(few.ceiling) and few.note == "7 documents are too few for halves; take 8"
    two = correlate(np.ones((9, 2)), np.ones((9, 2)), np.arange(2))
    assert np.isnan(two.spearman) and two.note == "a rank correlation needs 3 parts, and here are 2"


def test_other_documents_and_other_numbers_of_them():
    rng = np.random.default_rng(7)
    x, y, truth = profiles(0.6, rng)
    found = correlate(losses(x, 90, 1, rng), losses(y, 12, 0.5, rng), LAYERS)
    assert found.n == 12 and abs(found.corrected - truth) < 0.3 and found.reliability > found.other_reliability
    again = correlate(losses(x, 90, 1, np.random.default_rng(8)), losses(y, 12, 1, np.random.default_rng(9)), LAYERS)
    same = correlate(losses(x, 90, 1, np.random.default_rng(8)), losses(y, 12, 1, np.random.default_rng(9)), LAYERS)
    assert again == same, "the halves are seeded"


def test_words():
    rng = np.random.default_rng(9)
    x, y, _ = profiles(0.9, rng)
    text = in_words(correlate(losses(x, 60, 1, rng), losses(y, 60, 1, rng), LAYERS))
    assert text.startswith("rank correlation 0.") and "(noise allows 0.9" in text and "without noise **0." in text
    short = in_words(correlate(losses(x[:6], 60, 1, rng), losses(y[:6], 60, 1, rng), LAYERS[:6]))
    assert "(p = 0.017)" in text and "p cannot be below 0.083" in short
