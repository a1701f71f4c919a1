"""Samples like ours with known truth, and how often each interval of the package covers it.

Used by tests/unit/analysis/test_bootstrap.py and, with more samples, by benchmarks/coverage.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from made_results import profile

from depthlens.analysis import depth, rank_correlations, stats, sufficiency
from depthlens.analysis.bootstrap import draws, interval, ratio, widened
from depthlens.analysis.head_scores import HeadScores
from depthlens.analysis.layer_profiles import Profile, drawn
from depthlens.analysis.model_comparison import whole_number_test
from depthlens.analysis.recovery import recovered_shares

N_LAYERS = 12
DAMAGE = np.array([0.7, 0.5, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05, 0.1, 0.1, 0.2, 0.3])  # by layer: of the right answers
DEEP = DAMAGE[::-1]
N_BOOT = 400
LARGE = 100_000  # documents that stand for infinitely many
Interval = Sequence[float]  # low and high; not a number where none is given
Case = tuple[float, Callable[[np.random.Generator, int], Interval | None]]  # the truth, and the interval of n documents
Sample = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]  # base [n], scores [n, layer]


def right_and_wrong(base: float, damage: np.ndarray, chance: float) -> Sample:
    """Answers to questions some of which are easy under every condition."""

    def sample(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        right = (rng.random(n) < base).astype(float)
        fragile = rng.beta(1, 2, n)[:, None] * 3  # mean 1
        broken = rng.random((n, N_LAYERS)) < np.minimum(1, fragile * damage)
        return right, np.where(broken, rng.random((n, N_LAYERS)) < chance, right[:, None])

    return sample


def nats(damage: np.ndarray, skew: float) -> Sample:
    """Log-likelihoods: a few fragile documents lose most, and a third of them nothing at a layer."""

    def sample(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        base = -rng.gamma(2, 1, n)
        size = np.exp(skew * (0.6 * rng.standard_normal((n, 1)) + 0.8 * rng.standard_normal((n, N_LAYERS))))
        loss = damage * size * (rng.random((n, N_LAYERS)) < 0.67) + 0.02 * rng.standard_normal((n, N_LAYERS))
        return base, base[:, None] - loss

    return sample


SWEEPS: dict[str, tuple[Sample, float | None]] = {
    "0/1, base 0.9": (right_and_wrong(0.9, DAMAGE, 0.25), 0.25),
    "0/1, base 0.3": (right_and_wrong(0.3, DAMAGE, 0.0), 0.0),
    "nats": (nats(DAMAGE, 0.8), None),
    "nats, heavy": (nats(DAMAGE, 1.2), None),
}


def statistic_of(name: str, p: Profile, loss: np.ndarray, base: np.ndarray) -> np.ndarray:
    if name == "centre of mass":
        return depth.centre(p, loss)
    scale = {"third, importance": "importance", "third, above chance": "above_chance", "third, score": "score"}[name]
    return depth.third_losses(p, loss, base, scale)[:, 0]


@lru_cache
def truth(name: str, sample: Sample, floor: float | None) -> float:
    p = profile(*sample(np.random.default_rng(99), LARGE), floor)
    return float(statistic_of(name, p, p.loss.mean(0)[None], np.array([p.base.mean()]))[0])


def of_profile(name: str, sweep: str) -> Case:
    sample, floor = SWEEPS[sweep]

    def draw(rng: np.random.Generator, n: int) -> Interval | None:
        p = profile(*sample(rng, n), floor)
        if name in ("third, importance", "centre of mass") and p.unplaced:
            return None
        (means,) = drawn([p], seed=int(rng.integers(1 << 30)), n_boot=N_BOOT)
        return interval(statistic_of(name, p, *means), n, skewed=not p.binary)

    return truth(name, sample, floor), draw


def of_two(name: str, sweep: str, other: Sample) -> Case:
    """A statistic minus that of a task or model of other documents; where both are alike there is no difference."""
    sample, floor = SWEEPS[sweep]

    def draw(rng: np.random.Generator, n: int) -> Interval | None:
        values = []
        for of in (sample, other):
            p = profile(*of(rng, n), floor)
            if name == "centre of mass" and p.unplaced:
                return None
            (means,) = drawn([p], seed=int(rng.integers(1 << 30)), n_boot=N_BOOT)
            values.append(statistic_of(name, p, *means))
        return interval(values[0] - values[1], n, skewed="nats" in sweep)

    return truth(name, sample, floor) - truth(name, other, floor), draw


def of_change(sweep: str, layer: int) -> Case:
    """`Result.summary`: Tango's interval, or the paired t interval."""
    sample, _ = SWEEPS[sweep]
    base, values = sample(np.random.default_rng(99), LARGE)

    def draw(rng: np.random.Generator, n: int) -> Interval:
        base, values = sample(rng, n)
        return stats.change(base, values[:, layer])[1:3]

    return (values[:, layer] - base).mean(), draw


