"""Attention over a packed prefix tree in two parts, the prefix and each branch by itself, and how parts are merged.

Attention over two sets of keys is exactly the mean of the attention over each, weighted by the denominators (as in
FlashAttention, arXiv 2205.14135, and Hydragen, arXiv 2402.05099). The prefix part is one dense product for all branches
at once, and the own part is small. Query heads that share a key/value head are folded into the query axis, so keys of
the prefix are never copied.

`fused` calls torch's kernels that hold no scores; which of them there are depends on the device, the dtype and the
widths. `unfused` works everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from depthlens.engine.prefix_tree import Branch, Pack
from depthlens.models.architectures import wide

# of the unfused path, held at once: so many for each query on average, in float32, three times (while it computes)
SCORES_PER_QUERY, SCORE_BYTES = 256, 12
# elements: CUDA kernels want rows of a mask to start at such multiples (16 bytes in bfloat16)
MASK_ALIGNMENT = 8

Attend = Callable[[Tensor, Tensor, Tensor, float, Tensor | None, bool], tuple[Tensor, Tensor]]


def fused(
    q: Float[Tensor, "batch head query d_head"],
    k: Float[Tensor, "batch head key d_head"],
    v: Float[Tensor, "batch head key d_value"],
    scale: float,
    mask: Float[Tensor, "#batch #head #query key"] | None,
    causal: bool,
) -> tuple[Float[Tensor, "batch head query d_value"], Float[Tensor, "batch head query"]]:
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
    aten, half = torch.ops.aten, q.dtype in (torch.bfloat16, torch.float16)
    if q.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=mask, scale=scale)
    elif mask is None and half and q.shape[-1] == v.shape[-1]:
        out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)
    else:
        bias = None if mask is None else mask.expand(*q.shape[:3], -1)
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, 0.0, causal, scale=scale)
    return out, lse[..., : q.shape[2]]  # one of the kernels pads it to multiples of 32 queries


def unfused(
    q: Float[Tensor, "batch head query d_head"],
    k: Float[Tensor, "batch head key d_head"],
    v: Float[Tensor, "batch head key d_value"],
    scale: float,
    mask: Float[Tensor, "#batch #head #query key"] | None,
    causal: bool,
) -> tuple[Float[Tensor, "batch head query d_value"], Float[Tensor, "batch head query"]]:
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


def merge(
    a: Float[Tensor, "*query d_value"],
    lse_a: Float[Tensor, "*query"],
    b: Float[Tensor, "*query d_value"],
    lse_b: Float[Tensor, "*query"],
) -> Float[Tensor, "*query d_value"]:
    """Softmax attention over two sets of keys from the attention over each and its log-sum-exp."""
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
        attend: What computes one part.

    Attributes:
        n_prefix: Number of prefix tokens; they come first.
        buckets: Branches of similar length together, padded: indices of their tokens counted from the end of the
            prefix, shape [branch, own]; which entries are real, shape [branch * own]; and who sees whom (additive
            mask), shape [branch, 1, own, own], or None where no branch branches again, so that each token sees all
            before it: of long prompts a mask would be most of the memory, and of the time.
    """

    def __init__(self, pack: Pack, device: torch.device, dtype: torch.dtype, attend: Attend) -> None:
        self.n_prefix = len(pack.prefix)
        self.attend = attend
        self.buckets: list[tuple[Tensor, Tensor, Tensor | None]] = []
        start = 0
        for bucket in _by_length(pack.branches):
            self.buckets.append(_bucket(bucket, start, device, dtype))
            start += sum(len(b.tokens) for b in bucket)

    def attention(
        self,
        query: Float[Tensor, "row n_heads pos d_head"],
        key: Float[Tensor, "row n_kv_heads pos d_head"],
        value: Float[Tensor, "row n_kv_heads pos d_value"],
        scale: float,
    ) -> Float[Tensor, "row n_heads pos d_value"]:
        """See `depthlens.engine.tree_attention.Layout.attention`."""
        n_kv, p = key.shape[1], self.n_prefix
        q = query.unflatten(1, (n_kv, -1))  # [row, kv, group, pos, d_head]
        rows, _, group, pos, _ = q.shape
        out = query.new_empty(rows, n_kv, group, pos, value.shape[-1])
        if p:
            # causal within the prefix: folding the group would break the triangle, so here it joins the heads
            k, v = (x[:, :, None, :p].expand(-1, -1, group, -1, -1).flatten(1, 2) for x in (key, value))
            out[..., :p, :] = self.attend(query[:, :, :p], k, v, scale, None, True)[0].unflatten(1, (n_kv, group))
        if pos > p:
            q_own, k_own, v_own = q[..., p:, :], key[:, :, p:], value[:, :, p:]
            parts = [self._attend_branches(q_own, k_own, v_own, scale, bucket) for bucket in self.buckets]
            own, own_lse = torch.cat([o for o, _ in parts], 3), torch.cat([s for _, s in parts], 3)
            if p:
                prefix, lse = self.attend(q_own.flatten(2, 3), key[:, :, :p], value[:, :, :p], scale, None, False)
                own = merge(own, own_lse, prefix.unflatten(2, (group, -1)), lse.unflatten(2, (group, -1)))
            out[..., p:, :] = own
        return out.flatten(1, 2)

    def _attend_branches(
        self,
        q: Float[Tensor, "row kv group own d_head"],
        k: Float[Tensor, "row kv own d_head"],
        v: Float[Tensor, "row kv own d_value"],
        scale: float,
        bucket: tuple[Tensor, Tensor, Tensor | None],
    ) -> tuple[Float[Tensor, "row kv group token d_value"], Float[Tensor, "row kv group token"]]:
        """Attention of one bucket's tokens within their branches, and its log-sum-exp."""
        index, real, mask = bucket
        branches, width = index.shape
        rows, n_kv, group, _, _ = q.shape
        flat = index.flatten()
        # branches become the batch and rows join the heads, so that one mask a branch serves every row
        qs = (
            q[:, :, :, flat]
            .unflatten(3, (branches, width))
            .permute(3, 0, 1, 2, 4, 5)
            .reshape(branches, -1, width, q.shape[-1])
        )
        ks, vs = (
            x[:, :, flat]
            .unflatten(2, (branches, width))
            .permute(2, 0, 1, 3, 4)[:, :, :, None]
            .expand(-1, -1, -1, group, -1, -1)
            .reshape(branches, -1, width, x.shape[-1])
            for x in (k, v)
        )
        out, lse = self.attend(qs, ks, vs, scale, mask, mask is None)
        out = out.unflatten(1, (rows, n_kv, group)).permute(1, 2, 3, 0, 4, 5).flatten(3, 4)
        lse = lse.unflatten(1, (rows, n_kv, group)).permute(1, 2, 3, 0, 4).flatten(3, 4)
        return out[:, :, :, real], lse[:, :, :, real]


