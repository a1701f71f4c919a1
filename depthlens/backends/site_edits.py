"""What the rows of a batch get in place of what a layer computes, as tensors that any library can apply.

Nothing here names more than torch, because nnsight sends these classes to a server that has no depthlens. What checks
types of calls in `make test-all` cannot be sent, and leaves them out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, no_type_check

import torch
from torch import Tensor


@no_type_check
@dataclass(frozen=True)
class Edit:
    """What takes the place of one part in some rows.

    Attributes:
        rows: Which; None: all, however many there are.
        columns: Where the part is in what its site holds: neighbouring heads, or everything.
        start: Position from which on it is edited.
        stop: Position before which that ends; 0: the end of the row.
        values: What is added to what is there without the part, by position: those of a reference prompt, or means of
            first tokens and of others. None: nothing is. Shape [entry, column].
        change: Makes what takes the place of what the part writes from it and from positions.
    """

    rows: Tensor | None
    columns: slice
    start: int = 0
    stop: int = 0
    values: Tensor | None = None
    change: Callable[[Tensor, Any], Tensor] | None = None

    def put(self, old: Tensor, without: Tensor, now: Tensor, positions: Any) -> Tensor:
        """The new values of the part in its rows; at positions that are spared, what other edits have made of it now.

        A row that is longer than the values reads them again from the second one on, because the first token draws
        attention whatever its content.
        """
        new = without
        if self.change is not None:
            new = without + self.change(old - without, positions)
        elif self.values is not None:
            n = len(self.values)
            entry = torch.where(positions < n, positions, 1 + (positions - 1) % max(1, n - 1)).clamp(max=n - 1)
            new = without + self.values.to(old)[entry]
        if not (self.start or self.stop):
            return new
        here = (positions >= self.start) & (positions < (self.stop or torch.iinfo(torch.long).max))
        return torch.where(here[..., None], new, now)


@no_type_check
@dataclass(frozen=True)
class SiteEdit:
    """The edits of one site of a layer, of which later ones count where they meet.

    Attributes:
        edits: Of parts, in some rows each.
        positions: Where the tokens stand, if an edit depends on it. Shape [#row, pos].
        before: What is done to the value first.
    """

    edits: tuple[Edit, ...]
    positions: Tensor | None
    before: Any = None

    def __call__(self, value: Tensor, base: Tensor | None = None, positions: Any = None) -> Tensor:
        """The new value.

        Args:
            value: What the model computes there. Shape [row, pos, column].
            base: What is there without the part: ``resid_pre`` of a layer; None: zero.
            positions: Where the tokens stand; None: as the edit knows.
        """
        positions = self.positions if positions is None else positions
        positions = None if positions is None else positions.to(value.device)
        value = value if self.before is None else self.before(value, base, positions)
        new = value.clone()
        for edit in self.edits:
            rows = slice(None) if edit.rows is None else edit.rows.to(value.device)
            old = value[rows, :, edit.columns]
            without = torch.zeros_like(old) if base is None else base[rows, :, edit.columns]
            at = positions if positions is None or len(positions) == 1 else positions[rows]
            new[rows, :, edit.columns] = edit.put(old, without, new[rows, :, edit.columns], at)
        return new


@no_type_check
class Sums:
    """Changes nothing at a site, and adds up what the model computes there.

    Args:
        width: Of the site.

    Attributes:
        total: Sums over first tokens, and over all others. Shape [token_class, width].
    """

    def __init__(self, width: int) -> None:
        # a float32 running sum over 10^5 positions would lose three digits
        self.total = torch.zeros(2, width, dtype=torch.float64)

    def __call__(self, value: Tensor, base: Tensor | None = None, positions: Any = None) -> Tensor:
        """The value as it is."""
        added = value if base is None else value - base
        added = added.cpu() if added.device.type == "mps" else added  # which has no float64
        sums = added[:, 0].sum(0, dtype=torch.float64), added[:, 1:].sum((0, 1), dtype=torch.float64)
        self.total = self.total + torch.stack(sums).cpu()
        return value


# by site (``layer``, ``attn``, ``mlp``, ``z``), where a row is edited
LayerEdits = dict[str, Callable[..., Tensor]]


@no_type_check
def trace(edits: LayerEdits, layer: Any, attn: Any, o_proj: Any, mlp: Any, positions: Any = None) -> None:
    """Within a trace of nnsight, edit a layer's parts in the order in which the model computes them."""
    resid_pre = layer.input
    if "z" in edits and o_proj is not None:
        o_proj.input = edits["z"](o_proj.input, None, positions)
    for site, part, base in (("attn", attn, None), ("mlp", mlp, None), ("layer", layer, resid_pre)):
        if site in edits:
            output = part.output
            old = output[0] if isinstance(output, tuple) else output
            # some mixtures of experts give all tokens in one row
            new = edits[site](old.reshape(resid_pre.shape), base, positions).reshape(old.shape)
            part.output = (new, *output[1:]) if isinstance(output, tuple) else new


@no_type_check
def add_scores(answer: Tensor, logits: Tensor, rows: Tensor, targets: Tensor, at: Any = None) -> None:
    """Add log-likelihoods of tokens, and how many of them are not the likeliest, to those of their rows.

    Args:
        answer: Of each row, in float64 on the CPU. Shape [2, row].
        logits: That predict the tokens. Shape [place, d_vocab].
        rows: Of the tokens. Shape [token].
        targets: Token ids. Shape [token].
        at: The place of each token, where some share one. Shape [token]; None: they are in order.
    """
    at = torch.arange(len(targets)) if at is None else at
    logits, targets = logits.to(torch.promote_types(logits.dtype, torch.float32)), targets.to(logits.device)
    at = at.to(logits.device)
    logprob = logits[at, targets] - logits.logsumexp(-1)[at]
    missed = logits.argmax(-1)[at] != targets
    answer.index_add_(1, rows.cpu(), torch.stack([logprob.double(), missed.double()]).cpu())
