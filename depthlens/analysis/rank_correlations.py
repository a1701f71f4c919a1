"""Spearman's rank correlation of two profiles that were measured with noise.

A profile is one loss for each part of a model (layers, heads), a mean over documents. Noise in either profile pulls the
correlation towards zero, and neighbouring layers resemble each other, so that unrelated profiles correlate. A
correlation is therefore reported together with:

* **reliability** of each profile: the documents are halved at random, ``N_SPLITS`` times. The mean rank correlation of
  two halves is r, and ``2 r / (1 + r)`` is that of all documents (Spearman 1910; Brown 1910).
* **ceiling**: ``sqrt(reliability * other_reliability)``, which two profiles of the same truth reach on average.
* **corrected** correlation (Spearman 1904): the correlation of one profile's half with the *other* half of the other
  profile, over the geometric mean of both ``r``. No document is on both sides, so that a document which both
  measurements share (the same prompt under two modes) cannot make them agree. It is at most 1.
* **interval** of the correlation without noise: all values rho for which ``c_ab - rho * sqrt(c_aa * c_bb)`` is not
  significantly different from 0 (Fieller 1954), with the standard error of a grouped jackknife over documents. Noise
  smooths ranks, which moves their correlation from Spearman's towards Pearson's; both ends are moved outwards by
  ``SMOOTHING``, the most by which the two differ in a bivariate normal distribution.
* **p-value** against shifts of depth: one profile is continued by its mirror image to a circle, turned by every
  number of layers, and correlated again. p is the share of turns with an absolute correlation at least as large, the
  observed place included. All heads of a layer are moved together. Where both profiles may have the same documents, one
  is taken from one half and the other from the other half, of a single split: averaged over splits, every two documents
  would meet twice, unshifted, and noise that both share would be called agreement too often.

The correction takes noise to be alike in all parts. Where most parts do next to nothing it is not: a few large losses
are measured exactly, and the order of all others is noise, which neither half shows. How much of the order of a profile
is measured is its reliability, times the share of the variance of ranks that ties leave. Where this is below
``MEASURED`` for one of the two profiles, neither the corrected correlation nor its interval is given. In simulations of
30 layers, 24 of which do next to nothing, the interval covers in 35% to 92% of samples of 30 to 300 documents without
this rule; docs/methods.md has what it covers with it. ``SMOOTHING`` was settled on simulations of layers that all do
something. The p-value is at most 0.05 for 4% to 6% of unrelated profiles, also of random walks over depth (without the
mirror image: 15%) and with noise that both share.

Limits: the parts are fixed; the interval is over documents, and says nothing of other layers. A profile in which most
parts do nothing is unreliable in rank, however exact its large losses are.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import scipy

from depthlens.analysis.stats import ALPHA

N_SPLITS = 30
N_GROUPS = 20  # of documents, each left out once
MIN_DOCS, MIN_PARTS = 8, 3
RHO = np.arange(-1, 1, 0.001)  # 1 itself is added
SMOOTHING = 0.018  # max of |2 sin(pi r / 6) - r|
MEASURED = 0.9  # share of the order of both profiles from which on the interval covers in simulations
TOO_LITTLE = f"{{}}% of the order of a profile is measured, below the {MEASURED:.0%} that the correction needs"


@dataclass(frozen=True)
class RankCorrelation:
    """Rank correlation of two profiles; the module's docstring defines every number. NaN where there is none.

    Attributes:
        spearman: Of the measured means.
        ceiling: What noise leaves of a correlation of 1.
        corrected: Without noise; at most 1. NaN where too little of the order of a profile is measured.
        ci_low: Lower end of the 95% interval of the correlation without noise.
        ci_high: Upper end.
        p_value: Against shifts of depth, two-sided.
        smallest_p: The smallest that it can be.
        reliability: Of the first profile.
        other_reliability: Of the second; 1 for a profile that is known.
        n_parts: Layers or heads.
        n: Documents of the profile that has fewer.
        note: Why a number is missing, "" if none is.
    """

    spearman: float
    ceiling: float
    corrected: float
    ci_low: float
    ci_high: float
    p_value: float
    smallest_p: float
    reliability: float
    other_reliability: float
    n_parts: int
    n: int
    note: str

    def row(self) -> tuple[Any, ...]:
        """The values in the order of `COLUMNS`."""
        return tuple(asdict(self).values())


COLUMNS = [field.name for field in fields(RankCorrelation)]


def correlate(a: np.ndarray, b: np.ndarray, layers: np.ndarray, *, seed: int = 0) -> RankCorrelation:
    """Correlate two profiles of the same parts.

    Documents are halved and left out jointly where both profiles have equally many. This is right for shared documents,
    and does no harm to others.

    Args:
        a: Losses. Shape [document, part].
        b: Losses, shape [document, part], or one known number a part, shape [part].
        layers: The layer of each part, rising. Shape [part].
        seed: Of the halves.

    """
    n_parts = a.shape[1]
    known = b.ndim == 1
    n = len(a) if known else min(len(a), len(b))
    empty = RankCorrelation(**dict.fromkeys(COLUMNS[:-3], math.nan), n_parts=n_parts, n=n, note="")
    if n_parts < MIN_PARTS:
        return replace(empty, note=f"a rank correlation needs {MIN_PARTS} parts, and here are {n_parts}")
    mean_a, mean_b = ranks(a.sum(0)), ranks(b if known else b.sum(0))
    spearman = float(mean_a @ mean_b)
    if not mean_a.any() or not mean_b.any():
        note = "all parts have the same number, so there are no ranks"
        return replace(empty, note=note)
    if n < MIN_DOCS:
        return replace(empty, spearman=spearman, note=f"{n} documents are too few for halves; take {MIN_DOCS}")
    halves = Halves(a, b, np.random.default_rng(seed))
    p, smallest, note = shift_p(*halves.apart(), layers)
    whole = halves.correlations()
    left_out = np.array([halves.correlations(without=group) for group in range(halves.n_groups)])
    shown = [whole[i] > _margin(left_out[:, i]) for i in (1, 2)]
    reliability, other = (float(2 * c / (1 + c)) if c > 0 else 0.0 for c in whole[1:])
    found = replace(
        empty,
        spearman=spearman,
        ceiling=math.sqrt(reliability * other),
        p_value=p,
        smallest_p=smallest,
        reliability=reliability,
        other_reliability=other,
    )
    if not all(shown):
        fault = "the ranks of a profile are not shown to be more than noise; take more documents"
        return replace(found, note=_join(fault, note))
    measured = min(reliability * _untied(a.sum(0)), other if known else other * _untied(b.sum(0)))
    if measured < MEASURED:
        return replace(found, note=_join(TOO_LITTLE.format(math.floor(100 * measured)), note))
    corrected = float(np.clip(whole[0] / math.sqrt(whole[1] * whole[2]), -1, 1))
    low, high = _fieller(whole, left_out)
    return replace(found, corrected=corrected, ci_low=low, ci_high=high, note=note)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks over the last axis, centred and of norm 1, so that products are correlations; 0 where all values tie."""
    rank = _order(values)
    rank -= rank.mean(-1, keepdims=True)
    norm = np.sqrt(np.square(rank).sum(-1, keepdims=True))
    return np.divide(rank, norm, out=np.zeros_like(rank), where=norm > 0)


