"""Weights of a donor model in place of a base model's own, row by row of a batch (mode ``@donor`` of a condition).

A transplanted part keeps its place and gets the donor's weights: for the rows whose condition asks for it the donor's
module is called in place of the base's, wherever a module works on each position for itself (projections, norms, MLPs,
embedding, unembedding). Attention kernel, cache and residual stream stay the base model's, so that rows with and
without transplants share every batch of the wavefront, of decoding and of the plain path, ablations among them.
What goes along:

- layer: all weights of the layer, norms included;
- attn: the attention with its input norm; mlp: the MLP with its norm, router and experts included;
- head: rows of the query projection and columns of ``o_proj``. Its keys and values are shared with its group, norms of
  queries and keys and the input norm with all heads, and so they stay the base's. Latent attention (DeepSeek): rows of
  ``q_b_proj`` (or ``q_proj``), while compression and shared parts stay;
- kv: the query heads of the group as above, and its rows of the key and value projections (or of ``kv_b_proj``);
- embed: the embedding; unembed: final norm and unembedding.

Where the rotary frequencies of the two differ (context extension), whole layers and whole attentions turn queries and
keys by the donor's; single heads and groups, which share them, by the base's.

A donor that was loaded with ``offload="disk"`` holds its ends, and a layer only while some row passes there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from depthlens.ablations import Ablation, Condition
from depthlens.models.architectures import supported
from depthlens.models.pairs import Donor

Call = Callable[..., Any]


@contextmanager
def ends(lens: Any, conditions: Sequence[Condition]) -> Iterator[None]:
    """Within the context embedding, final norm and unembedding take rows that are under ``conditions``."""
    handles = RowDonations(conditions, lens, lens.donor).hook_ends()
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Patch:
    """A module's ``forward`` replaced; ``remove`` puts back what was there."""

    def __init__(self, module: nn.Module, forward: Call) -> None:
        self.module = module
        self.before = vars(module).get("forward")  # None: that of its class
        module.forward = forward

    def remove(self) -> None:
        if self.before is None:
            del self.module.forward
        else:
            self.module.forward = self.before


