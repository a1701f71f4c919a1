"""Means over documents, what is computed from them, and one interval for all of it.

Nearly every number of this package is a mean over documents, or is added, subtracted and divided from such means: what
a layer costs, how much more it costs on another task, the first third's share of all losses. A `Mean` carries the
number together with what each unit (each question; each subject of a group) adds to it. Sums and differences add what
units that both have add, so that documents are paired wherever they are the same. A quotient is linearised (the delta
method: Cochran 1977, section 2.11). The interval is Student's t over units.

Two things keep the interval honest where documents are few:

* Half a question that is lost and half one that is won are added to the error of a mean of bounded scores, because
  that nothing changed on n questions does not prove that nothing ever changes (after Agresti & Coull 1998, The American
  Statistician 52:119-126). No interval has zero width, and none goes beyond the limits of what it is of.
* Documents that ask the same question are one unit, and so are the documents of one subject where a group of tasks is
  scored (a ratio of sums over units).

docs/methods.md has how often the interval covers the truth in simulations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy

Array = Any  # np.ndarray, or a NumPy number where the shape is []: no type of NumPy's is both
LEVEL = 0.95
ALPHA = 0.05
IMAGINARY = 0.5  # questions lost, and as many won; with 1, means of probabilities cover in 98% of 100 documents
CHANGES = -1.0, 1.0  # limits of the change of a share, and of nats that are clipped
UNLIMITED = -np.inf, np.inf
N_DRAWS = 4_000
FEW_UNITS = 10  # samples of fewer have too few different sums: their p-values are at least those of t by Bonferroni
_BLOCK = 1_000_000  # numbers of one block of draws
_FAR = 1e6  # a quotient beyond it has no end
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
        extra: What `IMAGINARY` questions add to the squared standard error. Shape [...].
        limits: The least and the greatest that the value can be.

    Example:
        >>> found = result.losses("organism_one_hop").mean()[2]
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
    limits: tuple[Array, Array] = UNLIMITED

    def __add__(self, other: Mean) -> Mean:
        units = self.units if self.units.equals(other.units) else self.units.append(other.units).unique()
        value = self.value + other.value
        added, centred = np.zeros((2, len(units), *np.shape(value)))
        for part in (self, other):
            at = units.get_indexer(part.units)
            added[at] += _raised(part.added, np.ndim(value))
            centred[at] += _raised(part.centred, np.ndim(value))
        limits = self.limits[0] + other.limits[0], self.limits[1] + other.limits[1]
        return Mean(value, added, centred, units, min(self.n, other.n), self.extra + other.extra, limits)

    def __neg__(self) -> Mean:
        return self * -1.0

    def __sub__(self, other: Mean) -> Mean:
        return self + -other

    def __mul__(self, factor: float | Array) -> Mean:
        added, centred = (_raised(part, np.ndim(factor)) * factor for part in (self.added, self.centred))
        with np.errstate(invalid="ignore"):  # nothing times infinity is nothing
            scaled = [np.multiply(end, factor) for end in self.limits]
        ends = [np.where(np.isnan(end), 0.0, end) for end in scaled]
        limits, extra = (np.minimum(*ends), np.maximum(*ends)), self.extra * np.square(factor)
        value = self.value * factor + 0.0  # no -0.0
        return replace(self, value=value, added=added, centred=centred, extra=extra, limits=limits)

    def __truediv__(self, other: Mean) -> Mean:
        """The quotient; NaN where the divisor is not above 0."""
        divisor = np.where(other.value > 0, other.value, np.nan)
        share = self.value / divisor
        scaled = replace(other, added=other.centred) * share  # around the share it adds nothing on average
        return replace(self + -scaled, value=self.value, limits=UNLIMITED) * (1 / divisor)

    def ravel(self) -> Mean:
        """All values in one row."""
        low, high = (np.broadcast_to(end, np.shape(self.value)).ravel() for end in self.limits)
        added, centred = (part.reshape(len(part), -1) for part in (self.added, self.centred))
        return Mean(np.ravel(self.value), added, centred, self.units, self.n, np.ravel(self.extra), (low, high))

    def __getitem__(self, at: Any) -> Mean:
        """Some of the values, by their index."""
        parts = {"value": self.value[at], "extra": self.extra[at]}
        parts["limits"] = tuple(np.broadcast_to(end, np.shape(self.value))[at] for end in self.limits)
        for name in ("added", "centred"):
            parts[name] = getattr(self, name)[(slice(None), *(at if isinstance(at, tuple) else (at,)))]
        return replace(self, **parts)

    @property
    def error(self) -> Array:
        """Standard error. Shape [...]."""
        return np.sqrt(np.square(self.centred).sum(0) + self.extra)

    def interval(self, level: float = LEVEL) -> tuple[Array, Array]:
        """Lower and upper end of the interval, each of the shape of `value` and within `limits`; NaN for one unit."""
        half = scipy.stats.t.ppf((1 + level) / 2, self.n - 1) * self.error
        return np.clip(self.value - half, *self.limits), np.clip(self.value + half, *self.limits)

    def columns(self, name: str = "difference") -> dict[str, Array]:
        """Value, 95% interval and p-value, under the names that tables have for them."""
        low, high = self.interval()
        return {name: self.value, "ci_low": low, "ci_high": high, "p_value": self.p()}

    def p_adjusted(self) -> np.ndarray:
        """P-values corrected over all values as one family; see `max_t`. Shape [condition]."""
        return max_t(self)

    def p(self) -> Array:
        """Two-sided p-value that the value is 0; it fits the interval. Shape [...]."""
        error = self.error
        t = np.divide(np.abs(self.value), error, out=np.zeros_like(error), where=error > 0)
        return 2 * scipy.stats.t.sf(t, max(self.n - 1, 1))


@dataclass(frozen=True, eq=False)
class Ratio:
    """A quotient of two means whose interval needs no division (Fieller 1954, JRSS B 16:175-185).

    The interval has every number ``m`` for which ``part - m * whole`` may be 0. It is right for a ``whole`` near 0,
    too, where a quotient is far from normal: an end is infinite where ``whole`` is not shown to be above 0.

    Attributes:
        part: Shape [].
        whole: Never below 0 in truth. Shape [].

    Example:
        >>> losses = result.losses("organism_one_hop")
        >>> low, high = Ratio(losses.mean()[2], losses.over(losses.base)).interval()
        >>> bool(low < high)
        True
    """

    part: Mean
    whole: Mean

    @property
    def value(self) -> float:
        """The quotient; infinite where the divisor is not above 0."""
        part, whole = float(self.part.value), float(self.whole.value)
        return part / whole if whole > 0 else math.copysign(math.inf, part)

    @property
    def n(self) -> int:
        """Units."""
        return min(self.part.n, self.whole.n)

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Lower and upper end of the interval."""
        part, whole = float(self.part.value), float(self.whole.value)
        own, other, both = (float(found.error) ** 2 for found in (self.part, self.whole, self.part + self.whole))
        shared, t = (both - own - other) / 2, scipy.stats.t.ppf((1 + level) / 2, self.n - 1)

        def beyond(m: float, side: int) -> float:
            """How far the end of the interval of ``part - m * whole`` at a side is beyond 0."""
            error = math.sqrt(max(own - 2 * m * shared + m**2 * other, 0.0))
            return side * (part - m * whole) - t * error

        def end(side: int) -> float:
            """Going up the lower interval falls to 0 at the lower end; the upper end is its mirror."""
            near, far = 0.0, side * _FAR
            if beyond(0.0, side) < 0:
                far = -far
                if beyond(far, side) < 0:
                    return far * math.inf
            elif beyond(far, side) > 0:
                return far * math.inf
            return float(scipy.optimize.brentq(beyond, near, far, args=(side,)))

        return end(1), end(-1)


