"""Which kernel computes the attention of a packed prefix tree: each that may serve is tried, and the fastest is taken.

- ``flex``: FlexAttention, compiled, with a block mask (`depthlens.engine.block_mask`); tried on CUDA.
- ``fused``: torch's fused kernels, prefix and branches apart (`depthlens.engine.branch_attention`); tried everywhere.
- ``unfused``: the same written out, with scores in memory: where no other can be used.
- ``flex-eager``: ``flex`` without compiling, which holds all scores; only where it is asked for, for tests.

A trial is a small tree, once for each device, dtype and widths of heads in a process. A kernel that raises, or whose
result differs from plain attention, is not used. On a CPU a trial takes some milliseconds, on CUDA the seconds that
compiling takes. The environment variable DEPTHLENS_ATTENTION names one kernel instead, to compare them.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from depthlens.engine import prefix_tree
from depthlens.engine.attention_parts import Attend, fused, unfused
from depthlens.engine.block_mask import BlockTree
from depthlens.engine.branch_attention import BranchTree
from depthlens.engine.prefix_tree import Pack
from depthlens.errors import UserError, unknown
from depthlens.models.architectures import wide
from depthlens.models.lens import Lens

log = logging.getLogger(__name__)

ENVIRONMENT = "DEPTHLENS_ATTENTION"
# largest difference from plain attention, of outputs of about 1: rounding; a wrong mask gives about 1
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
REPEATS = 3  # the fastest counts


class Tree(Protocol):
    """A pack as a kernel sees it."""

    def attention(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `depthlens.engine.tree_attention.Layout.attention`."""
        ...


TREES: dict[str, Callable[[Pack, torch.device, torch.dtype], Tree]] = {
    "flex": lambda pack, device, dtype: BlockTree(pack, device, "inductor"),
    "flex-eager": lambda pack, device, dtype: BlockTree(pack, device, "eager"),
    "fused": partial(BranchTree, attend=fused),
    "unfused": partial(BranchTree, attend=unfused),
}


@dataclass(frozen=True)
class Case:
    """What decides whether a kernel can be used, and how fast it is."""

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

    @classmethod
    def of_model(cls, lens: Lens) -> Case:
        """The case of a model's attention."""
        dims = lens.dims
        return cls(lens.device, lens.dtype, dims.n_heads, dims.n_kv_heads, lens.arch.d_key, dims.d_head)


def kernel(case: Case) -> str:
    """The kernel for a tree.

    Raises:
        UserError: DEPTHLENS_ATTENTION names one that does not exist or cannot be used here.
    """
    asked = os.environ.get(ENVIRONMENT)
    if asked:
        if asked not in TREES:
            raise unknown(ENVIRONMENT, asked, tuple(TREES))
        if isinstance(why := trial(case, asked), str):
            raise UserError(f"{ENVIRONMENT} {asked!r} cannot be used on {case.device} here: it {why}; leave it out")
        return asked
    tried = {name: trial(case, name) for name in candidates(case.device)}
    seconds = {name: result for name, result in tried.items() if not isinstance(result, str)}
    return min(seconds, key=seconds.__getitem__, default="unfused")


def of_model(lens: Lens) -> str | None:
    """The kernel for trees of a model, as a record names it; None where its weights are on a server.

    Raises:
        UserError: see `kernel`.
    """
    return None if lens.remote else kernel(Case.of_model(lens))


def part_kernel(case: Case) -> Attend:
    """What computes attention over a part of the keys, where a text is written."""
    usable = os.environ.get(ENVIRONMENT) != "unfused" and not isinstance(trial(case, "fused"), str)
    return fused if usable else unfused


def candidates(device: torch.device) -> tuple[str, ...]:
    """Kernels that are tried on a device; FlexAttention is compiled for CUDA, on a CPU that takes half a minute."""
    return ("flex", "fused") if device.type == "cuda" else ("fused",)


@functools.cache
def trial(case: Case, name: str) -> float | str:
    """Try a kernel: the seconds that it takes, or why it cannot be used, as a sentence without its subject.

    Raises:
        torch.OutOfMemoryError: memory ran out, which says nothing about the kernel.
    """
    try:
        return _tried(case, name)
    except torch.OutOfMemoryError:
        raise
    except Exception as e:
        log.debug("attention kernel %s was tried", name, exc_info=True)
        return f"raised {type(e).__name__}: {str(e).strip().partition(chr(10))[0]}"


@torch.no_grad()
def _tried(case: Case, name: str) -> float | str:
    on_cpu = case.device.type == "cpu"
    pack = _pack(12, 4, 6) if on_cpu else _pack(130, 16, 48)
    rows = 2 if on_cpu else 5
    generator = torch.Generator().manual_seed(0)
    shapes = ((case.n_heads, case.d_key), (case.n_kv_heads, case.d_key), (case.n_kv_heads, case.d_value))
    query, key, value = (
        torch.randn(rows, heads, pack.n_tokens, d, generator=generator).to(case.device, case.dtype)
        for heads, d in shapes
    )
    scale = case.d_key**-0.5
    tree = TREES[name](pack, case.device, case.dtype)
    sees, errors = _sees(pack).to(case.device), []
    for n in (1, rows):  # one row is compiled apart from several; both, before time is taken
        found = tree.attention(query[:n], key[:n], value[:n], scale)
        for i in range(n):  # one by one, since the plain one holds all scores
            row = slice(i, i + 1)
            plain = _plain(query[row], key[row], value[row], scale, sees)
            errors.append((found[row] - plain).abs().max())
    error = float(torch.stack(errors).max())
    # tensor cores may read float32 with as many digits as float16 has
    coarse = case.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    if not error <= TOLERANCES[torch.float16 if coarse else case.dtype]:  # not "greater": a NaN is refused as well
        return f"differs from plain attention by {error:.2g}"
    return min(_seconds(lambda: tree.attention(query, key, value, scale), case.device) for _ in range(REPEATS))


def _pack(n_prefix: int, n_branches: int, width: int) -> Pack:
    """A tree of questions with two answers each, of unequal lengths."""
    sequences = []
    for i in range(n_branches):
        question = [*range(n_prefix), *[n_prefix + i] * (width - i % 3)]
        sequences += [[*question, 1, 2], [*question, 3]]
    return prefix_tree.build(sequences, range(len(sequences)))


def _sees(pack: Pack) -> Bool[Tensor, "query key"]:
    """Which tokens see which, from the paths of the sequences."""
    sees = torch.zeros(pack.n_tokens, pack.n_tokens, dtype=torch.bool)
    for path in pack.paths:
        nodes = torch.tensor(path)
        sees[nodes[:, None], nodes] |= torch.ones(len(path), len(path), dtype=torch.bool).tril()
    return sees


def _plain(
    query: Float[Tensor, "row n_heads pos d_key"],
    key: Float[Tensor, "row n_kv_heads pos d_key"],
    value: Float[Tensor, "row n_kv_heads pos d_value"],
    scale: float,
    sees: Bool[Tensor, "pos pos"],
) -> Float[Tensor, "row n_heads pos d_value"]:
    """Attention in float32 or wider with all scores in memory."""
    group = query.shape[1] // key.shape[1]
    k, v = (wide(x).repeat_interleave(group, 1) for x in (key, value))
    scores = wide(query) @ k.transpose(-1, -2) * scale
    return scores.masked_fill(~sees, -torch.inf).softmax(-1) @ v


def _seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start
