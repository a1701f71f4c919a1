r"""What removing each head costs on given tokens: by removal, or estimated for all heads from gradients.

The estimates are attribution patching and integrated gradients.

L is a scalar, here log p of an answer. The output z of a head at position p is moved to 0 in a straight line, ``z(a) =
(1 - a) z``. The slope of L, averaged along the way, is the effect::

    L(z -> 0) - L  ~  - sum over p of z_p . integral from 0 to 1 of dL/dz_p at z(a) da

The integral is a Gauss-Radau sum. Its first point is the whole model: one forward and one backward pass for all heads
of all layers. **Attribution patching** takes this point alone (``steps=0``). It misleads where the effect is far from
linear, above all behind a saturated softmax (the slope is near 0 although removal costs much, so that a head that
decides alone gets too small an estimate), and where heads replace each other. Compare it with an exact sweep of the top
heads. Source: Nanda 2023 (neelnanda.io/mechanistic-interpretability/attribution-patching); Kramar et al. 2024, AtP*,
arXiv 2403.00745.

**Integrated gradients** measure ``steps`` further points. A head that is moved alone is estimated exactly, up to the
error of the sum, but this costs more than removing it. So the heads of each layer are drawn into a few groups, anew for
every layer and request, and the heads of a group are moved together. The estimates of a group add up to the effect of
removing it (completeness). What a head does to others of its group falsifies both; over requests the groups differ, so
that this averages out in part. Source: Sundararajan, Taly, Yan 2017, Axiomatic Attribution for Deep Networks, arXiv
1703.01365; for circuits Hanna, Pezzelle, Belinkov 2024, EAP-IG, arXiv 2403.17806. Theirs moves the input of the whole
model, which takes fewer passes; here few heads are moved, because the way of many does not end near the removal of one.

Cost: the layers below the one that is moved are not run again. With n_layers layers, n_heads heads in each and g
groups, a step costs g * n_layers / 2 forward and as many backward passes, and the exact sweep
n_layers * n_heads / 2 forward passes: the ratio is about n_heads / (2 * g * steps). With 9 heads in each layer it gains
little or nothing over the exact sweep, with 32 about five times (`benchmarks/sweeps.py`). It misleads where heads of
one layer replace each other, where few requests are asked, so that a head meets few groups, and where removal switches
experts of a mixture, since slopes do not see a jump.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import scipy
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from depthlens import arguments
from depthlens.ablations import BASELINE, AnyHead, Head, heads_condition, heads_of
from depthlens.arguments import EvalOptions
from depthlens.engine import walk_check, work
from depthlens.engine.tree_attention import Keys, Queries, Values, Z, walking
from depthlens.errors import UserError
from depthlens.experiments.condition_runs import engine_of
from depthlens.models.architectures import wide, wide_type
from depthlens.models.lens import Lens
from depthlens.requests import LoglikelihoodRequest
from depthlens.store.answer_cache import AnswerCache

EXACT, ATTRIBUTION = "exact", "attribution"
STEPS = {"attribution": 0, "integrated_gradients": 1}  # by method
GROUPS = 3


def address(method: str) -> str:
    """What the store calls what a method finds."""
    steps = STEPS.get(method)
    return method if method == EXACT else f"{method} zero" + (f" {steps} steps {GROUPS} groups" if steps else "")


def nodes(steps: int) -> list[tuple[float, float]]:
    """Points and weights of the Gauss-Radau rule on [0, 1] with 0 among the points; exact to degree 2 * steps.

    The points other than 0 are the roots of the Jacobi polynomial P^(0, 1) of that degree (Abramowitz, Stegun 25.4.31).

    Args:
        steps: Number of points besides 0.
    """
    inner, weights = scipy.special.roots_jacobi(steps, 0, 1) if steps else ([], [])
    rest = [((x + 1) / 2, w / (1 + x) / 2) for x, w in zip(inner, weights, strict=True)]
    return [(0.0, 1 / (steps + 1) ** 2), *rest]


def attribute(
    lens: Lens,
    requests: Sequence[LoglikelihoodRequest],
    *,
    steps: int = 0,
    groups: int = GROUPS,
    layers: Sequence[int] | None = None,
    weights: Sequence[Sequence[float]] | None = None,
    batch_tokens: int | None = None,
    progress: bool = False,
    cache: AnswerCache | None = None,
) -> tuple[Float[Tensor, "request n_layers n_heads"], Float[Tensor, " request"]]:
    """Estimate by how much log p(continuation | context) changes when one head is removed.

    Args:
        lens: A loaded model.
        requests: Contexts and continuations.
        steps: Points along the way besides the whole model; 0 is attribution patching.
        groups: Into how many groups the heads of each layer are drawn; as many as heads, or more: each is moved alone.
        layers: Layers whose heads are moved; None for all.
        weights: Per request, a factor on the log-probability of each token of its continuation; None: 1 for all.
        batch_tokens: Tokens that go through the model together; None chooses by device and free memory.
        progress: Show a bar.
        cache: Where estimates are read and stored; its entry must be of these steps and groups.

    Returns:
        Estimated changes in nats, NaN in other layers, and the clean log-probabilities; both of the weighted sum where
        there are weights.

    Raises:
        UserError: an offloaded model or one that cannot be walked layer by layer, or requests that are longer than the
            model's attention window.
    """
    what = "integrated gradients" if steps else "attribution"
    lens.needs_weights(what)
    if lens.dims.headless:
        lacking = ", ".join(f"L{layer}" for layer in lens.dims.headless[:4])
        raise UserError(f"{what} reads attention heads of every layer, and {lens.name!r} has none in {lacking} ..")
    if lens.stream:
        raise UserError(f"{what} needs the whole model in memory for its backward pass; load without offload")
    walk_check.refuse_window(lens, max((len(q.inputs) for q in requests), default=0), what)
    factors = [[1.0] * len(q.continuation) for q in requests] if weights is None else weights
    dims = lens.dims
    chosen = list(range(dims.n_layers)) if layers is None else arguments.layers("layers", layers, dims.n_layers)
    n_groups = min(groups, dims.n_heads)
    # every request passes a layer once for each group and step, all at once
    most = max(1, (batch_tokens or work.choose(lens).batch_tokens) // max(1, n_groups * steps))

    def measure(members: list[int]) -> Iterator[tuple[list[int], np.ndarray]]:
        def run(batch: list[int]) -> np.ndarray:
            path = _Path(lens, [requests[i] for i in batch], [factors[i] for i in batch])
            change = path.integral(nodes(steps), n_groups, chosen)
            return torch.cat([path.clean[:, None], change.flatten(1)], 1).cpu().numpy()

        at_once, left = most, sorted(members, key=lambda i: len(requests[i].inputs))  # rows are padded to the longest
        while left:
            longest = [len(requests[i].inputs) for i in left]
            n = next((n for n in range(1, len(left)) if (n + 1) * longest[n] > at_once), len(left))
            values = work.tried(partial(run, left[:n]), smaller=n > 1)
            if values is None:  # memory ran out
                at_once = n * longest[n - 1] // 2
            else:
                yield left[:n], values
                left = left[n:]

    names = ["clean", *(f"L{layer}.H{head}" for layer in chosen for head in range(dims.n_heads))]
    cases = requests if weights is None else list(zip(requests, map(tuple, weights), strict=True))
    values = (cache or AnswerCache()).numbers(cases, names, measure, desc=what, unit="request", progress=progress)
    clean, *each = torch.tensor(values.T, dtype=wide_type(lens.dtype)).unbind()
    found = torch.full((len(requests), dims.n_layers, dims.n_heads), torch.nan, dtype=clean.dtype)
    found[:, chosen] = torch.stack(each, 1).unflatten(1, (len(chosen), dims.n_heads))
    return found, clean


class CausalRows:
    """Rows of equal length, padded on the right: every token sees itself and those before it.

    A layout for `depthlens.models.architectures.Architecture.call`. Unlike a tree's, its attention can be
    differentiated.

    Attributes:
        position_ids: Shape [1, pos].
        rotary: Angles of these positions, as an architecture gives them.
    """

    rotary: Any = None

    def __init__(self, n_pos: int, device: torch.device) -> None:
        self.position_ids: Tensor = torch.arange(n_pos, device=device)[None]

    def attention(self, layer: int, query: Queries, key: Keys, value: Values, scale: float) -> Z:
        """See `depthlens.engine.tree_attention.Layout.attention`."""
        shared = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=shared)


class _Path:
    """One batch of requests on the way to the removal of heads.

    Args:
        lens: A loaded model.
        requests: One a row.
        weights: Of the tokens of each continuation.

    Attributes:
        clean: Weighted log-probabilities of the continuations in the whole model. Shape [request].
        slopes: Slope of each head on its way, in the whole model. Shape [request, n_layers, n_heads].
    """

    def __init__(
        self, lens: Lens, requests: Sequence[LoglikelihoodRequest], weights: Sequence[Sequence[float]]
    ) -> None:
        walk_check.require(lens, "an estimate from gradients", whole=True)
        self.lens, self.arch, self.requests = lens, lens.arch, requests
        device, dims = lens.device, lens.dims
        tokens = pad_sequence([torch.tensor(q.inputs) for q in requests], batch_first=True)
        spots = [(r, len(q.context) - 1 + i, t) for r, q in enumerate(requests) for i, t in enumerate(q.continuation)]
        self.row, self.pos, self.target = (torch.tensor(x, device=device) for x in zip(*spots, strict=True))
        self.weight = torch.tensor([w for of_request in weights for w in of_request], dtype=wide_type(lens.dtype))
        self.layout = CausalRows(tokens.shape[1], device)
        x = self.arch.embed(tokens.to(device))
        self.layout.rotary = self.arch.angles(x, self.layout.position_ids)
        self.inputs: list[Tensor] = []  # residual streams before each layer, in the whole model
        still = torch.zeros(len(requests), dims.n_heads, dtype=x.dtype, device=device)
        self.clean, slopes = self._slopes(x, range(dims.n_layers), still)
        self.slopes = torch.stack(slopes, 1)

    def integral(
        self, points: Sequence[tuple[float, float]], n_groups: int, layers: Sequence[int]
    ) -> Float[Tensor, "request layer n_heads"]:
        """Slopes along the way, averaged: the estimated changes in nats.

        Args:
            points: How far on the way, and with which weight; the first is the whole model.
            n_groups: Of the heads of each layer.
            layers: Whose heads are moved.
        """
        (_, weight), *further = points
        total = weight * self.slopes[:, layers]
        if not further:
            return total
        group = torch.stack(
            [_groups(q, self.lens.dims.n_layers, self.lens.dims.n_heads, n_groups) for q in self.requests]
        )
        members = torch.stack([group == g for g in range(n_groups)]).to(total)  # [group, request, n_layers, n_heads]
        fractions, weights = (torch.tensor(x, dtype=total.dtype) for x in zip(*further, strict=True))
        for i, layer in enumerate(layers):
            own = members[None, :, :, layer]  # [step, group, request, n_heads]
            shift = (fractions[:, None, None, None] * own).flatten(0, 2)
            rows = self.inputs[layer].repeat(len(further) * n_groups, 1, 1)
            _, (slopes,) = self._slopes(rows, [layer], shift.to(rows.device))
            by_step = slopes.unflatten(0, (len(further), n_groups, -1)) * own
            total[:, i] += (weights[:, None, None] * by_step.sum(1)).sum(0)
        return total

    def _slopes(
        self, x: Float[Tensor, "row pos d_model"], moved: Sequence[int], shift: Float[Tensor, "row n_heads"]
    ) -> tuple[Float[Tensor, " row"], list[Float[Tensor, "row n_heads"]]]:
        """Weighted log-probabilities with heads moved, and the slope of each head along its way in each moved layer.

        Args:
            x: Residual streams of the whole model before the first of these layers, of the requests once or several
                times.
            moved: The layers; with all of them, the residual streams before each are kept.
            shift: How far each head of theirs goes, from 0 to 1.
        """
        dims = self.lens.dims
        ends: dict[int, tuple[Tensor, Tensor]] = {}  # z where it was moved to, and the whole way to 0
        copies = len(x) // len(self.requests)

        def move(layer: int) -> Callable[[Any, tuple], tuple]:
            def hook(module: Any, args: tuple) -> tuple:
                z = args[0].unflatten(-1, (dims.n_heads, dims.d_head))  # [row, pos, n_heads, d_head]
                way = -z.detach()
                z = z + shift[:, None, :, None].to(z) * way
                z = z if z.requires_grad else z.requires_grad_()  # the first has no graph to start from, others do
                z.retain_grad()
                ends[layer] = z, way
                return z.flatten(-2), *args[1:]

            return hook

        row = (torch.arange(copies, device=self.row.device)[:, None] * len(self.requests) + self.row).flatten()
        pos, target = self.pos.repeat(copies), self.target.repeat(copies)
        with ExitStack() as stack, torch.enable_grad(), walking(self.lens.model):
            for layer in moved:
                stack.enter_context(self.arch.o_proj[layer].register_forward_pre_hook(move(layer)))
            for layer in range(moved[0], dims.n_layers):
                if len(moved) == dims.n_layers:
                    self.inputs.append(x.detach())
                x = self.arch.call(layer, x, self.layout)
            logits = wide(self.arch.logits(x[row.to(x.device), pos.to(x.device)]))
            logprobs = logits.gather(-1, target.to(logits.device)[:, None])[:, 0] - logits.logsumexp(-1)
            logprobs = logprobs * self.weight.repeat(copies).to(logprobs)
            logprobs.sum().backward()  # rows do not see each other: the gradient of the sum holds each one's own
        slopes = []
        for layer in moved:
            z, way = ends[layer]
            assert z.grad is not None  # the backward pass above
            slopes.append((wide(way) * wide(z.grad)).sum((1, 3)).cpu())
        return torch.zeros(len(x), dtype=logprobs.dtype).index_add(0, row.cpu(), logprobs.detach().cpu()), slopes


def _groups(
    request: LoglikelihoodRequest, n_layers: int, n_heads: int, n_groups: int
) -> Int[Tensor, "n_layers n_heads"]:
    """The group of each head, drawn from the tokens of the request, so that an estimate is the same in any batch."""
    digest = hashlib.sha256(repr((request.context, request.continuation)).encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8]))
    return torch.tensor(rng.permuted(np.tile(np.arange(n_heads) % n_groups, (n_layers, 1)), axis=1))


def removed_alone(lens: Lens, heads: Sequence[AnyHead] | None, method: str) -> list[Head] | None:
    """Heads that are to be removed, without repetition; None for all.

    Raises:
        UserError: a method that removes none, or a head that the model does not have.
    """
    if heads is None:
        return None
    if method != EXACT:
        raise UserError(f"heads with method {method!r}: only 'exact' removes heads; leave heads out")
    unique = list(dict.fromkeys(heads_of("heads", heads)))
    if not unique:
        raise UserError("heads names no head; give at least one, or leave it out")
    heads_condition(unique).validate(lens.dims)
    return unique


def losses(
    lens: Lens,
    requests: Sequence[LoglikelihoodRequest],
    method: str,
    options: EvalOptions,
    cache: AnswerCache,
    *,
    weights: Sequence[Sequence[float]] | None = None,
    heads: Sequence[Head] | None = None,
) -> tuple[Float[np.ndarray, "request n_layers n_heads"], Float[np.ndarray, " request"]]:
    """Loss by removing each head.

    Args:
        lens: A loaded model.
        requests: What is written.
        method: ``exact``, or one of `STEPS`.
        options: batch_tokens, progress, and those of workers.
        cache: Where answers or estimates are read and stored.
        weights: Per request, which tokens of its continuation count (1) and which do not (0); None: all.
        heads: Which heads, with ``exact``; None: every head of the model.

    Returns:
        Losses in nats, 0 for heads that were not removed, and the log-probabilities of the whole model. Both are sums
        over the tokens that count.
    """
    if method != EXACT:
        how: dict[str, Any] = {"batch_tokens": options["batch_tokens"], "progress": options["progress"]}
        change, clean = attribute(lens, requests, steps=STEPS[method], weights=weights, cache=cache, **how)
        return -change.numpy(), clean.numpy()
    parts = [part for i, q in enumerate(requests) for part in _parts(i, q, weights[i] if weights else None)]
    shape = lens.dims.n_layers, lens.dims.n_heads
    chosen = [Head(*at) for at in np.ndindex(shape)] if heads is None else list(heads)
    conditions = [BASELINE, *(heads_condition([head]) for head in chosen)]
    engine, asked = engine_of(lens, options, cache), [part for _, part in parts]
    answers = engine.loglikelihood(asked, conditions, desc="heads removed")
    logprobs = np.zeros((len(requests), len(conditions)))
    np.add.at(logprobs, [i for i, _ in parts], np.array([[a.logprob for a in row] for row in answers]).T)
    found = np.zeros((len(requests), *shape))
    for i, head in enumerate(chosen, 1):
        found[:, *head] = logprobs[:, 0] - logprobs[:, i]
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
