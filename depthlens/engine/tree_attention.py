"""Attention over a packed prefix tree: every token sees the prefix and its ancestors, nothing else.

Registered with transformers' attention interface; any family that calls it can be walked. The kernel is the first of
these that computes what plain attention does, tried once for each device, dtype and widths of heads:

- ``flex``: FlexAttention, compiled, with a block mask (`depthlens.engine.block_mask`); on CUDA only;
- ``fused``: torch's fused kernels, prefix and branches apart (`depthlens.engine.branch_attention`);
- ``unfused``: the same written out, with scores in memory.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig

from depthlens.engine import prefix_tree
from depthlens.engine.block_mask import BlockTree
from depthlens.engine.branch_attention import Attend, BranchTree, fused, unfused
from depthlens.engine.prefix_tree import Pack
from depthlens.models.architectures import wide
from depthlens.models.lens import Lens

log = logging.getLogger(__name__)

NAME = "depthlens_tree"
# largest difference from plain attention, of outputs of about 1: rounding; a wrong mask gives about 1
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
    tree, generator = TREES[name](pack, case.device, case.dtype), torch.Generator().manual_seed(0)
    shapes = ((case.n_heads, case.d_key), (case.n_kv_heads, case.d_key), (case.n_kv_heads, case.d_value))
    qkv = [torch.randn(2, heads, pack.n_tokens, d, generator=generator) for heads, d in shapes]
    query, key, value = (x.to(case.device, case.dtype) for x in qkv)
    i = torch.arange(pack.n_tokens, device=case.device)
    sees = (i <= i[:, None]) & (i[:, None] < torch.tensor(pack.exits, device=case.device))  # [query, key]
    scale, group = case.d_key**-0.5, case.n_heads // case.n_kv_heads
    scores = wide(query) @ wide(key).repeat_interleave(group, 1).transpose(-1, -2) * scale
    plain = scores.masked_fill(~sees, -torch.inf).softmax(-1) @ wide(value).repeat_interleave(group, 1)
    # tensor cores may read float32 with as many digits as float16 has
    coarse = case.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    allowed = TOLERANCES[torch.float16 if coarse else case.dtype]
    errors = []
    for n in (1, 2):  # one row is compiled apart from several
        found = tree.attention(query[:n], key[:n], value[:n], scale)
        errors.append(float((found - plain[:n]).abs().max()))
    return all(error <= allowed for error in errors)  # not "greater": a NaN is refused as well


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
