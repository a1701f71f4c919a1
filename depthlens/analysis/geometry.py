"""Depth geometry of a model, and whether such cheap numbers predict what removing a layer costs.

The test is Spearman's correlation between one number per layer (`geometry_predictors`, or any other table with a column
``layer``) and the loss of removing the layer, task by task (`depthlens.analysis.rank_correlations`).

Limit: the first layer changes the residual stream most and costs most in nearly every model. It alone can make a
correlation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from depthlens import arguments
from depthlens.analysis.findings import ROWS, DescribedTable, Finding, record_of
from depthlens.analysis.rank_correlations import COLUMNS, agreement
from depthlens.analysis.scores import Scores, layer_scores
from depthlens.errors import UserError

if TYPE_CHECKING:
    from depthlens.analysis.results import Result


@dataclass(frozen=True, eq=False, repr=False)
class Geometry(Finding):
    """Cheap numbers of one model: means over texts with 95% intervals.

    Attributes:
        distances: layer, size, distance, ci_low, ci_high, n: from before ``layer`` to ``size`` layers later.
        influences: layer, influence, ci_low, ci_high, n.
        logit_lens: depth (layers passed, 0 to n_layers), then probability, rank (the median over positions of a text;
            1 is the top) and entropy (nats), each with its ``_low`` and ``_high``, n.
        record: Model, texts and settings.
    """

    NEXT: ClassVar[str] = "next: dl.plots.influence_profile, angular_map and logit_lens draw it"

    distances: pd.DataFrame
    influences: pd.DataFrame
    logit_lens: pd.DataFrame
    record: dict[str, Any]

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return len(self.influences)

    def display(self) -> tuple[str, pd.DataFrame, list[str]]:
        """What is shown: how much each layer changes the residual stream."""
        return f"Geometry of {self.n_layers} layers", self.influences.head(ROWS), []


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


def geometry_agreement(predictors: pd.DataFrame, result: Result, *, seed: int = 0) -> DescribedTable:
    """Spearman's correlation, over layers, of each predictor with the loss that removing the layer causes.

    The predictor counts as known, so that the ceiling is the square root of the losses' reliability; see
    `depthlens.analysis.rank_correlations` for it and the p-value.

    Args:
        predictors: As of `geometry_predictors`: ``layer``, and one column a predictor.
        result: A layer sweep of the same model.
        seed: Of the halves.

    Returns:
        One row a task (and metric) that is not at chance and predictor: task, predictor, and the columns of
        `depthlens.analysis.rank_correlations`; NaN where losses or predictor are the same for all layers. It is
        described by one sentence a task and predictor.

    Raises:
        UserError: no column ``layer``, a removed layer without predictors, or no layer sweep.
    """
    source = "a table such as that of depthlens.analysis.geometry_predictors"
    arguments.made_by(predictors, "columns", source, "predictors")
    rows, lines = [], []
    for scores in layer_scores(result):
        losses = pd.DataFrame(scores.mean_loss().added, columns=scores.layers)
        for name in [] if scores.at_chance else aligned(predictors, scores):
            known = aligned(predictors, scores)[[name]].T
            for row in agreement({"loss": losses, "known": known}, seed=seed):
                rows.append({"task": scores.label, "predictor": name, **row})
                lines.append(f"{scores.label}: a layer's loss and its {str(name).replace('_', ' ')}: {row['words']}.")
    table = pd.DataFrame(rows, columns=["task", "predictor", *COLUMNS])
    lines = lines or ["No task can be judged, so it cannot be said whether anything predicts its losses."]
    return DescribedTable(table, lines, record_of("geometry_agreement", result, seed_of_halves=seed))


def aligned(predictors: pd.DataFrame, profile: Scores) -> pd.DataFrame:
    """The predictors of the layers that a profile has, in its order, by layer; see `geometry_agreement` for errors."""
    if "layer" not in predictors:
        raise UserError(f"the predictors lack column layer; they have {', '.join(map(str, predictors.columns))}")
    table = predictors.set_index("layer")
    if missing := sorted(set(profile.layers.tolist()) - set(table.index)):
        raise UserError(f"task {profile.task}: removed layer {missing[0]} has no predictors; take both of one model")
    return table.loc[profile.layers]
