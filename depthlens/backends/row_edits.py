"""What the conditions of a batch's rows do to each layer, as edits of tensors and as forward hooks.

Sites (pre-norm decoder, ``resid_mid = resid_pre + attn_out``, ``resid_post = resid_mid + mlp_out``):

- layer: ``resid_post`` is replaced by ``resid_pre`` (skip) or ``resid_pre`` + a contribution (the mean, or that to a
  reference prompt);
- attn, mlp: ``attn_out`` or ``mlp_out`` is replaced by zero, its mean, or that of a reference prompt;
- head, KV group: the head's slice of ``z``, the *input* of ``o_proj``, is replaced. Acting there and not on the
  query, key or value projections removes exactly one query head under grouped-query attention;
- layer ``x2``: the layer gets its own output once more;
- expert: the layer's router cannot choose it, see `depthlens.models.architectures.Routing`;
- layer, attn, mlp, head or KV group under ``@noise``: noise is added there, see `depthlens.backends.noise`;
- any of these under ``@donor``, ``@int8`` or ``@int4``: the part is computed with other weights, see
  `depthlens.backends.weight_swap`.

Each acts at the positions from the ablation's ``start`` on. Hooks never write into tensors they did not make: they
select with ``torch.where``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from depthlens.ablations import WEIGHTS, Ablation, Condition
from depthlens.backends import noise, weight_swap
from depthlens.backends.site_edits import Edit, LayerEdits, SiteEdit
from depthlens.errors import UserError
from depthlens.models import quantised
from depthlens.models.architectures import Architecture, Routing, hidden, replaced_forwards, with_hidden
from depthlens.models.lens import Donor, Lens
from depthlens.models.placement import held, moved

NO_MEANS = torch.zeros(0, 0, 0)


@dataclass(frozen=True)
class Means:
    """What ``@mean`` and ``@resample`` ablations put in place of a part, from a named reference.

    There are two means of each site, of first tokens and of all others: one mean over all positions would hold a part
    of the first token's state, which is larger than others by orders of magnitude. Without means they are empty.

    Attributes:
        name: What the reference set is, for the record.
        layer: Mean of what each whole layer adds to the residual stream.
        attn: Mean output of each attention sublayer.
        mlp: Mean output of each MLP sublayer.
        z: Mean output of each head before ``o_proj``.
        sample: The same numbers at every position of one prompt, for ``@resample``: by site (``layer``, ``attn``,
            ``mlp``, ``z``), each of shape [n_layers, pos, ...]. Sites that nothing asks for are left out; None where
            there is no prompt.
    """

    name: str
    layer: Float[Tensor, "n_layers token_class d_model"] = NO_MEANS
    attn: Float[Tensor, "n_layers token_class d_model"] = NO_MEANS
    mlp: Float[Tensor, "n_layers token_class d_model"] = NO_MEANS
    z: Float[Tensor, "n_layers token_class n_heads d_head"] = NO_MEANS[..., None]
    sample: Mapping[str, Tensor] | None = None

    def to(self, device: torch.device | str) -> Means:
        """The same on a device."""
        means = {name: getattr(self, name).to(device) for name in ("layer", "attn", "mlp", "z")}
        sample = self.sample and {site: value.to(device) for site, value in self.sample.items()}
        return replace(self, **means, sample=sample)

    def values(self, a: Ablation) -> Float[Tensor, "entry width"]:
        """What an ablation puts in place at its site, by entry of `depthlens.backends.site_edits.Edit`."""
        site = "z" if a.site in ("head", "kv") else a.site
        of_site = (self.sample or {})[site] if a.mode == "resample" else getattr(self, site)
        return of_site[a.layer].flatten(1)


def classes(position_ids: Int[Tensor, "#row pos"]) -> Int[Tensor, "#row pos"]:
    """Which mean is of each token: 0 for the first of its sequence, which draws attention whatever it is, else 1."""
    return (position_ids > 0).long()


class RowEdits:
    """Which rows of a batch are edited where, and the hooks that do it.

    Args:
        conditions: One per row; a single one serves batches of any size.
        lens: A loaded model.
        means: What ``@mean`` and ``@resample`` put in place of a part.
        position_ids: Where the tokens stand; only conditions that depend on it need them.
        donor: What ``@donor`` takes weights from; None also where a backend cannot.

    Raises:
        UserError: a condition does not fit the model, or needs means, a prompt, positions or a donor and there is none.
    """

    def __init__(
        self,
        conditions: Sequence[Condition],
        lens: Lens,
        means: Means | None,
        position_ids: Int[Tensor, "#row pos"] | None = None,
        donor: Donor | None = None,
    ) -> None:
        self.lens = lens
        self.arch = lens.arch
        self.means = means
        self.position_ids = position_ids
        self.n_rows = len(conditions)
        rows_of: dict[Condition, list[int]] = {}
        for row, condition in enumerate(conditions):
            rows_of.setdefault(condition, []).append(row)
        self.by_layer: dict[int, dict[Ablation, list[int]]] = {}
        for condition, rows in rows_of.items():
            condition.validate(lens.dims)
            if condition.uses("donor") and donor is None:
                raise UserError(f"condition {condition} takes weights from a donor, and none was given")
            if condition.uses("mean") and (means is None or not len(means.layer)):
                raise UserError(f"condition {condition} needs the means of a reference set and none was given")
            if condition.uses("resample") and (means is None or means.sample is None):
                raise UserError(f"condition {condition} needs a reference prompt and none was given")
            if condition.uses_positions and position_ids is None:
                raise UserError(f"condition {condition} needs to know positions, which only a sweep gives")
            for ablation in condition.ablations:
                if ablation.mode not in WEIGHTS:
                    self.by_layer.setdefault(ablation.layer, {}).setdefault(ablation, []).extend(rows)
        self.donations = weight_swap.RowDonations(conditions, lens, donor)
        self.layers = sorted({*self.by_layer, *self.donations.layers})

    def at(self, layer: int) -> LayerEdits:
        """The edits of one layer, for whatever library provides the tensors."""
        twice = torch.zeros(self.n_rows, dtype=torch.bool)
        twice[[row for a, rows in self.by_layer.get(layer, {}).items() if a.mode == "twice" for row in rows]] = True
        whole, attn, mlp = (self._site(layer, site) for site in ("layer", "attn", "mlp"))
        z, routing = self._site(layer, "kv", "head"), self._routing(layer)
        return LayerEdits(whole, attn, mlp, z, routing, twice if twice.any() else None)

    def routers(self, view: nn.Module) -> list[tuple[nn.Module, weight_swap.Forward]]:
        """Routers of another library's copy of the model, each with the forward that its rows ask for."""
        found = [(self.arch.routers[layer], self._routing(layer)) for layer in self.layers]
        return [routing.around(router, view) for router, routing in found if router and routing]

    @contextmanager
    def hooked(self, layer: int) -> Iterator[None]:
        """Within the context the rows of one layer are edited by forward hooks; see `at`."""
        at = self.at(layer)
        with ExitStack() as stack:
            if at.twice is not None:
                stack.enter_context(_twice(self.arch.layers[layer], at.twice))
            if layer in self.donations.layers:
                stack.enter_context(self.donations.layer(layer))
            stack.enter_context(hooks(self.arch, layer, at))
            if (router := self.arch.routers[layer]) is not None and at.routing is not None:
                stack.enter_context(replaced_forwards([at.routing.around(router)]))
            yield

    def _routing(self, layer: int) -> Routing | None:
        """What the router of a layer runs in; None where no row does without an expert."""
        of_layer = self.by_layer.get(layer, {})
        ablations = [(row, a) for a, rows in of_layer.items() if a.site == "expert" for row in rows]
        if not ablations:
            return None
        n_experts = self.arch.dims.n_experts[layer]
        device = self.lens.device_of(layer)
        return Routing(n_experts, ablations, self.n_rows, moved(self.position_ids, device), device)

    def _site(self, layer: int, *sites: str) -> SiteEdit | None:
        """The edit of one site, a head's after its KV group's; None where no row is edited there."""
        of_layer = self.by_layer.get(layer, {})
        ablations = [a for site in sites for a in of_layer if a.site == site and a.mode != "twice"]
        edits = tuple(self._edit(a, of_layer[a]) for a in ablations)
        return SiteEdit(edits, self.position_ids) if edits else None

    def _edit(self, a: Ablation, rows: list[int]) -> Edit:
        dims, columns, in_stream = self.arch.dims, slice(None), None
        if a.site in ("head", "kv"):
            heads = range(a.index, a.index + 1) if a.site == "head" else dims.query_heads(a.index)
            columns = slice(heads.start * dims.d_head, heads.stop * dims.d_head)
            if a.mode == "noise":
                with held(o_proj := self.arch.o_proj[a.layer]):
                    in_stream = quantised.matrix(o_proj)[:, columns].clone()
        return Edit(
            None if self.n_rows == 1 else torch.tensor(rows),
            columns,
            a.start,
            self.means.values(a)[:, columns] if self.means and a.mode in ("mean", "resample") else None,
            partial(noise.like, a, in_stream) if a.mode == "noise" else None,
        )


