"""Noise that ``@noise`` adds to what a part writes: a control for damage.

A removal takes away what a part writes and disturbs everything after it. Noise of the same norm at the same place
disturbs as much and takes nothing away, so a part matters by more than its size where removing it costs more.

A vector is drawn from a standard normal distribution for every position. It depends on the seed, the layer, the site,
the index and the position only: not on batch, device, dtype or backend.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from depthlens.ablations import SITES, Ablation
from depthlens.models.architectures import wide

BLOCK = 256  # positions that are drawn together
# at 256 positions of a residual stream of 8192 numbers a block takes 8 MiB
KEPT_BLOCKS = 128


def draw(ablation: Ablation, position_ids: Int[Tensor, "row pos"], width: int) -> Float[Tensor, "row pos width"]:
    """The noise of an ablation at some positions, before it is scaled; float32, on the device of the positions."""
    first, last = int(position_ids.min()) // BLOCK, int(position_ids.max()) // BLOCK
    blocks = [_block(replace(ablation, start=0), n, width) for n in range(first, last + 1)]
    table = torch.from_numpy(np.concatenate(blocks)).to(position_ids.device)
    return table[position_ids - first * BLOCK]


@lru_cache(maxsize=KEPT_BLOCKS)
def _block(a: Ablation, n: int, width: int) -> Float[np.ndarray, "block width"]:
    # a generator takes numbers from 0 on, and the index of a part without one is -1
    drawn = np.random.default_rng([a.seed, a.layer, SITES.index(a.site), a.index + 1, n])
    return drawn.standard_normal((BLOCK, width), dtype=np.float32)


def like(
    ablation: Ablation,
    columns: Float[Tensor, "d_model width"] | None,
    written: Float[Tensor, "row pos width"],
    position_ids: Int[Tensor, "#row pos"],
) -> Float[Tensor, "row pos width"]:
    """Noise of the norm of what a part writes.

    Args:
        ablation: Of the part.
        columns: What heads' z is multiplied by on its way to the residual stream, where the norms are taken; None: the
            part writes there.
        written: What it writes.
        position_ids: Where the tokens stand.
    """
    of_part = wide(written)
    drawn = draw(ablation, position_ids, written.shape[-1]).to(of_part)
    in_stream = (x if columns is None else x @ columns.to(of_part).T for x in (of_part, drawn))
    wanted, found = (x.norm(dim=-1, keepdim=True) for x in in_stream)
    return (drawn * (wanted / found.clamp(min=torch.finfo(torch.float32).tiny))).to(written)
