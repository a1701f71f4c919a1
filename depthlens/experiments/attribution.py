"""Attribution patching: the effect of removing every head, estimated from one forward and one backward pass.

For a scalar L (here log p of an answer) and the output z of a head at position p, a first-order expansion around the
clean run estimates what replacing z by r does::

    L(z -> r) - L  ~  sum over p of (r_p - z_p) . dL/dz_p

with r = 0 (zero ablation) or the mean of a reference set for tokens of the same class (mean ablation). All
n_layers x n_heads estimates share the two passes. Source: Nanda 2023, Attribution Patching
(neelnanda.io/mechanistic-interpretability/attribution-patching); Kramar et al. 2024, AtP*, arXiv 2403.00745.

It misleads where the effect is far from linear, above all behind a saturated softmax (a head that decides alone gets
too small an estimate), and where heads replace each other. Compare it with an exact sweep of the top heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from depthlens import arguments
from depthlens.backends.row_edits import Means, classes
from depthlens.engine import walk_check, work
from depthlens.errors import UserError, unknown
from depthlens.models.architectures import body_of, head, wide, wide_type
from depthlens.models.lens import Lens
from depthlens.models.placement import moved, place_of
from depthlens.requests import LoglikelihoodRequest
from depthlens.store.answer_cache import AnswerCache

MODES = ("zero", "mean")


def attribute(
    lens: Lens,
    requests: Sequence[LoglikelihoodRequest],
    *,
    mode: str = "zero",
    means: Callable[[], Means] | None = None,
    weights: Sequence[Sequence[float]] | None = None,
    batch_tokens: int | None = None,
    progress: bool = False,
    cache: AnswerCache | None = None,
) -> tuple[Float[Tensor, "request n_layers n_heads"], Float[Tensor, " request"]]:
    """Estimate by how much log p(continuation | context) changes when one head is removed.

    Args:
        lens: A loaded model.
        requests: Contexts and continuations.
        mode: ``zero`` or ``mean``, what takes the place of the head's z at every position.
        means: Gives the reference means for ``mean``; called where an estimate is not known yet.
        weights: Per request, a factor on the log-probability of each token of its continuation; None: 1 for all.
        batch_tokens: Tokens that go through the model together; None chooses by device and free memory.
        progress: Show a bar.
        cache: Where estimates are read and stored, batch by batch; its entry must be of this mode, means and weights.

    Returns:
        Estimated changes in nats, and the clean log-probabilities; both of the weighted sum where there are weights.

    Raises:
        UserError: unknown mode, no means for ``mean``, weights that do not fit the tokens, or an offloaded model.
    """
    arguments.loaded(lens)
    refuse(lens, mode, means, "attribution")
    walk_check.refuse_scaled_angles(lens, max(map(length, requests), default=0))
    factors = [[1.0] * len(q.continuation) for q in requests] if weights is None else weights
    if [len(f) for f in factors] != [len(q.continuation) for q in requests]:
        raise UserError("weights do not fit the requests; give one number for each token of each continuation")
    dims = lens.dims
    # a backward pass holds every layer of the batch, where the budget is meant for one
    tokens = batch_tokens or max(1, work.choose(lens).batch_tokens)
    asked = requests if weights is None else list(zip(requests, map(tuple, weights), strict=True))

    def measure(members: list[int]) -> Iterator[tuple[list[int], np.ndarray]]:
        reference = means() if means is not None and mode == "mean" else None

        def run(batch: Sequence[int]) -> np.ndarray:
            of, by = [requests[i] for i in batch], [factors[i] for i in batch]
            change, logprob = _batch(lens, of, by, reference)
            return torch.cat([logprob[:, None], change.flatten(1)], 1).cpu().numpy()

        return in_batches(members, [length(requests[i]) for i in members], tokens, run)

    names = ["clean", *dims.head_names]
    values = (cache or AnswerCache()).numbers(
        asked, names, measure, desc="attribution", unit="request", progress=progress
    )
    clean, *each = torch.tensor(values.T, dtype=wide_type(lens.dtype)).unbind()
    return torch.stack(each, 1).unflatten(1, (dims.n_layers, dims.n_heads)), clean


def refuse(lens: Lens, mode: str, means: object, what: str) -> None:
    """What no estimate from gradients can do.

    Args:
        lens: A loaded model.
        mode: What takes the place of z.
        means: Whatever gives the means; None where there are none.
        what: The method, for messages.

    Raises:
        UserError: unknown mode, no means for ``mean``, or weights that are not all in memory.
    """
    if mode not in MODES:
        raise unknown("mode", mode, MODES, "resample has no attribution; use method='exact'")
    if mode == "mean" and means is None:
        raise UserError("mode 'mean' needs the means of a reference set and none was given")
    lens.needs_weights(what)
    lens.needs_heads(what)
    if lens.stream:
        raise UserError(f"{what} needs the whole model in memory for its backward pass; load without offload")


def in_batches(
    members: Sequence[int], lengths: Sequence[int], tokens: int, run: Callable[[Sequence[int]], np.ndarray]
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Run cases in batches of at most so many tokens; where memory runs out, the batch is halved.

    Args:
        members: Indices of cases.
        lengths: Tokens of each.
        tokens: Of one batch.
        run: Takes the indices of a batch and returns one row of numbers for each.

    Yields:
        Indices of a batch and its numbers.
    """
    start = 0
    while start < len(members):
        end, size = start, 0
        while end < len(members) and (end == start or size + lengths[end] <= tokens):
            size += lengths[end]
            end += 1
        values = work.tried(partial(run, members[start:end]), smaller=end > start + 1)
        if values is None:
            tokens = size // 2
            continue
        yield list(members[start:end]), values
        start = end


