"""Softmax attention over a part of the keys, with the log of its denominator, and the merging of two such parts.

Attention over two sets of keys is exactly the mean of the attention over each, weighted by the denominators (as in
FlashAttention, arXiv 2205.14135, and Hydragen, arXiv 2402.05099).

`fused` calls torch's kernels that hold no scores; which of them there are depends on the device, the dtype and the
widths. `unfused` works everywhere. `depthlens.engine.attention_choice` tries which can be used.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

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
