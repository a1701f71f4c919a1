"""Other weights in place of a model's own, row by row of a batch: a donor's (``@donor``), or rounded ones (``@int4``).

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

Under ``@int8`` and ``@int4`` the donor is the layer itself with rounded weights (`depthlens.models.quantised`).

Where the rotary frequencies of the two differ (context extension), whole layers and whole attentions turn queries and
keys by the donor's; single heads and groups, which share them, by the base's.

A donor that was loaded with ``offload="disk"`` keeps its embeddings in memory, and a layer only while rows pass it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from depthlens.ablations import WEIGHTS, Ablation, Condition
from depthlens.models.architectures import replaced_forwards
from depthlens.models.lens import Lens
from depthlens.models.placement import moved
from depthlens.models.quantised import rounded_layer

Forward = Callable[..., Any]
# whose ablation takes modules, by what these are made for
TAKERS = {
    "attn": ("layer", "attn"),
    "kv": ("layer", "attn", "kv"),
    "head": ("layer", "attn", "kv", "head"),
    "mlp": ("layer", "mlp"),
    "embed": ("embed",),
    "unembed": ("unembed",),
}


def unembed(
    lens: Lens, conditions: Sequence[Condition], states: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row d_vocab"]:
    """Logits of final residual streams, before the last norm, under one condition a row."""
    with RowWeights(conditions, lens).embeddings():
        return lens.arch.logits(states)


def shared(module: nn.Module, other: nn.Module, mask: Bool[Tensor, "row part"], *, by_input: bool = False) -> Forward:
    """A forward of a module that gives some rows, or the same number of parts of some rows, to another one.

    Args:
        module: Of the base.
        other: That with other weights.
        mask: What it computes; one row serves batches of any size. A row that it computes has all its parts, or no row.
        by_input: Parts are of the input of a linear module, and not of its output.
    """
    forward, every = module.forward, bool(mask.any(1).all())
    rows = slice(None) if every else mask.any(1).nonzero()[:, 0]
    mask = mask[rows]

    def put(x: Tensor, new: Tensor) -> Tensor:
        return new if isinstance(rows, slice) else x.index_copy(0, rows.to(x.device), new)

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (mask.shape[1], -1))

    def call(x: Tensor) -> Tensor:
        if mask.all():
            return other(x) if every else put(forward(x), other(x[rows]))
        here = mask.to(x.device).view(len(mask), *[1] * (x.dim() - 2), -1, 1)
        if not by_input:
            base = forward(x)
            return put(base, torch.where(here, split(other(x[rows])), split(base[rows])).flatten(-2))
        part = torch.where(here, split(x[rows]), 0).flatten(-2)
        # all rows: what is in the place of forward may know them by number
        base = forward(put(x, x[rows] - part))
        return put(base, base[rows] + other(part) - other(torch.zeros_like(part[:1])))  # the base's bias stays

    return call


@dataclass
class RowWeights:
    """Which rows of a batch take weights from a donor, or their own rounded ones.

    Attributes:
        conditions: One per row; a single one serves batches of any size.
        lens: The base model.
        by_layer: All ablations of each layer, with their rows; -1: of embedding and unembedding.
    """

    conditions: Sequence[Condition]
    lens: Lens

    def __post_init__(self) -> None:
        self.donor: Any = self.lens.donor  # conditions that take weights from it are refused where there is none
        self.by_layer: dict[int, dict[Ablation, list[int]]] = {}
        for row, condition in enumerate(self.conditions):
            for ablation in condition.ablations:
                self.by_layer.setdefault(ablation.layer, {}).setdefault(ablation, []).append(row)

    def embeddings(self) -> AbstractContextManager[None]:
        """Within the context embedding, final norm and unembedding have the weights that each row asks for."""
        return replaced_forwards(self.forwards(-1))

    def forwards(self, layer: int) -> Iterator[tuple[nn.Module, Forward]]:
        """Modules, each with the forward that shares its rows; each forward calls those before it."""
        for mode in dict.fromkeys(a.mode for a in self.by_layer.get(layer, {}) if a.mode in WEIGHTS):
            for module, other, kind in self._modules(layer, mode):
                taken = self._mask(layer, mode, kind)
                whole = taken.all(1, keepdim=True)
                for mask in (taken & whole, taken & ~whole):
                    if mask.any():
                        by_input = layer >= 0 and module is self.lens.arch.o_proj[layer]
                        yield module, shared(module, other, mask, by_input=by_input)
            if mode == "donor" and layer >= 0:
                attn = self.lens.arch.attn[layer]
                if self.donor.own_rotary and (mask := self._mask(layer, mode, "attn")).any():
                    yield attn, self._with_donor_rotary(attn.forward, layer, mask)

    def _modules(self, layer: int, mode: str) -> Iterator[tuple[nn.Module, nn.Module, str]]:
        """Modules with weights, those that have others, and what they are made for, as in `TAKERS`."""
        arch, family = self.lens.arch, self.lens.arch.family
        if layer < 0:
            for name in ("embed", "final_norm", "unembed"):
                yield getattr(arch, name), getattr(self.donor.lens.arch, name), name.replace("final_norm", "unembed")
            return
        base = arch.layers[layer]
        other = self.donor.lens.arch.layers[layer] if mode == "donor" else rounded_layer(self.lens, layer, mode)
        paths = {family.attn_norm: "attn", family.mlp_norm: "mlp", family.mlp: "mlp"}
        for name, module in arch.attn[layer].named_modules():
            if any(True for _ in module.parameters(recurse=False)):
                per_head = module is arch.o_proj[layer] or name in family.per_head
                path = f"{family.mixes(layer)}.{name}".removesuffix(".")
                paths[path] = "kv" if name in family.per_kv_head else "head" if per_head else "attn"
        yield from ((base.get_submodule(p), other.get_submodule(p), kind) for p, kind in paths.items() if p)

    def _mask(self, layer: int, mode: str, kind: str) -> Bool[Tensor, "row part"]:
        """Which rows take which parts of a kind of modules from elsewhere."""
        dims = self.lens.dims
        n_parts = {"head": dims.n_heads, "kv": dims.n_kv_heads}.get(kind, 1)
        mask = torch.zeros(len(self.conditions), n_parts, dtype=torch.bool)
        for a, rows in self.by_layer[layer].items():
            if a.mode == mode and a.site in TAKERS[kind]:
                heads = dims.query_heads(a.index) if (a.site, kind) == ("kv", "head") else [a.index]
                mask[torch.tensor(rows)[:, None], range(n_parts) if a.index < 0 else [*heads]] = True
        return mask

    def _with_donor_rotary(self, forward: Forward, layer: int, mask: Bool[Tensor, "row 1"]) -> Forward:
        """The attention's forward with the donor's rotary angles in some rows."""
        arch = self.donor.lens.arch

        def call(*args: Any, **kwargs: Any) -> Any:
            base = kwargs["position_embeddings"]  # one tensor, or cosine and sine: each [row or 1, pos, angle]
            x = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            donor = moved(arch.angles_at(arch.angles(x, kwargs["position_ids"]), layer), x.device)
            rows = mask[..., None].to(x.device)  # [row, 1, 1]
            mixed = pytree.tree_map(lambda d, b: torch.where(rows, d, b), donor, base)
            return forward(*args, **kwargs | {"position_embeddings": mixed})

        return call
