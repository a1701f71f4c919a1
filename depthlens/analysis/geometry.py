"""Do cheap numbers foretell what removing a layer costs? Rank correlations over layers, and sentences on them.

Spearman's correlation between a number a layer (`depthlens.analysis.geometry.predictors`, or any other table with a
column ``layer``) and the loss of removing it, task by task; intervals are bootstraps over documents
(`depthlens.analysis.layer_profiles`).

Limit: the first layer turns the stream most and costs most in nearly every model, and alone makes a correlation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from depthlens import arguments
from depthlens.analysis.layer_profiles import Profile, drawn, interval, profiles
from depthlens.analysis.results import Result
from depthlens.errors import UserError


def agreement(predictors: pd.DataFrame, result: Result, *, seed: int = 0, n_boot: int = 2000) -> pd.DataFrame:
    """Spearman's correlation, over layers, of each predictor with the loss that removing the layer causes.

    The interval is a bootstrap over the sweep's documents (`depthlens.analysis.layer_profiles`). Noise of the losses
    pulls the correlation towards zero: a low value from few documents is no proof of disagreement.

    Args:
        predictors: As of `predictors`: ``layer``, and one column a predictor.
        result: A layer sweep of the same model.
        seed: Of the bootstrap.
        n_boot: Number of draws.

    Returns:
        One row a task (and metric) that is not at chance and predictor: task, predictor, spearman, ci_low, ci_high; NaN
        where losses or predictor are the same for all layers.

    Raises:
        UserError: no column ``layer``, a removed layer without predictors, fewer than 3 layers, or no layer sweep.
    """
    arguments.made_by(
        predictors, "columns", "a table such as that of depthlens.analysis.geometry.predictors", "predictors"
    )
    rows = []
    found = [p for p in profiles(result) if not p.at_chance]
    for profile, (loss, _) in zip(found, drawn(found, seed=seed, n_boot=n_boot), strict=True):
        for name, values in aligned(predictors, profile).items():
            rho = _spearman(loss, values.to_numpy(dtype=float))
            low, high = interval(rho, len(profile.documents))
            rows.append((profile.label, name, float(rho[0]), float(low), float(high)))
    return pd.DataFrame(rows, columns=["task", "predictor", "spearman", "ci_low", "ci_high"])


def findings(agreement: pd.DataFrame) -> list[str]:
    """One sentence a task on how well the cheap numbers foretell its losses; from `agreement`."""
    lines = []
    for task, rows in agreement.groupby("task", sort=False):
        said = ", ".join(
            f"{row.predictor.replace('_', ' ')} **{row.spearman:.2f}** [{row.ci_low:.2f}, {row.ci_high:.2f}]"
            for row in rows.itertuples()
        )
        proven = [row.predictor.replace("_", " ") for row in rows.itertuples() if row.ci_low > 0]
        judged = f"foretold by {' and '.join(proven)}" if proven else "foretold by none of them"
        lines.append(f"{task}: rank correlation of a layer's loss with {said}; {judged}.")
    return lines or ["No task can be judged, so that nothing could be foretold."]


def aligned(predictors: pd.DataFrame, profile: Profile) -> pd.DataFrame:
    """The predictors of the layers that a profile has, in its order, indexed by layer; see `agreement` for errors."""
    if "layer" not in predictors:
        raise UserError(f"the predictors lack column layer; they have {', '.join(map(str, predictors.columns))}")
    table = predictors.set_index("layer")
    if missing := sorted(set(profile.layers.tolist()) - set(table.index)):
        raise UserError(f"task {profile.task}: removed layer {missing[0]} has no predictors; take both of one model")
    if len(profile.layers) < 3:
        raise UserError(f"task {profile.task}: {len(profile.layers)} layers were removed; correlate at least 3")
    return table.loc[profile.layers]


def _spearman(losses: np.ndarray, predictor: np.ndarray) -> np.ndarray:
    """Correlation of each row of losses [draw, layer] with a predictor [layer]; NaN where one has no spread."""
    a, b = rankdata(losses.round(12), axis=1), rankdata(predictor)  # equal losses tie, whatever their rounding
    a, b = a - a.mean(1, keepdims=True), b - b.mean()
    scale = np.sqrt(np.square(a).sum(1) * np.square(b).sum())
    return np.divide(a @ b, scale, out=np.full(len(a), np.nan), where=scale > 0)


@dataclass(frozen=True, eq=False)
class Geometry:
    """Cheap numbers of one model: means over texts with 95% intervals.

    Attributes:
        distances: layer, size, distance, ci_low, ci_high, n: from before ``layer`` to ``size`` layers later.
        influences: layer, influence, ci_low, ci_high, n.
        logit_lens: depth (layers passed, 0 to n_layers), then probability, rank (the median over positions of a text;
            1 is the top) and entropy (nats), each with its ``_low`` and ``_high``, n.
        record: Model, texts and settings.
    """

    distances: pd.DataFrame
    influences: pd.DataFrame
    logit_lens: pd.DataFrame
    record: dict

    @property
    def n_layers(self) -> int:
        return len(self.influences)


def predictors(g: Geometry) -> pd.DataFrame:
    """The cheap numbers by layer that may foretell what its removal costs; larger should mean more important.

    Returns:
        One row a layer: layer, block_influence, angular_distance (size 1), entropy_drop (of the logit lens, nats).
    """
    arguments.made_by(g, "distances", "what depthlens.experiments.geometry.depth_geometry returned", "g")
    single, entropy = g.distances[g.distances["size"] == 1], g.logit_lens["entropy"]
    table = g.influences[["layer", "influence"]].rename(columns={"influence": "block_influence"})
    return table.assign(angular_distance=single["distance"].to_numpy(), entropy_drop=-np.diff(entropy))
