"""Draws of documents and clusters, coverage of every interval that is printed, and the needed number of documents."""

import numpy as np
import pytest
from coverage_cases import CASES, coverage
from scipy import stats as sps

from depthlens.analysis import stats
from depthlens.analysis.bootstrap import draws, interval, ratio, widened
from depthlens.analysis.power import documents_for_loss, documents_for_power, needed_documents
from depthlens.analysis.stats import mean_interval
from depthlens.errors import UserError

SUBJECTS = ["law"] * 4 + ["physics"] * 10 + ["history"] * 6


def test_a_cluster_is_drawn_whole_times_and_the_sample_is_first():
    counts = draws(20, 500, 0, clusters=SUBJECTS)
    assert (counts[0] == 1).all() and counts.shape == (501, 20)
    for name, size in (("law", 4), ("physics", 10), ("history", 6)):
        of_cluster = counts[1:, [s == name for s in SUBJECTS]].sum(1)
        assert (of_cluster % size == 0).all() and of_cluster.mean() == pytest.approx(size, rel=0.15)
    assert (draws(20, 500, 0, clusters=SUBJECTS) == counts).all()
    assert (draws(20, 5, 1).sum(1) == 20).all()


def test_alike_documents_of_a_cluster_widen_the_interval():
    """30 subjects of 10 equal documents are 30 documents: drawing documents alone makes it a third as wide."""
    values = np.repeat(np.random.default_rng(0).standard_normal(30), 10)
    spread = []
    for clusters in (None, np.repeat(np.arange(30), 10)):
        counts = draws(300, 1000, 0, clusters=clusters)
        spread.append((counts[1:] @ values / counts[1:].sum(1)).std())
    assert spread[1] / spread[0] == pytest.approx(np.sqrt(10), rel=0.1)


@pytest.mark.parametrize("clusters", [["a"] * 20, ["a", "b"]])
def test_clusters_that_are_none(clusters):
    with pytest.raises(UserError, match="give one label a document, of at least two clusters"):
        draws(20, 5, 0, clusters=clusters)


def test_the_seeds_variance_is_added_with_satterthwaites_degrees_of_freedom():
    """All seeds draw alike, so nothing but their own effects differs between them."""
    rng = np.random.default_rng(0)
    n, effects = 50, np.array([0.1, 0.3, 0.35])
    values = effects[:, None] + np.r_[0.0, 0.02 * rng.standard_normal(400)]
    wide = widened(values, n)
    documents, seeds = values.mean(0)[1:].var(ddof=1), effects.var(ddof=1) / 3
    freedom = (documents + seeds) ** 2 / (documents**2 / (n - 1) + seeds**2 / 2)
    wider = np.sqrt((documents + seeds) / documents) * sps.t.ppf(0.975, freedom) / sps.t.ppf(0.975, n - 1)
    assert wide[0] == pytest.approx(effects.mean())
    assert (wide[1:] - wide[0]) == pytest.approx(wider * (values.mean(0)[1:] - effects.mean()))
    assert 2 < freedom < 3


def test_what_says_nothing_of_seeds_or_documents_is_not_widened():
    values = np.random.default_rng(0).random((3, 50))
    assert np.array_equal(widened(values[:1], 30), values[0])
    assert np.array_equal(widened(values, 1), values.mean(0))
    assert np.array_equal(widened(np.ones((3, 10)), 30), np.ones(10))


def test_an_interval_in_nats_is_that_of_the_mean_and_contains_its_estimate():
    """Of a mean it is Hall's; of a share of a sum near 0, whose draws have outliers, the percentile interval."""
    rng = np.random.default_rng(0)
    losses = rng.lognormal(0, 1, 200)
    counts = draws(200, 4000, 0)
    low, high = interval(counts @ losses / 200, 200, skewed=True)
    # draws estimate the skewness and the spread that the sample has, within about 2% and 10%
    np.testing.assert_allclose([low, high], mean_interval(losses), atol=0.05 * (high - low))
    assert high - losses.mean() > losses.mean() - low

    sums = np.array([0.1, *rng.normal(0.1, 0.1, 1000)])
    share = ratio(np.full(1001, 0.05), sums)
    np.testing.assert_array_equal(interval(share, 40, skewed=True), interval(share, 40))


@pytest.mark.parametrize("skewness", [0.32, 0.5, 0.9])
def test_draws_that_are_more_skewed_do_not_have_a_longer_interval(skewness):
    """Hall's transformation of a skewness of 0.5 ends ten standard errors away, of 0.3 three and a half."""
    normal = np.random.default_rng(0).standard_normal(4000)
    skewed = sps.pearson3.ppf(sps.norm.cdf(normal), skewness)
    low, high = interval(np.array([0.0, *skewed]), 60, skewed=True) / skewed.std()
    assert -2 < low < -1.5 and 3 < high < 4


FULL, WANTED = 100, 0.93  # samples; the least that benchmarks/coverage.py finds, of 1,000 samples
SOME = [
    "change of L0 (0/1, base 0.9)", "proportion of 0.9 (Wilson)", "centre of mass (nats)", "third, score (nats)",
    "centre difference (nats)", "difference of differences (0/1, base 0.9)", "recovered share (0/1)",
    "head score (every case)", "CPR (nats)", "centre of mass, alike (0/1)", "third, score, alike (0/1)",
    "attention's share (0/1)", "3 seeds, spread 0.5", "clusters, 20", "rank correlation (nats)",
    "faithfulness (nats)", "geometry: effect",
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "samples"),
    [*((case, 25) for case in SOME), *(pytest.param(case, FULL, marks=pytest.mark.nightly) for case in CASES)],
)
def test_coverage(case, samples):
    covered, given = coverage(case, 100 if "clusters" in case else 30, samples)
    if given > 0.5:  # else the text says that the documents are too few for an interval, nearly always
        assert covered >= WANTED - 3 * np.sqrt(WANTED * (1 - WANTED) / (given * samples))


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("case", "n"),
    [("share of mistakes 0.05", 100), ("head score (sparse)", 100), ("clusters, 20", 300), ("clusters, 30", 300)],
)
def test_intervals_are_not_longer_than_they_have_to_be(case, n):
    covered, given = coverage(case, n, 400)
    assert given > 0.9 and covered <= 0.97 + 3 * np.sqrt(0.97 * 0.03 / 400)


def test_no_interval_where_hardly_anything_changes():
    """One document in twenty changes: 1.5 of 30 on average."""
    _, given = coverage("change of L5 (0/1, base 0.9)", 30, 25)
    assert given < 0.5


SAMPLES = 1000
POWER = (0.75, 0.9)  # of a promise of 0.8


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