def of_proportion(p: float) -> Case:
    return p, lambda rng, n: stats.proportion_interval(int(rng.binomial(n, p)), n)


def of_difference_of_differences(sweep: str) -> Case:
    sample, _ = SWEEPS[sweep]

    def gap(rng: np.random.Generator, n: int) -> np.ndarray:
        (one, of_one), (two, of_two) = sample(rng, n), right_and_wrong(0.8, DEEP, 0.25)(rng, n)
        return (one - of_one[:, 2]) - (two - of_two[:, 2])

    def draw(rng: np.random.Generator, n: int) -> Interval:
        low, high, _ = whole_number_test(gap(rng, n)[:, None])
        return low[0], high[0]

    return gap(np.random.default_rng(99), LARGE).mean(), draw


def of_recovery(kind: str) -> Case:
    """The donor solves 0.8, the base 0.4, and the transplant recovers a half."""

    def sample(rng: np.random.Generator, n: int):
        if kind == "0/1":
            hard = rng.random(n)
            return ((0.5 * hard + 0.5 * rng.random(n) < level).astype(float) for level in (0.45, 0.65, 0.55))
        base = -rng.gamma(2, 1, n)
        gain = np.exp(0.8 * rng.standard_normal(n))
        return base, base + gain, base + gain * rng.uniform(0, 1, n)

    def draw(rng: np.random.Generator, n: int) -> Interval | None:
        base, goal, moved = sample(rng, n)
        shares, no_gap = recovered_shares(base, goal, moved[:, None], int(rng.integers(1 << 30)), N_BOOT)
        return None if no_gap else shares[0, 1:]

    base, goal, moved = sample(np.random.default_rng(99), 2 * LARGE)
    return (moved - base).mean() / (goal - base).mean(), draw


def of_excess() -> Case:
    """`RemovalCurve.excess`: the mean over eight draws minus the list, in nats, by Student's t."""

    def draw(rng: np.random.Generator, n: int) -> Interval:
        hard = np.exp(0.6 * rng.standard_normal(n) - 0.18)
        own = hard * np.exp(0.8 * rng.standard_normal(n) + 0.5 - 0.32)
        others = hard[:, None] * rng.exponential(0.3, (n, 8))
        return stats.mean_interval(own - others.mean(1))

    return float(np.exp(0.5)) - 0.3, draw


def of_head_score(kind: str) -> Case:
    """Scores of cases between 0 and 1; `sparse`: a tenth of the cases have any."""

    def sample(rng: np.random.Generator, n: int) -> np.ndarray:
        return rng.beta(0.6, 0.9, n) * (rng.random(n) < (0.1 if kind == "sparse" else 1.0))

    def draw(rng: np.random.Generator, n: int) -> Interval:
        scores = HeadScores.of_cases("score", "", sample(rng, n)[:, None, None], {}, tested=False, bounded=True)
        return scores.low.item(), scores.high.item()

    return sample(np.random.default_rng(99), 4 * LARGE).mean(), draw


def of_site_share() -> Case:
    """Attention's part of what single sublayers cost, right and wrong answers."""
    sites = [right_and_wrong(0.9, share * DAMAGE, 0.25) for share in (0.4, 0.6)]
    large = [of(np.random.default_rng(99), LARGE) for of in sites]
    losses = [base.mean() - values.mean(0) for base, values in large]

    def draw(rng: np.random.Generator, n: int) -> Interval:
        counts = draws(n, N_BOOT, int(rng.integers(1 << 30)))
        sums = [(counts @ (base[:, None] - values)).sum(1) for base, values in (of(rng, n) for of in sites)]
        return interval(ratio(sums[0], sums[0] + sums[1]), n)

    return losses[0].sum() / sum(losses).sum(), draw


