"""Advice on the number of documents: simulated power at the number that is promised."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as sps

from depthlens.analysis import stats
from depthlens.analysis.power import documents_for_loss, documents_for_power, needed_documents
from depthlens.errors import UserError

SAMPLES = 1000
POWER = (0.75, 0.9)  # of a promise of 0.8


def test_it_is_cohens_formula_where_documents_are_many():
    half, n, matters = 0.4, 4000, 0.05
    error = half / sps.t.ppf(0.975, n - 1)
    by_hand = n * ((sps.norm.ppf(0.975) + sps.norm.ppf(0.8)) * error / matters) ** 2
    assert documents_for_power(matters, half, n) == pytest.approx(by_hand, rel=1e-3)


def test_at_half_the_width_power_is_a_half():
    n = 400
    assert documents_for_power(0.1, 0.1, n, power=0.5) == pytest.approx(n, abs=2)
    assert documents_for_power(0.1, 0.1, n) > 2 * n


DATA = {
    "normal": lambda rng, shape: 0.2 + rng.standard_normal(shape),
    "rare losses": lambda rng, shape: rng.gamma(0.5, 0.4, shape) - 0.1,
    "rare gains": lambda rng, shape: 0.3 - rng.gamma(1.0, 0.2, shape),
    "bounded": lambda rng, shape: rng.beta(0.5, 0.5, shape) - 0.4,
    "right and wrong": lambda rng, shape: rng.choice([1.0, 0.0, -1.0], shape, p=[0.25, 0.65, 0.10]),
}
MATTERS = {"normal": 0.2, "rare losses": 0.1, "rare gains": 0.1, "bounded": 0.1, "right and wrong": 0.15}


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("alpha", [0.05, pytest.param(0.0125, marks=pytest.mark.nightly)])
def test_power_at_the_promised_number(kind, alpha):
    rng = np.random.default_rng(0)
    pilot = DATA[kind](rng, 2000)
    half = sps.t.ppf(1 - alpha / 2, 1999) * pilot.std(ddof=1) / np.sqrt(2000)
    n = documents_for_power(MATTERS[kind], half, 2000, alpha=alpha)
    p = sps.ttest_1samp(DATA[kind](rng, (SAMPLES, n)), 0, axis=1).pvalue
    assert POWER[0] <= (p < alpha).mean() <= POWER[1], f"n = {n}"


@pytest.mark.parametrize(("n_conditions", "loss"), [(1, 0.3), pytest.param(30, 0.1, marks=pytest.mark.nightly)])
def test_power_of_a_loss_through_the_whole_summary(loss, n_conditions):
    rng = np.random.default_rng(1)
    n = documents_for_loss(loss, n_conditions)
    lost = rng.random((SAMPLES, n)) < loss
    p = stats.mcnemar_p(lost.sum(1), 0) * n_conditions
    assert 0.76 <= (p < 0.05).mean() <= POWER[1]
    found = []
    for row in lost[:100]:
        changes = np.vstack([-row.astype(float), rng.choice([-1.0, 0, 1], (n_conditions - 1, n), p=[0.03, 0.94, 0.03])])
        found.append(stats.max_t(changes, symmetric=True, n_flips=500)[0] < 0.05)
    assert np.mean(found) >= 0.7  # 0.8 less 2.5 standard errors


def test_what_is_needed_depends_on_what_there_is_to_lose():
    base = np.r_[np.ones(18), np.zeros(2)]
    assert needed_documents(base, 30) == documents_for_loss(0.1, 30) > 100
    assert needed_documents(np.tile(base, 20), 30) is None
    assert needed_documents(np.zeros(20), 30) is None and needed_documents(base, 0) is None
    rarely_right = np.r_[np.ones(1), np.zeros(19)]
    assert needed_documents(rarely_right, 30) == documents_for_loss(0.05, 30)


@pytest.mark.parametrize(("change", "message"), [
    ({"matters": 0.0}, "matters 0.0 is not"), ({"half_width": -1.0}, "half_width -1.0"), ({"n": 1}, "n 1 is"),
    ({"alpha": 1.0}, "alpha 1.0"), ({"power": 0.2}, "power 0.2"),
])  # fmt: skip
def test_numbers_outside_their_range_are_refused(change, message):
    values = {"matters": 0.1, "half_width": 0.2, "n": 50, "alpha": 0.05, "power": 0.8} | change
    with pytest.raises(UserError, match=message):
        documents_for_power(**values)


def test_what_no_number_of_documents_shows():
    assert documents_for_power(1e-9, 1.0, 30) is None
