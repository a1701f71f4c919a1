"""Differences between two runs of one family: whole models, losses by condition, and where in depth the losses are.

Both runs hold the same questions, and everything is paired by question, with the intervals and p-values of
`depthlens.analysis.means`: scores of whole models; losses by condition, in the metric's unit and as shares of the score
above the floor, with step-down maxT over the family; the centre of mass and the thirds' shares of all losses. Several
runs are several tests: every p-value is multiplied by the number of pairs of runs, and those of thirds by three, too
(Bonferroni). Nats are at most 1 a document.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from depthlens.analysis import stats
from depthlens.analysis.means import Mean, max_t
from depthlens.analysis.run_families import Family, Key, Pair, same_parts
from depthlens.analysis.scores import THIRDS, Scores, layer_third
from depthlens.analysis.stats import ALPHA

SCORE, ABOVE_FLOOR = "score", "above floor"
CENTRE = "centre of mass"
MEASURES = (CENTRE, *THIRDS)
DIFFERENCES = [
    *Key._fields, "condition", "layer", "head", "run", "reference", "n", "scale", "loss", "reference_loss",
    "difference", "ci_low", "ci_high", "p_adjusted", "shown",
]  # fmt: skip


def whole_models(pair: Pair) -> Mean:
    """The score of the run's whole model minus that of the reference's, in the metric's unit."""
    own, other = pair.own.profile, pair.reference.profile
    return stats.changes(own.metric, own.sign * (own.base - other.base), own.units)


def losses(key: Key, pair: Pair, n_pairs: int) -> list[pd.DataFrame]:
    """How much more each condition costs the run than the reference, on every scale that there is.

    Args:
        key: Of the family.
        pair: Both runs.
        n_pairs: Pairs of runs that are compared in this family.

    Returns:
        Tables of `DIFFERENCES`, one a scale; none where a run is at chance, or for one document.
    """
    own, other = pair.own.profile, pair.reference.profile
    if own.at_chance or other.at_chance or not pair.own.conditions or len(set(own.units)) < 2:
        return []
    of_scale = {SCORE: (own.mean_loss(), other.mean_loss())}
    if pair.own.has_room and pair.reference.has_room:
        of_scale[ABOVE_FLOOR] = own.relative_loss(), other.relative_loss()
    return [_rows(key, pair, scale, *means, n_pairs) for scale, means in of_scale.items()]


def _rows(key: Key, pair: Pair, scale: str, own: Mean, other: Mean, n_pairs: int) -> pd.DataFrame:
    gap = own - other
    low, high = gap.interval()
    p = np.minimum(max_t(gap) * n_pairs, 1.0)
    least = pair.own.min_effect if scale == SCORE else 0.0
    columns = {
        **key._asdict(),
        "condition": pair.own.conditions,
        "layer": pair.own.losses["layer"],
        "head": pd.array(np.where(pair.own.heads < 0, np.nan, pair.own.heads), "Int64"),
        "run": pair.own.run,
        "reference": pair.reference.run,
        "n": len(pair.own.profile.base),
        "scale": scale,
        "loss": own.value,
        "reference_loss": other.value,
        "difference": gap.value,
        "ci_low": low,
        "ci_high": high,
        "p_adjusted": p,
        "shown": (p < ALPHA) & (np.abs(gap.value) > least),
    }
    return pd.DataFrame(columns)[DIFFERENCES]


def measures(profile: Scores) -> Mean:
    """Centre of mass and the thirds' shares of all losses, as `MEASURES` names them. Shape [4].

    Shares are NaN where no layer of some third was removed.
    """
    inside = (layer_third(profile.layers, profile.n_layers)[:, None] == np.arange(len(THIRDS))).astype(float)
    if not inside.any(0).all():
        inside[:] = np.nan
    return profile.share(np.column_stack([profile.depth, inside]))


def placed(family: Family) -> Iterator[dict[str, Any]]:
    """Where the losses of one run are: a row each of `MEASURES`, with ``why`` there is no value."""
    profile = family.profile
    n, why = len(profile.documents), unplaced(profile)
    values = np.full((3, 4), np.nan)
    if not why:
        found = measures(profile)
        values[:] = found.value, *found.interval()
    for measure, value, low, high in zip(MEASURES, *values, strict=True):
        yield {"measure": measure, "n": n, "value": value, "ci_low": low, "ci_high": high, "why": why}


def unplaced(profile: Scores) -> str:
    """Why the losses of a family cannot be placed in depth; "" if they can."""
    if profile.n_layers < len(THIRDS) or not len(profile.layers):
        return f"fewer than {len(THIRDS)} layers"
    return profile.unplaced


def moved(pair: Pair, n_pairs: int) -> np.ndarray:
    """The run minus the reference for each of `MEASURES`: difference, interval and corrected p-value. Shape [4, 4].

    NaN where there is no value.
    """
    profiles = [pair.own.profile, pair.reference.profile]
    partial = any(len(np.unique(p.layers)) < p.n_layers for p in profiles)
    if any(unplaced(p) for p in profiles) or (partial and not same_parts(pair.own, pair.reference)):
        return np.full((4, 4), np.nan)
    gap = measures(profiles[0]) - measures(profiles[1])
    p = np.minimum(1.0, gap.p() * n_pairs * [1, *[len(THIRDS)] * len(THIRDS)])
    return np.column_stack([gap.value, *gap.interval(), np.where(np.isnan(gap.value), np.nan, p)])
