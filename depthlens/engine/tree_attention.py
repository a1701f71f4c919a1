"""Attention over a packed prefix tree: every token sees the prefix and its ancestors, nothing else.

Registered with transformers' attention interface; any family that calls it can be walked. The device decides what
computes it, and `depthlens.engine.walk_check` tries it with the model before it is used:

- ``fused``, on a CPU and on CUDA: torch's fused kernels, prefix and branches apart;
- ``unfused``: the same written out, with scores in memory; for other devices, float64 on CUDA, and keys and values of
  unequal widths on a CPU.

Attention over two sets of keys is exactly the mean of the attention over each, weighted by the denominators
(as in FlashAttention, arXiv 2205.14135, and Hydragen, arXiv 2402.05099). The prefix part is one dense product for all
branches at once, and the own part is small. Query heads that share a key/value head are folded into the query axis, so
keys of the prefix are never copied. Texts are written with the same two parts (`depthlens.engine.decoding`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.backends import cuda
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig

from depthlens.engine.prefix_tree import Pack
from depthlens.models.architectures import wide
from depthlens.models.lens import Lens

# of rows that pass a layer together
Queries = Float[Tensor, "row n_heads pos d_head"]
Keys = Float[Tensor, "row n_kv_heads key d_head"]
Values = Float[Tensor, "row n_kv_heads key d_value"]
Z = Float[Tensor, "row n_heads pos d_value"]
# of attention to some of the keys: as many heads each, what is added to the scores, output and log of the denominator
Query = Float[Tensor, "batch head query d_head"]
Key = Float[Tensor, "batch head key d_head"]
Value = Float[Tensor, "batch head key d_value"]
Mask = Float[Tensor, "#batch #head #query key"]
Part = tuple[Float[Tensor, "batch head query d_value"], Float[Tensor, "batch head query"]]
Bucket = tuple[Int[Tensor, "branch own"], Int[Tensor, " token"], Float[Tensor, "branch 1 own own"] | None]
NAME = "depthlens_tree"
# of the unfused path, held at once: so many for each query on average, in float32, three times (while it computes)
SCORES_PER_QUERY, SCORE_BYTES = 256, 12
# elements: CUDA kernels want rows of a mask to start at such multiples (16 bytes in bfloat16)
MASK_ALIGNMENT = 8


def kernel_of(lens: Lens) -> str | None:
    """The kernel for trees of a model, as a record names it; None where its weights are on a server."""
    if lens.remote:
        return None
    fits = {"cuda": lens.dtype != torch.float64, "cpu": lens.arch.d_key == lens.dims.d_head}  # see `attend`
    return "fused" if fits.get(lens.device.type) else "unfused"


@dataclass(eq=False)
class Layout:
    """A pack as tensors: token ids, positions, and which keys each branch token sees.

    Attributes:
        pack: The prefix tree.
        device: Where tokens are embedded.
        keep: Called with the layer, the condition of a row, and its keys and values as they pass; None: nothing is.
        before: Keys and values of the prefix's first tokens by layer, each of shape [n_kv_heads, pos, d], where rows
            hold the tokens after them only.
        n_before: How many these are.
        rows: Condition of each row that now passes a layer, -1 for the clean one; set by the walk.
        visit: How often these rows were at the layer before; set by the walk.
        rotary: Angles of these positions, as an architecture gives them; set by the walk.
        tokens: Those that rows hold. Shape [pos].
        position_ids: Shape [1, pos].
    """

    pack: Pack
    device: torch.device
    keep: Callable[[int, int, Tensor, Tensor], None] | None = None
    before: Mapping[int, tuple[Tensor, Tensor]] | None = None
    n_before: int = 0
    rows: list[int] = field(default_factory=list, init=False)
    visit: int = field(default=0, init=False)
    rotary: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.tokens = torch.tensor(self.pack.tokens[self.n_before :], device=self.device)
        self.position_ids: Tensor = torch.tensor([self.pack.depths[self.n_before :]], device=self.device)
        self._tree: Any = functools.cache(functools.partial(BranchTree, self.pack))  # by device and dtype

    def attention(self, layer: int, query: Queries, key: Keys, value: Values, scale: float) -> Z:
        """Attention of rows that all have this layout.

        Args:
            layer: Layer number.
            query: Query heads.
            key: Key heads.
            value: Value heads.
            scale: Factor on the scores.
        """
        if self.keep is not None:
            for condition, k, v in zip(self.rows, key, value, strict=True):
                self.keep(layer, condition, k, v)
        if self.before and self.n_before:
            before = (x[:, : self.n_before].expand(len(key), -1, -1, -1) for x in self.before[layer])
            key, value = (torch.cat(both, 2) for both in zip(before, (key, value), strict=True))
        return self._tree(query.device, query.dtype).attention(query, key, value, scale)


def tree_attention(
    module: nn.Module,
    query: Queries,
    key: Keys,
    value: Values,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    layout: Any,
    **kwargs: Any,
) -> tuple[Float[Tensor, "row pos n_heads d_value"], None]:
    """Transformers' attention interface: the layout, which knows which keys each token sees, computes z.

    A mask that a changed model makes for itself is not used; `walk_check` finds that its layers give something else.

    Returns:
        z, and no weights.

    Raises:
        NotImplementedError: the model caps scores or has attention sinks, which no layout knows.
    """
    if any(kwargs.get(name) is not None for name in ("softcap", "s_aux")):
        raise NotImplementedError("scores are capped, or some attention goes nowhere")
    z = layout.attention(cast(int, module.layer_idx), query, key, value, scaling)
    return z.transpose(1, 2).contiguous(), None  # as transformers' own kernels give it


@contextmanager
def walking(model: nn.Module) -> Iterator[None]:
    """Within the context the model's attention modules use tree attention and need ``layout=``."""
    from transformers import AttentionInterface  # slow to import

    AttentionInterface.register(NAME, tree_attention)
    config = cast(PreTrainedConfig, model.config)
    before = config._attn_implementation
    try:
        config._attn_implementation = NAME
        yield
    finally:
        config._attn_implementation = before


