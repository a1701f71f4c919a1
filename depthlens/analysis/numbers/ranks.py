"""Spearman's rank correlation of two profiles that were measured with noise.

A profile is one loss for each part of a model (layers, heads), a mean over documents. Noise in either profile pulls the
correlation towards zero, and neighbouring layers resemble each other, so that unrelated profiles correlate. A
correlation is therefore reported together with:

* **reliability** of each profile: the documents are halved at random, ``N_SPLITS`` times. The mean rank correlation of
  two halves is r, and ``2 r / (1 + r)`` is that of all documents (Spearman 1910; Brown 1910).
* **ceiling**: ``sqrt(reliability * other_reliability)``, which two profiles of the same truth reach on average.
* **p-value**, two-sided, the observed order included. *Of layers*, what both profiles owe to a common trend over depth
  is left out: a parabola is subtracted from the ranks of each. One of them is continued by its mirror image to a
  circle, turned by every number of layers, and correlated again: p is the share of turns with an absolute correlation
  at least as large. *Of heads*, the heads of every layer are permuted ``N_PERMUTATIONS`` times: p is the share of
  permutations that are at least as far from their mean, which is what the layers alone explain.

Where both profiles may have the same documents, p takes one profile from one half of them and the other from the other
half, of a single split: noise that both share would be called agreement too often.

Limits: the parts are fixed, and nothing is said of other layers. A profile in which most parts do nothing is unreliable
in rank, however exact its large losses are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy

from depthlens.analysis.numbers.stats import ALPHA

N_SPLITS = 30
N_PERMUTATIONS = 999
MIN_DOCS, MIN_PARTS = 8, 3


class RankCorrelation(NamedTuple):
    """Rank correlation of two profiles; the module's docstring defines every number. NaN where there is none.

    Attributes:
        spearman: Of the measured means.
        ceiling: What noise leaves of a correlation of 1.
        p_value: Two-sided, against shifts of depth, or of heads against permutations within layers.
        smallest_p: The smallest that it can be.
        reliability: Of the first profile.
        other_reliability: Of the second; 1 for a profile that is known.
        n_parts: Layers or heads.
        n: Documents (units) of the profile that has fewer.
        note: Why a number is missing, "" if none is.
    """

    spearman: float = math.nan
    ceiling: float = math.nan
    p_value: float = math.nan
    smallest_p: float = math.nan
    reliability: float = math.nan
    other_reliability: float = math.nan
    n_parts: int = 0
    n: int = 0
    note: str = ""


COLUMNS = list(RankCorrelation._fields)


def pairwise(losses: Mapping[str, pd.DataFrame], *, seed: int = 0) -> list[dict[str, Any]]:
    """Whether each two tables rank the parts that both have alike.

    Args:
        losses: By name; documents (see `correlate`) x parts, whose labels are the layer, or the layer and more, rising.
            A table of one row is a known number for each part.
        seed: Of halves and permutations.

    Returns:
        A row each two that have a part in common: ``a`` and ``b``, their names, ``words``, and `COLUMNS`.
    """
    rows = []
    for (name, a), (other, b) in itertools.combinations(losses.items(), 2):
        if len(parts := a.columns.intersection(b.columns, sort=None)):
            own, rival = (table[parts].to_numpy(dtype=float) for table in (a, b))
            layers = parts.get_level_values(0).to_numpy()
            found = correlate(own, rival if len(b) > 1 else rival[0], layers, seed=seed)
            rows.append({"a": name, "b": other, "words": in_words(found), **found._asdict()})
    return rows


def correlate(a: np.ndarray, b: np.ndarray, layers: np.ndarray, *, seed: int = 0) -> RankCorrelation:
    """Correlate two profiles of the same parts.

    A document is what is independent of others: where questions are repeated, give ``added`` of a
    `depthlens.analysis.numbers.means.Mean`, one row a unit. Documents are halved jointly where both profiles have
    equally many. This is right for shared documents, and does no harm to others.

    Args:
        a: Losses. Shape [document, part].
        b: Losses, shape [document, part], or one known number a part, shape [part].
        layers: The layer of each part, rising. Shape [part].
        seed: Of halves and permutations.
    """
    known = b.ndim == 1
    found = RankCorrelation(n_parts=a.shape[1], n=len(a) if known else min(len(a), len(b)))
    own, other = ranks(a.sum(0)), ranks(b if known else b.sum(0))
    if found.n_parts < MIN_PARTS:
        return found._replace(note=f"a rank correlation needs {MIN_PARTS} parts, and here are {found.n_parts}")
    if not own.any() or not other.any():
        return found._replace(note="all parts have the same number, so there are no ranks")
    found = found._replace(spearman=float(own @ other))
    if found.n < MIN_DOCS:
        return found._replace(note=f"{found.n} documents are too few for halves; take {MIN_DOCS}")
    first, second = _halves(a, seed)
    third, fourth = (other[None], other[None]) if known else _halves(b, seed)
    r, other_r = (max(0.0, float((x * y).sum(-1).mean())) for x, y in ((first, second), (third, fourth)))
    r, other_r = 2 * r / (1 + r), 2 * other_r / (1 + other_r)
    if not known and len(a) == len(b):
        own, other = first[0], fourth[0]
    p, smallest = permutation_p(own, other, layers, np.random.default_rng(seed))
    found = found._replace(p_value=p, smallest_p=smallest, reliability=r, other_reliability=other_r)
    return found._replace(ceiling=math.sqrt(r * other_r))


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks over the last axis, centred and of norm 1, so that products are correlations; 0 where all values tie.

    Equal losses tie, whatever their rounding.
    """
    scale = np.maximum(np.abs(values).max(-1, keepdims=True), np.finfo(float).tiny)
    rank = np.asarray(scipy.stats.rankdata((values / scale).round(9), axis=-1))
    rank -= rank.mean(-1, keepdims=True)
    norm = np.sqrt(np.square(rank).sum(-1, keepdims=True))
    return np.divide(rank, norm, out=np.zeros_like(rank), where=norm > 0)


