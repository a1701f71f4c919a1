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

Under ``@int8`` and ``@int4`` the donor is the layer itself with rounded weights (`depthlens.models.rounded_weights`).

Where the rotary frequencies of the two differ (context extension), whole layers and whole attentions turn queries and
keys by the donor's; single heads and groups, which share them, by the base's.

A donor that was loaded with ``offload="disk"`` keeps its embeddings in memory, and a layer only while rows pass it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from depthlens.ablations import WEIGHTS, Ablation, Condition
from depthlens.models.architectures import head, replaced_forwards
from depthlens.models.lens import Donor, Lens
from depthlens.models.placement import moved, place_of
from depthlens.models.rounded_weights import rounded_layers

Forward = Callable[..., Any]


def unembed(
    lens: Lens, conditions: Sequence[Condition], states: Float[Tensor, "row *pos d_model"]
) -> Float[Tensor, "row *pos d_vocab"]:
    """Logits of final residual streams, before the last norm, as the model's own head makes them.

    Args:
        lens: A loaded model.
        conditions: One a row.
        states: The residual streams.
    """
    each = states[0, ..., 0].numel()  # positions of a row, each of which is a row for the head
    norm = lens.arch.final_norm
    with RowDonations([c for c in conditions for _ in range(each)], lens, lens.donor).embeddings():
        normed = norm(moved(states.flatten(0, -2), place_of(norm, states.device)))
        return head(lens.model, normed).unflatten(0, states.shape[:-1])


def shared(module: nn.Module, other: nn.Module, mask: Bool[Tensor, "row part"], *, by_input: bool = False) -> Forward:
    """A forward of a module that gives some rows, or some of their parts, to another one.

    Args:
        module: Of the base.
        other: That with other weights.
        mask: What it computes; one row serves batches of any size.
        by_input: Parts are of the input of a linear module, and not of its output.
    """
    forward, every = module.forward, mask.any(1).all()
    rows = None if every else mask.any(1).nonzero()[:, 0]
    mask = mask if rows is None else mask[rows]
    whole, n_parts = mask.all(1), mask.shape[1]

    def call(x: Tensor) -> Tensor:
        if rows is None and whole.all():
            return other(x)
        index = None if rows is None else rows.to(x.device)
        mine = x if index is None else x[index]
        here = mask.to(x.device).view(len(mask), *[1] * (x.dim() - 2), n_parts, 1)
        if by_input and not whole.all():
            parts = mine.unflatten(-1, (n_parts, -1))
            of_base, of_other = (torch.where(here == wanted, parts, 0).flatten(-2) for wanted in (False, True))
            base = forward(of_base if index is None else x.index_copy(0, index, of_base))
            bias: Any = other.bias
            new = (base if index is None else base[index]) + other(of_other)
            new = new if bias is None else new - bias  # the base's stays
            new = torch.where(here.flatten(-2).all(-1, keepdim=True), other(mine), new) if whole.any() else new
        else:
            base, new = forward(x), other(mine)  # all rows: what is in the place of forward may know them by number
            if not whole.all():
                old = base if index is None else base[index]
                of_other, of_base = (value.unflatten(-1, (n_parts, -1)) for value in (new, old))
                new = torch.where(here, of_other, of_base).flatten(-2)
        return new if index is None else base.index_copy(0, index, new)

    return call


