"""What removing heads costs on given tokens, exactly: losses in nats, one head at a time or after all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from depthlens.ablations import BASELINE, Ablation, Condition
from depthlens.engine import Engine
from depthlens.errors import UserError
from depthlens.head_scores import Head
from depthlens.requests import Loglikelihood


def condition(heads: Sequence[Head]) -> Condition:
    """The condition that removes heads together (zero ablation of their z)."""
    return Condition(tuple(Ablation(layer, "head", head) for layer, head in heads))


def checked(lens: Any, heads: Sequence[Head]) -> list[Head]:
    """Heads to test against each other, without repetition.

    Raises:
        UserError: fewer than two, or one that the model does not have.
    """
    unique = list(dict.fromkeys((int(layer), int(head)) for layer, head in heads))
    if len(unique) < 2:
        raise UserError(f"among names {len(unique)} heads; heads are tested against each other, so give at least two")
    condition(unique).validate(lens.dims)
    return unique


def single(lens: Any, engine: Engine, requests: Sequence[Loglikelihood]) -> tuple[np.ndarray, np.ndarray]:
    """Loss by removing each head of the model alone.

    Returns:
        Losses in nats, shape [request, n_layers, n_heads], and clean log-probabilities, shape [request].
    """
    dims = lens.dims
    heads = [condition([(layer, head)]) for layer in range(dims.n_layers) for head in range(dims.n_heads)]
    logprobs = _logprobs(engine, requests, [BASELINE, *heads])
    losses = (logprobs[0] - logprobs[1:]).T
    return losses.reshape(len(requests), dims.n_layers, dims.n_heads), logprobs[0]


def added(lens: Any, engine: Engine, requests: Sequence[Loglikelihood], heads: list[Head]) -> np.ndarray:
    """Loss that each head adds to the removal of all the others on the list.

    Returns:
        Losses in nats, shape [request, n_layers, n_heads]; 0 for heads that are not on the list.
    """
    spared = [condition([other for other in heads if other != head]) for head in heads]
    logprobs = _logprobs(engine, requests, [condition(heads), *spared])
    losses = np.zeros((len(requests), lens.dims.n_layers, lens.dims.n_heads))
    for (layer, head), kept in zip(heads, logprobs[1:], strict=True):
        losses[:, layer, head] = kept - logprobs[0]
    return losses


def _logprobs(engine: Engine, requests: Sequence[Loglikelihood], conditions: Sequence[Condition]) -> np.ndarray:
    """Shape [condition, request]."""
    answers = engine.loglikelihood(requests, conditions, desc="heads removed")
    return np.array([[a.logprob for a in row] for row in answers])
