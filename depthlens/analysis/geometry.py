"""Depth geometry of a model, and whether such cheap numbers predict what removing a layer costs.

The test is Spearman's correlation between one number per layer (`geometry_predictors`, or any other table with a column
``layer``) and the loss of removing the layer, task by task. Intervals are bootstraps over documents
(`depthlens.analysis.bootstrap`).

Limit: the first layer changes the residual stream most and costs most in nearly every model. It alone can make a
correlation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from depthlens import arguments
from depthlens.analysis.bootstrap import interval
from depthlens.analysis.layer_profiles import Profile, drawn, profiles
from depthlens.analysis.saving import Saveable
from depthlens.analysis.tables import DescribedTable, record_of
from depthlens.errors import UserError

if TYPE_CHECKING:
    from depthlens.analysis.results import Result


@dataclass(frozen=True, eq=False)
class Geometry(Saveable):
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
    record: dict[str, Any]

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return len(self.influences)


def geometry_predictors(geometry: Geometry) -> pd.DataFrame:
    """The cheap numbers of each layer that may predict what its removal costs; larger should mean more important.

    Returns:
        One row a layer: layer, block_influence, angular_distance (size 1), entropy_drop (of the logit lens, nats).
    """
    source = "what depthlens.experiments.geometry.depth_geometry returned"
    arguments.made_by(geometry, "distances", source, "geometry")
    single, entropy = geometry.distances[geometry.distances["size"] == 1], geometry.logit_lens["entropy"]
    table = geometry.influences[["layer", "influence"]].rename(columns={"influence": "block_influence"})
    return table.assign(angular_distance=single["distance"].to_numpy(), entropy_drop=-np.diff(entropy))


def geometry_agreement(
    predictors: pd.DataFrame, result: Result, *, seed: int = 0, n_boot: int = 2000
) -> DescribedTable:
    """Spearman's correlation, over layers, of each predictor with the loss that removing the layer causes.

    The interval is a bootstrap over the sweep's documents (`depthlens.analysis.bootstrap`). Noise of the losses pulls
    the correlation towards zero: a low value from few documents is no proof of disagreement.

    Args:
        predictors: As of `geometry_predictors`: ``layer``, and one column a predictor.
        result: A layer sweep of the same model.
        seed: Of the bootstrap.
        n_boot: Number of draws.

    Returns:
        One row a task (and metric) that is not at chance and predictor: task, predictor, spearman, ci_low, ci_high; NaN
        where losses or predictor are the same for all layers. It is described by one sentence a task.

    Raises:
        UserError: no column ``layer``, a removed layer without predictors, fewer than 3 layers, or no layer sweep.
    """
    source = "a table such as that of depthlens.analysis.geometry_predictors"
    arguments.made_by(predictors, "columns", source, "predictors")
    rows, lines = [], []
    usable = [p for p in profiles(result) if not p.at_chance]
    for profile, (loss, _) in zip(usable, drawn(usable, seed=seed, n_boot=n_boot), strict=True):
        texts, predictive = [], []
        for column, values in aligned(predictors, profile).items():
            name = str(column).replace("_", " ")
            rho = _spearman(loss, values.to_numpy(dtype=float))
            low, high = map(float, interval(rho, len(profile.documents)))
            rows.append((profile.label, column, float(rho[0]), low, high))
            texts.append(f"{name} **{rho[0]:.2f}** [{low:.2f}, {high:.2f}]")
            predictive += [name] if low > 0 else []
        verdict = f"predicted by {' and '.join(predictive)}" if predictive else "predicted by none of them"
        lines.append(f"{profile.label}: rank correlation of a layer's loss with {', '.join(texts)}; {verdict}.")
    table = pd.DataFrame(rows, columns=["task", "predictor", "spearman", "ci_low", "ci_high"])
    lines = lines or ["No task can be judged, so it cannot be said whether anything predicts its losses."]
    return DescribedTable(table, lines, record_of("geometry_agreement", result, bootstrap_seed=seed, n_boot=n_boot))


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
