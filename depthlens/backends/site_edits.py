"""What the rows of a batch get in place of what a layer computes, as tensors that any library can apply.

Nothing here names more than torch, because nnsight sends these classes to a server that has no depthlens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# what takes the place of a part, as numbers in `SiteEdit.kind`
KEPT, ZERO, MEAN, RESAMPLE, NOISE = -1, 0, 1, 2, 3
# entries of `SiteEdit.table` before those of the reference prompt: zeros, mean of first tokens, mean of others
N_MEANS = 3


@dataclass(frozen=True)
class Noise:
    """Noise in one row.

    Attributes:
        row: The row; a slice stands for all.
        parts: Heads; [0] where the site has one part.
        drawn: Before it is scaled. Shape [1 or row, pos, part * width].
        columns: What these heads' z is multiplied by on its way to the residual stream, where the noise has the norm of
            what the part writes; None: the site is in the stream. Shape [d_model, part * width].
    """

    row: slice
    parts: list[int]
    drawn: Tensor
    columns: Tensor | None


@dataclass(frozen=True)
class SiteEdit:
    """The edit of one site of a layer for all rows and parts (heads; else there is one part).

    Attributes:
        kind: What takes the place of each part, `KEPT` where nothing does. Shape [row, 1, part]; one row serves batches
            of any size.
        start: Position from which on a part is edited; None: from the first. Shape [row, 1, part].
        table: What is put in place: `N_MEANS` entries, then the reference prompt's positions; None where every edited
            part is removed or noisy. Shape [entry, part, width].
        noise: Noise, row by row.
        position_ids: Where the tokens stand, if an edit depends on it. Shape [row, pos].
    """

    kind: Tensor
    start: Tensor | None
    table: Tensor | None
    noise: tuple[Noise, ...]
    position_ids: Tensor | None

    def __call__(self, value: Tensor, base: Tensor | None = None, position_ids: Tensor | None = None) -> Tensor:
        """The new value.

        Args:
            value: What the model computes there. Shape [row, pos, part * width].
            base: What is there without the part: ``resid_pre`` of a layer; None: zero.
            position_ids: Where the tokens stand; None: `position_ids` of the edit.
        """
        positions: Any = self.position_ids if position_ids is None else position_ids
        positions = None if positions is None else positions.to(value.device)[:, :, None]
        kind = self.kind.to(value.device)
        old = value.unflatten(-1, (kind.shape[-1], -1))  # [row, pos, part, width]
        without = value.new_zeros(()) if base is None else base.unflatten(-1, (kind.shape[-1], -1))
        new, active = without, kind >= 0
        if self.table is not None:
            entries = self._entries(kind, positions)
            new = without + self.table.to(old)[entries, torch.arange(kind.shape[-1], device=kind.device)]
        if self.noise:
            new = self._with_noise(old, without, new)
        if self.start is not None:
            active = active & (positions >= self.start.to(value.device))
        return torch.where(active[..., None], new, old).flatten(-2)

    def _entries(self, kind: Tensor, positions: Any) -> Tensor:
        """Entry of the table for each row, position and part.

        A row that is longer than the reference prompt reads it again from its second token on, because the first token
        draws attention whatever its content.
        """
        n = len(self.table) - N_MEANS  # type: ignore[arg-type]
        again = torch.where(positions < n, positions, 1 + (positions - 1) % max(1, n - 1)).clamp(max=max(0, n - 1))
        mean = 1 + (positions > 0).long()
        return torch.where(kind == RESAMPLE, N_MEANS + again, torch.where(kind == MEAN, mean, 0))

    def _with_noise(self, value: Tensor, without: Tensor, new: Tensor) -> Tensor:
        """``new``, but for the noisy parts what the model computes and noise of the norm of what the part writes."""
        new, written = new.expand_as(value).clone(), value - without
        wide = torch.promote_types(value.dtype, torch.float32)
        for noise in self.noise:
            of_part = written[noise.row, :, noise.parts].flatten(2).to(wide)  # [row, pos, part * width]
            drawn = noise.drawn.to(of_part)
            columns = None if noise.columns is None else noise.columns.to(of_part).T
            norms = [(x if columns is None else x @ columns).norm(dim=-1, keepdim=True) for x in (of_part, drawn)]
            added = drawn * (norms[0] / norms[1].clamp(min=torch.finfo(torch.float32).tiny))
            new[noise.row, :, noise.parts] = value[noise.row, :, noise.parts] + added.unflatten(
                -1, (len(noise.parts), -1)
            ).to(value)
        return new


@dataclass(frozen=True)
class LayerEdits:
    """Edits of one layer, row by row; None where no row is edited.

    Attributes:
        layer: Of ``resid_post``; its base is ``resid_pre``.
        attn: Of ``attn_out``.
        mlp: Of ``mlp_out``.
        z: Of all heads' ``z``, side by side.
        routing: What the layer's router runs in (`depthlens.models.experts.Routing`).
        twice: Rows that go through the layer twice. Shape [row].
    """

    layer: SiteEdit | None
    attn: SiteEdit | None
    mlp: SiteEdit | None
    z: SiteEdit | None
    routing: Any = None
    twice: Tensor | None = None

    def trace(self, layer: Any, attn: Any, o_proj: Any, mlp: Any, position_ids: Tensor | None = None) -> None:
        """Within a trace of nnsight, edit a layer's parts in the order in which the model computes them."""
        resid_pre = None if self.layer is None else layer.input
        if self.z is not None:
            o_proj.input = self.z(o_proj.input, None, position_ids)
        for edit, part, base in ((self.attn, attn, None), (self.mlp, mlp, None), (self.layer, layer, resid_pre)):
            if edit is not None:
                output = part.output
                old = output[0] if isinstance(output, tuple) else output
                rows = len(edit.kind) if old.dim() == 2 else len(old)  # some mixtures of experts give all tokens in one
                new = edit(old.reshape(rows, -1, old.shape[-1]), base, position_ids).reshape(old.shape)
                part.output = (new, *output[1:]) if isinstance(output, tuple) else new
