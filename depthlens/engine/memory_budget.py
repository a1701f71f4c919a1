"""How much is computed at once, chosen from the memory that is free.

Four numbers determine memory: the tokens that pass a layer together, the residual streams that the open rows of a pack
keep from layer to layer, the keys and values of the rows that are decoded together, and the positions that are
unembedded together. Each gets a share of the free memory, up to the size that still gains speed on that kind of device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from depthlens.engine import tree_attention
from depthlens.models.lens import Lens
from depthlens.models.placement import free_bytes

T = TypeVar("T")

# measured on 2 cores: larger batches lose on a CPU, since what a layer makes no longer fits its caches
CPU_BATCH_TOKENS = 2048
GPU_BATCH_TOKENS = 65536
# a server is shared and its memory is unknown: at 8192 tokens the widest part of LLaMA-70B takes 3 GB in bfloat16
REMOTE_BATCH_TOKENS = 8192
# below this a layer's weights cost more to read than its arithmetic; with less memory nothing can be computed
MIN_BATCH_TOKENS = 64
# on a CPU more of either gains little: with these a sweep of the embedded model takes 2 GiB more than its weights where
# it scores, and 3.0 GiB more where it writes
CPU_STATE_BYTES = 512 << 20
CPU_KEY_BYTES = 2 << 30
# positions that are unembedded at once; 512 x 49k logits take 200 MB, and a GPU wants some thousand rows for a product
CPU_UNEMBED_ROWS = 512
GPU_UNEMBED_ROWS = 4096
# shares of the free memory: a pack needs its states about twice while rows join, a step copies keys as rows leave
CHUNK_SHARE, STATE_SHARE, KEY_SHARE, LOGIT_SHARE = 4, 8, 4, 16


@dataclass(frozen=True)
class Budget:
    """Bounds on one batch.

    Attributes:
        batch_tokens: Tokens (rows x padded length) that pass a layer together.
        state_bytes: Residual streams of all open rows of a pack.
        key_bytes: Keys and values of the rows that are decoded together.
        unembed_rows: Positions that are unembedded together.
    """

    batch_tokens: int
    state_bytes: int
    key_bytes: int
    unembed_rows: int


def choose(lens: Lens, batch_tokens: int | None = None) -> Budget:
    """The budget for a model, by the device with least room; ``batch_tokens`` overrides the first number."""
    if lens.remote:
        return Budget(batch_tokens or REMOTE_BATCH_TOKENS, 0, 0, 0)
    free, on_cpu = min(map(free_bytes, lens.devices)), lens.device.type == "cpu"
    if batch_tokens is None:
        fits = free // CHUNK_SHARE // chunk_bytes(lens)
        batch_tokens = max(MIN_BATCH_TOKENS, min(CPU_BATCH_TOKENS if on_cpu else GPU_BATCH_TOKENS, fits))
    states, keys = free // STATE_SHARE, free // KEY_SHARE
    if on_cpu:
        states, keys = min(states, CPU_STATE_BYTES), min(keys, CPU_KEY_BYTES)
    most = CPU_UNEMBED_ROWS if on_cpu else GPU_UNEMBED_ROWS
    return Budget(batch_tokens, states, keys, max(1, min(most, free // LOGIT_SHARE // logit_bytes(lens))))


def chunk_bytes(lens: Lens) -> int:
    """About what one token holds while it passes a layer: eight residual streams and four of the widest product.

    And its scores, where attention holds them.
    """
    layer = lens.arch.layers[0]
    # experts are stacked [expert, width, d_model]; a token passes few of them, and one width is about their sum
    widest = max(p.shape[-2] for p in layer.parameters() if p.dim() >= 2)
    scores = 0
    if tree_attention.kernel_of(lens) == "unfused":
        scores = lens.dims.n_heads * tree_attention.SCORES_PER_QUERY * tree_attention.SCORE_BYTES
    return lens.dtype.itemsize * (8 * lens.dims.d_model + 4 * widest) + scores


def logit_bytes(lens: Lens) -> int:
    """What one position holds while it is unembedded: its logits in float32, and their exponentials."""
    return 2 * 4 * lens.model.get_output_embeddings().weight.shape[0]


def tried(run: Callable[[], T], *, smaller: bool) -> T | None:
    """What ``run`` gives; None where memory ran out, if something ``smaller`` can be run instead.

    Allocation failures on a CPU are plain RuntimeErrors in torch. The error's traceback, which holds tensors, is gone
    when this returns.
    """
    try:
        return run()
    except (torch.OutOfMemoryError, RuntimeError) as e:
        on_cpu = any(said in str(e) for said in ("not enough memory", "can't allocate"))
        if not (smaller and (on_cpu or isinstance(e, torch.OutOfMemoryError))):
            raise
        return None
