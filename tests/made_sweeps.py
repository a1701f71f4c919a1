"""Synthetic layer sweeps of two models whose truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd

from depthlens.analysis.results import DOCS_COLUMNS, Result

N_LAYERS, N = 9, 60
EARLY = np.array([0.9, 0.7, 0.5, 0.1, 0.05, 0, 0, 0, 0])
LATE = EARLY[::-1]
DEPTH = np.arange(N_LAYERS) / (N_LAYERS - 1)


def sweep(
    losses, *, accuracy=0.9, task="sums", metric="acc", model="base", n=N, chance=0.0, seed=0, suffix="", record=()
):
    """Right answers at a rate of ``accuracy``, lost independently at each layer with the probability ``losses``."""
    rng = np.random.default_rng(seed)
    right = rng.random(n) < accuracy
    values = {"baseline": (None, right)}
    for layer, loss in enumerate(losses):
        values[f"L{layer}{suffix}"] = layer, right & (rng.random(n) >= loss)
    return result_of(values, task=task, metric=metric, model=model, chance=chance, record=dict(record))


def result_of(values, *, task="sums", metric="acc", model="base", chance=0.0, better=True, record=None):
    """values: {condition: (layer, one value a document)}."""
    rows = [
        (model, task, metric, condition, layer, None, doc, float(v), "")
        for condition, (layer, scores) in values.items()
        for doc, v in enumerate(scores)
    ]
    about = {"version": 1, "num_fewshot": 0, "metrics": {metric: {"higher_is_better": better, "chance": chance}}}
    dims = {"dims": {"n_layers": N_LAYERS}}
    return Result(
        pd.DataFrame(rows, columns=DOCS_COLUMNS), {"model": dims, "tasks": {task: about}, "seed": 0} | (record or {})
    )


def nats(losses, *, model="base", task="sums", n=N, seed=0, noise=0.5):
    """Log-likelihoods around -5 nats that fall by ``losses`` on average."""
    rng = np.random.default_rng(seed)
    base = -5 + rng.normal(0, 1, n)
    values = {"baseline": (None, base)}
    for layer, loss in enumerate(losses):
        values[f"L{layer}"] = layer, base - loss + rng.normal(0, noise, n)
    return result_of(values, task=task, metric="answer_logprob", model=model, chance=None)