def of_mistakes(share: float) -> Case:
    """Share of a kind of mistake, mean over documents of their own share under four removals."""

    def draw(rng: np.random.Generator, n: int) -> Interval:
        own = rng.binomial(4, rng.beta(4 * share, 4 * (1 - share), n)) / 4
        return stats.bounded_mean_intervals(own[None])[:, 0]

    return share, draw


def of_seeds(n_seeds: int, spread: float) -> Case:
    """An effect of 0.2 under few-shot seeds that move it by ``spread`` standard errors of the documents."""

    def draw(rng: np.random.Generator, n: int) -> Interval:
        values = 0.2 + rng.standard_normal((1, n)) + 0.5 * rng.standard_normal((n_seeds, n))
        values += spread / np.sqrt(n) * rng.standard_normal((n_seeds, 1))
        counts = draws(n, N_BOOT, int(rng.integers(1 << 30)))
        return interval(widened(values @ counts.T / n, n), n)

    return 0.2, draw


def of_clusters(n_clusters: int) -> Case:
    """A mean over subjects whose documents are alike; n documents in all, of unequal subjects."""

    def draw(rng: np.random.Generator, n: int) -> Interval:
        names = np.sort(np.r_[np.arange(n_clusters), rng.integers(0, n_clusters, n - n_clusters)])
        values = 0.5 * rng.standard_normal(n_clusters)[names] + rng.standard_normal(n)
        counts = draws(n, N_BOOT, int(rng.integers(1 << 30)), clusters=names)
        return interval(counts @ values / counts.sum(1), n_clusters)

    return 0.0, draw


