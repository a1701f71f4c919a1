"""Whether two runs have the same critical parts, and rank the parts alike, as far as noise lets them.

Two measurements of one truth do not have the same critical parts: those at the border come and go. What two runs share
is therefore read against:

* the **ceiling**: what two measurements of the same truth share. The documents of a run are drawn with replacement
  twice, the critical parts of both draws are found as in `depthlens.analysis.stability`, and their overlap is taken,
  ``n_boot`` times; the ceiling is the mean over draws and over both runs;
* **chance**: what two random sets of these sizes share on average (hypergeometric), and a p-value against shifts of
  depth, because neighbouring layers resemble each other (`depthlens.analysis.rank_correlations.shift_p`).

The overlap is Jaccard's index: the number of shared parts over the number of parts in either set. It is *below the
ceiling* where it is smaller than 97.5% of the overlaps of either run with itself.

Limits: a draw from the sample has the noise of the sample and its own, so that the ceiling is a little too low. Where
both runs have the same documents, two measurements would share part of their noise, too, and the ceiling is too low
again. A set that is not below it is not shown to be the same, and a part that is critical in one run alone is not shown
to differ: read the tested differences.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy

from depthlens.analysis.bootstrap import draws
from depthlens.analysis.rank_correlations import COLUMNS as RANKS
from depthlens.analysis.rank_correlations import MIN_PARTS, RankCorrelation, correlate, ranks, shift_p
from depthlens.analysis.run_families import Family, Key, Pair
from depthlens.analysis.stability import critical_in_resamples
from depthlens.analysis.stats import ALPHA

N_BOOT = 500
MOST_TIMES = 1.25  # as many documents: more find more critical parts, whatever the truth is
_KEYS = [*Key._fields, "run", "reference", "paired"]
CRITICAL = [
    *_KEYS, "n_parts", "critical", "reference_critical", "both", "n_critical", "n_reference", "n_both", "jaccard",
    "ceiling", "ceiling_low", "chance", "p_value", "below_ceiling", "documents", "reference_documents", "why",
]  # fmt: skip
RANK_COLUMNS = [*_KEYS, *RANKS]


def critical(key: Key, pair: Pair, why: str, seed: int, n_boot: int = N_BOOT) -> dict[str, Any]:
    """A row of `CRITICAL`: the critical parts of both runs, what they share, and what they could share.

    Args:
        key: Of the family.
        pair: Both runs.
        why: Why the two are not compared; "" if they are.
        seed: Of the draws.
        n_boot: Number of pairs of draws.
    """
    sets = [f.critical for f in (pair.own, pair.reference)]
    names = [
        [c for c, is_in in zip(f.conditions, s, strict=True) if is_in] for f, s in zip(pair[:2], sets, strict=True)
    ]
    n, sizes = len(pair.own.conditions), [int(s.sum()) for s in sets]
    row = _head(key, pair) | {"n_parts": n, "n_critical": sizes[0], "n_reference": sizes[1], "why": why}
    documents = [int(f.losses["n"].max()) for f in (pair.own, pair.reference)]
    row |= {"documents": documents[0], "reference_documents": documents[1]}
    row |= {"critical": ", ".join(names[0]) or "none", "reference_critical": ", ".join(names[1]) or "none"}
    if not why and not any(sizes):
        row["why"] = "no part is critical in either run"
    if row["why"]:
        numbers = dict.fromkeys(("jaccard", "ceiling", "ceiling_low", "chance", "p_value"), math.nan)
        return row | numbers | {"both": "", "n_both": 0, "below_ceiling": False}
    both = sets[0] & sets[1]
    own = [_with_itself(f, seed, n_boot) for f in (pair.own, pair.reference)]
    low = min(float(np.quantile(overlaps, ALPHA / 2)) for overlaps in own)
    found = float(jaccard(*sets))
    places = [ranks(s.astype(float)) for s in sets]
    p, smallest, _ = shift_p(places[0], places[1], pair.own.profile.layers)
    return row | {
        "both": ", ".join(c for c in names[0] if c in names[1]) or "none",
        "n_both": int(both.sum()),
        "jaccard": found,
        "ceiling": float(np.mean(own)),
        "ceiling_low": low,
        "chance": expected_jaccard(n, *sizes),
        "p_value": p if all(sizes) and smallest <= ALPHA else math.nan,  # few layers have few shifts
        "below_ceiling": found < low and max(documents) <= MOST_TIMES * min(documents),
    }


def rank_agreement(key: Key, pair: Pair, seed: int) -> dict[str, Any] | None:
    """A row of `RANK_COLUMNS`; None for fewer than three parts."""
    if len(pair.own.conditions) < MIN_PARTS:
        return None
    own, other = pair.own.profile, pair.reference.profile
    found: RankCorrelation = correlate(own.loss, other.loss, own.layers, seed=seed)
    return _head(key, pair) | dict(zip(RANKS, found.row(), strict=True))


def jaccard(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Shared over all of two sets, given as who is in them, [..., part]; 1 for two empty sets. Shape [...]."""
    either = (a | b).sum(-1)
    return np.where(either > 0, (a & b).sum(-1) / np.maximum(either, 1), 1.0)


def expected_jaccard(n: int, first: int, second: int) -> float:
    """Mean Jaccard index of two random sets of these sizes out of n parts."""
    shared = np.arange(min(first, second) + 1)
    return float(
        scipy.stats.hypergeom.pmf(shared, n, first, second) @ (shared / np.maximum(first + second - shared, 1))
    )


def _with_itself(family: Family, seed: int, n_boot: int) -> np.ndarray:
    """Overlaps of the critical parts in two draws of the documents. Shape [n_boot]."""
    profile = family.profile
    counts = draws(len(profile.documents), 2 * n_boot, seed)
    passes, _ = critical_in_resamples(profile.loss.T, counts, profile.binary, ALPHA, family.min_effect)
    return jaccard(passes[1 : n_boot + 1], passes[n_boot + 1 :])


def _head(key: Key, pair: Pair) -> dict[str, Any]:
    names = {"run": pair.own.run, "reference": pair.reference.run, "paired": pair.paired}
    return {**key._asdict(), **names}