def fused(q: Query, k: Key, v: Value, scale: float, mask: Mask | None, causal: bool) -> Part:
    """Softmax attention that also returns the log of its denominator, by torch's own kernels.

    They are those of `torch.nn.functional.scaled_dot_product_attention`, which does not return that log.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        scale: Factor on the scores.
        mask: Added to the scores; its rows start at multiples of `MASK_ALIGNMENT` elements.
        causal: Query i sees keys 0..i.

    Returns:
        Output, and log-sum-exp of the scores in float32, or float64 of float64.

    Raises:
        RuntimeError: torch has no such kernel for this device, dtype or these widths.
    """
    aten = torch.ops.aten
    if q.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=mask, scale=scale)
    elif _is_flash(q, v, mask):
        out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)
    else:
        bias = None if mask is None else mask.expand(*q.shape[:3], -1)
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, 0.0, causal, scale=scale)
    return out, lse[..., : q.shape[2]]  # one of the kernels pads it to multiples of 32 queries


def attend(q: Query, k: Key, v: Value, scale: float, mask: Mask | None = None, causal: bool = False) -> Part:
    """Softmax attention and the log of its denominator, by a kernel of torch's if it has one for this."""
    if q.device.type == "cuda":
        can = cuda.can_use_flash_attention if _is_flash(q, v, mask) else cuda.can_use_efficient_attention
        fits = can(cuda.SDPAParams(q, k, v, mask, 0.0, causal, False))
    else:
        fits = q.device.type == "cpu" and q.shape[-1] == v.shape[-1]
    return (fused if fits else unfused)(q, k, v, scale, mask, causal)