def permutation_p(a: np.ndarray, b: np.ndarray, layers: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """p-value of a correlation, and the smallest that it can be.

    Args:
        a: Of `ranks`. Shape [part].
        b: Of `ranks`. Shape [part].
        layers: The layer of each part, rising; with one part each, depth is shifted. Shape [part].
        rng: Of permutations within layers.
    """
    at, (_, counts) = np.arange(len(a)), np.unique(layers, return_counts=True)
    of_layers = bool((counts == 1).all())
    if of_layers:
        a, b = _without_trend(a), _without_trend(b)
        circle = np.concatenate([at, at[::-1]])
        orders = np.array([np.roll(circle, turn)[: len(at)] for turn in range(len(circle))])
        ways = len(circle)
    else:
        orders = np.vstack([at, within_layers(layers, N_PERMUTATIONS, rng)])
        ways = min(len(orders), math.prod(math.factorial(int(count)) for count in counts))
    rho = (b if of_layers else ranks(b))[orders] @ a
    far = np.abs(rho if of_layers else rho - rho.mean())
    return float(np.mean(far >= far[0] - 1e-9)), 1 / ways


def _without_trend(ranks: np.ndarray) -> np.ndarray:
    """Ranks over depth less their parabola, of norm 1; 0 where nothing is left. Shape [part]."""
    depth = np.linspace(-1, 1, len(ranks))
    left = ranks - np.polyval(np.polyfit(depth, ranks, 2), depth)
    norm = float(np.sqrt(np.square(left).sum()))
    return left / norm if norm > 1e-9 else np.zeros_like(left)


def within_layers(layers: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Permutations of the parts of each layer among themselves. Shape [permutation, part].

    Args:
        layers: The layer of each part, rising. Shape [part].
        n: Permutations.
        rng: Draws them.
    """
    of_layer = np.split(np.arange(len(layers)), np.flatnonzero(np.diff(layers)) + 1)
    return np.hstack([rng.permuted(np.tile(part, (n, 1)), axis=1) for part in of_layer])


def _halves(losses: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of both halves of the documents, by random split. Each of shape [split, part]."""
    n = len(losses)
    sides = np.random.default_rng(seed).permuted(np.tile(np.arange(n) < n // 2, (N_SPLITS, 1)), axis=1).astype(float)
    return ranks(sides @ losses), ranks((1 - sides) @ losses)


def in_words(row: Any) -> str:
    """What a row of a table with `COLUMNS` says: rho, its ceiling, and p."""
    if math.isnan(row.spearman):
        return f"cannot judge: {row.note}"
    text = f"rank correlation **{row.spearman:.2f}**"
    if not math.isnan(row.ceiling):
        verdict = "more than chance" if row.p_value <= ALPHA else "may be chance"
        text += f" (equal orders would give {row.ceiling:.2f} with so much noise), {verdict} (p = {row.p_value:.2g})"
        if row.smallest_p > ALPHA:
            text += f"; p cannot be below {row.smallest_p:.2g}"
    return f"{text}; {row.note}" if row.note else text
