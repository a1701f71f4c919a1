"""What modes that change a part put in its place: made of what it writes, by a function here or by one of the user's.

**Noise** is a control for damage. A removal takes away what a part writes and disturbs everything after it. Noise of
the same norm at the same place disturbs as much and takes nothing away, so a part matters by more than its size where
removing it costs more. A vector is drawn from a standard normal distribution for every position. It depends on the
seed, the layer, the site, the index and the position only: not on batch, device, dtype or backend.

**The user's own.** A function is called on rows of many texts and conditions, in pieces and in any order. So the trial
gives it random numbers of three rows, once together and once place by place, and compares. It runs when a model first
meets the mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from depthlens.ablations import SITES, Ablation, Condition, modes
from depthlens.errors import UserError
from depthlens.models import quantised
from depthlens.models.architectures import wide
from depthlens.models.lens import Lens
from depthlens.models.placement import held

BLOCK = 256  # positions whose noise is drawn together
TRIED = 3, 5  # rows and positions of the trial
Change = Callable[[Tensor, Any], Tensor]  # of what is written, and positions
Written = Float[Tensor, "row pos width"]  # by a part
Places = Int[Tensor, "#row pos"]  # positions or ids of tokens, of some rows or the same of all


def noise(ablation: Ablation, position_ids: Int[Tensor, "row pos"], width: int) -> Float[Tensor, "row pos width"]:
    """The noise of an ablation at some positions, before it is scaled; float32, on the device of the positions."""
    first, last = int(position_ids.min()) // BLOCK, int(position_ids.max()) // BLOCK
    kind = replace(ablation, start=0, stop=0)
    blocks = [_block(kind, n, width, position_ids.device) for n in range(first, last + 1)]
    return (blocks[0] if len(blocks) == 1 else torch.cat(blocks))[position_ids - first * BLOCK]


@lru_cache(maxsize=128)  # of a residual stream of 8192 numbers a block takes 8 MiB
def _block(a: Ablation, n: int, width: int, device: torch.device) -> Float[Tensor, "block width"]:
    # a generator takes numbers from 0 on, and the index of a part without one is -1
    drawn = np.random.default_rng([a.seed, a.layer, SITES.index(a.site), a.index + 1, n])
    return torch.from_numpy(drawn.standard_normal((BLOCK, width), dtype=np.float32)).to(device)


def with_noise(a: Ablation, lens: Lens, columns: slice) -> Change:
    """Adds noise of the norm of what a part writes; of heads the norms are those in the residual stream."""
    project = None
    if a.site in ("head", "kv"):
        with held(o_proj := lens.arch.o_proj[a.layer]):
            project = quantised.matrix(o_proj)[:, columns].clone()

    def change(written: Tensor, position_ids: Places) -> Tensor:
        of_part = wide(written)
        drawn = noise(a, position_ids, written.shape[-1]).to(of_part)
        in_stream = (x if project is None else x @ project.to(of_part).T for x in (of_part, drawn))
        wanted, found = (x.norm(dim=-1, keepdim=True) for x in in_stream)
        return written + (drawn * (wanted / found.clamp(min=torch.finfo(torch.float32).tiny))).to(written)

    return change


def scaled(a: Ablation, lens: Lens, columns: slice) -> Change:
    """Multiplies what a part writes."""
    return lambda written, position_ids: a.factor * written


# by mode; each makes a function of what an ablation's part writes and of where the tokens stand
CHANGES: dict[str, Callable[[Ablation, Lens, slice], Change]] = {"noise": with_noise, "scale": scaled}


def of(a: Ablation, lens: Lens, columns: slice, tokens: Places | None) -> Change:
    """What makes of what a part writes what takes its place.

    Args:
        a: Of the part.
        lens: The model.
        columns: Where the part is in what its site holds.
        tokens: Ids, of the rows that have the ablation or of all.
    """
    makes = CHANGES.get(a.mode)
    return makes(a, lens, columns) if makes else partial(called, modes.of(a.mode), tokens)


def called(own: modes.Mode, tokens: Places | None, written: Written, positions: Places) -> Written:
    """What a mode's function makes of what a part writes.

    Raises:
        UserError: the function is not here or returns another shape, dtype or device, or the model was called without
            token ids.
    """
    if own.function is None:
        raise UserError(f"mode {own.name!r} has no function here; name one by depthlens.mode")
    if tokens is None:
        raise UserError(f"mode {own.name!r} reads token ids, and the model was called without; give input_ids")
    places = (x.to(written.device).expand(written.shape[:2]) for x in (positions, tokens))
    new = own.function(written, *places)
    wanted, found = ((tuple(x.shape), x.dtype, x.device) if isinstance(x, Tensor) else type(x) for x in (written, new))
    if wanted != found:
        raise UserError(f"mode {own.name!r} returns {found} where a part writes {wanted}; return a tensor like it")
    return new


def require(condition: Condition, lens: Lens) -> None:
    """Try the modes of the user's own that a condition has.

    Raises:
        UserError: a function does what it must not.
    """
    for a in condition.ablations:
        own, dims = modes.of(a.mode), lens.dims
        if own.function is not None:
            n_heads = {"head": 1, "kv": dims.n_heads // max(1, dims.n_kv_heads)}.get(a.site)
            width = n_heads * dims.d_head if n_heads else dims.d_model
            _try(own, width, len(lens.arch.embed.weight), lens.dtype, lens.device_of(a.layer))


@lru_cache(maxsize=256)
@torch.no_grad()
def _try(own: modes.Mode, width: int, n_tokens: int, dtype: torch.dtype, device: torch.device) -> None:
    random = torch.Generator().manual_seed(0)
    written = torch.randn(*TRIED, width, generator=random).to(device, dtype)
    tokens = torch.randint(n_tokens, TRIED, generator=random).to(device)
    positions = torch.arange(TRIED[1], device=device).expand(TRIED)
    together = called(own, tokens, written.clone(), positions)
    if not together.isfinite().all():
        raise UserError(f"mode {own.name!r} returns numbers that are not finite for finite ones; return finite numbers")
    rows = zip(*(x.flatten(0, 1).split(1) for x in (tokens, written, positions)), strict=True)
    alone = [called(own, token[None], one.clone()[None], place[None])[0] for token, one, place in rows]
    found, wanted = wide(torch.cat(alone)), wide(together.flatten(0, 1))
    # kernels round in other orders
    close = torch.finfo(dtype).eps ** 0.5 * (wanted.norm(dim=-1) + wide(written).flatten(0, 1).norm(dim=-1))
    if ((found - wanted).norm(dim=-1) > close).any():
        fault = "gives a token something else alone than in a batch"
        raise UserError(f"mode {own.name!r} {fault}; use nothing but what is written there, its position and its token")
