"""Attention over a packed prefix tree: every token sees the prefix and its ancestors, nothing else.

Registered with transformers' attention interface; any family that calls it can be walked. The kernel is the first of
these that computes what plain attention does, tried once for each device, dtype and widths of heads:

- ``flex``: FlexAttention, compiled, with a block mask (arXiv 2412.05496); on CUDA only;
- ``fused``: torch's fused kernels, prefix and branches apart (`depthlens.engine.branch_attention`);
- ``unfused``: the same written out, with scores in memory.

In depth-first order token j is i or one of its ancestors if and only if ``j <= i < exits[j]``
(`depthlens.engine.prefix_tree.Pack.exits`). So the block mask is one look-up for prefix and branches alike, and nothing
is merged. Which blocks of 128 x 128 scores are needed at all follows from the least and the largest exit of each block
of keys: no mask of all tokens against all is ever made, as torch's own ``create_block_mask`` makes it. The rows of a
batch share the mask, and query heads share keys.

FlexAttention is compiled with dynamic shapes and for lengths that are padded to whole blocks. A pack has any length
and a batch any number of rows: fixed shapes would be compiled for each anew. Where a length could be no multiple of a
block, the kernel would have to check every block for it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import PreTrainedConfig

from depthlens.engine import prefix_tree
from depthlens.engine.branch_attention import Attend, BranchTree, fused, unfused
from depthlens.engine.prefix_tree import Pack
from depthlens.models.architectures import wide_type
from depthlens.models.lens import Lens

log = logging.getLogger(__name__)

NAME = "depthlens_tree"
BLOCK = 128  # what FlexAttention's kernels are made for
# one block would be a shape of its own to the compiler, which takes sizes 0 and 1 for constants
MIN_BLOCKS = 2
# what the compiler tells apart: models, dtypes, devices, one row or several; torch's own limit of 8 is soon reached
MAX_COMPILED = 256
# largest difference from attention that is written out, of outputs of about 1: rounding; a wrong mask gives about 1
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
TREES: dict[str, Callable[[Pack, torch.device, torch.dtype], Any]] = {
    "flex": lambda pack, device, dtype: BlockTree(pack, device, "inductor"),
    "fused": partial(BranchTree, attend=fused),
    "unfused": partial(BranchTree, attend=unfused),
}


class Case(NamedTuple):
    """What decides whether a kernel can be used."""

    device: torch.device
    dtype: torch.dtype
    n_heads: int
    n_kv_heads: int
    d_key: int
    d_value: int

    @classmethod
    def of(cls, query: Tensor, key: Tensor, value: Tensor) -> Case:
        """The case of queries, keys and values, each of shape [row, head, pos, d]."""
        return cls(query.device, query.dtype, query.shape[1], key.shape[1], key.shape[-1], value.shape[-1])


def kernel_of(lens: Lens) -> str | None:
    """The kernel for trees of a model, as a record names it; None where its weights are on a server."""
    dims = lens.dims
    if lens.remote:
        return None
    return kernel(Case(lens.device, lens.dtype, dims.n_heads, dims.n_kv_heads, lens.arch.d_key, dims.d_head))


def kernel(case: Case) -> str:
    """The kernel for a tree.

    Raises:
        torch.OutOfMemoryError: memory ran out, which says nothing about a kernel.
    """
    names = [name for name in TREES if name != "flex" or case.device.type == "cuda"]
    return next(name for name in names if name == "unfused" or is_right(case, name))


def part_kernel(case: Case) -> Attend:
    """What computes attention over a part of the keys, where a text is written."""
    return fused if is_right(case, "fused") else unfused


@functools.cache
def is_right(case: Case, name: str) -> bool:
    """Whether a kernel computes what plain attention does."""
    try:
        return _is_close(case, name)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        log.debug("attention kernel %s cannot be used here", name, exc_info=True)
        return False


@torch.no_grad()
def _is_close(case: Case, name: str) -> bool:
    """Whether a kernel is right on a tree of questions with two answers each."""
    questions = [[*range(130), *[130 + i] * (20 + i % 3)] for i in range(6)]
    pack = prefix_tree.build([[*q, *answer] for q in questions for answer in ((1, 2), (3,))], range(12))
    generator, wide_dtype = torch.Generator().manual_seed(0), wide_type(case.dtype)
    shapes = ((case.n_heads, case.d_key), (case.n_kv_heads, case.d_key), (case.n_kv_heads, case.d_value))
    qkv = [torch.randn(2, heads, pack.n_tokens, d, generator=generator) for heads, d in shapes]
    qkv = [x.to(case.device, case.dtype) for x in qkv]
    tree, plain = TREES[name](pack, case.device, case.dtype), TREES["unfused"](pack, case.device, wide_dtype)
    wanted = plain.attention(*(x.to(wide_dtype) for x in qkv), case.d_key**-0.5)
    # tensor cores may read float32 with as many digits as float16 has
    coarse = case.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    # one row is compiled apart from several
    found = [tree.attention(*(x[:n] for x in qkv), case.d_key**-0.5) - wanted[:n] for n in (1, 2)]
    # not "greater": a NaN is refused as well
    return all(bool(x.abs().max() <= TOLERANCES[torch.float16 if coarse else case.dtype]) for x in found)


class Layout:
    """A pack as tensors: token ids, positions, and which keys each branch token sees.

    Attributes:
        tokens: Shape [pos].
        position_ids: Shape [1, pos].
        n_prefix: Number of prefix tokens; they come first.
        rows: Condition of each row that now passes a layer, -1 for the clean one; set by the walk.
    """

    rows: list[int]

    def __init__(self, pack: Pack, device: torch.device) -> None:
        self.rows = []
        self.tokens = torch.tensor(pack.tokens, device=device)
        self.position_ids: Tensor = torch.tensor([pack.depths], device=device)
        self.n_prefix = len(pack.prefix)
        self._make = lambda kernel, device, dtype: TREES[kernel](pack, device, dtype)
        self._trees: dict[tuple[str, torch.device, torch.dtype], Any] = {}

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
        case = Case.of(query, key, value)
        made = kernel(case), case.device, case.dtype
        if made not in self._trees:
            self._trees[made] = self._make(*made)
        return self._trees[made].attention(query, key, value, scale)


def tree_attention(
    module: nn.Module,
    query: Float[Tensor, "row n_heads pos d_head"],
    key: Float[Tensor, "row n_kv_heads pos d_head"],
    value: Float[Tensor, "row n_kv_heads pos d_value"],
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
        """See `Layout.attention`."""
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
