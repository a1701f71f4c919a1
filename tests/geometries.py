"""Depth geometry of one tiny model, and the accuracies of a sweep to compare it with."""

import functools

import tiny

from depthlens.experiments import geometry as geo

TEXTS = ["The tide turned before noon.", "Nobody saw the heron.", "One, two, and then many more of them."]
N_LAYERS = 5
ACCURACIES = {"sums": (0.9, [0.3, 0.5, 0.7, 0.8, 0.85]), "guess": (0.3, [0.3] * N_LAYERS)}


@functools.cache
def measured():
    """Geometry, effects and predictors of one tiny model."""
    lens = tiny.lens("llama-gqa")
    g = geo.depth_geometry(lens, TEXTS, progress=False)
    return g, geo.layer_effects(lens, TEXTS, progress=False), g.predictors()
