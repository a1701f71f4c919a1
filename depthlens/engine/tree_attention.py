"""Attention over a packed prefix tree: every token sees the prefix and its ancestors, nothing else.

The softmax over both parts is computed apart and merged exactly by their log-sum-exp (as in FlashAttention,
arXiv 2205.14135, and Hydragen, arXiv 2402.05099): the prefix part is one dense product for all branches at once,
the own part is small. Query heads that share a key/value head are folded into the query axis, so keys are never copied.
Registered with transformers' attention interface; any family that calls it can be walked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from depthlens.engine.prefix_tree import Branch, Pack

NAME = "depthlens_tree"
# scores of the unfused path that are held at once: 64 Mi float32 = 256 MiB
MAX_SCORES = 1 << 26


class Layout:
    """A pack as tensors: token ids, positions, and which keys each branch token sees.

    Attributes:
        tokens: Shape [pos].
        position_ids: Shape [1, pos].
        n_prefix: Number of prefix tokens; they come first.
        buckets: Branches of similar length together, padded: indices of their tokens counted from the end of the
            prefix, shape [branch, own]; which entries are real, shape [branch * own]; and who sees whom (additive
            mask), shape [branch, 1, own, own].
        rows: Condition of each row that now passes a layer, -1 for the clean one; set by the walk.
    """

    rows: list[int]

    def __init__(self, pack: Pack, device: torch.device, dtype: torch.dtype) -> None:
        self.rows = []
        self.tokens = torch.tensor(pack.tokens, device=device)
        self.position_ids = torch.tensor([pack.depths], device=device)
        self.n_prefix = len(pack.prefix)
        self.buckets: list[tuple[Tensor, Tensor, Tensor]] = []
        start = 0
        for bucket in _by_length(pack.branches):
            self.buckets.append(_bucket(bucket, start, device, dtype))
            start += sum(len(b.tokens) for b in bucket)

    def attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of rows that all have this layout.

        Args:
            layer: Layer number (for layouts that keep what they see).
            query: Shape [row, n_heads, pos, d_head].
            key: Shape [row, n_kv_heads, pos, d_head].
            value: Shape [row, n_kv_heads, pos, d_value].
            scale: Factor on the scores.

        Returns:
            Shape [row, n_heads, pos, d_value].
        """
        n_kv, p = key.shape[1], self.n_prefix
        q = query.unflatten(1, (n_kv, -1))  # [row, kv, group, pos, d_head]
        rows, _, group, pos, _ = q.shape
        out = query.new_empty(rows, n_kv, group, pos, value.shape[-1])
        if p:
            # causal within the prefix: folding the group would break the triangle, so here it joins the heads
            k, v = (x[:, :, None, :p].expand(-1, -1, group, -1, -1).flatten(1, 2) for x in (key, value))
            out[..., :p, :] = attend(query[:, :, :p], k, v, scale, None, True)[0].unflatten(1, (n_kv, group))
        if pos > p:
            q_own, k_own, v_own = q[..., p:, :], key[:, :, p:], value[:, :, p:]
            parts = [_own(q_own, k_own, v_own, scale, bucket) for bucket in self.buckets]
            own, own_lse = torch.cat([o for o, _ in parts], 3), torch.cat([s for _, s in parts], 3)
            if p:
                far, far_lse = attend(q_own.flatten(2, 3), key[:, :, :p], value[:, :, :p], scale, None, False)
                own = merge(own, own_lse, far.unflatten(2, (group, -1)), far_lse.unflatten(2, (group, -1)))
            out[..., p:, :] = own
        return out.flatten(1, 2)


def merge(one: Tensor, one_lse: Tensor, other: Tensor, other_lse: Tensor) -> Tensor:
    """Softmax attention over two sets of keys from the attention over each and its log-sum-exp."""
    return torch.lerp(other, one, torch.sigmoid(one_lse - other_lse)[..., None].to(one.dtype))


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
) -> tuple[Tensor, Tensor, Tensor]:
    width = len(branches[0].tokens)
    index = torch.full((len(branches), width), start)
    real = torch.zeros(len(branches), width, dtype=torch.bool)
    sees = torch.eye(width, dtype=torch.bool).repeat(len(branches), 1, 1)  # padding sees itself: no empty softmax
    for i, branch in enumerate(branches):
        n = len(branch.tokens)
        index[i, :n] = torch.arange(start, start + n)
        real[i, :n] = True
        for j, parent in enumerate(branch.parents):
            if parent >= 0:
                sees[i, j] |= sees[i, parent]
        start += n
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, -torch.inf)
    return index.to(device), real.flatten().nonzero()[:, 0].to(device), mask[:, None].to(device)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None, causal: bool) -> tuple[Tensor, Tensor]:
    """Softmax attention that also returns the log of its denominator.

    Args:
        q: Shape [batch, head, query, d_head].
        k: Shape [batch, head, key, d_head].
        v: Shape [batch, head, key, d_value].
        scale: Factor on the scores.
        mask: Additive; broadcasts to [batch, head, query, key].
        causal: Query i sees keys 0..i.

    Returns:
        Output [batch, head, query, d_value] and log-sum-exp of the scores [batch, head, query].
    """
    if q.device.type == "cpu" and q.shape[-1] == v.shape[-1]:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=mask, scale=scale
        )
        return out, lse
    outs, lses = [], []
    step = max(1, MAX_SCORES // max(1, q.shape[1] * q.shape[2] * k.shape[2]))
    for i in range(0, q.shape[0], step):
        scores = (q[i : i + step] @ k[i : i + step].transpose(-1, -2)).float() * scale
        if mask is not None:
            scores = scores + (mask[i : i + step] if mask.shape[0] > 1 else mask)
        if causal:
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(hidden, -torch.inf)
        lse = scores.logsumexp(-1)
        outs.append((scores - lse[..., None]).exp().to(v.dtype) @ v[i : i + step])
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses)


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    scaling: float,
    layout: Any,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface: hands the projected heads to the layout, which knows who sees whom.

    Returns:
        z of shape [row, pos, n_heads, d_value], and no weights.
    """
    return layout.attention(module.layer_idx, query, key, value, scaling).transpose(1, 2), None


def _own(q: Tensor, k: Tensor, v: Tensor, scale: float, bucket: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Attention of one bucket's tokens within their branches; output [row, kv, group, token, d_value] and its lse."""
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
    out, lse = attend(qs, ks, vs, scale, mask, False)
    out = out.unflatten(1, (rows, n_kv, group)).permute(1, 2, 3, 0, 4, 5).flatten(3, 4)
    lse = lse.unflatten(1, (rows, n_kv, group)).permute(1, 2, 3, 0, 4).flatten(3, 4)
    return out[:, :, :, real], lse[:, :, :, real]


AttentionInterface.register(NAME, tree_attention)


@contextmanager
def walking(model: nn.Module) -> Iterator[None]:
    """Within the context the model's attention modules use tree attention and need ``layout=``."""
    before = model.config._attn_implementation
    try:
        model.config._attn_implementation = NAME
        yield
    finally:
        model.config._attn_implementation = before
