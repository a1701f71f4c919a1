"""Depth geometry of one tiny model, and made-up sweeps to compare it with."""

from __future__ import annotations

import functools

import made_results
import numpy as np
import tiny

from depthlens.analysis.geometry import geometry_predictors
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
    order, made = np.random.default_rng(0).permutation(N_DOCS), {}
    for task, (base, without) in ({"sums": COSTLY, "guess": GUESS} if tasks is None else tasks).items():
        accuracies = {"baseline": base} | {f"L{layer}": without[layer] for layer in layers}
        made[task] = {name: order < round(accuracy * N_DOCS) for name, accuracy in accuracies.items()}
    return made_results.result(made, n_layers=N_LAYERS)
