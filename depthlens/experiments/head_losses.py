"""What removing heads costs on given tokens, exactly or estimated: losses in nats, of one head or after all others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from jaxtyping import Float

from depthlens import arguments
from depthlens.ablations import BASELINE, Head, heads_condition
from depthlens.cluster import pool
from depthlens.engine.engine import Engine
from depthlens.errors import UserError
from depthlens.experiments.attribution import STEPS, attribute
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


def losses(
    engine: Engine,
    requests: Sequence[LoglikelihoodRequest],
    method: str,
    *,
    weights: Sequence[Sequence[float]] | None = None,
    heads: Sequence[Head] | None = None,
    given_others: bool = False,
) -> tuple[Float[np.ndarray, "request n_layers n_heads"], Float[np.ndarray, " request"]]:
    """Loss by removing each head.

    Args:
        engine: Its model is asked, and its cache keeps what is found.
        requests: What is written.
        method: ``exact``, or one of `attribution.STEPS`.
        weights: Per request, which tokens of its continuation count (1) and which do not (0); None: all.
        heads: Which heads, with ``exact``; None: every head of the model.
        given_others: Remove each when all the others of ``heads`` are removed already, in place of alone.

    Returns:
        Losses in nats, 0 for heads that were not removed, and the log-probabilities to which they are added: of the
        whole model, or without any of the heads. Both are sums over the tokens that count.
    """
    if method != EXACT:
        how: dict[str, Any] = {
            "batch_tokens": engine.budget.batch_tokens,
            "progress": engine.progress,
            "cache": engine.cache,
        }
        change, clean = attribute(engine.lens, requests, steps=STEPS[method], weights=weights, **how)
        return -change.numpy(), clean.numpy()
    parts = [part for i, q in enumerate(requests) for part in _parts(i, q, weights[i] if weights else None)]
    shape = engine.lens.dims.n_layers, engine.lens.dims.n_heads
    chosen = list(np.ndindex(shape)) if heads is None else list(heads)
    if given_others:
        conditions = [heads_condition(chosen), *(heads_condition([h for h in chosen if h != head]) for head in chosen)]
    else:
        conditions = [BASELINE, *(heads_condition([head]) for head in chosen)]
    answers = engine.loglikelihood([part for _, part in parts], conditions, desc="heads removed")
    logprobs = np.zeros((len(requests), len(conditions)))
    np.add.at(logprobs, [i for i, _ in parts], np.array([[a.logprob for a in row] for row in answers]).T)
    found = np.zeros((len(requests), *shape))
    for i, head in enumerate(chosen, 1):
        found[:, *head] = (logprobs[:, 0] - logprobs[:, i]) * (-1 if given_others else 1)
    return found, logprobs[:, 0]


def _parts(
    i: int, request: LoglikelihoodRequest, weights: Sequence[float] | None
) -> Iterator[tuple[int, LoglikelihoodRequest]]:
    """The tokens of a request that count, each run of neighbours after everything before it."""
    tokens, at = (*request.context, *request.continuation), len(request.context)
    for counts, run in groupby(weights or [1.0] * len(request.continuation)):
        start, at = at, at + len(list(run))
        if counts:
            yield i, LoglikelihoodRequest(tokens[:start], tokens[start:at])