def _is_flash(q: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    return mask is None and q.dtype in (torch.bfloat16, torch.float16) and q.shape[-1] == v.shape[-1]


def unfused(q: Query, k: Key, v: Value, scale: float, mask: Mask | None, causal: bool) -> Part:
    """`fused`, written out, with a bounded number of scores at once."""
    outs, lses = [], []
    n_queries, n_keys = q.shape[2], k.shape[2]
    step = max(1, n_queries * SCORES_PER_QUERY // max(1, n_keys))
    for start in range(0, n_queries, step):
        end = start + step
        scores = wide(q[:, :, start:end] @ k.transpose(-1, -2)) * scale
        if mask is not None:
            scores = scores + (mask[:, :, start:end] if mask.shape[2] > 1 else mask)
        if causal:
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(start + 1)
            scores = scores.masked_fill(future, -torch.inf)
        lse = scores.logsumexp(-1)
        outs.append((scores - lse[..., None]).exp().to(v.dtype) @ v)
        lses.append(lse)
    return torch.cat(outs, 2), torch.cat(lses, 2)


def merge(a: Tensor, lse_a: Tensor, b: Tensor, lse_b: Tensor) -> Float[Tensor, "*query d_value"]:
    """Softmax attention over two sets of keys from the attention over each and its log-sum-exp, shape [*query]."""
    return torch.lerp(b, a, torch.sigmoid(lse_a - lse_b)[..., None].to(a.dtype))


def aligned(n: int) -> int:
    """The least multiple of `MASK_ALIGNMENT` that is at least ``n``."""
    return -(-n // MASK_ALIGNMENT) * MASK_ALIGNMENT


class BranchTree:
    """A pack as a prefix and padded branches.

    Args:
        pack: The prefix tree.
        device: Where it is computed.
        dtype: Of queries, keys and values.

    Attributes:
        n_prefix: Number of prefix tokens; they come first.
        buckets: Branches of similar length together, padded: indices of their tokens counted from the end of the
            prefix, shape [branch, own]; which entries are real, shape [branch * own]; and who sees whom (additive
            mask), shape [branch, 1, own, own], or None where no branch branches again, so that each token sees all
            before it: of long prompts a mask would be most of the memory, and of the time.
    """

    def __init__(self, pack: Pack, device: torch.device, dtype: torch.dtype) -> None:
        self.n_prefix = pack.n_prefix
        self.buckets = [_bucket(pack, branches, device, dtype) for branches in _by_length(pack.branches)]

    def attention(self, query: Queries, key: Keys, value: Values, scale: float) -> Z:
        """See `Layout.attention`; where there are fewer queries than keys, the first ones are left out."""
        n_kv, before = key.shape[1], key.shape[2] - query.shape[2]
        p = self.n_prefix - before  # queries of the prefix
        q = query.unflatten(1, (n_kv, -1))  # [row, kv, group, pos, d_head]
        group, prefix, out = q.shape[2], (key[:, :, : self.n_prefix], value[:, :, : self.n_prefix]), []
        if p:
            # causal within the prefix: folding the group would break the triangle, so here it joins the heads
            k, v = (x[:, :, None].expand(-1, -1, group, -1, -1).flatten(1, 2) for x in prefix)
            first, lse = attend(query[:, :, :p], k[:, :, before:], v[:, :, before:], scale, None, True)
            if before:
                first = merge(first, lse, *attend(query[:, :, :p], k[:, :, :before], v[:, :, :before], scale))
            out.append(first)
        if self.buckets:
            q_own, k_own, v_own = q[..., p:, :], key[:, :, None, self.n_prefix :], value[:, :, None, self.n_prefix :]
            found = [self._attend_branches(q_own, k_own, v_own, scale, bucket) for bucket in self.buckets]
            own, own_lse = (torch.cat(of, 3) for of in zip(*found, strict=True))
            if self.n_prefix:
                parts = [x.unflatten(2, (group, -1)) for x in attend(q_own.flatten(2, 3), *prefix, scale)]
                own = merge(own, own_lse, *parts)
            out.append(own.flatten(1, 2))
        return torch.cat(out, 2)

    def _attend_branches(self, q: Tensor, k: Tensor, v: Tensor, scale: float, bucket: Bucket) -> tuple[Tensor, Tensor]:
        """Attention of one bucket's tokens within their branches, and its log-sum-exp.

        Shapes: of queries, keys and values [row, kv, group, own, d], of which keys and values have a group of 1; of
        what is returned [row, kv, group, token, d_value] and [row, kv, group, token].
        """
        index, real, mask = bucket
        branches, width = index.shape
        rows, n_kv, group, _, _ = q.shape

        def by_branch(x: Tensor) -> Float[Tensor, "branch row_and_head width d"]:
            """Branches become the batch and rows join the heads, so that one mask a branch serves every row."""
            x = x[:, :, :, index].permute(3, 0, 1, 2, 4, 5)
            return x.expand(-1, -1, -1, group, -1, -1).reshape(branches, -1, width, x.shape[-1])

        found = attend(by_branch(q), by_branch(k), by_branch(v), scale, mask, mask is None)
        out, lse = (x.unflatten(1, (rows, n_kv, group)).movedim(0, 3).flatten(3, 4)[:, :, :, real] for x in found)
        return out, lse


def _by_length(branches: list[range]) -> Iterator[list[range]]:
    """Consecutive branches (longest first) whose padding wastes little."""
    bucket: list[range] = []
    for branch in branches:
        if bucket and len(branch) < 0.8 * len(bucket[0]):
            yield bucket
            bucket = []
        bucket.append(branch)
    if bucket:
        yield bucket


def _bucket(pack: Pack, branches: list[range], device: torch.device, dtype: torch.dtype) -> Bucket:
    tokens = torch.arange(branches[0].start - pack.n_prefix, branches[-1].stop - pack.n_prefix)
    index = pad_sequence(tokens.split([len(branch) for branch in branches]), True, -1)
    places = index.clamp(min=0).to(device), (index >= 0).flatten().nonzero()[:, 0].to(device)
    if all(pack.parents[i] == i - 1 for branch in branches for i in branch[1:]):
        return *places, None  # padding comes last, where no token sees it
    n, width = index.shape
    sees = torch.eye(width, dtype=torch.bool).repeat(n, 1, 1)  # padding sees itself: no empty softmax
    for of_branch, branch in zip(sees, branches, strict=True):
        for i in branch[1:]:
            of_branch[i - branch.start] |= of_branch[pack.parents[i] - branch.start]
    mask = torch.zeros(n, 1, width, aligned(width), dtype=dtype, device=device)[..., :width]
    return *places, mask.masked_fill_(~sees[:, None].to(device), -torch.inf)
