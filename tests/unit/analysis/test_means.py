"""Means over units by numbers that are worked out by hand, their families by all flips, and repeated questions."""

import itertools
import math

import made_results
import numpy as np
import pytest
from scipy import stats as sps

from depthlens.analysis.numbers.means import IMAGINARY, UNLIMITED, Mean, Ratio, in_top, max_t, mean

ROUNDING = 1e-9
NS = (30, 100, 300)
RNG = np.random.default_rng(0)
X, Y = RNG.random(12), (RNG.random(12) + 1) / 2


def ends(found: Mean) -> tuple[float, float]:
    low, high = found.interval()
    return float(low), float(high)


def students(value: float, error: float, n: int) -> tuple[float, float]:
    half = sps.t.ppf(0.975, n - 1) * error
    return pytest.approx((value - half, value + half), abs=ROUNDING)


def test_a_mean_has_students_interval_of_its_documents_and_of_those_that_are_imagined():
    values = np.array([1.0, 1.0, 1.0, 0.0, -1.0])  # mean 0.4, squares around it sum to 3.2
    assert ends(mean(values, limits=UNLIMITED)) == students(0.4, math.sqrt(3.2 / 4 / 5), 5)
    low, _ = students(0.4, math.sqrt(3.2 / 4 / 5 + 2 * IMAGINARY**2 / 25), 5).expected
    assert ends(mean(values)) == pytest.approx((low, 1.0)), "no interval goes beyond what can be"
    wide = 2 * (3 * IMAGINARY) ** 2 / 25
    assert ends(mean(values, limits=(-3, 3))) == students(0.4, math.sqrt(3.2 / 4 / 5 + wide), 5)
    assert mean(values, n_questions=50).extra == pytest.approx(2 * IMAGINARY**2 / 50**2)
    with pytest.raises(ValueError, match="values from -1 to 1 are not within 0"):
        mean(values, limits=(0, 1))
    assert float(mean(values, limits=UNLIMITED).p()) == pytest.approx(sps.ttest_1samp(values, 0).pvalue)
    nothing = ends(mean(np.zeros(5)))
    assert nothing[0] == -nothing[1] < 0, "that nothing changed does not show that nothing changes"
    assert all(map(math.isnan, ends(mean(np.ones(1)))))


@pytest.mark.parametrize("n_shared", [0, 3, 6])
def test_units_that_two_means_share_are_paired(n_shared):
    a, b = {f"q{i}": X[i] for i in range(6)}, {f"q{6 - n_shared + i}": Y[i] for i in range(6)}
    first, second = (mean(np.array([*of.values()]), [*of], limits=UNLIMITED) for of in (a, b))
    gap = first - second
    by_hand = 0.0
    for name in {**a, **b}:
        of_a = (a[name] - X[:6].mean()) / 6 if name in a else 0.0
        of_b = (b[name] - Y[:6].mean()) / 6 if name in b else 0.0
        by_hand += 6 / 5 * (of_a - of_b) ** 2
    assert ends(gap) == students(X[:6].mean() - Y[:6].mean(), math.sqrt(by_hand), 6)
    assert gap.added.sum() == pytest.approx(float(gap.value))


def test_a_quotient_is_the_delta_methods():
    ratio = X.mean() / Y.mean()
    error = np.std(X - ratio * Y, ddof=1) / math.sqrt(12) / Y.mean()
    found = mean(X, limits=UNLIMITED) / mean(Y, limits=UNLIMITED)
    assert ends(found) == students(ratio, error, 12)
    assert found.added.sum() == pytest.approx(ratio) and found.centred.sum() == pytest.approx(0, abs=ROUNDING)
    imagined = 2 * (IMAGINARY / 12) ** 2 * (1 + ratio**2) / Y.mean() ** 2
    assert ends(mean(X) / mean(Y)) == students(ratio, math.sqrt(error**2 + imagined), 12)
    assert np.isnan((mean(X) / mean(-Y)).value) and float((mean(X) / mean(-Y)).p()) == 1


