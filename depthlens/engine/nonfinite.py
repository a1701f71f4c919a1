"""Numbers that are not finite stop a sweep: which layer made them, under which condition.

Overflow (float16, now and then bfloat16) and broken weights give NaN or infinite log-probabilities, which would spread
silently into means. Answers are looked at as they come, which costs nothing; only when one is not finite is the model
walked once more, to find the layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from torch import Tensor

from depthlens.ablations import Condition
from depthlens.backends.protocol import Means
from depthlens.engine import prefix_tree
from depthlens.engine.wavefront import Wavefront
from depthlens.errors import UserError
from depthlens.models.lens import Lens


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


@contextmanager
def renumbered(conditions: Sequence[int], requests: Sequence[int]) -> Iterator[None]:
    """Within the context `NotFinite` counts within a part of the work; outside it, within the whole.

    Args:
        conditions: Indices of the part's conditions within the whole.
        requests: Indices of its requests.
    """
    try:
        yield
    except NotFinite as e:
        condition, request = e.row
        raise NotFinite((conditions[condition], requests[request]), e.written) from e


def refuse(
    lens: Lens,
    means: Means | None,
    prompt: Sequence[int],
    condition: Condition,
    batch_tokens: int,
    answer: Sequence[int] = (),
) -> NoReturn:
    """Name the layer and the condition that the first number that is not finite came from.

    Args:
        lens: The model.
        means: Reference means, if the condition needs them.
        prompt: What the model had read of the prompt.
        condition: What it ran under.
        batch_tokens: Token budget.
        answer: What it had read of an answer, or written.

    Raises:
        UserError: always.
    """
    fault = f"model {lens.name!r} gives numbers that are not finite"
    if lens.remote:
        raise UserError(f"{fault} under {condition} on {lens.remote.describe()['host']}; tell who runs the server")
    fix = "use dtype=float32, or get its weights again" if lens.dtype.itemsize < 4 else "get its weights again"
    dtype = str(lens.dtype).removeprefix("torch.")
    faults: list[tuple[int, bool]] = []  # layer, and whether the row is under the condition

    def look(layer: int, x: Tensor, rows: list[int]) -> None:
        for row, states in zip(rows, x, strict=True):
            if not states.isfinite().all():
                faults.append((layer, row >= 0))

    pack = prefix_tree.build([[*prompt, *answer]], [0])
    Wavefront(lens, means, batch_tokens).run(pack, [condition], range(pack.n_tokens), seen=look)
    if not faults:
        raise UserError(f"{fault} under {condition}, first in the unembedding ({dtype}); {fix}")
    layer, ablated = min(faults)
    place = f"the output of layer L{layer}" if layer >= 0 else "the embedding"
    raise UserError(f"{fault} under {condition if ablated else 'baseline'}, first in {place} ({dtype}); {fix}")
