"""Depth geometry of a model, and whether such cheap numbers predict what removing a layer costs.

The test is Spearman's correlation between one number per layer (`geometry_predictors`, or any other table with a column
``layer``) and the loss of removing the layer, task by task (`depthlens.analysis.numbers.ranks`).

Limit: the first layer changes the residual stream most and costs most in nearly every model. It alone can make a
correlation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from depthlens.analysis.numbers.ranks import told
from depthlens.analysis.result.findings import Finding
from depthlens.analysis.result.losses import Losses
from depthlens.analysis.result.profiles import by_layer
from depthlens.analysis.result.results import Result
from depthlens.analysis.result.tables import DescribedTable


@dataclass(frozen=True, eq=False, repr=False)
class Geometry(Finding):
    """Cheap numbers of one model: means over texts with 95% intervals.

    Attributes:
        influences: layer, influence, ci_low, ci_high, n.
        distances: layer, size, distance, ci_low, ci_high, n: from before ``layer`` to ``size`` layers later.
        logit_lens: depth (layers passed, 0 to n_layers), then probability, rank (the median over positions of a text;
            1 is the top) and entropy (nats), each with its ``_low`` and ``_high``, n.
        record: Model, texts and settings.

    Example:
        >>> geometry.n_layers
        6
        >>> geometry.influences.columns.tolist()
        ['layer', 'influence', 'ci_low', 'ci_high', 'n']
        >>> figure = geometry.plot("angular_map")
    """

    NEXT: ClassVar[str] = "next: plot(), plot(\"angular_map\") and plot(\"logit_lens\") draw it"

    influences: pd.DataFrame
    distances: pd.DataFrame
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

    Example:
        >>> dl.analysis.geometry_predictors(geometry).columns.tolist()
        ['layer', 'block_influence', 'angular_distance', 'entropy_drop']
    """
    single, entropy = geometry.distances[geometry.distances["size"] == 1], geometry.logit_lens["entropy"]
    table = geometry.influences[["layer", "influence"]].rename(columns={"influence": "block_influence"})
    return table.assign(angular_distance=single["distance"].to_numpy(), entropy_drop=-np.diff(entropy))


def geometry_agreement(predictors: pd.DataFrame, result: Result, *, seed: int = 0) -> DescribedTable:
    """Spearman's correlation, over layers, of each predictor with the loss that removing the layer causes.

    The predictor counts as known, so that the ceiling is the square root of the losses' reliability; see
    `depthlens.analysis.numbers.ranks` for it and the p-value.

    Args:
        predictors: As of `geometry_predictors`: ``layer``, and one column a predictor.
        result: A layer sweep of the same model.
        seed: Of the halves.

    Returns:
        One row a task (and metric) that is not at chance and predictor: task, predictor, and the columns of
        `depthlens.analysis.numbers.ranks`; NaN where losses or predictor are the same for all layers. It is
        described by one sentence a task and predictor.

    Raises:
        UserError: no layer sweep.
        KeyError: a removed layer without predictors.

    Example:
        >>> predictors = dl.analysis.geometry_predictors(geometry)
        >>> dl.analysis.geometry_agreement(predictors, result).table["predictor"].tolist()
        ['block_influence', 'angular_distance', 'entropy_drop']
    """
    cases = []
    for scores in (scores for scores in by_layer(result) if not scores.at_chance):
        losses, known = pd.DataFrame(scores.mean().added, columns=scores.layers), aligned(predictors, scores)
        cases += [({"task": scores.label}, {"loss": losses, name: known[[name]].T}) for name in known]
    none = "No task can be judged, so it cannot be said whether anything predicts its losses."
    columns = {"task": "task", "predictor": "b"}
    found = told(cases, columns, "{task}: a layer's loss and its {b}: {words}.", none, seed)
    return DescribedTable.of("geometry_agreement", result, **found, seed_of_halves=seed)


def aligned(predictors: pd.DataFrame, profile: Losses) -> pd.DataFrame:
    """The predictors of the layers that a profile has, in its order, by layer."""
    return predictors.set_index("layer").loc[profile.layers]