def mean(
    values: np.ndarray | pd.Series,
    units: Sequence[str] | np.ndarray | pd.Index | pd.Series | None = None,
    *,
    limits: tuple[float, float] = CHANGES,
    n_questions: int | None = None,
) -> Mean:
    """The mean over documents.

    Args:
        values: Shape [document, ...].
        units: The unit of each document; None: each is its own, and row i is the same in every mean. Shape [document].
        limits: The least and the greatest that a document can add. Where they are finite, `IMAGINARY` questions at the
            farther one are counted in the error.
        n_questions: Questions that were asked; None: as many as there are units. The subjects of a group are its units,
            and each has several questions.

    Raises:
        ValueError: a value beyond the limits.

    Example:
        >>> losses = result.losses("organism_one_hop")
        >>> mean(losses.loss, losses.units).value.shape
        (6,)
    """
    values = np.asarray(values, dtype=float)
    if values.min(initial=limits[0]) < limits[0] - _TIE or values.max(initial=limits[1]) > limits[1] + _TIE:
        raise ValueError(f"values from {values.min():g} to {values.max():g} are not within {limits[0]} to {limits[1]}")
    n_docs, value = len(values), values.mean(0)
    at, names = pd.factorize(pd.RangeIndex(n_docs) if units is None else pd.Index(units))
    n = len(names)
    added = np.zeros((n, *values.shape[1:]))
    np.add.at(added, at, values / n_docs)
    weight = (np.bincount(at, minlength=n) / n_docs).reshape(-1, *[1] * (values.ndim - 1))
    centred = (added - value * weight) * np.sqrt(n / max(n - 1, 1))
    farther = max(map(abs, limits)) if np.isfinite(limits).all() else 0.0
    extra = np.full(np.shape(value), 2 * (farther * IMAGINARY / (n_questions or n)) ** 2)
    return Mean(value, added, centred, pd.Index(names), n, extra, limits)


