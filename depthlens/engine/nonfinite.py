"""Numbers that are not finite stop a sweep: which layer made them, under which condition.

Overflow (float16, now and then bfloat16) and broken weights give NaN or infinite log-probabilities, which would spread
silently into means. Answers are looked at as they come, which costs nothing; only when one is not finite is the model
walked once more, to find the layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from torch import Tensor

from depthlens.ablations import Condition
from depthlens.backends.protocol import Means
from depthlens.engine import prefix_tree
from depthlens.engine.wavefront import Wavefront
from depthlens.errors import UserError


class NotFinite(Exception):
    """An answer is not finite.

    Attributes:
        row: Indices of its condition and its request.
        written: Tokens that were written before.
    """

    def __init__(self, row: tuple[int, int], written: Sequence[int] = ()) -> None:
        super().__init__(row)
        self.row = row
        self.written = tuple(written)


def refuse(lens: Any, means: Means | None, tokens: Sequence[int], condition: Condition, batch_tokens: int) -> NoReturn:
    """Say where the first number that is not finite came from.

    Args:
        lens: The model.
        means: Reference means, if the condition needs them.
        tokens: What the model had read.
        condition: What it ran under.
        batch_tokens: Token budget.

    Raises:
        UserError: always.
    """
    what = f"model {lens.name!r} gives numbers that are not finite"
    fix = "use dtype=float32, or get its weights again" if lens.dtype.itemsize < 4 else "get its weights again"
    if lens.remote:
        raise UserError(f"{what} under {condition} on {lens.remote.describe()['host']}; tell who runs the server")
    found: list[tuple[bool, int]] = []

    def look(layer: int, x: Tensor, rows: list[int]) -> None:
        for row, states in zip(rows, x, strict=True):
            if not states.isfinite().all():
                found.append((row < 0, layer))

    pack = prefix_tree.build([tokens], [0])
    Wavefront(lens, means, batch_tokens).run(pack, [condition], range(pack.n_tokens), seen=look)
    if not found:
        raise UserError(f"{what} under {condition}, first in the unembedding ({_dtype(lens)}); {fix}")
    whole, layer = min(found, key=lambda at: (at[1], not at[0]))
    where = f"the output of layer L{layer}" if layer >= 0 else "the embedding"
    raise UserError(f"{what} under {'baseline' if whole else condition}, first in {where} ({_dtype(lens)}); {fix}")


def _dtype(lens: Any) -> str:
    return str(lens.dtype).removeprefix("torch.")