def _order(values: np.ndarray) -> np.ndarray:
    """Ranks over the last axis from 1 on; equal losses tie, whatever their rounding."""
    scale = np.maximum(np.abs(values).max(-1, keepdims=True), np.finfo(float).tiny)
    return np.asarray(scipy.stats.rankdata((values / scale).round(9), axis=-1))


def _untied(values: np.ndarray) -> float:
    """What ties leave of the variance of the ranks of a profile; 1 where there are none."""
    return float(scipy.stats.tiecorrect(_order(values)))


def shift_p(a: np.ndarray, b: np.ndarray, layers: np.ndarray) -> tuple[float, float, str]:
    """p-value of a correlation against shifts of depth, the smallest that it can be, and why there is none.

    Args:
        a: Of `ranks`. Shape [part].
        b: Of `ranks`. Shape [part].
        layers: The layer of each part, rising. Shape [part].
    """
    _, counts = np.unique(layers, return_counts=True)
    if len(counts) < MIN_PARTS or len(set(counts)) > 1:
        return math.nan, math.nan, "depth cannot be shifted; sweep equally many parts of each of at least three layers"
    at = np.arange(len(a)).reshape(len(counts), -1)
    circle = np.vstack([at, at[::-1]])
    turned = np.array([b[np.roll(circle, turn, axis=0)[: len(at)].ravel()] for turn in range(len(circle))])
    rho = np.abs(ranks(turned) @ a)
    return float(np.mean(rho >= rho[0] - 1e-9)), 1 / len(circle), ""


