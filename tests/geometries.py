"""Depth geometry of one tiny model, and made-up sweeps to compare it with."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import tiny
from drawn import by_gid, check, nothing_leaks, texts  # noqa: F401 (a fixture for all of them)

from depthlens.analysis.geometry import geometry_predictors
from depthlens.analysis.results import DOCS_COLUMNS, Result
from depthlens.experiments import geometry as geo

TEXTS = ["The tide turned before noon.", "Nobody saw the heron.", "One, two, and then many more of them."]
N_LAYERS, N_DOCS = 5, 80
COSTLY, GUESS = (0.9, [0.3, 0.5, 0.7, 0.8, 0.85]), (0.3, [0.3] * N_LAYERS)


@functools.cache
def measured():
    """Geometry, effects and predictors of one tiny model."""
    lens = tiny.lens("llama-gqa")
    g = geo.depth_geometry(lens, TEXTS, progress=False)
    return g, geo.layer_effects(lens, TEXTS, progress=False), geometry_predictors(g)


def sweep(tasks=None, layers=range(N_LAYERS)):
    """Result with the accuracy of the whole model and without each layer, for each task."""
    rows, record = [], {"model": {"name": "m", "dims": {"n_layers": N_LAYERS}}, "tasks": {}}
    for task, (base, without) in ({"sums": COSTLY, "guess": GUESS} if tasks is None else tasks).items():
        record["tasks"][task] = {"metrics": {"acc": {"higher_is_better": True, "chance": 0.25, "binary": True}}}
        for layer in (None, *layers):
            name, accuracy = ("baseline", base) if layer is None else (f"L{layer}", without[layer])
            right = np.random.default_rng(0).permutation(N_DOCS) < round(accuracy * N_DOCS)
            rows += [("m", task, "acc", name, layer, None, i, float(v), "") for i, v in enumerate(right)]
    return Result(pd.DataFrame(rows, columns=DOCS_COLUMNS), record)