class Shares:
    """Which parts of a module's output the donor makes, row by row.

    Args:
        mask: True where the donor does. One row stands for batches of any size. Shape [row, part].
        device: Where the module is.

    Attributes:
        own: Rows that need the base's weights, as an index; None: all of them.
        given: Rows that need the donor's, likewise.
        whole: Every row is the donor's in all parts.
        mixed: Some rows are in some parts only. Shape [row], or None.
    """

    def __init__(self, mask: Tensor, device: torch.device) -> None:
        some, every = mask.any(1), mask.all(1)
        self.parts = mask.shape[1]
        self.whole = bool(every.all())
        self.mask = mask.to(device)
        self.own = None if not every.any() else (~every).nonzero()[:, 0].to(device)
        self.given = None if some.all() else some.nonzero()[:, 0].to(device)
        self.mixed = (some & ~every).to(device) if (some & ~every).any() else None

    def by_part(self, x: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """``x`` of shape [row, ..., part * width] split into parts, and the mask of these rows, to broadcast."""
        mask = _take(self.mask, rows)
        return x.unflatten(-1, (self.parts, -1)), mask.view(len(mask), *[1] * (x.dim() - 2), self.parts, 1)


def _take(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x[rows]


def _merge(shares: Shares, own: Tensor, given: Tensor, n_rows: int) -> Tensor:
    """All rows, from those that the base made and those that are given."""
    if shares.given is None:
        return given
    if shares.own is None:
        return own.index_copy(0, shares.given, given)
    return _spread(shares, own, n_rows).index_copy_(0, shares.given, given)


def _spread(shares: Shares, own: Tensor, n_rows: int) -> Tensor:
    """What the base made at its rows; whatever lies in memory in rows that are wholly the donor's."""
    return own if shares.own is None else own.new_empty(n_rows, *own.shape[1:]).index_copy_(0, shares.own, own)


def _outputs(module: nn.Module, other: nn.Module, shares: Shares) -> Call:
    """A forward whose output comes from the donor's module in the rows and parts that ask for it."""
    forward = module.forward

    def call(x: Tensor) -> Tensor:
        if shares.whole:
            return other(x)
        own, given = forward(_take(x, shares.own)), other(_take(x, shares.given))
        if shares.mixed is not None:
            new, mask = shares.by_part(given, shares.given)
            old, _ = shares.by_part(_take(_spread(shares, own, len(x)), shares.given), shares.given)
            given = torch.where(mask, new, old).flatten(-2)
        return _merge(shares, own, given, len(x))

    return call


def _inputs(module: nn.Module, other: nn.Module, shares: Shares) -> Call:
    """A forward of a linear module with the donor's columns for some parts of the input; the bias goes with all."""
    if shares.mixed is None:
        return _outputs(module, other, shares)
    forward = module.forward

    def call(x: Tensor) -> Tensor:
        def only(donor: bool, rows: Tensor | None) -> Tensor:
            parts, mask = shares.by_part(_take(x, rows), rows)
            return torch.where(mask == donor, parts, 0).flatten(-2)

        own, given = forward(only(False, shares.own)), other(only(True, shares.given))
        mixed = _take(shares.mixed, shares.given).view(-1, *[1] * (x.dim() - 1))
        if other.bias is not None:
            given = given - other.bias * mixed
        old = _take(_spread(shares, own, len(x)), shares.given)
        return _merge(shares, own, torch.where(mixed, old + given, given), len(x))

    return call


class RowDonations:
    """Which rows of a batch take which weights from a donor.

    Args:
        conditions: One per row; one alone stands for batches of any size.
        lens: The base model.
        donor: May be None where no condition asks for it.

    Attributes:
        layers: Layers where a row does, sorted.
    """

    def __init__(self, conditions: Sequence[Condition], lens: Any, donor: Donor | None) -> None:
        self.lens = lens
        self.donor = donor
        self.n_rows = len(conditions)
        self.by_layer: dict[int, list[tuple[int, Ablation]]] = {}
        for row, condition in enumerate(conditions):
            for ablation in condition.ablations:
                if ablation.mode == "donor":
                    self.by_layer.setdefault(ablation.layer, []).append((row, ablation))
        self.layers = sorted(layer for layer in self.by_layer if layer >= 0)

    def hook(self, layer: int) -> list[Patch]:
        """Give the rows of one layer their weights; returns what to remove afterwards."""
        if layer not in self.by_layer:
            return []
        dims, base, other = self.lens.dims, self.lens.arch, self.donor.lens.arch
        family = supported(type(self.lens.model).__name__)
        heads, kv, attn, mlp = (
            torch.zeros(self.n_rows, n, dtype=torch.bool) for n in (dims.n_heads, dims.n_kv_heads, 1, 1)
        )
        for row, a in self.by_layer[layer]:
            if a.site in ("layer", "attn"):
                heads[row] = kv[row] = attn[row] = True
            if a.site in ("layer", "mlp"):
                mlp[row] = True
            if a.site == "head":
                heads[row, a.index] = True
            if a.site == "kv":
                kv[row, a.index] = True
                heads[row, list(dims.query_heads(a.index))] = True
        forwards = [
            *self._shared(mlp, [(base.mlp_norm[layer], other.mlp_norm[layer]), (base.mlp[layer], other.mlp[layer])]),
            *self._shared(heads, [(base.o_proj[layer], other.o_proj[layer])], _inputs),
            *self._shared(attn, [(base.attn_norm[layer], other.attn_norm[layer])]),
        ]
        for name, module in base.attn[layer].named_modules():
            if module is not base.o_proj[layer] and next(module.parameters(recurse=False), None) is not None:
                mask = heads if name in family.per_head else kv if name in family.per_kv_head else attn
                forwards += self._shared(mask, [(module, other.attn[layer].get_submodule(name))])
        if self.donor.own_rotary and attn.any():
            forwards.append((base.attn[layer], self._turned(base.attn[layer].forward, attn)))
        if self.donor.lens.stream:
            forwards.append((base.layers[layer], self._resident(base.layers[layer].forward, layer)))
        return [Patch(*forward) for forward in forwards]  # what can fail has been done: all or none are patched

    def hook_ends(self) -> list[Patch]:
        """The same for embedding, final norm and unembedding."""
        if -1 not in self.by_layer:
            return []
        base, other = self.lens.arch, self.donor.lens.arch
        forwards = []
        for end, names in (("embed", ("embed",)), ("unembed", ("final_norm", "unembed"))):
            mask = torch.zeros(self.n_rows, 1, dtype=torch.bool)
            mask[[row for row, a in self.by_layer[-1] if a.site == end]] = True
            forwards += self._shared(mask, [(getattr(base, name), getattr(other, name)) for name in names])
        return [Patch(*forward) for forward in forwards]

    def _shared(
        self, mask: Tensor, pairs: Sequence[tuple[nn.Module, nn.Module]], how: Callable[..., Call] = _outputs
    ) -> list[tuple[nn.Module, Call]]:
        """The base's modules of some pairs, each with the forward that shares rows with the donor's; [row, part]."""
        if not mask.any():
            return []
        shares = Shares(mask, self.lens.device)
        return [(module, how(module, other, shares)) for module, other in pairs]

    def _turned(self, forward: Call, mask: Tensor) -> Call:
        """The attention's forward with the donor's rotary angles in some rows."""
        rotary, rows = self.donor.lens.arch.rotary, mask[..., None].to(self.lens.device)  # [row, 1, 1]

        def call(*args: Any, **kwargs: Any) -> Any:
            own = kwargs["position_embeddings"]  # one tensor, or cosine and sine: each [row or 1, pos, angle]
            x = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            given = rotary(x, position_ids=kwargs["position_ids"])
            if isinstance(own, Tensor):
                mixed = torch.where(rows, given, own)
            else:
                mixed = tuple(torch.where(rows, g, o) for g, o in zip(given, own, strict=True))
            return forward(*args, **kwargs | {"position_embeddings": mixed})

        return call

    def _resident(self, forward: Call, layer: int) -> Call:
        """A layer's forward during which the donor's layer is in memory, for calls outside a walk."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.donor.resident(layer, self.layers):
                return forward(*args, **kwargs)

        return call
