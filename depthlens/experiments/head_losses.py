"""What removing heads costs on given tokens, exactly: losses in nats, one head at a time or after all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from depthlens import arguments
from depthlens.ablations import BASELINE, Head, heads_condition
from depthlens.cluster import pool
from depthlens.engine.engine import Engine
from depthlens.errors import UserError
from depthlens.models.lens import Lens
from depthlens.requests import LoglikelihoodRequest
from depthlens.store.answer_cache import AnswerCache

EXACT, ATTRIBUTION = "exact", "attribution"


def removed_alone(
    lens: Lens, heads: Sequence[Head] | None, method: str, *, name: str = "heads", at_least: int = 1
) -> list[Head] | None:
    """Heads of the argument ``name`` that are to be removed, without repetition; None for all.

    Raises:
        UserError: a method that removes none, fewer than ``at_least``, or one that the model does not have.
    """
    if heads is None:
        return None
    if method != EXACT:
        raise UserError(
            f"{name} with method {method!r}: only 'exact' removes heads, others score all; leave {name} out"
        )
    unique = list(dict.fromkeys(arguments.heads(name, heads)))
    if len(unique) < at_least:
        raise UserError(f"{name} names {len(unique)} heads; give at least {at_least}")
    heads_condition(unique).validate(lens.dims)
    return unique


def engine_of(lens: Lens, options: Mapping[str, Any], cache: AnswerCache) -> Engine:
    """The engine that options of an experiment ask for."""
    about = {name: options[name] for name in ("batch_tokens", "progress")}
    return Engine(lens, cache=cache, workers=pool.workers_of(options), **about)


def removal_losses(
    engine: Engine,
    requests: Sequence[LoglikelihoodRequest],
    heads: Sequence[Head] | None = None,
    *,
    given_others: bool = False,
) -> tuple[Float[np.ndarray, "request n_layers n_heads"], Float[np.ndarray, " request"]]:
    """Loss by removing each head.

    Args:
        engine: Computes it.
        requests: What is written.
        heads: Which heads; None: every head of the model.
        given_others: Remove each when all the others of ``heads`` are removed already, in place of alone.

    Returns:
        Losses in nats, 0 for heads that were not removed, and the log-probabilities to which they are added: of the
        whole model, or without any of the heads.
    """
    shape = engine.lens.dims.n_layers, engine.lens.dims.n_heads
    chosen = list(np.ndindex(shape)) if heads is None else list(heads)
    if given_others:
        conditions = [heads_condition(chosen), *(heads_condition([h for h in chosen if h != head]) for head in chosen)]
    else:
        conditions = [BASELINE, *(heads_condition([head]) for head in chosen)]
    answers = engine.loglikelihood(requests, conditions, desc="heads removed")
    first, *others = np.array([[answer.logprob for answer in row] for row in answers])
    losses = np.zeros((len(requests), *shape))
    for head, logprobs in zip(chosen, others, strict=True):
        losses[:, *head] = logprobs - first if given_others else first - logprobs
    return losses, first
