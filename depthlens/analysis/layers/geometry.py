"""Depth geometry of a model, whose cheap numbers may predict what removing a layer costs (`depthlens.agreement`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from depthlens.analysis.result.findings import Finding


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
        >>> figure = geometry.plot()
    """

    NEXT: ClassVar[str] = "next: plot() draws it, predictors() has what may predict losses"

    influences: pd.DataFrame
    distances: pd.DataFrame
    logit_lens: pd.DataFrame
    record: dict[str, Any]

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return len(self.influences)

    def predictors(self) -> pd.DataFrame:
        """The cheap numbers of each layer that may predict what its removal costs; larger should mean more important.

        Returns:
            One row a layer: layer, block_influence, angular_distance (size 1), entropy_drop (of the logit lens, nats).

        Example:
            >>> geometry.predictors().columns.tolist()
            ['layer', 'block_influence', 'angular_distance', 'entropy_drop']
        """
        single, entropy = self.distances[self.distances["size"] == 1], self.logit_lens["entropy"]
        table = self.influences[["layer", "influence"]].rename(columns={"influence": "block_influence"})
        return table.assign(angular_distance=single["distance"].to_numpy(), entropy_drop=-np.diff(entropy))