def test_several_values_are_divided_and_added_as_each_by_itself():
    table = np.random.default_rng(2).random((12, 3))
    together = [mean(table) / mean(Y), mean(table) + mean(X), mean(table) * 2.0]
    for i in range(3):
        alone = mean(table[:, i])
        for found, own in zip(together, [alone / mean(Y), alone + mean(X), alone * 2.0], strict=True):
            assert ends(found[i]) == pytest.approx(ends(own))


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_a_p_value_of_one_minus_the_level_has_its_interval_end_at_nothing(level):
    half = sps.t.ppf((1 + level) / 2, 11) * float(mean(X).error)
    moved = mean(X - X.mean() + half)
    assert float(moved.p()) == pytest.approx(1 - level)
    assert float(moved.interval(level)[0]) == pytest.approx(0, abs=ROUNDING)


def test_a_question_that_is_asked_three_times_is_one_unit():
    table = np.random.default_rng(3).random((12, 4)) - 0.3
    once, thrice = mean(table), mean(np.repeat(table, 3, 0), np.repeat(np.arange(12), 3))
    assert thrice.n == 12
    for one, other in zip(once.interval(), thrice.interval(), strict=True):
        np.testing.assert_allclose(one, other)
    np.testing.assert_array_equal(max_t(once), max_t(thrice))


def test_subjects_are_a_ratio_of_sums():
    sizes = np.array([1, 2, 3, 6])
    subjects = np.repeat(np.arange(4), sizes)
    sums = np.array([X[subjects == s].sum() for s in range(4)])
    left = sums - X.mean() * sizes  # what each subject adds beyond its share of the documents
    error = math.sqrt(4 / 3 * (left**2).sum()) / 12
    assert ends(mean(X, subjects, limits=UNLIMITED)) == students(X.mean(), error, 4)


def all_flips(values: np.ndarray) -> np.ndarray:
    """Westfall and Young's algorithm 4.1 over all flips, written as it reads. [unit, condition] to [condition]."""
    z = values / np.sqrt(np.square(values).sum(0))
    own = np.abs(z.sum(0))
    flips = [np.abs(np.array(signs) @ z) for signs in itertools.product([1, -1], repeat=len(z))]
    p, so_far, left = np.empty(len(own)), 0.0, list(np.argsort(-own))
    while left:
        so_far = max(so_far, float(np.mean([sums[left].max() >= own[left[0]] - ROUNDING for sums in flips])))
        p[left.pop(0)] = so_far
    return p


@pytest.mark.parametrize("seed", range(3))
def test_max_t_is_step_down_over_all_flips(seed):
    rng = np.random.default_rng(seed)
    values = np.sign(rng.standard_normal((9, 6)) + np.array([1.5, 0.8, 0.4, 0.2, 0, 0]))
    p = max_t(mean(values))
    assert p == pytest.approx(all_flips(values))
    of_drawn_flips = 4 * 0.5 / math.sqrt(500)  # four standard errors
    assert max_t(mean(values), n_draws=500) == pytest.approx(p, abs=of_drawn_flips)
    assert (max_t(mean(-0.5 * values[::-1])) == p).all()