def _by_length(branches: list[Branch]) -> Iterator[list[Branch]]:
    """Consecutive branches (longest first) whose padding wastes little."""
    bucket: list[Branch] = []
    for branch in branches:
        if bucket and len(branch.tokens) < 0.8 * len(bucket[0].tokens):
            yield bucket
            bucket = []
        bucket.append(branch)
    if bucket:
        yield bucket


def _bucket(
    branches: list[Branch], start: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    width = len(branches[0].tokens)
    index = torch.full((len(branches), width), start)
    real = torch.zeros(len(branches), width, dtype=torch.bool)
    for i, branch in enumerate(branches):
        n = len(branch.tokens)
        index[i, :n] = torch.arange(start, start + n)
        real[i, :n] = True
        start += n
    places = index.to(device), real.flatten().nonzero()[:, 0].to(device)
    if all(branch.parents == [*range(-1, len(branch.tokens) - 1)] for branch in branches):
        return *places, None  # padding comes last, where no token sees it
    sees = torch.eye(width, dtype=torch.bool).repeat(len(branches), 1, 1)  # padding sees itself: no empty softmax
    for i, branch in enumerate(branches):
        for j, parent in enumerate(branch.parents):
            if parent >= 0:
                sees[i, j] |= sees[i, parent]
    mask = torch.zeros(len(branches), 1, width, aligned(width), dtype=dtype, device=device)[..., :width]
    return *places, mask.masked_fill_(~sees[:, None].to(device), -torch.inf)
