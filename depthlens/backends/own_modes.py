"""Modes of the user's own: how their functions are called, and the trial of what they must not do.

A function is called on rows of many texts and conditions, in pieces and in any order. So the trial gives it random
numbers of three rows, once together and once place by place, and compares. It runs when a model first meets the mode.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from depthlens.ablations import Condition, modes
from depthlens.errors import UserError
from depthlens.models.architectures import wide
from depthlens.models.lens import Lens

TRIED = 3, 5  # rows and positions of the trial


def called(
    own: modes.Mode,
    tokens: Int[Tensor, "#row pos"] | None,
    written: Float[Tensor, "row pos width"],
    positions: Int[Tensor, "#row pos"],
) -> Float[Tensor, "row pos width"]:
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