@contextmanager
def hooks(arch: Architecture, layer: int, at: LayerEdits) -> Iterator[None]:
    """Within the context forward hooks put in place what the edits of a layer give at its sites."""

    def output(module: nn.Module, args: tuple, kwargs: dict, output: Any, edit: Any) -> Any:
        value = hidden(output)  # of some mixtures of experts with all tokens in one row
        base = None
        if module is arch.layers[layer]:
            base = moved(args[0] if args else kwargs["hidden_states"], value.device)  # may be where the one before is
        return with_hidden(output, edit(value.reshape(args[0].shape) if args else value, base).reshape(value.shape))

    with ExitStack() as stack:
        for edit, modules in ((at.layer, arch.layers), (at.attn, arch.attn), (at.mlp, arch.mlp)):
            if edit is not None:
                hook = partial(output, edit=edit)
                stack.enter_context(modules[layer].register_forward_hook(hook, with_kwargs=True))
        if (edit_z := at.z) is not None:
            o_proj = arch.o_proj[layer]
            stack.enter_context(o_proj.register_forward_pre_hook(lambda module, args: (edit_z(args[0]), *args[1:])))
        yield


@contextmanager
def _twice(layer: nn.Module, rows: Bool[Tensor, " row"]) -> Iterator[None]:
    """Within the context some rows go through a layer again; it comes before other hooks, which see the second run."""
    forward = layer.forward

    def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        first = forward(x, *args, **kwargs)
        again, here = forward(hidden(first), *args, **kwargs), rows[:, None, None].to(hidden(first).device)
        return with_hidden(first, torch.where(here, hidden(again), hidden(first)))

    with replaced_forwards([(layer, call)]):
        yield
