r"""Integrated gradients: the effect of removing every head, from gradients along the way to its removal.

Attribution (`depthlens.experiments.attribution`) reads the slope of L = log p(answer) in the whole model only. Behind a
saturated softmax this slope is near 0 although removal costs much. Here z of the heads of one layer is moved to its
replacement r in a straight line, ``z(a) = z + a (r - z)``, and the slope is averaged along the way::

    L(z -> r) - L  ~  sum over p of (r_p - z_p) . integral from 0 to 1 of dL/dz_p at z(a) da

The integral is a Gauss-Radau sum: its first point is the whole model (one backward pass for all heads of all layers),
and ``steps`` further points are measured for each layer. All heads of a layer are moved together, so that the estimates
of a layer add up to the effect of removing all of its heads (completeness), up to the error of the sum. With
``together=1`` each head is moved alone and its estimate itself is exact up to that error.

Source: Sundararajan, Taly, Yan 2017, Axiomatic Attribution for Deep Networks, arXiv 1703.01365; for circuits Hanna,
Pezzelle, Belinkov 2024, EAP-IG, arXiv 2403.17806. Theirs moves the input of the whole model, which takes fewer passes;
here one layer is moved, because only this path ends at the removal that the exact sweep makes.

Cost: the layers below the one that is moved are not run again. With n_layers layers and n_heads heads in each, a point
of every layer costs n_layers / 2 forward and as many backward passes, the exact sweep n_layers * n_heads / 2 forward
passes: the ratio is about n_heads / (2 * steps).

It misleads where heads of one layer replace each other, since none of them is moved alone, and where removal switches
experts of a mixture, since slopes do not see a jump.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import roots_jacobi
from torch import Tensor

from depthlens import arguments
from depthlens.backends.protocol import Means
from depthlens.engine import memory_budget
from depthlens.engine.plain_rows import CausalRows, refuse_window
from depthlens.engine.tree_attention import walking
from depthlens.experiments import attribution
from depthlens.models.lens import Lens
from depthlens.requests import LoglikelihoodRequest
from depthlens.store.answer_cache import AnswerCache

STEPS = 2


def nodes(steps: int) -> list[tuple[float, float]]:
    """Points and weights of the Gauss-Radau rule on [0, 1] with 0 among the points; exact to degree 2 * steps.

    The points other than 0 are the roots of the Jacobi polynomial P^(0, 1) of that degree (Abramowitz, Stegun 25.4.31).

    Args:
        steps: Number of points besides 0.
    """
    inner, weights = roots_jacobi(steps, 0, 1) if steps else ([], [])
    rest = [((x + 1) / 2, w / (1 + x) / 2) for x, w in zip(inner, weights, strict=True)]
    return [(0.0, 1 / (steps + 1) ** 2), *rest]


def integrate(
    lens: Lens,
    requests: Sequence[LoglikelihoodRequest],
    *,
    steps: int = STEPS,
    together: int | None = None,
    mode: str = "zero",
    means: Callable[[], Means] | None = None,
    batch_tokens: int | None = None,
    progress: bool = False,
    cache: AnswerCache | None = None,
) -> tuple[Float[Tensor, "request n_layers n_heads"], Float[Tensor, " request"]]:
    """Estimate by how much log p(continuation | context) changes when one head is removed.

    Args:
        lens: A loaded model.
        requests: Contexts and continuations.
        steps: Points along the way besides the whole model; at least 1.
        together: Heads of a layer that are moved together, neighbours first; None: all of them.
        mode: ``zero`` or ``mean``, what takes the place of the head's z at every position.
        means: Gives the reference means for ``mean``; called where an estimate is not known yet.
        batch_tokens: Tokens that go through the model together; None chooses by device and free memory.
        progress: Show a bar.
        cache: Where estimates are read and stored; its entry must be of this mode, means, steps and together.

    Returns:
        Estimated changes in nats, and the clean log-probabilities.

    Raises:
        UserError: what `depthlens.experiments.attribution.attribute` refuses, steps or heads below 1, or requests that
            are longer than the model's attention window.
    """
    arguments.loaded(lens)
    attribution.refuse(lens, mode, means, "integrated gradients")
    arguments.whole("steps", steps, 1)
    dims = lens.dims
    if together is not None:
        arguments.whole("together", together, 1)
    refuse_window(lens, max(map(attribution.length, requests), default=0), "integrated gradients")
    size = min(together or dims.n_heads, dims.n_heads)
    groups = [range(start, min(start + size, dims.n_heads)) for start in range(0, dims.n_heads, size)]
    tokens = batch_tokens or max(1, memory_budget.choose(lens).batch_tokens)

    def measure(members: list[int]) -> Iterator[tuple[list[int], np.ndarray]]:
        reference = means() if means is not None and mode == "mean" else None
        members = sorted(members, key=lambda i: attribution.length(requests[i]))  # rows are padded to the longest
        lengths = [attribution.length(requests[i]) for i in members]

        def run(batch: Sequence[int]) -> np.ndarray:
            path = _Path(lens, [requests[i] for i in batch], reference)
            return torch.cat([path.clean[:, None], path.integral(nodes(steps), groups).flatten(1)], 1).cpu().numpy()

        return attribution.in_batches(members, lengths, tokens, run)

    names = ["clean", *dims.head_names]
    values = (cache or AnswerCache()).numbers(
        requests, names, measure, desc="integrated gradients", unit="request", progress=progress
    )
    clean, *each = torch.tensor(values.T, dtype=torch.float32).unbind()
    return torch.stack(each, 1).unflatten(1, (dims.n_layers, dims.n_heads)), clean


class _Path:
    """One batch of requests on the way to the removal of heads.

    Args:
        lens: A loaded model.
        requests: One a row.
        means: What z is moved to; None: zero.

    Attributes:
        clean: Log-probabilities of the continuations in the whole model. Shape [request].
    """

    def __init__(self, lens: Lens, requests: Sequence[LoglikelihoodRequest], means: Means | None) -> None:
        self.lens, self.arch, self.means = lens, lens.arch, means
        device, dims = lens.device, lens.dims
        self.shape = len(requests), dims.n_layers, dims.n_heads
        longest = max(map(attribution.length, requests))
        tokens = torch.zeros(len(requests), longest, dtype=torch.long)
        for row, q in enumerate(requests):
            tokens[row, : attribution.length(q)] = torch.tensor([*q.context, *q.continuation][:-1])
        spots = [(r, len(q.context) - 1 + i, t) for r, q in enumerate(requests) for i, t in enumerate(q.continuation)]
        self.row, self.pos, self.target = (torch.tensor(x, device=device) for x in zip(*spots, strict=True))
        self.layout = CausalRows(longest, device)
        x = self.arch.embed(tokens.to(device))
        self.rotary = self.arch.rotary(x, position_ids=self.layout.position_ids)
        self.inputs: list[Tensor] = []  # residual streams before each layer, in the whole model
        everything = torch.ones(dims.n_layers, dims.n_heads, dtype=torch.bool, device=device)
        self.clean, self.slopes = self._slopes(x, 0, everything, 0.0)

    def integral(
        self, points: Sequence[tuple[float, float]], groups: Sequence[range]
    ) -> Float[Tensor, "request n_layers n_heads"]:
        """Slopes along the way, averaged: the estimated changes in nats.

        Args:
            points: How far on the way, and with which weight; the first is the whole model.
            groups: Heads that are moved together.
        """
        (_, weight), *further = points
        total = weight * self.slopes
        for layer in range(self.shape[1]):
            for heads in groups:
                moved = torch.zeros(self.shape[1:], dtype=torch.bool, device=self.lens.device)
                moved[layer, heads.start : heads.stop] = True
                for fraction, weight in further:
                    total += weight * self._slopes(self.inputs[layer], layer, moved, fraction)[1]
        return total

    def _slopes(
        self, x: Float[Tensor, "request pos d_model"], first: int, moved: Tensor, fraction: float
    ) -> tuple[Float[Tensor, " request"], Float[Tensor, "request n_layers n_heads"]]:
        """Log-probabilities with heads moved a fraction of their way, and their slopes along it; 0 for other heads.

        Args:
            x: Residual streams before the layer ``first``.
            first: The layers from here on are run.
            moved: Which heads. Shape [n_layers, n_heads].
            fraction: How far, from 0 to 1.
        """
        dims = self.lens.dims
        layers = [layer for layer in range(first, dims.n_layers) if moved[layer].any()]
        ends: dict[int, tuple[Tensor, Tensor]] = {}  # z where it was moved to, and all that it moves by

        def move(layer: int) -> Callable[[Any, tuple], tuple]:
            def hook(module: Any, args: tuple) -> tuple:
                z = args[0].unflatten(-1, (dims.n_heads, dims.d_head))  # [request, pos, n_heads, d_head]
                goal = torch.zeros_like(z) if self.means is None else self.means.z[layer].to(z)
                way = torch.where(moved[layer][:, None], goal - z.detach(), 0.0)
                z = z + fraction * way
                z = z if z.requires_grad else z.requires_grad_()  # the first has no graph to start from, others do
                z.retain_grad()
                ends[layer] = z, way
                return z.flatten(-2), *args[1:]

            return hook

        handles = [self.arch.o_proj[layer].register_forward_pre_hook(move(layer)) for layer in layers]
        whole = not fraction
        try:
            with torch.enable_grad(), walking(self.lens.model):
                for layer in range(first, dims.n_layers):
                    if whole:
                        self.inputs.append(x.detach())
                    x = self.arch.step(layer, x, self.layout, self.rotary)[2]
                logits = self.arch.unembed(self.arch.final_norm(x[self.row, self.pos])).float()
                logprobs = logits.gather(-1, self.target[:, None])[:, 0] - logits.logsumexp(-1)
                logprobs.sum().backward()  # rows do not see each other: the gradient of the sum holds each one's own
        finally:
            for handle in handles:
                handle.remove()
        slopes = torch.zeros(self.shape)
        for layer, (z, way) in ends.items():
            assert z.grad is not None  # the backward pass above
            slopes[:, layer] = (way.float() * z.grad.float()).sum((1, 3)).cpu()
        sums = torch.zeros(self.shape[0]).index_add(0, self.row.cpu(), logprobs.detach().cpu())
        return sums, slopes
