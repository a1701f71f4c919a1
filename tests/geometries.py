"""Depth geometry of one tiny model, and the accuracies of a sweep to compare it with."""

import functools

import tiny

from depthlens.experiments import geometry as geo

TEXTS = ["The tide turned before noon.", "Nobody saw the heron.", "One, two, and then many more of them."]
N_LAYERS = 5
ACCURACIES = {"sums": (0.9, [0.3, 0.5, 0.7, 0.8, 0.85]), "guess": (0.3, [0.3] * N_LAYERS)}


@functools.cache
def measured():
    """Geometry of one tiny model."""
    return geo.depth_geometry(tiny.lens("llama-gqa"), TEXTS, progress=False)