def resampled(values: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """The studentised bootstrap with two imagined documents, written as it reads. [unit, condition] to [condition]."""
    n, n_conditions = values.shape
    centred = (values - values.mean(0)) / n * math.sqrt(n / (n - 1))
    half = IMAGINARY / n
    rows = np.vstack([centred, np.full((1, n_conditions), half), np.full((1, n_conditions), -half)])
    error = np.sqrt(np.square(rows).sum(0) + 2 * half**2)
    own = np.abs(values.mean(0)) / error
    counts, order = np.zeros(n_conditions), np.argsort(-own)
    for _ in range(draws):
        chosen = rows[rng.integers(0, n + 2, n + 2)]
        spread = np.square(chosen - chosen.mean(0)).sum(0)
        z = np.abs(chosen.sum(0)) / np.sqrt(spread + 2 * half**2)
        for place, condition in enumerate(order):
            counts[condition] += z[order[place:]].max() >= own[condition]
    return np.maximum.accumulate((counts[order] + 1) / (draws + 1))[np.argsort(order)]


def test_other_changes_are_tested_by_a_bootstrap_of_units():
    rng = np.random.default_rng(0)
    values = np.clip(0.4 * rng.standard_normal((25, 5)) + np.array([0.35, 0.2, 0.1, 0, 0]), -1, 1)
    of_draws = 4 * 0.5 / math.sqrt(2000)  # four standard errors
    assert max_t(mean(values)) == pytest.approx(resampled(values, 2000, rng), abs=of_draws)


def test_of_few_units_p_is_not_below_students_by_bonferroni_and_of_draws_never_nothing():
    values = np.array([0.9, 0.8, 1.0, 0.7])[:, None] * [1, 0.5, 0.1]
    few, many = mean(values, limits=UNLIMITED), mean(np.tile(values, (10, 1)), limits=UNLIMITED)
    assert few.p_adjusted() == pytest.approx(3 * few.p())
    assert max_t(many, n_draws=99) == pytest.approx(1 / (1 + 99))


def skewed(n: int, n_conditions: int, rng: np.random.Generator) -> np.ndarray:
    """W5: most documents lose 0.085 nats and a tenth gains 0.765, so that nothing is lost on average."""
    return np.where(rng.random((n, n_conditions)) < 0.1, -0.765, 0.085)


@pytest.mark.parametrize(("n", "draws"), [(30, 60), *(pytest.param(n, 400, marks=pytest.mark.nightly) for n in NS)])
def test_many_small_losses_and_few_large_gains_are_no_critical_parts(n, draws):
    rng = np.random.default_rng(n)
    wrong = np.mean([(max_t(mean(skewed(n, 30, rng)), n_draws=1000) < 0.05).any() for _ in range(draws)])
    assert wrong <= 0.07 + 3 * math.sqrt(0.07 * 0.93 / draws)


@pytest.mark.parametrize(("values", "p"), [
    (np.zeros((4, 3)), 1.0), (np.full((3, 2), -0.1), 0.25), (np.full((1, 1), 0.5), 1.0), (np.zeros((4, 0)), None),
    (np.full((30, 1), 1e-14), 1.0),
])  # fmt: skip
def test_samples_that_hold_next_to_nothing(values, p):
    found = max_t(mean(values))
    assert len(found) == values.shape[1] and (found == p).all()


def test_a_result_knows_that_its_documents_ask_the_same():
    loss = [0.3, 0.1, 0.0]
    once = made_results.same_documents(made_results.sweep(loss, n=40))
    docs = once.docs.loc[once.docs.index.repeat(3)].copy()
    docs["doc_id"] = 3 * docs["doc_id"] + np.tile(range(3), len(once.docs))
    thrice = made_results.same_documents(made_results.Result(docs, once.record), times=3)
    for column in ("p_adjusted", "ci_low", "ci_high"):  # what is imagined counts once, too
        np.testing.assert_allclose(once.summary[column], thrice.summary[column])
    (one,), (other,) = (r.baselines.itertuples() for r in (once, thrice))
    assert (one.ci_low, one.ci_high, one.p_chance) == (other.ci_low, other.ci_high, other.p_chance)
    assert (one.n, other.n) == (40, 120)


def test_a_quotient_has_every_number_that_its_contrast_does_not_refute():
    part, whole = mean(X), mean(Y)
    low, high = Ratio(part, whole).interval()
    for end, side in ((low, 0), (high, 1)):
        contrast = part - whole * end
        assert contrast.interval()[side] == pytest.approx(0, abs=1e-6)
    nothing = mean(RNG.normal(0, 1, 12), limits=UNLIMITED)
    assert Ratio(part, nothing).interval()[1] == math.inf, "a whole that may be nothing"
    assert Ratio(-part, nothing).interval()[0] == -math.inf
    assert Ratio(part, -whole).value == math.inf


def test_stability_of_a_ranking_is_that_of_samples_of_units_by_hand():
    """Units of unlike size, each of several documents; a draw takes whole units."""
    rng = np.random.default_rng(1)
    units = np.repeat(np.arange(120), rng.integers(1, 4, 120))
    values = rng.normal(size=(120, 5))[units] * 0.5 + np.array([0.2, 0.16, 0.12, 0.0, -0.3])
    ours = in_top(mean(values, units, limits=UNLIMITED), 2)
    counts, rows = np.zeros(5), [np.flatnonzero(units == unit) for unit in range(120)]
    for _ in range(2_000):
        chosen = np.concatenate([rows[unit] for unit in rng.integers(0, 120, 120)])
        counts[np.argsort(values[chosen].mean(0))[-2:]] += 1
    np.testing.assert_allclose(ours, counts / 2_000, atol=0.05)
    assert 0.2 < ours[1] < 0.8 and ours[4] < 0.01 and ours.sum() == pytest.approx(2)
    equal = in_top(mean(np.zeros((9, 4)), limits=UNLIMITED), 1)
    np.testing.assert_allclose(equal, 0.25, atol=0.05)
    assert np.isnan(in_top(mean(np.ones((1, 3))), 1)).all()