def in_top(found: Mean, k: int, *, n_draws: int = 1_000, seed: int = 0) -> np.ndarray:
    """How stable a ranking is: share of bootstrap draws of units in which each value is among the ``k`` greatest.

    Equal values are ranked at random.

    Args:
        found: One value a condition. Shape [condition].
        k: At most the number of conditions.
        n_draws: Samples of units with replacement.
        seed: Of the draws.

    Returns:
        Shape [condition]; NaN of a single unit.

    Example:
        >>> losses = result.losses("organism_one_hop")
        >>> in_top(losses.mean(), 2)
        array([0., 1., 1., 0., 0., 0.])
    """
    n, size = found.centred.shape
    if n < 2 or k < 1:
        return np.full(size, np.nan)
    rng, counts = np.random.default_rng(seed), np.zeros(size)
    for _, count in _blocks(n_draws, n + size):
        drawn = found.value + rng.multinomial(n, np.full(n, 1 / n), size=count) @ found.centred
        drawn += rng.uniform(0, _TIE, drawn.shape)
        counts += (drawn >= np.partition(drawn, -k, axis=1)[:, [-k]]).sum(0)
    return counts / n_draws


def max_t(found: Mean, *, n_draws: int = N_DRAWS, seed: int = 0) -> np.ndarray:
    """Two-sided p-values of a family, corrected by step-down maxT over draws of units.

    A p-value is the share of draws whose largest standardised sum, over the conditions that are not larger themselves,
    reaches the condition's own (Westfall & Young 1993, algorithm 4.1; Romano & Wolf 2005, Econometrica 73:1237-1282).
    Correlated conditions cost less than under Holm's correction. There are two kinds of draws:

    * *Sign flips*, where all changes of a condition are equally large, as those of right and wrong answers: a mean of 0
      then says that up is as likely as down, so that turning a unit's sign under all conditions at once gives a sample
      that was as likely.
    * *A studentised bootstrap of units* elsewhere. Many small losses and few large gains may have a mean of 0, and
      flips would call nearly every such family critical. `IMAGINARY` questions, one lost and one won, are drawn with
      the others and stand in every error, because the few gains may be in none of n documents. Of fewer than
      `FEW_UNITS` units no p-value is below that of Student's t by Bonferroni's correction.

    docs/methods.md has error rate and power of both.

    Args:
        found: One value a condition. Shape [condition].
        n_draws: Draws; all ``2**n`` flips where these are not more.
        seed: Of the draws.

    Returns:
        Shape [condition]. No value is below ``1 / (1 + n_draws)``, but of all flips.

    Example:
        >>> losses = result.losses("organism_one_hop")
        >>> max_t(losses.mean()) < 0.05
        array([False,  True,  True, False, False, False])
    """
    if not len(found.value):
        return np.empty(0)
    sizes = np.abs(found.added)
    largest = sizes.max(0)
    equal = np.isclose(sizes, largest, rtol=1e-6, atol=0) | (sizes <= 1e-9 * largest)
    own, drawn, every = (_flips if equal.all() else _resampled)(found, n_draws, np.random.default_rng(seed))
    order = np.argsort(own, kind="stable")
    sorted_own, counts, total = own[order], np.zeros(len(own)), 0
    for of_block in drawn:
        highest = np.maximum.accumulate(of_block[:, order], axis=1)
        counts += (highest >= sorted_own - _TIE * np.maximum(sorted_own, 1)).sum(0)
        total += len(of_block)
    p = np.empty(len(own))
    p[order] = np.maximum.accumulate(counts[::-1])[::-1]
    p = np.where(own > 0, (p + (not every)) / (total + (not every)), 1.0)
    few = found.n < FEW_UNITS and not equal.all()
    return np.maximum(p, np.minimum(1.0, len(p) * found.p())) if few else p


