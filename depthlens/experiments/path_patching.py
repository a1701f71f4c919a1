"""Path patching: of what a head writes on another prompt, what goes straight into one head of a later layer.

It is a part of `depthlens.experiments.patching` (Wang et al. 2022, arXiv 2211.00593).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from depthlens.ablations import Condition, Head
from depthlens.backends.row_edits import hooks
from depthlens.errors import UserError
from depthlens.models.architectures import body_of, head, replaced_forwards, wide
from depthlens.models.lens import Lens
from depthlens.models.placement import moved


@torch.no_grad()
def by_paths(
    lens: Lens,
    batch_tokens: int,
    target: tuple[int, ...],
    change: Float[Tensor, "n_layers pos n_heads d_head"],
    senders: Sequence[Condition],
    into: Head,
    answers: Sequence[tuple[int, ...]],
) -> np.ndarray:
    """Difference of the answers' logits where one sender writes its change into what the receiver reads.

    Shape [sender].
    """
    if any(len(ids) != 1 for ids in answers):
        raise UserError("into: answers of several tokens; give answers of one token each")
    found = []
    tokens = torch.tensor([target], device=lens.device)
    size = max(1, batch_tokens // len(target))
    for chunk in (senders[i : i + size] for i in range(0, len(senders), size)):
        written = torch.zeros(len(chunk), len(target), lens.dims.d_model, dtype=lens.dtype, device=lens.device)
        for row, (sender,) in enumerate(part.ablations for part in chunk):
            at, project = slice(sender.start, sender.stop), lens.arch.o_proj[sender.layer]
            z = torch.zeros_like(change[0, at])
            z[:, sender.index] = change[sender.layer, at, sender.index]
            written[row, at] = project(z.flatten(1)) - project(torch.zeros_like(z).flatten(1))

        with replaced_forwards([(lens.arch.layers[into.layer], _receiver(lens, into, written))]):
            states = body_of(lens.model)(tokens.expand(len(chunk), -1), use_cache=False).last_hidden_state
        logits = wide(head(lens.model, states[:, -1]))
        found.append((logits[:, answers[0][0]] - logits[:, answers[1][0]]).cpu().numpy())
    return np.concatenate(found)


def _receiver(lens: Lens, into: Head, written: Float[Tensor, "row pos d_model"]) -> Callable[..., Any]:
    """The forward of the receiver's layer in which the receiver alone reads what is written into the layer's input."""
    layer, width = into.layer, lens.dims.d_head
    forward = lens.arch.layers[layer].forward
    before, after = into.head * width, (into.head + 1) * width

    def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        read: list[Tensor] = []

        def keep(z: Tensor) -> Tensor:
            read.append(z)
            return z

        def put(z: Tensor) -> Tensor:
            return torch.cat([z[..., :before], read[0][..., before:after], z[..., after:]], -1)

        with hooks(lens.arch, layer, {"z": keep}):
            forward(x + moved(written, x.device), *args, **kwargs)
        with hooks(lens.arch, layer, {"z": put}):
            return forward(x, *args, **kwargs)

    return call
