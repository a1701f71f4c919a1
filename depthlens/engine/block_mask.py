"""Attention over a packed prefix tree in one part: FlexAttention with a block mask (arXiv 2412.05496).

In depth-first order token j is i or one of its ancestors if and only if ``j <= i < exits[j]``
(`depthlens.engine.prefix_tree.Pack.exits`). So the mask is one look-up for prefix and branches alike, and nothing is
merged. Which blocks of 128 x 128 scores are needed at all follows from the least and the largest exit of each block of
keys: no mask of all tokens against all is ever made. The rows of a batch share the mask, and query heads share keys.

FlexAttention is compiled with dynamic shapes and for lengths that are padded to whole blocks. A pack has any length
and a batch any number of rows: fixed shapes would be compiled for each anew. Where a length could be no multiple of a
block, the kernel would have to check every block for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from depthlens.engine.prefix_tree import Pack

BLOCK = 128  # what FlexAttention's kernels are made for
# one block would be a shape of its own to the compiler, which takes sizes 0 and 1 for constants
MIN_BLOCKS = 2
# what the compiler tells apart: models, dtypes, devices, one row or several; torch's own limit of 8 is soon reached
MAX_COMPILED = 256


class BlockTree:
    """A pack as a block mask.

    Args:
        pack: The prefix tree.
        device: Where it is computed.
        backend: Of ``torch.compile``: ``inductor``, or ``eager``, which holds all scores in memory, for tests.

    Attributes:
        mask: The block mask, of the padded length; padding sees itself.
    """

    def __init__(self, pack: Pack, device: torch.device, backend: str) -> None:
        # for dynamic shapes on a CPU torch 2.13 writes C++ that does not compile (it takes size ks18 for ks1)
        self._compiled = _compiled(backend, backend != "inductor" or device.type != "cpu")
        n = pack.n_tokens
        length = max(MIN_BLOCKS, -(-n // BLOCK)) * BLOCK
        self.padding = length - n
        self.mask = block_mask(torch.tensor([*pack.exits, *range(n + 1, length + 1)], dtype=torch.int32, device=device))

    def attention(
        self,
        query: Float[Tensor, "row n_heads pos d_head"],
        key: Float[Tensor, "row n_kv_heads pos d_head"],
        value: Float[Tensor, "row n_kv_heads pos d_value"],
        scale: float,
    ) -> Float[Tensor, "row n_heads pos d_value"]:
        """See `depthlens.engine.tree_attention.Layout.attention`."""
        # contiguous, whatever module they come from: the compiler tells strides apart, too
        q, k, v = (functional.pad(x, (0, 0, 0, self.padding)).contiguous() for x in (query, key, value))
        out = self._compiled(q, k, v, block_mask=self.mask, scale=scale, enable_gqa=True)
        return out[:, :, : query.shape[2]]


@functools.cache
def _compiled(backend: str, dynamic: bool) -> Callable[..., Tensor]:
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, MAX_COMPILED)
    # fullgraph: an error where it cannot be compiled, instead of all scores in memory
    return torch.compile(flex_attention, backend=backend, dynamic=dynamic, fullgraph=True)


def block_mask(exits: Int[Tensor, " pos"]) -> BlockMask:
    """The mask by which token i sees token j if ``j <= i < exits[j]``.

    Args:
        exits: Where the subtree of each token ends; as many as fill whole blocks, in depth-first order.
    """
    of_block = exits.view(-1, BLOCK)  # [block, BLOCK]
    starts = torch.arange(len(of_block), device=exits.device)[:, None] * BLOCK  # of blocks of queries
    before = starts > starts.T  # whole blocks of keys that come before the queries; shape [block of queries, of keys]
    some = before & (of_block.amax(1) > starts)
    every = before & (of_block.amin(1) >= starts + BLOCK)
    own = torch.eye(len(of_block), dtype=torch.bool, device=exits.device)
    return BlockMask.from_kv_blocks(
        *_listed(some & ~every | own),
        *_listed(every),
        BLOCK_SIZE=BLOCK,
        mask_mod=lambda row, head, query, key: (key <= query) & (query < exits[key]),
        compute_q_blocks=False,  # only gradients need them
    )


def _listed(blocks: Bool[Tensor, "query_block key_block"]) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries needs, and which, first in each row; for any row and head."""
    order = blocks.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]
