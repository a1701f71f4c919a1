"""Lists of heads: the roles of heads, what two lists share, and what lists miss of heads that are known to matter."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import scipy

from depthlens import arguments
from depthlens.ablations import Head
from depthlens.analysis.heads.scores import HeadScores
from depthlens.analysis.numbers.stats import ALPHA
from depthlens.errors import UserError


def both_tops(a: HeadScores, b: HeadScores, k: int) -> tuple[list[Head], list[Head], np.ndarray]:
    """The first ``k`` heads by each of two scores, among the heads that have both, and which heads these are.

    Raises:
        UserError: scores of different shapes, or a ``k`` that does not fit the heads that have both.
    """
    if a.values.shape != b.values.shape:
        raise UserError(f"scores have shapes {a.values.shape} and {b.values.shape}; give two of one model")
    both = a.frame["value"].notna() & b.frame["value"].notna()
    n = int(both.sum())
    k = arguments.whole("k", k, 1, max(n - 1, 1), fix=f" ({n} heads have both scores)")
    first, second = (replace(s, frame=s.frame[both]).top(k) for s in (a, b))
    return first, second, both.to_numpy().reshape(a.values.shape)


class Overlap(NamedTuple):
    """How many heads two lists have in common, how many two random lists have, and how often at least as many."""

    n: int
    expected: float
    p_value: float

    def __str__(self) -> str:
        amount = "more than" if self.p_value < ALPHA else "no more than"
        said = f"{self.n} {'head' if self.n == 1 else 'heads'} in common, {amount} as many random heads of each layer"
        return f"{said} explain ({self.expected:.2g} expected, p = {self.p_value:.2g})"


def overlap(a: Collection[Head], b: Collection[Head], n_heads: Sequence[int]) -> Overlap:
    """Compare two lists of heads of one model with random lists that have as many heads in each layer.

    In a layer of h heads, of which one list has x and the other y, the number in common is then hypergeometric. The
    layers are independent, so that the distribution of the sum is the convolution, and p is exact.

    Args:
        a: Heads.
        b: Others.
        n_heads: The heads of each layer that could be on a list.
    """
    common = len({*a} & {*b})
    counts = [np.bincount([layer for layer, _ in heads], minlength=len(n_heads)) for heads in (a, b)]
    chances = np.ones(1)  # of 0, 1, 2 .. heads in common
    for size, *of_lists in zip(n_heads, *counts, strict=True):
        if min(of_lists):
            chances = np.convolve(chances, scipy.stats.hypergeom.pmf(np.arange(min(of_lists) + 1), size, *of_lists))
    expected, p = float(np.arange(len(chances)) @ chances), float(min(1.0, chances[common:].sum()))
    return Overlap(common, expected, p)
