"""Attention over a packed prefix tree: every token sees the prefix and its ancestors, nothing else.

The softmax over both parts is computed separately and merged exactly by their log-sum-exp (as in FlashAttention,
arXiv 2205.14135, and Hydragen, arXiv 2402.05099). The prefix part is one dense product for all branches at once, and
the own part is small. Query heads that share a key/value head are folded into the query axis, so keys are never copied.
Registered with transformers' attention interface; any family that calls it can be walked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig

from depthlens.backends.protocol import Places
from depthlens.engine.prefix_tree import Branch, Pack
from depthlens.models.architectures import AttentionLayout

NAME = "depthlens_tree"
# scores of the unfused path that are held at once: 64 Mi float32 = 256 MiB
MAX_SCORES = 1 << 26


class Layout:
    """A pack as tensors: token ids, positions, and which keys each branch token sees.

    Attributes:
        tokens: Shape [pos].
        position_ids: Shape [1, pos].
        places: The same, with the class of each token.
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
        self.position_ids: Tensor = torch.tensor([pack.depths], device=device)
        self.places = Places.of(self.position_ids, torch.tensor([pack.in_answer], device=device))
        self.n_prefix = len(pack.prefix)
        self.buckets: list[tuple[Tensor, Tensor, Tensor]] = []
        start = 0
        for bucket in _by_length(pack.branches):
            self.buckets.append(_bucket(bucket, start, device, dtype))
            start += sum(len(b.tokens) for b in bucket)

    def attention(
        self,
        layer: int,
        query: Float[Tensor, "row n_heads pos d_head"],
        key: Float[Tensor, "row n_kv_heads pos d_head"],
        value: Float[Tensor, "row n_kv_heads pos d_value"],
        scale: float,
    ) -> Float[Tensor, "row n_heads pos d_value"]:
        """Attention of rows that all have this layout.

        Args:
            layer: Layer number (for layouts that keep what they see).
            query: Query heads.
            key: Key heads.
            value: Value heads.
            scale: Factor on the scores.
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
            parts = [_attend_branches(q_own, k_own, v_own, scale, bucket) for bucket in self.buckets]
            own, own_lse = torch.cat([o for o, _ in parts], 3), torch.cat([s for _, s in parts], 3)
            if p:
                prefix, lse = attend(q_own.flatten(2, 3), key[:, :, :p], value[:, :, :p], scale, None, False)
                own = merge(own, own_lse, prefix.unflatten(2, (group, -1)), lse.unflatten(2, (group, -1)))
            out[..., p:, :] = own
        return out.flatten(1, 2)


def merge(
    a: Float[Tensor, "*query d_value"],
    lse_a: Float[Tensor, "*query"],
    b: Float[Tensor, "*query d_value"],
    lse_b: Float[Tensor, "*query"],
) -> Float[Tensor, "*query d_value"]:
    """Softmax attention over two sets of keys from the attention over each and its log-sum-exp."""
    return torch.lerp(b, a, torch.sigmoid(lse_a - lse_b)[..., None].to(a.dtype))


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


def attend(
    q: Float[Tensor, "batch head query d_head"],
    k: Float[Tensor, "batch head key d_head"],
    v: Float[Tensor, "batch head key d_value"],
    scale: float,
    mask: Float[Tensor, "#batch #head #query key"] | None,
    causal: bool,
) -> tuple[Float[Tensor, "batch head query d_value"], Float[Tensor, "batch head query"]]:
    """Softmax attention that also returns the log of its denominator.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        scale: Factor on the scores.
        mask: Added to the scores.
        causal: Query i sees keys 0..i.

    Returns:
        Output, and log-sum-exp of the scores.
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
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(future, -torch.inf)
        lse = scores.logsumexp(-1)
        outs.append((scores - lse[..., None]).exp().to(v.dtype) @ v[i : i + step])
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses)


def tree_attention(
    module: nn.Module,
    query: Float[Tensor, "row n_heads pos d_head"],
    key: Float[Tensor, "row n_kv_heads pos d_head"],
    value: Float[Tensor, "row n_kv_heads pos d_value"],
    attention_mask: None,
    *,
    scaling: float,
    layout: AttentionLayout,
    **kwargs: Any,
) -> tuple[Float[Tensor, "row pos n_heads d_value"], None]:
    """Transformers' attention interface: the layout, which knows which keys each token sees, computes z.

    Returns:
        z, and no weights.
    """
    return layout.attention(cast(int, module.layer_idx), query, key, value, scaling).transpose(1, 2), None


def _attend_branches(
    q: Float[Tensor, "row kv group own d_head"],
    k: Float[Tensor, "row kv own d_head"],
    v: Float[Tensor, "row kv own d_value"],
    scale: float,
    bucket: tuple[Tensor, Tensor, Tensor],
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
    out, lse = attend(qs, ks, vs, scale, mask, False)
    out = out.unflatten(1, (rows, n_kv, group)).permute(1, 2, 3, 0, 4, 5).flatten(3, 4)
    lse = lse.unflatten(1, (rows, n_kv, group)).permute(1, 2, 3, 0, 4).flatten(3, 4)
    return out[:, :, :, real], lse[:, :, :, real]


AttentionInterface.register(NAME, tree_attention)


@contextmanager
def walking(model: nn.Module) -> Iterator[None]:
    """Within the context the model's attention modules use tree attention and need ``layout=``."""
    config = cast(PreTrainedConfig, model.config)
    before = config._attn_implementation
    try:
        config._attn_implementation = NAME
        yield
    finally:
        config._attn_implementation = before