class RowDonations:
    """Which rows of a batch take weights from a donor, or their own rounded ones.

    Args:
        conditions: One per row; a single one serves batches of any size.
        lens: The base model.
        donor: May be None where no condition asks for it.

    Attributes:
        layers: Layers in which a row does, sorted.
    """

    def __init__(self, conditions: Sequence[Condition], lens: Lens, donor: Donor | None) -> None:
        self.lens = lens
        self.n_rows = len(conditions)
        self.by_layer: dict[int, dict[str, list[tuple[int, Ablation]]]] = {}  # and mode
        for row, condition in enumerate(conditions):
            for ablation in condition.ablations:
                if ablation.mode in WEIGHTS:
                    of_layer = self.by_layer.setdefault(ablation.layer, {})
                    of_layer.setdefault(ablation.mode, []).append((row, ablation))
        self.layers = sorted(layer for layer in self.by_layer if layer >= 0)
        self._donor = donor

    @property
    def donor(self) -> Donor:
        assert self._donor is not None, "conditions that take weights are refused where there is no donor"
        return self._donor

    @contextmanager
    def layer(self, layer: int) -> Iterator[None]:
        """Within the context the rows of one of the ``layers`` have their weights."""
        with ExitStack() as stack:
            for mode in self.by_layer[layer]:  # each shares the rows of what those before have put in place
                stack.enter_context(replaced_forwards(self._forwards(layer, mode)))
            yield

    def embeddings(self) -> AbstractContextManager[None]:
        """Within the context embedding, final norm and unembedding have the weights that each row asks for."""
        forwards: list[tuple[nn.Module, Forward]] = []
        for site, names in (("embed", ("embed",)), ("unembed", ("final_norm", "unembed"))):
            mask = torch.zeros(self.n_rows, 1, dtype=torch.bool)
            mask[[row for row, a in self.by_layer.get(-1, {}).get("donor", ()) if a.site == site]] = True
            for name in names if mask.any() else ():
                module, other = getattr(self.lens.arch, name), getattr(self.donor.lens.arch, name)
                forwards.append((module, shared(module, other, mask)))
        return replaced_forwards(forwards)

    def _forwards(self, layer: int, mode: str) -> list[tuple[nn.Module, Forward]]:
        """Modules of a layer, each with the forward that shares its rows among its own weights and others."""
        arch, family = self.lens.arch, self.lens.arch.family
        base, of_donor = arch.layers[layer], mode == "donor"
        other = self.donor.lens.arch.layers[layer] if of_donor else rounded_layers(self.lens).of(layer, mode)
        heads, kv, attn, mlp = self._masks(layer, mode)
        masks = {family.attn_norm: attn, family.mlp_norm: mlp, family.mlp: mlp}
        for name, module in arch.attn[layer].named_modules():
            if any(True for _ in module.parameters(recurse=False)):
                per_head = module is arch.o_proj[layer] or name in family.per_head
                path = f"{family.mixes(layer)}.{name}".removesuffix(".")
                masks[path] = kv if name in family.per_kv_head else heads if per_head else attn
        forwards = []
        for path, mask in masks.items():
            if path and mask.any():
                module = base.get_submodule(path)
                by_input = module is arch.o_proj[layer]
                forwards.append((module, shared(module, other.get_submodule(path), mask, by_input=by_input)))
        if of_donor and self.donor.own_rotary and attn.any():
            forwards.append((arch.attn[layer], self._with_donor_rotary(arch.attn[layer].forward, layer, attn)))
        if of_donor and self.donor.lens.stream:
            forwards.append((base, self._with_donor_resident(base.forward, layer)))
        return forwards

    def _masks(self, layer: int, mode: str) -> list[Bool[Tensor, "row part"]]:
        """Which rows take query heads, key/value heads, the whole attention and the MLP from elsewhere."""
        dims = self.lens.dims
        heads, kv, attn, mlp = (
            torch.zeros(self.n_rows, n, dtype=torch.bool) for n in (dims.n_heads, dims.n_kv_heads, 1, 1)
        )
        for row, a in self.by_layer[layer][mode]:
            if a.site in ("layer", "attn"):
                heads[row] = kv[row] = attn[row] = True
            if a.site in ("layer", "mlp"):
                mlp[row] = True
            if a.site == "head":
                heads[row, a.index] = True
            if a.site == "kv":
                kv[row, a.index] = True
                heads[row, list(dims.query_heads(a.index))] = True
        return [heads, kv, attn, mlp]

    def _with_donor_rotary(self, forward: Forward, layer: int, mask: Bool[Tensor, "row 1"]) -> Forward:
        """The attention's forward with the donor's rotary angles in some rows."""
        arch = self.donor.lens.arch

        def call(*args: Any, **kwargs: Any) -> Any:
            base = kwargs["position_embeddings"]  # one tensor, or cosine and sine: each [row or 1, pos, angle]
            x = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            donor = moved(arch.angles_at(arch.angles(x, kwargs["position_ids"]), layer), x.device)
            rows = mask[..., None].to(x.device)  # [row, 1, 1]
            mixed: Tensor | tuple[Tensor, ...]
            if isinstance(base, Tensor):
                mixed = torch.where(rows, donor, base)
            else:
                mixed = tuple(torch.where(rows, d, b) for d, b in zip(donor, base, strict=True))
            return forward(*args, **kwargs | {"position_embeddings": mixed})

        return call

    def _with_donor_resident(self, forward: Forward, layer: int) -> Forward:
        """A layer's forward during which the donor's layer is in memory, for calls outside a walk."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.donor.resident(layer, self.layers):
                return forward(*args, **kwargs)

        return call