class Halves:
    """Ranks of two profiles by random halves of their documents, whole or without one group of documents."""

    def __init__(self, a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> None:
        """Halve documents; see `correlate` for the arguments."""
        self.a, self.b, self.known = a, b, b.ndim == 1
        self.n_groups = min(len(a), N_GROUPS) if self.known else min(len(a), len(b), N_GROUPS)
        self.of_a = self._drawn(len(a), rng)
        self.of_b = self.of_a if self.known or len(a) == len(b) else self._drawn(len(b), rng)

    def _drawn(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Whether a document is in the first half, [split, document], and its group, [document]."""
        split = rng.permuted(np.tile(np.arange(n) < n // 2, (N_SPLITS, 1)), axis=1)
        return split, rng.permutation(np.arange(n) % self.n_groups)

    def ranks(self, without: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Ranks of both halves of one profile and both of the other. Each of shape [split, part]."""
        first, second = _half_ranks(self.a, *self.of_a, without)
        if self.known:
            known = np.broadcast_to(ranks(self.b), first.shape)
            return first, second, known, known
        return first, second, *_half_ranks(self.b, *self.of_b, without)

    def apart(self) -> tuple[np.ndarray, np.ndarray]:
        """Ranks of both profiles of which no document is in both. Each of shape [part]."""
        if self.known:
            return ranks(self.a.sum(0)), ranks(self.b)
        if len(self.a) != len(self.b):
            return ranks(self.a.sum(0)), ranks(self.b.sum(0))
        first, _, _, fourth = self.ranks()
        return first[0], fourth[0]

    def correlations(self, without: int | None = None) -> np.ndarray:
        """Mean correlations of halves: a with b, a with a, b with b. Shape [3]."""
        first, second, third, fourth = self.ranks(without)
        across = (_mean(first, fourth) + _mean(second, third)) / 2
        return np.array([across, _mean(first, second), _mean(third, fourth)])


def _half_ranks(
    losses: np.ndarray, split: np.ndarray, group: np.ndarray, without: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the sums over both halves of the documents that are not in a group. Shapes [split, part]."""
    kept = slice(None) if without is None else group != without
    chosen, sides = losses[kept], split[:, kept].astype(float)
    return ranks(sides @ chosen), ranks((1 - sides) @ chosen)


def _mean(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum(-1).mean())


def _margin(left_out: np.ndarray) -> np.ndarray:
    """Half width of a 95% interval from jackknife values. Shape [group, ...] to [...]."""
    n = len(left_out)
    error = np.sqrt((n - 1) / n * np.square(left_out - left_out.mean(0)).sum(0))
    return np.asarray(scipy.stats.t.ppf(1 - ALPHA / 2, n - 1) * error)


def _fieller(whole: np.ndarray, left_out: np.ndarray) -> tuple[float, float]:
    """Interval of ``c_ab / sqrt(c_aa * c_bb)``; see the module's docstring."""
    rho = np.append(RHO, 1.0)

    def excess(c: np.ndarray) -> np.ndarray:
        return np.asarray(c[..., :1] - rho * np.sqrt(np.maximum(c[..., 1:2], 0) * np.maximum(c[..., 2:], 0)))

    value = excess(whole)
    accepted = rho[np.abs(value) <= _margin(excess(left_out))]
    if not len(accepted):  # no noise at all, or halves that agree more than each with itself: the nearest value
        accepted = rho[[np.argmin(np.abs(value))]]
    return float(max(-1.0, accepted.min() - SMOOTHING)), float(min(1.0, accepted.max() + SMOOTHING))


def _join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def in_words(row: Any) -> str:
    """What a row of a table with `COLUMNS` says: rho, ceiling, corrected rho with its interval, and p."""
    if math.isnan(row.spearman):
        return f"cannot judge: {row.note}"
    text = f"rank correlation {row.spearman:.2f}"
    if not math.isnan(row.ceiling):
        text += f" (noise allows {row.ceiling:.2f})"
    if not math.isnan(row.corrected):
        text += f", without noise **{row.corrected:.2f}** [{row.ci_low:.2f}, {row.ci_high:.2f}]"
    if not math.isnan(row.p_value):
        verdict = "more than" if row.p_value <= ALPHA else "no more than"
        text += f", {verdict} shifts of depth explain (p = {row.p_value:.2g})"
        if row.smallest_p > ALPHA:
            text += f"; p cannot be below {row.smallest_p:.2g}"
    return f"{text}; {row.note}" if row.note else text