def length(request: LoglikelihoodRequest) -> int:
    """Tokens of a request that the model reads: the last one is only predicted."""
    return len(request.context) + len(request.continuation) - 1


def _batch(
    lens: Lens, requests: list[LoglikelihoodRequest], weights: list[Sequence[float]], means: Means | None
) -> tuple[Float[Tensor, "request n_layers n_heads"], Float[Tensor, " request"]]:
    """One forward and one backward pass of requests laid end to end; see `attribute` for the shapes."""
    arch, dims, device = lens.arch, lens.dims, lens.device
    lengths = [length(q) for q in requests]
    tokens = torch.tensor([[t for q in requests for t in (*q.context, *q.continuation)[:-1]]], device=device)
    # positions that start again tell the model where a sequence ends: attention stays within each, without padding
    position_ids = torch.cat([torch.arange(n) for n in lengths])[None].to(device)
    kinds = classes(position_ids)
    kept: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(module: Any, args: tuple) -> tuple:
            # the first z needs a graph to start from, later ones have one
            z = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
            z.retain_grad()
            kept[layer] = z
            return (z, *args[1:])

        return hook

    handles = [arch.o_proj[i].register_forward_pre_hook(keep(i)) for i in range(dims.n_layers)]
    try:
        with torch.enable_grad():
            model = body_of(lens.model)
            states = model(input_ids=tokens, position_ids=position_ids, use_cache=False).last_hidden_state[0]
            starts = torch.tensor([0, *lengths]).cumsum(0)
            spans = [range(at + len(q.context) - 1, at + length(q)) for at, q in zip(starts, requests, strict=False)]
            picked = states[[i for span in spans for i in span]]
            logits = wide(head(lens.model, moved(picked, place_of(arch.unembed))))
            wanted = torch.tensor([t for q in requests for t in q.continuation], device=logits.device)
            factors = torch.tensor([f for by in weights for f in by], dtype=logits.dtype, device=logits.device)
            logprobs = (logits.gather(-1, wanted[:, None])[:, 0] - logits.logsumexp(-1)) * factors
            # sequences do not see each other: the gradient of the sum holds each one's own
            logprobs.sum().backward()
    finally:
        for handle in handles:
            handle.remove()
    change = torch.zeros(len(requests), dims.n_layers, dims.n_heads, dtype=wide_type(lens.dtype))
    for layer, z in kept.items():
        assert z.grad is not None  # the backward pass above
        grad = wide(z.grad.unflatten(-1, (dims.n_heads, dims.d_head)))  # [1, pos, n_heads, d_head]
        step = -wide(z.detach().unflatten(-1, (dims.n_heads, dims.d_head)))
        if means is not None:
            step = step + means.mean["z"][layer][kinds].to(step.device)
        by_token = (step * grad).sum((0, 3)).cpu()  # [pos, n_heads]
        change[:, layer] = torch.stack([part.sum(0) for part in by_token.split(lengths)])
        z.grad = None
    by_row = [part.sum() for part in logprobs.detach().split([len(q.continuation) for q in requests])]
    return change, torch.stack(by_row).cpu()