def of_ranks(kind: str, idle: bool, known: bool) -> Case:
    """`mode_agreement`, `rank_agreement` and `geometry_agreement`: 30 layers, all of which do something or six.

    Each sample has profiles and a truth of its own. The documents are the same for both, or the second is known.
    """
    n_layers = 30
    easy = np.random.default_rng(99).beta(1, 2, LARGE // 10)[:, None] * 3

    def losses(rng: np.random.Generator, mean: np.ndarray, hard: np.ndarray, fragile: np.ndarray, right: np.ndarray):
        shape = len(hard), n_layers
        if kind == "0/1":
            return right[:, None] * (rng.random(shape) < np.minimum(1, fragile[:, None] * mean))
        size = np.exp(0.8 * (0.6 * hard[:, None] + 0.8 * rng.standard_normal(shape)) - 0.32)
        return mean * size * (rng.random(shape) < 0.67) / 0.67 + 0.05 * rng.standard_normal(shape)

    def draw(rng: np.random.Generator, n: int) -> Interval:
        pearson = rng.choice([0.0, 0.6, 0.9])
        z = rng.standard_normal((2, n_layers))
        z[1] = pearson * z[0] + np.sqrt(1 - pearson**2) * z[1]
        means = np.minimum(0.9, np.exp(z) / 4)
        if idle:
            means = np.where(rng.random(n_layers).argsort() < 6, 2 * means, 0.01 * np.exp(0.5 * z))
        hard, fragile, right = rng.standard_normal(n), rng.beta(1, 2, n) * 3, rng.random(n) < 0.9
        a, b = (losses(rng, mean, hard, fragile, right) for mean in means)
        true = [np.minimum(1, easy * mean).mean(0) if kind == "0/1" else mean for mean in means]
        if known:
            true[1] = b = z[1]
        found = rank_correlations.correlate(a, b, np.arange(n_layers))
        rho = rank_correlations.ranks(true[0]) @ rank_correlations.ranks(true[1])
        return found.ci_low - rho, found.ci_high - rho

    return 0.0, draw


def of_sufficiency(kind: str, what: str) -> Case:
    """A tenth, a fifth and a half of the heads kept restore 0.2, 0.6 and 0.9 of what all heads add."""
    shares, restored = np.array([0, 0.1, 0.2, 0.5, 1]), np.array([0, 0.2, 0.6, 0.9, 1])

    def sample(rng: np.random.Generator, n: int) -> np.ndarray:
        if kind == "0/1":
            return (rng.random((n, 1)) < 0.3 + 0.6 * restored - 0.05 * rng.random((n, 5))).astype(float)
        gain = np.exp(0.8 * rng.standard_normal((n, 1)))
        return -rng.gamma(2, 1, (n, 1)) - gain * (1 - restored) * rng.uniform(0.5, 1.5, (n, 5))

    def value(points: np.ndarray, areas: np.ndarray) -> np.ndarray:
        return {"faithfulness": points[:, 2], "CPR": areas[0], "CMD": areas[1]}[what]

    def draw(rng: np.random.Generator, n: int) -> Interval | None:
        values = sample(rng, n)
        change, *_, p = stats.change(values[:, 0], values[:, -1])
        if not (change > 0 and p < stats.ALPHA):
            return None
        return value(*sufficiency.with_intervals(values, shares, int(rng.integers(1 << 30))))[1:]

    means = sample(np.random.default_rng(99), LARGE).mean(0)[None]
    f = sufficiency.faithfulness(means, means[:, 0], means[:, -1])
    return value(f, np.stack(sufficiency.areas(f, shares)))[0], draw


def of_texts(what: str) -> Case:
    """`depth_geometry` and `layer_effects`: means over texts, of numbers with spreads like those of ours."""
    numbers = {
        "distance": lambda rng, n: 0.1 * np.exp(0.3 * rng.standard_normal(n)),
        "probability": lambda rng, n: rng.beta(0.3, 2, n),
        "entropy": lambda rng, n: 5 + rng.standard_normal(n) - 0.5 * rng.exponential(1, n),
        "effect": lambda rng, n: np.exp(0.6 * rng.standard_normal(n)),
    }[what]
    true = numbers(np.random.default_rng(99), 10 * LARGE).mean()
    return true, lambda rng, n: stats.mean_interval(numbers(rng, n))


ALIKE = ("centre of mass", "third, score")
CASES = {
    **{f"change of L{i} ({s})": (of_change, s, i) for s in SWEEPS for i in (0, 5)},
    **{f"proportion of {p} (Wilson)": (of_proportion, p) for p in (0.3, 0.9)},
    **{f"{name} ({s})": (of_profile, name, s) for name in ("third, importance", "centre of mass") for s in SWEEPS},
    **{f"third, above chance ({s})": (of_profile, "third, above chance", s) for s in list(SWEEPS)[:2]},
    **{f"third, score ({s})": (of_profile, "third, score", s) for s in SWEEPS},
    "centre difference (0/1, base 0.9)": (of_two, "centre of mass", "0/1, base 0.9", right_and_wrong(0.9, DEEP, 0.25)),
    "centre difference (nats)": (of_two, "centre of mass", "nats", nats(DEEP, 0.8)),
    **{f"{n}, alike (0/1)": (of_two, n, "0/1, base 0.9", SWEEPS["0/1, base 0.9"][0]) for n in ALIKE},
    "difference of differences (0/1, base 0.9)": (of_difference_of_differences, "0/1, base 0.9"),
    **{f"recovered share ({kind})": (of_recovery, kind) for kind in ("0/1", "nats")},
    "excess of a list of heads (nats)": (of_excess,),
    **{f"head score ({kind})": (of_head_score, kind) for kind in ("every case", "sparse")},
    "attention's share (0/1)": (of_site_share,),
    **{f"share of mistakes {p}": (of_mistakes, p) for p in (0.05, 0.4)},
    **{f"{k} seeds, spread {s}": (of_seeds, k, s) for k in (3, 5) for s in (0.0, 0.5, 1.0)},
    **{f"clusters, {k}": (of_clusters, k) for k in (20, 30)},
    **{f"rank correlation ({kind})": (of_ranks, kind, False, False) for kind in ("nats", "0/1")},
    **{f"rank correlation, most layers idle ({kind})": (of_ranks, kind, True, False) for kind in ("nats", "0/1")},
    **{f"rank correlation, known ({kind})": (of_ranks, kind, False, True) for kind in ("nats", "0/1")},
    **{f"{w} ({k})": (of_sufficiency, k, w) for k in ("nats", "0/1") for w in ("faithfulness", "CPR", "CMD")},
    **{f"geometry: {what}": (of_texts, what) for what in ("distance", "probability", "entropy", "effect")},
}


def coverage(case: str, n: int, samples: int, seed: int = 0) -> tuple[float, float]:
    """Of samples of n documents: the share of intervals that cover, and the share of samples that have an interval."""
    make, *arguments = CASES[case]
    (true, draw), rng = make(*arguments), np.random.default_rng([seed, n])
    intervals = (draw(rng, n) for _ in range(samples))
    found = [ends for ends in intervals if ends is not None and np.isfinite(ends[0])]
    covered = [low <= true <= high for low, high in found]
    return float(np.mean(covered)) if found else float("nan"), len(found) / samples
