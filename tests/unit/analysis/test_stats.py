"""Statistics against published numbers, independent formulas and exact coverage."""

from __future__ import annotations

import math

import made_results
import numpy as np
import pandas as pd
import pytest
from scipy import stats as sps
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from depthlens.analysis import stats
from depthlens.errors import UserError


def table(values: dict[str, list[float]], *, metric="acc", doc_ids=None) -> pd.DataFrame:
    """Documents of one (model, task, metric) from values per condition."""
    docs = made_results.docs_of(values, task="t", metric=metric, model="m")
    if doc_ids:
        docs["doc_id"] = [i for condition in values for i in doc_ids[condition]]
    return docs.astype({"layer": "Int64", "head": "Int64", "doc_id": "int64"})


@pytest.mark.parametrize(
    ("first_only", "second_only", "n", "low", "high", "digits"),
    [
        (6, 16, 161, -0.1240, -0.0054, 4),  # Cavo 2012, in Fagerland, Lydersen, Laake 2017, chapter 8
        (1, 7, 21, -0.517, -0.026, 3),  # Bentur 2009: Fagerland et al. 2014, Stat Med 33:2850
    ],
)
def test_tango_interval_gives_published_values(first_only, second_only, n, low, high, digits):
    ends = stats.tango_interval(second_only, first_only, n)
    assert [round(float(e), digits) for e in ends] == [low, high]


@pytest.mark.parametrize("n", [1, 2, 5, 50, 1000])
def test_tango_interval_without_discordant_documents_has_its_closed_form(n):
    z2 = sps.norm.ppf(0.975) ** 2
    low, high = stats.tango_interval(0, 0, n)
    assert high == pytest.approx(z2 / (n + z2)) and low == pytest.approx(-high)


def test_tango_interval_solves_the_score_equation_maximised_by_hand():
    # Independent route: q by numerical maximisation of the trinomial likelihood, T by its definition.
    lost, gained, n = 9, 3, 40
    for end, sign in zip(stats.tango_interval(lost, gained, n), (1, -1), strict=True):
        d = float(end)
        q = np.linspace(max(0, -d), (1 - d) / 2, 2_000_001)[1:-1]
        likelihood = lost * np.log(q) + gained * np.log(q + d) + (n - lost - gained) * np.log(1 - 2 * q - d)
        best = q[np.argmax(likelihood)]
        score = (gained - lost - n * d) / math.sqrt(n * (2 * best + d * (1 - d)))
        assert score == pytest.approx(sign * sps.norm.ppf(0.975), abs=1e-4)


def intervals_of_every_count(n):
    """Lost and gained answers of n documents, and Tango's interval of each."""
    lost, gained = (a.ravel() for a in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
    lost, gained = lost[lost + gained <= n], gained[lost + gained <= n]
    return lost, gained, *stats.tango_interval(lost, gained, n)


@pytest.mark.parametrize("n", [1, 3, 10, 60])
def test_tango_interval_is_sound_for_every_count(n):
    lost, gained, low, high = intervals_of_every_count(n)
    delta = (gained - lost) / n
    assert (low >= -1).all() and (high <= 1).all()
    assert (high - low > 1e-3).all(), "an interval of zero width claims certainty"
    assert (low <= delta + 1e-12).all() and (delta <= high + 1e-12).all()
    mirrored_low, mirrored_high = stats.tango_interval(gained, lost, n)
    np.testing.assert_allclose([mirrored_low, mirrored_high], [-high, -low], atol=1e-12)


@pytest.mark.parametrize("n", [20, pytest.param(50, marks=pytest.mark.nightly)])
def test_tango_interval_covers_exactly_enumerated(n):
    """Coverage summed over all outcomes, no simulation: near 95% everywhere, on average above 94.5%."""
    lost, gained, low, high = intervals_of_every_count(n)
    coverage = []
    for p_lost in (0.02, 0.1, 0.25, 0.5):
        for p_gained in (0.0, 0.02, 0.1, 0.3):
            rest = 1 - p_lost - p_gained
            weight = sps.multinomial.pmf(
                np.stack([lost, gained, n - lost - gained], axis=1), n, [p_lost, p_gained, rest]
            )
            delta = p_gained - p_lost
            coverage.append(weight[(low <= delta) & (delta <= high)].sum())
    assert min(coverage) > 0.92, coverage
    assert np.mean(coverage) > 0.945, coverage


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (3, 3), (10, 2), (0, 12), (40, 1)])
def test_mcnemar_equals_statsmodels(lost, gained):
    assert stats.mcnemar_p(lost, gained) == pytest.approx(mcnemar([[5, lost], [gained, 5]], exact=True).pvalue)


