"""What the conditions of a batch's rows do to each layer, as edits of tensors and as forward hooks.

Sites (pre-norm decoder, ``resid_mid = resid_pre + attn_out``, ``resid_post = resid_mid + mlp_out``):

- layer: ``resid_post`` is replaced by ``resid_pre`` (skip) or ``resid_pre`` + a contribution (the mean, or that to a
  reference prompt);
- attn, mlp: ``attn_out`` or ``mlp_out`` is replaced by zero, its mean, or that of a reference prompt;
- head, KV group: the head's slice of ``z``, the *input* of ``o_proj``, is replaced. Acting there and not on the
  query, key or value projections removes exactly one query head under grouped-query attention;
- layer ``x2``, block ``x2``: the first of the layers gets the output of the last once more;
- layer, attn, mlp, head or KV group under a mode that changes it (``@noise``, ``*0.9``, the user's own): what
  `depthlens.backends.changes` makes of what the part writes takes its place;
- any of these under ``@donor``, ``@int8`` or ``@int4``: the part is computed with other weights, see
  below.

Each acts at the positions from the ablation's ``start`` on. Hooks never write into tensors they did not make: they
select with ``torch.where``.

**Other weights.** A transplanted part keeps its place and gets the donor's weights: for the rows whose condition asks
for it the donor's module is called in place of the base's, wherever a module works on each position for itself
(projections, norms, MLPs, embedding, unembedding). Attention kernel, cache and residual stream stay the base model's,
so that rows with and without transplants share every batch of the wavefront, of decoding and of the plain path,
ablations among them. What goes along:

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

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from depthlens.ablations import Ablation, Condition, modes, refuse_overlap
from depthlens.backends import changes
from depthlens.backends.site_edits import Edit, LayerEdits, SiteEdit
from depthlens.errors import UserError
from depthlens.models import in_force, quantised
from depthlens.models.architectures import Architecture, here, hidden, replaced_forwards, with_hidden
from depthlens.models.lens import Lens
from depthlens.models.placement import moved

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
# where the ablations of a site act: on what a layer, its attention or its MLP gives, or on z of all heads, side by side
ACTS_ON = {"layer": "layer", "attn": "attn", "mlp": "mlp", "head": "z", "kv": "z"}


@dataclass(frozen=True)
class Means:
    """What ``@mean`` and ``@resample`` ablations put in place of a part, from a named reference.

    There are two means of each site, of first tokens and of all others: one mean over all positions would hold a part
    of the first token's state, which is larger than others by orders of magnitude. Without means they are empty.

    Attributes:
        name: What the reference set is, for the record.
        mean: By site: of what each whole layer adds to the residual stream (``layer``), of the output of its attention
            (``attn``) and of its MLP (``mlp``), each of shape [n_layers, token_class, d_model], and of the output of
            each head before ``o_proj`` (``z``), shape [n_layers, token_class, n_heads, d_head].
        sample: The same numbers at every position of one prompt, for ``@resample``: by site, each of shape
            [n_layers, pos, ...]. Sites that nothing asks for are left out; empty where there is no prompt.
    """

    name: str
    mean: Mapping[str, Tensor] = field(default_factory=dict)
    sample: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Means:
        """The same on a device."""
        return Means(self.name, *({k: x.to(device) for k, x in of.items()} for of in (self.mean, self.sample)))

    def values(self, a: Ablation) -> Float[Tensor, "entry width"]:
        """What an ablation puts in place at its site, by entry of `depthlens.backends.site_edits.Edit`."""
        of_reference = self.sample if modes.of(a.mode).needs == "prompt" else self.mean
        return of_reference[ACTS_ON[a.site]][a.layer].flatten(1)


@dataclass
class RowEdits:
    """Which rows of a batch are edited where, or take weights from elsewhere, and the hooks and forwards that do it.

    What is in force on the model (`depthlens.models.in_force`) comes first, in every row.

    Attributes:
        conditions: One per row, which `require` lets pass; a single one serves batches of any size.
        lens: The base model.
        means: What ``@mean`` and ``@resample`` put in place of a part; embedding and unembedding need none.
        position_ids: Where the tokens stand; only conditions that depend on it need them.
        tokens: Their ids; only modes of one's own need them.
        in_force: The same of each condition that is.
        by_layer: All ablations of each layer but those that pass it again, with their rows; -1: of embedding and
            unembedding.
        repeats: Ablations that pass layers again, with their rows; routes have them (`depthlens.ablations.routes`), and
            whole passes (`repeated`).
        layers: Those that are edited.
    """

    conditions: Sequence[Condition]
    lens: Lens
    means: Means | None = None
    position_ids: Int[Tensor, "#row pos"] | None = None
    tokens: Int[Tensor, "#row pos"] | None = None

    def __post_init__(self) -> None:
        self.donor: Any = self.lens.donor  # conditions that take weights from it are refused where there is none
        self.by_layer: dict[int, dict[Ablation, list[int]]] = {}
        self.repeats: dict[Ablation, list[int]] = {}
        for row, condition in enumerate(self.conditions):
            for a in condition.ablations:
                table = self.repeats if a.kind == "repeat" else self.by_layer.setdefault(a.layer, {})
                table.setdefault(a, []).append(row)
        entered = in_force.entered(self.lens.model)
        with in_force.aside():
            self.in_force: list[Any] = [
                RowEdits([one.condition], one.lens, one.means, self.position_ids, self.tokens) for one in entered
            ]
        edited = {*self.by_layer, *(layer for first in self.in_force for layer in first.layers)}
        self.layers: list[int] = sorted(layer for layer in edited if layer >= 0)

    def embeddings(self) -> AbstractContextManager[None]:
        """Within the context embedding, final norm and unembedding have the weights that each row asks for."""
        return replaced_forwards(self.forwards(-1))

    def forwards(self, layer: int) -> Iterator[tuple[nn.Module, Forward]]:
        """Modules, each with the forward that shares its rows; each forward calls those before it."""
        for first in self.in_force:
            yield from first.forwards(layer)
        of_layer = self.by_layer.get(layer, {})
        for mode in dict.fromkeys(a.mode for a in of_layer if a.kind == "weights"):
            for module, other, kind in self._modules(layer, mode):
                taken = self._mask(layer, mode, kind)
                whole = taken.all(1, keepdim=True)
                for mask in (taken & whole, taken & ~whole):
                    if mask.any():
                        by_input = layer >= 0 and module is self.lens.arch.o_proj[layer]
                        yield module, shared(module, other, mask, by_input=by_input)
            if modes.of(mode).needs == "donor" and layer >= 0:
                attn = self.lens.arch.attn[layer]
                if self.lens.own_rotary and (mask := self._mask(layer, mode, "attn")).any():
                    yield attn, self._with_donor_rotary(attn.forward, layer, mask)

    def _modules(self, layer: int, mode: str) -> Iterator[tuple[nn.Module, nn.Module, str]]:
        """Modules with weights, those that have others, and what they are made for, as in `TAKERS`."""
        arch, family = self.lens.arch, self.lens.arch.family
        if layer < 0:
            for name in ("embed", "final_norm", "unembed"):
                yield getattr(arch, name), getattr(self.donor.arch, name), name.replace("final_norm", "unembed")
            return
        base = arch.layers[layer]
        rounds = modes.of(mode).bits
        other = quantised.rounded_layer(self.lens, layer, mode) if rounds else self.donor.arch.layers[layer]
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
        arch = self.donor.arch

        def call(*args: Any, **kwargs: Any) -> Any:
            base = kwargs["position_embeddings"]  # one tensor, or cosine and sine: each [row or 1, pos, angle]
            x = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            donor = moved(arch.angles_at(arch.angles(x, kwargs["position_ids"]), layer), x.device)
            rows = mask[..., None].to(x.device)  # [row, 1, 1]
            mixed = pytree.tree_map(lambda d, b: torch.where(rows, d, b), donor, base)
            return forward(*args, **kwargs | {"position_embeddings": mixed})

        return call

    def at(self, layer: int) -> LayerEdits:
        """The edits of one layer, for whatever library provides the tensors."""
        before: dict[str, Any] = {}
        for first in self.in_force:
            before |= {site: replace(edit, before=before.get(site)) for site, edit in first.at(layer).items()}
        found: dict[str, list[Edit]] = {}
        # a head's come after its KV group's
        for a, rows in sorted(self.by_layer.get(layer, {}).items(), key=lambda item: item[0].site == "head"):
            if a.site in ACTS_ON and modes.of(a.mode).has_positions:
                found.setdefault(ACTS_ON[a.site], []).append(self._edit(a, rows))
        own = {site: SiteEdit(tuple(edits), self.position_ids, before.get(site)) for site, edits in found.items()}
        return before | own

    @contextmanager
    def hooked(self, layer: int) -> Iterator[None]:
        """Within the context the rows of one layer are edited by forward hooks; see `at`."""
        with replaced_forwards(self.forwards(layer)), hooks(self.lens.arch, layer, self.at(layer)):
            yield

    def _edit(self, a: Ablation, rows: list[int]) -> Edit:
        dims, columns = self.lens.arch.dims, slice(None)
        if a.site in ("head", "kv"):
            heads = range(a.index, a.index + 1) if a.site == "head" else dims.query_heads(a.index)
            columns = slice(heads.start * dims.d_head, heads.stop * dims.d_head)
        mine = None if len(self.conditions) == 1 else torch.tensor(rows)
        values = self.means.values(a)[:, columns] if self.means and a.kind == "reference" else None
        tokens = self.tokens if mine is None or self.tokens is None or len(self.tokens) == 1 else self.tokens[mine]
        change = changes.of(a, self.lens, columns, tokens) if a.kind == "change" else None
        return Edit(mine, columns, a.start, a.stop, values, change)


def require(conditions: Sequence[Condition], lens: Lens, means: Means | None) -> None:
    """Check conditions against a model.

    Raises:
        UserError: a condition does not fit the model, needs means or a prompt and there is none, or has a mode of one's
            own that does not do what it must.
    """
    entered = [a for one in in_force.entered(lens.model) for a in one.condition.ablations]
    for condition in dict.fromkeys(conditions):
        refuse_overlap([*entered, *condition.ablations], f"condition {condition}")
        changes.require(condition.validate(lens.dims), lens)
        if condition.uses("means") and not (means and means.mean):
            raise UserError(f"condition {condition} needs the means of a reference set and none was given")
        if condition.uses("prompt") and not (means and means.sample):
            raise UserError(f"condition {condition} needs a reference prompt and none was given")


@contextmanager
def hooks(arch: Architecture, layer: int, at: LayerEdits) -> Iterator[None]:
    """Within the context forward hooks put in place what the edits of a layer give at its sites."""

    def output(module: nn.Module, args: tuple, kwargs: dict, output: Any, edit: Any) -> Any:
        value = hidden(output)  # of some mixtures of experts with all tokens in one row
        given = args[0] if args else kwargs.get("hidden_states", value)
        base = moved(given, value.device) if module is arch.layers[layer] else None  # may be where the one before is
        return with_hidden(output, edit(value.reshape(given.shape), base).reshape(value.shape))

    with ExitStack() as stack:
        for site, edit in at.items():
            if site == "z":
                hook_z = partial(lambda edit, module, args: (edit(args[0]), *args[1:]), edit)
                stack.enter_context(arch.o_proj[layer].register_forward_pre_hook(here(hook_z)))
            else:
                module = {"layer": arch.layers, "attn": arch.attn, "mlp": arch.mlp}[site][layer]
                edited = here(partial(output, edit=edit))
                stack.enter_context(module.register_forward_hook(edited, with_kwargs=True))
        yield


@contextmanager
def repeated(edits: RowEdits) -> Iterator[None]:
    """Within the context layers that rows pass again run again as soon as the last of them has, in whole passes.

    The rows of a batch go together, and those that pass the layers once keep what they had. While layers run again,
    smaller blocks within them do as well.
    """
    n_rows, layers = len(edits.conditions), edits.lens.arch.layers
    found = [(a, None) for first in edits.in_force for a in first.repeats] + [*edits.repeats.items()]
    found.sort(key=lambda item: max(0, item[0].index - item[0].layer))
    called: dict[int, tuple[tuple, dict[str, Any]]] = {}  # what each layer was called with beside its input
    running = [(len(found), torch.ones(n_rows, dtype=torch.bool))]  # which block runs again, and for which rows

    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any], *, layer: int) -> None:
        called[layer] = args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"}

    def again(module: nn.Module, args: tuple, output: Any, *, number: int) -> Any:
        a, rows = found[number]
        outer, mine = running[-1]
        if rows is not None and n_rows > 1:
            mine = mine & torch.zeros(n_rows, dtype=torch.bool).index_fill(0, torch.tensor(rows), True)
        if number >= outer or not mine.any():
            return output
        running.append((number, mine))
        x = hidden(output)
        for layer in range(a.layer, max(a.layer, a.index) + 1):
            args, kwargs = called[layer]
            x = hidden(layers[layer](moved(x, edits.lens.device_of(layer)), *args, **kwargs))
        running.pop()
        return with_hidden(output, torch.where(mine.to(x.device)[:, None, None], x, moved(hidden(output), x.device)))

    with ExitStack() as stack:
        for layer in {layer for a, _ in found for layer in range(a.layer, max(a.layer, a.index) + 1)}:
            noted = here(partial(note, layer=layer))
            stack.enter_context(layers[layer].register_forward_pre_hook(noted, with_kwargs=True))
        for number, (a, _) in enumerate(found):
            hook = here(partial(again, number=number))
            stack.enter_context(layers[max(a.layer, a.index)].register_forward_hook(hook))
        yield


def unembed(lens: Lens, conditions: Sequence[Condition], states: Float[Tensor, "row d_model"]) -> Tensor:
    """Logits of final residual streams, before the last norm, under one condition a row. Shape [row, d_vocab]."""
    with RowEdits(conditions, lens).embeddings():
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