def _blocks(total: int, size: int) -> Iterator[tuple[int, int]]:
    """First draw and number of draws of blocks that fit into memory; ``size``: numbers of a draw."""
    block = max(1, _BLOCK // size)
    return ((first, min(block, total - first)) for first in range(0, total, block))


def _flips(found: Mean, n_draws: int, rng: np.random.Generator) -> tuple[np.ndarray, Iterator[np.ndarray], bool]:
    """Absolute standardised sums, those of sign flips [draw, condition] in blocks, and whether these are all flips."""
    largest = np.abs(found.added).max(0)
    # all changes of a condition are equally large: their signs are whole numbers, whose sums float32 has exactly
    ratios = np.divide(found.added, largest, out=np.zeros_like(found.added), where=largest > 1e-12)
    signs: np.ndarray = np.rint(ratios).astype(np.float32)
    n, total, scale = len(signs), signs.sum(0), np.sqrt(np.maximum(np.abs(signs).sum(0), 1))
    every = 2**n <= n_draws

    def drawn() -> Iterator[np.ndarray]:
        bits: np.ndarray
        for first, count in _blocks(2**n if every else n_draws, sum(signs.shape)):
            if every:
                bits = np.arange(first, first + count)[:, None] >> np.arange(n) & 1
            else:
                packed = np.frombuffer(rng.bytes(count * -(-n // 8)), dtype=np.uint8).reshape(count, -1)
                bits = np.unpackbits(packed, axis=1, count=n)
            yield np.abs(total - 2 * (bits.astype(np.float32) @ signs)) / scale

    return np.abs(total) / scale, drawn(), every


def _resampled(found: Mean, n_draws: int, rng: np.random.Generator) -> tuple[np.ndarray, Iterator[np.ndarray], bool]:
    """The same of samples of units with replacement, among them one lost and one won `IMAGINARY` question."""
    half = np.sqrt(found.extra / 2)
    rows = np.vstack([found.centred, half, -half])  # [unit, condition]; each column sums to 0
    n, columns = len(rows), np.hstack([rows, np.square(rows)])
    error = np.sqrt(np.square(rows).sum(0) + found.extra)
    own = np.divide(np.abs(found.value), error, out=np.zeros_like(error), where=error > 1e-12)

    def drawn() -> Iterator[np.ndarray]:
        for _, count in _blocks(n_draws, sum(rows.shape)):
            drawn_units = rng.integers(0, n, (count, n), dtype=np.int32) + n * np.arange(count)[:, None]
            times = np.bincount(drawn_units.ravel(), minlength=count * n).reshape(count, n).astype(float)
            sums, squares = np.hsplit(times @ columns, 2)
            errors = np.sqrt(np.maximum(squares - sums**2 / n, 0) + found.extra)
            yield np.divide(np.abs(sums), errors, out=np.zeros_like(sums), where=errors > 1e-12)

    return own, drawn(), False


def _raised(part: np.ndarray, ndim: int) -> np.ndarray:
    """Shape [unit, ...] with axes of one value after the first, so that the others are `ndim` or more."""
    return part.reshape(len(part), *[1] * (ndim - part.ndim + 1), *part.shape[1:])
