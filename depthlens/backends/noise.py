"""Noise that ``@noise`` adds to what a part writes: a control for damage.

A removal takes away what a part writes and disturbs everything after it. Noise of the same norm at the same place
disturbs as much and takes nothing away, so a part matters by more than its size where removing it costs more.

A vector is drawn from a standard normal distribution for every position. It depends on the seed, the layer, the site,
the index and the position only: not on batch, device, dtype or backend.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from depthlens.ablations import SITES, Ablation
from depthlens.models.architectures import wide, wide_type

BLOCK = 256  # positions that are drawn together
# at 256 positions of a residual stream of 8192 numbers a block takes 8 MiB
KEPT_BLOCKS = 128


def draw(ablation: Ablation, position_ids: Int[Tensor, "row pos"], width: int) -> Float[Tensor, "row pos width"]:
    """The noise of an ablation at some positions, before it is scaled; float32, on the device of the positions."""
    first, last = int(position_ids.min()) // BLOCK, int(position_ids.max()) // BLOCK
    blocks = [
        _block(ablation.seed, ablation.layer, ablation.site, ablation.index, n, width) for n in range(first, last + 1)
    ]
    table = torch.from_numpy(np.concatenate(blocks)).to(position_ids.device)
    return table[position_ids - first * BLOCK]


@lru_cache(maxsize=KEPT_BLOCKS)
def _block(seed: int, layer: int, site: str, index: int, n: int, width: int) -> Float[np.ndarray, "block width"]:
    # a generator takes numbers from 0 on, and the index of a part without one is -1
    drawn = np.random.default_rng([seed, layer, SITES.index(site), index + 1, n])
    return drawn.standard_normal((BLOCK, width), dtype=np.float32)


def scaled(
    drawn: Float[Tensor, "row pos width"],
    written: Float[Tensor, "row pos width"],
    columns: Float[Tensor, "d_model width"] | None = None,
) -> Float[Tensor, "row pos width"]:
    """Noise with the norm of what a part writes at each position.

    Args:
        drawn: From `draw`.
        written: What the part writes; of heads their z.
        columns: What these heads' z is multiplied by on its way to the residual stream: the norm is taken there.
    """
    written, drawn = wide(written), drawn.to(wide_type(written.dtype))
    norm, of_noise = _norm(written, columns), _norm(drawn, columns)
    return drawn * (norm / of_noise.clamp(min=torch.finfo(torch.float32).tiny))


def _norm(x: Tensor, columns: Tensor | None) -> Float[Tensor, "row pos 1"]:
    return (x if columns is None else x @ columns.to(x).T).norm(dim=-1, keepdim=True)
