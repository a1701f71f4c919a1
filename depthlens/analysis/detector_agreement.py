r"""Do detectors of heads agree, beyond preferring the same layers?

Two scores of the same heads can correlate over all heads because both are high in the same layers, although within a
layer they pick different heads. Under the null hypothesis of this test the heads of one layer are exchangeable: one
detector says nothing about which head of a layer the other picks. The heads of each layer are therefore permuted, and
both statistics, Spearman's correlation over heads and the number of heads that two lists of k share, are compared with
their values under these permutations::

    p = (1 + number of permutations with a value at least as large) / (1 + number of permutations)

All tests of one table are one family (Bonferroni).

Limits: one score per head is compared, its sampling noise included, which lowers a correlation. Detectors that are
measured on the same needles share that noise. Agreement does not say that either detector finds what matters: two that
look at attention agree on a decoy.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd
import scipy

from depthlens import arguments
from depthlens.analysis.findings import DescribedTable
from depthlens.analysis.head_scores import HeadScores
from depthlens.analysis.stats import ALPHA
from depthlens.errors import UserError

N_PERMUTATIONS = 9999
COLUMNS = [
    "a", "b", "n_heads", "spearman", "expected_spearman", "p_spearman", "p_spearman_adjusted",
    "n_shared", "expected_shared", "p_shared", "p_shared_adjusted", "heads",
]  # fmt: skip


def detector_agreement(
    scores: Mapping[str, HeadScores], *, k: int = 10, n_permutations: int = N_PERMUTATIONS, seed: int = 0
) -> DescribedTable:
    """Whether detectors rank the same heads of a layer first: Spearman's correlation and shared top k, by permutation.

    Args:
        scores: Two or more scores of the heads of one model, by name. A score that falls as a head matters more must
            be negated before.
        k: Length of the lists of highest heads.
        n_permutations: Permutations of the heads within their layers. The smallest p-value is 1 / (1 + this number),
            before it is multiplied by the number of tests.
        seed: Seed of the permutations.

    Returns:
        One row a pair: a, b, n_heads (that have both scores), spearman, expected_spearman (mean over the permutations:
        what the layers alone explain), p_spearman (one-sided), p_spearman_adjusted (Bonferroni over both tests of all
        pairs), n_shared (heads on both lists of k), expected_shared, p_shared, p_shared_adjusted, heads (those shared).
        A score that is the same for all heads ranks none: it has no rows, and a sentence says so.

    Raises:
        UserError: fewer than two scores, scores of different shapes, one that ranks none of the heads that another has,
            or a ``k`` that does not fit.
    """
    if not isinstance(scores, Mapping) or len(scores) < 2:
        raise UserError("scores: give two or more, by name: {'copy-paste': scores, 'write-aware': others}")
    for name, one in scores.items():
        arguments.made_by(one, "critical", "scores of heads, such as retrieval_scores returns", f"scores[{name!r}]")
    n_permutations = arguments.whole("n_permutations", n_permutations, 99)
    seed = arguments.check(seed=seed)["seed"]
    rng = np.random.default_rng(seed)
    flat = [name for name, one in scores.items() if np.nanmin(one.values) == np.nanmax(one.values)]
    pairs = combinations([name for name in scores if name not in flat], 2)
    rows = [_pair(a, b, scores[a], scores[b], k, n_permutations, rng) for a, b in pairs]
    table = pd.DataFrame(rows, columns=[name for name in COLUMNS if "adjusted" not in name])
    for column in ("p_spearman", "p_shared"):
        table[f"{column}_adjusted"] = np.minimum(1.0, 2 * len(table) * table[column].astype(float))
    flats = [f"{name}: all heads have the same score, which ranks none." for name in flat]
    model = next(iter(scores.values())).record.get("model", {})
    record = {"made_by": "detector_agreement", "model": model, "detectors": {n: s.name for n, s in scores.items()}}
    record |= {"k": k, "n_permutations": n_permutations, "seed": seed, "n": {n: s.n for n, s in scores.items()}}
    return DescribedTable(table[COLUMNS], _sentences(table, k) + flats, record)


def _pair(
    a: str, b: str, one: HeadScores, other: HeadScores, k: int, n_permutations: int, rng: np.random.Generator
) -> dict[str, object]:
    """Both statistics of one pair, and their values under permutations of the heads within their layers."""
    if one.values.shape != other.values.shape:
        raise UserError(f"{a} has shape {one.values.shape}, {b} {other.values.shape}; give scores of one model")
    both = np.isfinite(one.values) & np.isfinite(other.values)
    n = int(both.sum())
    k = arguments.whole("k", k, 1, max(n - 1, 1), fix=f" ({n} heads have the scores of both {a} and {b})")
    ranks = [scipy.stats.rankdata(s.values[both]) for s in (one, other)]
    for name, r in zip((a, b), ranks, strict=True):
        if np.ptp(r) == 0:
            raise UserError(f"{name}: all {n} heads have the same score, which ranks none; leave it out")
    # the highest k, equal ones by layer and head as in `HeadScores.top`
    tops = [np.isin(np.arange(n), np.argsort(-r, kind="stable")[:k]) for r in ranks]
    layers, columns = np.nonzero(both)
    centred = [(r - r.mean()) / r.std() for r in ranks]
    rho, shared = np.zeros(n_permutations), np.zeros(n_permutations)
    for layer in np.unique(layers):
        at = np.flatnonzero(layers == layer)
        order = rng.permuted(np.tile(at, (n_permutations, 1)), axis=1)  # [permutation, head of the layer]
        rho += centred[1][order] @ centred[0][at] / n
        shared += tops[1][order] @ tops[0][at].astype(float)
    seen_rho, seen_shared = float(centred[0] @ centred[1] / n), int((tops[0] & tops[1]).sum())
    on_both = np.flatnonzero(tops[0] & tops[1])
    return {
        "a": a,
        "b": b,
        "n_heads": n,
        "spearman": seen_rho,
        "expected_spearman": rho.mean(),
        "p_spearman": _p_value(rho, seen_rho),
        "n_shared": seen_shared,
        "expected_shared": shared.mean(),
        "p_shared": _p_value(shared, seen_shared),
        "heads": ", ".join(f"L{layers[i]}.H{columns[i]}" for i in on_both),
    }


def _p_value(drawn: np.ndarray, seen: int | float) -> float:
    """One-sided p-value of a permutation test; values that differ by rounding are equal."""
    return float((1 + (drawn >= seen - 1e-9).sum()) / (1 + len(drawn)))


def _sentences(table: pd.DataFrame, k: int) -> list[str]:
    """One sentence a pair."""
    sentences = []
    for row in table.to_dict("records"):
        ranks, lists = row["p_spearman_adjusted"] < ALPHA, row["p_shared_adjusted"] < ALPHA
        verdict = {
            (True, True): "agree within layers, in ranks and in their first heads",
            (True, False): "agree within layers in ranks, not provably in their first heads",
            (False, True): "agree within layers in their first heads, not provably in ranks",
            (False, False): "do not provably agree within layers",
        }[ranks, lists]
        rho, shared = (
            f"by layers alone {row[f'expected_{statistic}']:.2g}, p = {row[f'p_{statistic}_adjusted']:.2g}"
            for statistic in ("spearman", "shared")
        )
        sentences.append(
            f"{row['a']} and {row['b']} {verdict}: rho = {row['spearman']:.2f} over {row['n_heads']} heads ({rho}), "
            f"{row['n_shared']} of the first {k} shared ({shared})."
        )
    return sentences
