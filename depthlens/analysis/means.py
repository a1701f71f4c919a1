"""Means over documents, what is computed from them, and one interval for all of it.

Nearly every number of this package is a mean over documents, or is added, subtracted and divided from such means: what
a layer costs, how much more it costs on another task, the first third's share of all losses. A `Mean` carries the
number together with what each unit (each question; each subject of a group) adds to it. Sums and differences add what
units that both have add, so that documents are paired wherever they are the same. A quotient is linearised (the delta
method: Cochran 1977, section 2.11). The interval is Student's t over units.

Two things keep the interval honest where documents are few:

* Half a document that is lost and half one that is won are added to the error of a mean of bounded scores, because
  that nothing changed on n documents does not prove that nothing ever changes (after Agresti & Coull 1998, The American
  Statistician 52:119-126). No interval has zero width.
* Documents that ask the same question are one unit, and so are the documents of one subject where a group of tasks is
  scored (a ratio of sums over units).

docs/methods.md has how often the interval covers the truth in simulations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy

Array = Any  # np.ndarray, or a NumPy number where the shape is []: no type of NumPy's is both
LEVEL = 0.95
ALPHA = 0.05
IMAGINARY = 0.5  # documents lost, and as many won; with 1, means of probabilities cover in 98% of 100 documents
N_FLIPS = 10_000
_BLOCK = 1_000_000  # numbers of one block of flips
_TIE = 1e-9  # equal sums of flips differ by rounding


@dataclass(frozen=True, eq=False)
class Mean:
    """A mean over units, or what was computed from such means.

    Attributes:
        value: Shape [...].
        added: What each unit adds to the value; the sum over units is the value. Shape [unit, ...].
        centred: The same less what a unit adds on average; the square sum over units is the squared standard error.
            Shape [unit, ...].
        units: Names of the units. Shape [unit].
        n: Units; of several samples those of the smallest.
        extra: What `IMAGINARY` documents add to the squared standard error. Shape [...].

    Example:
        >>> found = dl.analysis.mean(result.document_losses("organism_one_hop", "acc")["L2"].to_numpy())
        >>> low, high = found.interval()
        >>> found.n, sorted(found.columns("loss"))
        (12, ['ci_high', 'ci_low', 'loss', 'p_value'])
    """

    value: Array
    added: np.ndarray
    centred: np.ndarray
    units: pd.Index
    n: int
    extra: Array

    def __add__(self, other: Mean) -> Mean:
        units = self.units if self.units.equals(other.units) else self.units.append(other.units).unique()
        value = self.value + other.value
        added, centred = np.zeros((2, len(units), *np.shape(value)))
        for part in (self, other):
            at = units.get_indexer(part.units)
            added[at] += _raised(part.added, np.ndim(value))
            centred[at] += _raised(part.centred, np.ndim(value))
        return Mean(value, added, centred, units, min(self.n, other.n), self.extra + other.extra)

    def __neg__(self) -> Mean:
        return self * -1.0

    def __sub__(self, other: Mean) -> Mean:
        return self + -other

    def __mul__(self, factor: float | Array) -> Mean:
        added, centred = (_raised(part, np.ndim(factor)) * factor for part in (self.added, self.centred))
        extra = self.extra * np.square(factor)
        return replace(self, value=self.value * factor, added=added, centred=centred, extra=extra)

    def __truediv__(self, other: Mean) -> Mean:
        """The quotient; NaN where the divisor is not above 0."""
        divisor = np.where(other.value > 0, other.value, np.nan)
        share = self.value / divisor
        scaled = replace(other, added=other.centred) * share  # around the share it adds nothing on average
        return replace(self + -scaled, value=self.value) * (1 / divisor)

    def __getitem__(self, at: Any) -> Mean:
        """Some of the values, by their index."""
        parts = {"value": self.value[at], "extra": self.extra[at]}
        for name in ("added", "centred"):
            parts[name] = getattr(self, name)[(slice(None), *(at if isinstance(at, tuple) else (at,)))]
        return replace(self, **parts)

    @property
    def error(self) -> Array:
        """Standard error. Shape [...]."""
        return np.sqrt(np.square(self.centred).sum(0) + self.extra)

    def interval(self, level: float = LEVEL) -> tuple[Array, Array]:
        """Lower and upper end of the interval, each of the shape of `value`; NaN for one unit."""
        half = scipy.stats.t.ppf((1 + level) / 2, self.n - 1) * self.error
        return self.value - half, self.value + half

    def columns(self, name: str = "difference") -> dict[str, Array]:
        """Value, 95% interval and p-value, under the names that tables have for them."""
        low, high = self.interval()
        return {name: self.value, "ci_low": low, "ci_high": high, "p_value": self.p()}

    def p(self) -> Array:
        """Two-sided p-value that the value is 0; it fits the interval. Shape [...]."""
        error = self.error
        t = np.divide(np.abs(self.value), error, out=np.zeros_like(error), where=error > 0)
        return 2 * scipy.stats.t.sf(t, max(self.n - 1, 1))


def mean(
    values: np.ndarray | pd.Series,
    units: Sequence[str] | np.ndarray | pd.Index | pd.Series | None = None,
    *,
    bounded: bool = True,
) -> Mean:
    """The mean over documents.

    Args:
        values: Shape [document, ...].
        units: The unit of each document; None: each is its own, and row i is the same in every mean. Shape [document].
        bounded: Whether a document adds between -1 and 1, so that `IMAGINARY` documents are counted in the error.

    Example:
        >>> losses = dl.analysis.mean(result.document_losses("organism_one_hop", "acc").to_numpy())
        >>> losses.value.shape, losses.n
        ((6,), 12)
    """
    values = np.asarray(values, dtype=float)
    n_docs, value = len(values), values.mean(0)
    at, names = pd.factorize(pd.RangeIndex(n_docs) if units is None else pd.Index(units))
    n = len(names)
    added = np.zeros((n, *values.shape[1:]))
    np.add.at(added, at, values / n_docs)
    weight = (np.bincount(at, minlength=n) / n_docs).reshape(-1, *[1] * (values.ndim - 1))
    centred = (added - value * weight) * np.sqrt(n / max(n - 1, 1))
    extra = np.full(np.shape(value), 2 * (bounded * IMAGINARY / n_docs) ** 2)
    return Mean(value, added, centred, pd.Index(names), n, extra)


def max_t(found: Mean, *, n_flips: int = N_FLIPS, seed: int = 0) -> np.ndarray:
    """Two-sided p-values of a family, corrected by step-down maxT over sign flips of units.

    If a condition changes nothing on average, and the change of a unit is as likely up as down, turning a unit's sign
    under all conditions at once gives a sample that was as likely. A p-value is the share of flips whose largest
    standardised sum, over the conditions that are not larger themselves, reaches the condition's own (Westfall & Young
    1993, algorithm 4.1; Romano & Wolf 2005, Econometrica 73:1237-1282). Correlated conditions cost less than under
    Holm's correction. It misleads where changes are unbounded and skewed: give it bounded ones.

    Args:
        found: One value a condition. Shape [condition].
        n_flips: Flips that are drawn; all ``2**n`` where these are not more.
        seed: Of the flips.

    Returns:
        Shape [condition]. With drawn flips no value is below ``1 / (1 + n_flips)``.

    Example:
        >>> losses = dl.analysis.mean(result.document_losses("organism_one_hop", "acc").to_numpy())
        >>> dl.analysis.max_t(losses) < 0.05
        array([False,  True,  True, False, False, False])
    """
    if not len(found.value):
        return np.empty(0)
    n = len(found.added)
    scale = np.sqrt(np.square(found.added).sum(0))
    z = np.divide(found.added, scale, out=np.zeros_like(found.added), where=scale > 1e-12)
    own = np.abs(z.sum(0))
    order = np.argsort(own, kind="stable")
    z, sorted_own = z[:, order], own[order]
    every = 2**n <= n_flips
    total, counts = 2**n if every else n_flips, np.zeros(len(own))
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // (n + len(own)))
    for first in range(0, total, block):
        count = min(block, total - first)
        bits = np.arange(first, first + count)[:, None] >> np.arange(n) & 1 if every else rng.integers(0, 2, (count, n))
        largest = np.maximum.accumulate(np.abs((1.0 - 2.0 * bits) @ z), axis=1)
        counts += (largest >= sorted_own - _TIE * np.maximum(sorted_own, 1)).sum(0)
    p = np.empty(len(own))
    p[order] = np.maximum.accumulate(counts[::-1])[::-1]
    return np.where(own > 0, (p + (not every)) / (total + (not every)), 1.0)


def _raised(part: np.ndarray, ndim: int) -> np.ndarray:
    """Shape [unit, ...] with axes of one value after the first, so that the others are `ndim` or more."""
    return part.reshape(len(part), *[1] * (ndim - part.ndim + 1), *part.shape[1:])
