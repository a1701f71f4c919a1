"""Synthetic layer sweeps of two models whose truth is known."""

from __future__ import annotations

import made_results
import numpy as np

from depthlens.analysis.results import Result

N_LAYERS, N = 9, 60
EARLY = np.array([0.9, 0.7, 0.5, 0.1, 0.05, 0, 0, 0, 0])
LATE = EARLY[::-1]
DEPTH = np.arange(N_LAYERS) / (N_LAYERS - 1)


def sweep(losses, *, accuracy=0.9, n=N, seed=0, suffix="", record=(), **options) -> Result:
    """Right answers at a rate of ``accuracy``, lost independently at each layer with the probability ``losses``."""
    rng = np.random.default_rng(seed)
    right = rng.random(n) < accuracy
    values = {f"L{layer}{suffix}": right & (rng.random(n) >= loss) for layer, loss in enumerate(losses)}
    return result_of({"baseline": right} | values, record=record, **options)


def result_of(values, *, task="sums", metric="acc", model="base", chance=0.0, better=True, record=()) -> Result:
    """values: {condition: one value a document}."""
    info = {"higher_is_better": better, "chance": chance}
    return made_results.result({task: values}, metric=metric, model=model, n_layers=N_LAYERS, info=info, **dict(record))


def nats(losses, *, n=N, seed=0, noise=0.5, **options) -> Result:
    """Log-likelihoods around -5 nats that fall by ``losses`` on average."""
    rng = np.random.default_rng(seed)
    base = -5 + rng.normal(0, 1, n)
    values = {f"L{layer}": base - loss + rng.normal(0, noise, n) for layer, loss in enumerate(losses)}
    return result_of({"baseline": base} | values, metric="answer_logprob", chance=None, **options)
