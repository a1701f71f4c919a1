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

Under ``@int8`` and ``@int4`` the donor is the model itself with rounded weights (`depthlens.models.rounded_weights`),
which has no norms and embeddings of its own.

Where the rotary frequencies of the two differ (context extension), whole layers and whole attentions turn queries and
keys by the donor's; single heads and groups, which share them, by the base's.

A donor that was loaded with ``offload="disk"`` keeps its embeddings in memory, and a layer only while rows pass it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from depthlens.ablations import WEIGHTS, Ablation, Condition
from depthlens.models.architectures import head
from depthlens.models.lens import Donor, Lens
from depthlens.models.placement import moved, place_of
from depthlens.models.rounded_weights import modules_of

Forward = Callable[..., Any]


@contextmanager
def replaced_forwards(forwards: Iterable[tuple[nn.Module, Forward]]) -> Iterator[None]:
    """Within the context these modules have another ``forward``."""
    with ExitStack() as stack:
        for module, forward in forwards:
            own = vars(module).get("forward")  # None: that of its class
            restore = (delattr, module, "forward") if own is None else (setattr, module, "forward", own)
            module.forward = forward
            stack.callback(*restore)
        yield


def unembed(
    lens: Lens, conditions: Sequence[Condition], states: Float[Tensor, "row *pos d_model"], *, plain: bool
) -> Float[Tensor, "row *pos d_vocab"]:
    """Logits of final residual streams, before the last norm.

    Args:
        lens: A loaded model.
        conditions: One a row.
        states: The residual streams.
        plain: Logits are what the unembedding gives; else the model's own head scales or caps them.
    """
    if plain:
        with RowDonations(conditions, lens, lens.donor).embeddings():
            return lens.arch.logits(states)
    each = states[0, ..., 0].numel()  # positions of a row, each of which is a row for the head
    with RowDonations([c for c in conditions for _ in range(each)], lens, lens.donor).embeddings():
        normed = lens.arch.final_norm(moved(states, place_of(lens.arch.final_norm, states.device)))
        return head(lens.model, normed.flatten(0, -2)).unflatten(0, states.shape[:-1])