@pytest.mark.parametrize("m", [1, 2, 30, 301])
def test_holm_equals_statsmodels(m):
    p = np.random.default_rng(m).random(m) ** 4
    p[: m // 3] = p[0]  # ties
    np.testing.assert_allclose(stats.holm(p), multipletests(p, method="holm")[1], rtol=1e-12)


def test_wilson_interval_by_formula():
    k, n, z = 7, 20, sps.norm.ppf(0.975)
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    assert stats.proportion_interval(k, n) == pytest.approx((centre - half, centre + half))


def test_mean_interval():
    values = [1.0, 2.0, 3.0]
    half = sps.t.ppf(0.975, 2) * np.std(values, ddof=1) / math.sqrt(3)
    assert stats.mean_interval(values) == pytest.approx((2 - half, 2 + half)), "no skewness: Student's"
    skewed = np.array([0.0, 0.1, 0.1, 0.4, 2.0])
    a = sps.skew(skewed) / 3 / math.sqrt(5)
    ends = stats.mean_interval(skewed)
    lowered = 0.025 / (1 + stats.LEFT_OF_SKEWNESS * (3 * a) ** 2)
    for end, quantile in zip(ends, (1 - lowered, lowered), strict=True):
        t = (skewed.mean() - end) / (skewed.std(ddof=1) / math.sqrt(5))
        assert ((1 + a * t) ** 3 - 1) / (3 * a) + a / 2 == pytest.approx(sps.t.ppf(quantile, 4))
    assert ends[1] - skewed.mean() > skewed.mean() - ends[0]
    assert stats.mean_interval(-skewed) == pytest.approx((-ends[1], -ends[0]))
    assert all(math.isnan(e) for e in stats.mean_interval([3.0]))


def test_above_chance():
    by_hand = sum(math.comb(10, i) * 0.25**i * 0.75 ** (10 - i) for i in range(6, 11))
    assert stats.above_chance([1] * 6 + [0] * 4, 0.25) == pytest.approx(by_hand)
    assert stats.above_chance([0] * 10, 0.25) == 1.0
    assert stats.above_chance([0] * 10, 0.0) == 1.0
    assert stats.above_chance([1] + [0] * 9, 0.0) == 0.0
    graded = [0.3, 0.5, 0.7, 0.9]
    expected = sps.ttest_1samp(graded, 0.25, alternative="greater").pvalue
    assert stats.above_chance(graded, 0.25) == pytest.approx(expected)
    assert stats.above_chance([0.4] * 5, 0.25) == 0.5**5
    assert stats.above_chance([0.2] * 5, 0.25) == 1.0


def test_summary_columns_order_and_numbers():
    docs = table({"L1": [1, 1, 0, 0], "L0": [0, 0, 0, 1], "baseline": [1, 1, 1, 0]})
    got = stats.summarise(docs)
    assert list(got.columns) == [
        "model", "task", "metric", "condition", "layer", "head", "n", "value", "baseline", "delta", "ci_low",
        "ci_high", "p_value", "p_adjusted", "p_holm",
    ]  # fmt: skip
    assert got["condition"].tolist() == ["baseline", "L1", "L0"]
    assert got["layer"].tolist() == [pd.NA, 1, 0] and str(got["layer"].dtype) == "Int64"
    assert got["n"].tolist() == [4, 4, 4]
    assert got["value"].tolist() == [0.75, 0.5, 0.25]
    assert got["baseline"].tolist() == [0.75] * 3
    assert got["delta"].tolist() == [0.0, -0.25, -0.5]
    first = got.iloc[0]
    assert (first["ci_low"], first["ci_high"]) == (0, 0)
    assert all(math.isnan(first[column]) for column in ("p_value", "p_adjusted", "p_holm"))
    assert got["p_value"].tolist()[1:] == [1.0, 0.625]  # lost 1 gained 0; lost 3 gained 1
    assert got["p_holm"].tolist()[1:] == [1.0, 1.0]
    assert got["p_adjusted"].tolist()[1:] == [1.0, 1.0]  # one changed document reaches its own size in every flip
    low, high = stats.tango_interval(3, 1, 4)
    assert got["ci_low"].iloc[2] == pytest.approx(low) and got["ci_high"].iloc[2] == pytest.approx(high)


def test_documents_are_matched_by_id_not_by_position():
    docs = table({"baseline": [1, 0, 1, 0], "L0": [0, 1, 0, 1]}, doc_ids={"baseline": [0, 1, 2, 3], "L0": [1, 0, 3, 2]})
    assert stats.summarise(docs)["p_value"].iloc[1] == 1.0  # nothing changed on any document
    assert np.isnan(stats.summarise(docs)["ci_high"].iloc[1])


def test_the_correction_runs_within_one_model_task_metric():
    strong, weak = [0] * 10, [0] * 7 + [1] * 3
    one = table({"baseline": [1] * 10, "L0": strong, "L1": weak})
    both = pd.concat([one, table({"baseline": [1] * 10, "L0": strong, "L1": weak}, metric="em")])
    alone, joint = stats.summarise(one), stats.summarise(both)
    assert alone["p_holm"].tolist()[1:] == pytest.approx([2 * 2**-9, 2**-6])
    # both are lost together, so that the largest sum of a flip is most often that of L0: 2 of 1024, and 2 of 128
    assert alone["p_adjusted"].tolist()[1:] == pytest.approx([2**-9, 2**-6])
    for column in ("p_adjusted", "p_holm"):
        assert joint.loc[joint["metric"] == "acc", column].tolist()[1:] == alone[column].tolist()[1:]


def test_graded_metric_uses_paired_t():
    rng = np.random.default_rng(1)
    base = rng.random(12)
    other = base - 0.1 + 0.05 * rng.standard_normal(12)
    row = stats.summarise(table({"baseline": base, "L0": other}, metric="f1")).iloc[1]
    expected = sps.ttest_rel(other, base)
    assert row["p_value"] == pytest.approx(expected.pvalue)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(stats.mean_interval(other - base))
    assert row["delta"] == pytest.approx((other - base).mean())


@pytest.mark.parametrize(
    ("base", "other", "delta"), [("1", "0", -1.0), ("111", "111", 0.0), ("000", "000", 0.0), ("1100", "0011", 0.0)]
)
def test_degenerate_binary(base, other, delta):
    row = stats.summarise(table({"baseline": list(base), "L0": list(other)})).iloc[1]
    assert (row["delta"], row["p_value"], row["p_adjusted"]) == (delta, 1.0, 1.0), "one document proves nothing"
    few = sum(a != b for a, b in zip(base, other, strict=True)) < 4  # documents that change
    assert np.isnan(row["ci_low"]) == np.isnan(row["ci_high"]) == few
    assert few or row["ci_high"] - row["ci_low"] > 0.1


@pytest.mark.parametrize(
    ("base", "other", "p"),
    [([0.5], [0.2], 1.0), ([0.5, 0.8], [0.5, 0.8], 1.0), ([0.5, 0.8, 0.6], [0.4, 0.7, 0.5], 0.25)],
)
def test_degenerate_graded(base, other, p):
    row = stats.summarise(table({"baseline": base, "L0": other}, metric="f1")).iloc[1]
    assert row["p_value"] == p, "equal differences: exact sign-flip p, not 0 from a variance of rounding"
    assert row["ci_low"] < row["delta"] < row["ci_high"]


def test_baseline_alone_is_summarised():
    got = stats.summarise(table({"baseline": [1, 0]}))
    assert len(got) == 1 and got["value"].item() == 0.5


@pytest.mark.parametrize(
    ("values", "ids", "message"),
    [
        ({"L0": [1, 0]}, None, r"t acc of m has no 'baseline'"),
        ({"baseline": [1, 0], "L7": [1, math.nan]}, None, r"condition 'L7'.*nan on document 1.*float32"),
        ({"baseline": [1, 0], "L7": [1, math.inf]}, None, r"condition 'L7'.*inf"),
        ({"baseline": [1, 0], "L7": [1]}, None, r"condition 'L7'.*lacks document 1"),
        ({"baseline": [1, 0], "L7": [1, 0]}, {"baseline": [0, 1], "L7": [0, 5]}, r"condition 'L7'.*lacks document 1"),
        ({"baseline": [1], "L7": [1, 0]}, None, r"condition 'L7'.*baseline lacks: 1"),
        ({"baseline": [1, 0], "L7": [1, 0]}, {"baseline": [0, 1], "L7": [0, 0]}, r"'L7'.*document 0 more than once"),
        ({"baseline": []}, None, r"no documents"),
    ],
)
def test_bad_documents_are_refused_in_one_line(values, ids, message):
    with pytest.raises(UserError, match=message) as caught:
        stats.summarise(table(values, doc_ids=ids))
    assert "\n" not in str(caught.value)


def test_an_interval_of_bounded_scores_ends_where_the_score_test_with_t_rejects():
    """Wilson's interval of as many right and wrong answers as have the scores' variance."""
    scores = np.random.default_rng(0).beta(2, 1, 40)
    low, high = stats.bounded_mean_intervals(scores[None])[:, 0]
    mean = scores.mean()
    effective = 40 * mean * (1 - mean) / scores.var(ddof=1)
    assert 0 < low < mean < high < 1
    for end in (low, high):
        assert (mean - end) ** 2 == pytest.approx(sps.t.ppf(0.975, 39) ** 2 * end * (1 - end) / effective)
