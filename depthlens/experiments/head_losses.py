"""What removing heads costs on given tokens, exactly: losses in nats, one head at a time or after all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from depthlens import arguments, provenance
from depthlens.ablations import BASELINE, Condition, Head, heads_condition
from depthlens.engine.engine import Engine
from depthlens.errors import UserError
from depthlens.models.lens import Lens
from depthlens.requests import LoglikelihoodRequest
from depthlens.store.answer_cache import AnswerStore

EXACT, ATTRIBUTION = "exact", "attribution"


def checked(lens: Lens, heads: Sequence[Head], *, name: str = "given_removed", at_least: int = 2) -> list[Head]:
    """Heads of the argument ``name``, without repetition.

    Raises:
        UserError: fewer than ``at_least``, or one that the model does not have.
    """
    unique = list(dict.fromkeys(arguments.heads(name, heads)))
    if len(unique) < at_least:
        why = "heads are tested against each other, so give at least two" if at_least == 2 else "give at least one"
        raise UserError(f"{name} names {len(unique)} heads; {why}")
    heads_condition(unique).validate(lens.dims)
    return unique


def removed_alone(lens: Lens, heads: Sequence[Head] | None, method: str) -> list[Head] | None:
    """Heads that are to be removed one at a time; None for all."""
    if heads is None:
        return None
    if method != EXACT:
        raise UserError(f"heads with method {method!r}: only 'exact' removes heads, others score all; leave heads out")
    return checked(lens, heads, name="heads", at_least=1)


def scores_record(lens: Lens, answers: AnswerStore, method: str, source: dict[str, Any]) -> dict[str, Any]:
    """What a record of head scores holds: the model, the method, what was asked, versions, time and machine."""
    made = provenance.environment() | provenance.where_and_when()
    return {"model": lens.describe(answers.fingerprint), "method": method, **source, **made}


def single(
    lens: Lens, engine: Engine, requests: Sequence[LoglikelihoodRequest], heads: Sequence[Head] | None = None
) -> tuple[Float[np.ndarray, "request n_layers n_heads"], Float[np.ndarray, " request"]]:
    """Loss by removing each head alone: every head of the model, or those of ``heads``.

    Returns:
        Losses in nats, 0 for heads that were not removed, and clean log-probabilities.
    """
    shape = lens.dims.n_layers, lens.dims.n_heads
    chosen = list(np.ndindex(shape)) if heads is None else heads
    logprobs = _logprobs(engine, requests, [BASELINE, *(heads_condition([head]) for head in chosen)])
    losses = np.zeros((len(requests), *shape))
    layers, columns = zip(*chosen, strict=True)
    losses[:, layers, columns] = (logprobs[0] - logprobs[1:]).T
    return losses, logprobs[0]


def added(
    lens: Lens, engine: Engine, requests: Sequence[LoglikelihoodRequest], heads: list[Head]
) -> Float[np.ndarray, "request n_layers n_heads"]:
    """Loss that each head adds to the removal of all the others on the list.

    Returns:
        Losses in nats; 0 for heads that are not on the list.
    """
    all_but_one = [heads_condition([other for other in heads if other != head]) for head in heads]
    logprobs = _logprobs(engine, requests, [heads_condition(heads), *all_but_one])
    losses = np.zeros((len(requests), lens.dims.n_layers, lens.dims.n_heads))
    for (layer, head), with_head in zip(heads, logprobs[1:], strict=True):
        losses[:, layer, head] = with_head - logprobs[0]
    return losses


def _logprobs(
    engine: Engine, requests: Sequence[LoglikelihoodRequest], conditions: Sequence[Condition]
) -> Float[np.ndarray, "condition request"]:
    answers = engine.loglikelihood(requests, conditions, desc="heads removed")
    return np.array([[a.logprob for a in row] for row in answers])