class RowShares:
    """Which parts of a module's output the donor makes, row by row.

    Args:
        mask: True where the donor does. One row serves batches of any size. Shape [row, part].
        device: Where the module is.
        alone: Whether nothing else in the base's module depends on rows; else the base computes all of them.

    Attributes:
        base_rows: Rows that need the base's weights, as an index; None: all of them.
        donor_rows: Rows that need the donor's, likewise.
        all_donor: Every row is the donor's in all parts.
        mixed: Rows that are the donor's in some parts only. Shape [row], or None.
    """

    def __init__(self, mask: Bool[Tensor, "row part"], device: torch.device, alone: bool = True) -> None:
        some, every = mask.any(1), mask.all(1)
        self.parts = mask.shape[1]
        self.all_donor = bool(every.all())
        self.mask = mask.to(device)
        self.base_rows = None if not (every.any() and alone) else (~every).nonzero()[:, 0].to(device)
        self.donor_rows = None if some.all() else some.nonzero()[:, 0].to(device)
        self.mixed = (some & ~every).to(device) if (some & ~every).any() else None

    def by_part(self, x: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """``x`` of shape [row, ..., part * width] split into parts, and the mask of these rows, to broadcast."""
        mask = _take(self.mask, rows)
        return x.unflatten(-1, (self.parts, -1)), mask.view(len(mask), *[1] * (x.dim() - 2), self.parts, 1)


def _take(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x[rows]


def _merge(shares: RowShares, base: Tensor, donor: Tensor, n_rows: int) -> Tensor:
    """All rows, from those that the base computed and those that the donor computed."""
    if shares.donor_rows is None:
        return donor
    if shares.base_rows is None:
        return base.index_copy(0, shares.donor_rows, donor)
    return _spread(shares, base, n_rows).index_copy_(0, shares.donor_rows, donor)


def _spread(shares: RowShares, base: Tensor, n_rows: int) -> Tensor:
    """What the base computed at its rows; rows that are wholly the donor's are not initialised."""
    if shares.base_rows is None:
        return base
    return base.new_empty(n_rows, *base.shape[1:]).index_copy_(0, shares.base_rows, base)


class Rounded:
    """A module with rounded weights, which is made when it is called: then those of the module are in memory.

    Args:
        made: Gives it.
    """

    def __init__(self, made: Callable[[], nn.Module]) -> None:
        self._made = made

    def __call__(self, x: Tensor) -> Tensor:
        """What the module computes."""
        return self._made()(x)

    @property
    def bias(self) -> Tensor | None:
        """Of a linear module."""
        bias = self._made().bias
        assert bias is None or isinstance(bias, Tensor)
        return bias


Module = nn.Module | Rounded


def _outputs(module: nn.Module, donor_module: Module, shares: RowShares) -> Forward:
    """A forward whose output comes from the donor's module in the rows and parts that ask for it."""
    forward = module.forward

    def call(x: Tensor) -> Tensor:
        if shares.all_donor:
            return donor_module(x)
        base, donor = forward(_take(x, shares.base_rows)), donor_module(_take(x, shares.donor_rows))
        if shares.mixed is not None:
            new, mask = shares.by_part(donor, shares.donor_rows)
            old, _ = shares.by_part(_take(_spread(shares, base, len(x)), shares.donor_rows), shares.donor_rows)
            donor = torch.where(mask, new, old).flatten(-2)
        return _merge(shares, base, donor, len(x))

    return call


def _inputs(module: nn.Module, donor_module: Module, shares: RowShares) -> Forward:
    """A forward of a linear module with the donor's columns for some parts of the input; the bias goes with all."""
    if (mixed := shares.mixed) is None:
        return _outputs(module, donor_module, shares)
    forward = module.forward

    def call(x: Tensor) -> Tensor:
        def only(of_donor: bool, rows: Tensor | None) -> Tensor:
            parts, mask = shares.by_part(_take(x, rows), rows)
            return torch.where(mask == of_donor, parts, 0).flatten(-2)

        base, donor = forward(only(False, shares.base_rows)), donor_module(only(True, shares.donor_rows))
        is_mixed = _take(mixed, shares.donor_rows).view(-1, *[1] * (x.dim() - 1))
        bias: Any = donor_module.bias
        if bias is not None:
            donor = donor - bias * is_mixed
        old = _take(_spread(shares, base, len(x)), shares.donor_rows)
        return _merge(shares, base, torch.where(is_mixed, old + donor, donor), len(x))

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
        # layers in which rows do without an expert: what counts the rows there must see them all
        self._routed = {a.layer for c in conditions for a in c.ablations if a.site == "expert"}
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
                forwards = self._donor_forwards if mode == "donor" else self._rounded_forwards
                stack.enter_context(replaced_forwards(forwards(layer, mode)))
            yield

    def embeddings(self) -> AbstractContextManager[None]:
        """Within the context embedding, final norm and unembedding have the weights that each row asks for."""
        forwards: list[tuple[nn.Module, Forward]] = []
        if -1 in self.by_layer:
            base, donor = self.lens.arch, self.donor.lens.arch
            for site, names in (("embed", ("embed",)), ("unembed", ("final_norm", "unembed"))):
                mask = torch.zeros(self.n_rows, 1, dtype=torch.bool)
                mask[[row for row, a in self.by_layer[-1]["donor"] if a.site == site]] = True
                for module, its in [(getattr(base, name), getattr(donor, name)) for name in names]:
                    place = place_of(module, self.lens.device)
                    forwards += [(module, _outputs(module, its, RowShares(mask, place)))] if mask.any() else []
        return replaced_forwards(forwards)

    def _donor_forwards(self, layer: int, mode: str) -> list[tuple[nn.Module, Forward]]:
        """Modules of a layer, each with the forward that shares its rows among base and donor."""
        base, donor = self.lens.arch, self.donor.lens.arch
        _, _, attn, mlp = self._masks(layer, mode)
        norms = [(base.mlp_norm, donor.mlp_norm, mlp), (base.attn_norm, donor.attn_norm, attn)]
        attention = donor.attn[layer]
        forwards = [
            *(self._shared(layer, mask, its[layer], other[layer]) for its, other, mask in norms if mask.any()),
            *self._matrices(layer, mode, donor.mlp[layer], attention.get_submodule),
        ]
        if self.donor.own_rotary and attn.any():
            forwards.append((base.attn[layer], self._with_donor_rotary(base.attn[layer].forward, layer, attn)))
        if self.donor.lens.stream:
            forwards.append((base.layers[layer], self._with_donor_resident(base.layers[layer].forward, layer)))
        return forwards

    def _rounded_forwards(self, layer: int, mode: str) -> list[tuple[nn.Module, Forward]]:
        """Modules of a layer, each with the forward that shares its rows among its own weights and rounded ones."""
        arch, modules = self.lens.arch, modules_of(self.lens)

        def other(module: nn.Module) -> Rounded:
            return Rounded(partial(modules.of, layer, module, mode))

        attention = arch.attn[layer]
        return self._matrices(
            layer, mode, other(arch.mlp[layer]), lambda name: other(attention.get_submodule(name)), min_dims=2
        )

    def _matrices(
        self,
        layer: int,
        mode: str,
        mlp: Module,
        of_attention: Callable[[str], Module],
        min_dims: int = 1,
    ) -> list[tuple[nn.Module, Forward]]:
        """MLP and modules of the attention, each with the forward that shares its rows.

        Args:
            layer: Layer number.
            mode: Whose rows.
            mlp: The other MLP.
            of_attention: From the path of a module in the attention to the other one.
            min_dims: Modules of the attention whose weights have fewer dimensions are left out.
        """
        arch, family = self.lens.arch, self.lens.arch.family
        heads, kv, attn, of_mlp = self._masks(layer, mode)
        forwards = [self._shared(layer, of_mlp, arch.mlp[layer], mlp)] if of_mlp.any() else []
        for name, module in arch.attn[layer].named_modules():
            own = [w.ndim for w in module.parameters(recurse=False)]
            if not own or max(own) < min_dims:
                continue
            is_output = module is arch.o_proj[layer]
            mask = kv if name in family.per_kv_head else heads if is_output or name in family.per_head else attn
            if mask.any():
                forwards.append(
                    self._shared(layer, mask, module, of_attention(name), _inputs if is_output else _outputs)
                )
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

    def _shared(
        self,
        layer: int,
        mask: Bool[Tensor, "row part"],
        module: nn.Module,
        other: Module,
        share: Callable[..., Forward] = _outputs,
    ) -> tuple[nn.Module, Forward]:
        """A module of the base with the forward that shares its rows with another module."""
        alone = len(self.by_layer[layer]) == 1 and layer not in self._routed
        shares = RowShares(mask, self.lens.device_of(layer), alone)
        return module, share(module, other, shares)

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
