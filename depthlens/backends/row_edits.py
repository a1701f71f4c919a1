"""What the conditions of a batch's rows do to each layer, as edits of tensors and as forward hooks.

Sites (pre-norm decoder, ``resid_mid = resid_pre + attn_out``, ``resid_post = resid_mid + mlp_out``):

- layer: ``resid_post`` is replaced by ``resid_pre`` (skip) or ``resid_pre`` + a contribution (the mean, or that to a
  reference prompt);
- attn, mlp: ``attn_out`` or ``mlp_out`` is replaced by zero, its mean, or that of a reference prompt;
- head, KV group: the head's slice of ``z``, the *input* of ``o_proj``, is replaced. Acting there and not on the
  query, key or value projections removes exactly one query head under grouped-query attention;
- layer ``x2``: the layer gets its own output once more;
- expert: the layer's router cannot choose it, see `depthlens.models.experts`;
- layer, attn, mlp, head or KV group under ``@noise``: noise is added there, see `depthlens.backends.noise`;
- any of these under ``@donor``, ``@int8`` or ``@int4``: the part is computed with other weights, see
  `depthlens.backends.weight_swap`.

Each acts at the positions from the ablation's ``start`` on. Hooks never write into tensors they did not make: they
select with ``torch.where``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from depthlens.ablations import WEIGHTS, Ablation, Condition
from depthlens.backends import noise, weight_swap
from depthlens.backends.protocol import Means
from depthlens.backends.site_edits import KEPT, MEAN, NOISE, RESAMPLE, ZERO, LayerEdits, Noise, SiteEdit
from depthlens.errors import UserError
from depthlens.models import experts
from depthlens.models.architectures import hidden, with_hidden
from depthlens.models.lens import Donor, Lens
from depthlens.models.placement import held, moved

_KINDS = {"mean": MEAN, "resample": RESAMPLE, "noise": NOISE}


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
        for condition in dict.fromkeys(conditions):
            condition.validate(lens.dims)
            if condition.uses("donor") and donor is None:
                raise UserError(f"condition {condition} takes weights from a donor, and none was given")
            if condition.uses("mean") and (means is None or not means.measured):
                raise UserError(f"condition {condition} needs the means of a reference set and none was given")
            if condition.uses("resample") and (means is None or means.sample is None):
                raise UserError(f"condition {condition} needs a reference prompt and none was given")
            if condition.uses_positions and position_ids is None:
                raise UserError(f"condition {condition} needs to know positions, which only a sweep gives")
        self.by_layer: dict[int, list[tuple[int, Ablation]]] = {}
        for row, condition in enumerate(conditions):
            for ablation in condition.ablations:
                if ablation.mode not in WEIGHTS:
                    self.by_layer.setdefault(ablation.layer, []).append((row, ablation))
        self.donations = weight_swap.RowDonations(conditions, lens, donor)
        self.layers = sorted({*self.by_layer, *self.donations.layers})

    def at(self, layer: int, keep: Int[Tensor, " kept"] | None = None) -> LayerEdits:
        """The edits of one layer, for whatever library provides the tensors.

        Args:
            layer: Layer number.
            keep: Positions of the batch that go on after the attention, as in `Architecture.step`; None: all.
        """
        position_ids = late = self.position_ids
        if keep is not None and position_ids is not None:
            late = position_ids[:, keep.to(position_ids.device)]
        twice = torch.zeros(self.n_rows, dtype=torch.bool)
        twice[[row for row, a in self.by_layer.get(layer, []) if a.mode == "twice"]] = True
        return LayerEdits(
            self._site(layer, ("layer",), late),
            self._site(layer, ("attn",), position_ids),
            self._site(layer, ("mlp",), late),
            self._site(layer, ("head", "kv"), position_ids),
            self._routing(layer, late),
            twice if twice.any() else None,
        )

    def routers(self, view: nn.Module) -> list[tuple[nn.Module, weight_swap.Forward]]:
        """Routers of another library's copy of the model, each with the forward that its rows ask for."""
        found = [(self.arch.routers[layer], self._routing(layer, self.position_ids)) for layer in self.layers]
        return [routing.around(experts.same_router(view, router)) for router, routing in found if router and routing]

    @contextmanager
    def hooked(self, layer: int, keep: Int[Tensor, " kept"] | None = None) -> Iterator[LayerEdits]:
        """Within the context the rows of one layer are edited by forward hooks; see `at`."""
        arch, at = self.arch, self.at(layer, keep)
        with ExitStack() as stack:
            if at.twice is not None:
                stack.enter_context(_twice(arch.layers[layer], at.twice))
            if layer in self.donations.layers:
                stack.enter_context(self.donations.layer(layer))
            if (edit_layer := at.layer) is not None:

                def skip(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
                    resid_pre = args[0] if args else kwargs["hidden_states"]  # may be where the layer before is
                    resid_post = hidden(output)
                    return with_hidden(output, edit_layer(resid_post, moved(resid_pre, resid_post.device)))

                stack.enter_context(arch.layers[layer].register_forward_hook(skip, with_kwargs=True))
            for edit, modules in ((at.attn, arch.attn), (at.mlp, arch.mlp)):
                if edit is not None:

                    def replace(module: nn.Module, args: tuple, output: Any, edit: SiteEdit = edit) -> Any:
                        value = hidden(output)  # of some mixtures of experts with all tokens in one row
                        rows = value.reshape(args[0].shape) if args else value
                        return with_hidden(output, edit(rows).reshape(value.shape))

                    stack.enter_context(modules[layer].register_forward_hook(replace))
            if (router := arch.routers[layer]) is not None and at.routing is not None:
                stack.enter_context(weight_swap.replaced_forwards([at.routing.around(router.module)]))
            if (edit_z := at.z) is not None:

                def replace_z(module: nn.Module, args: tuple) -> tuple:
                    return edit_z(args[0]), *args[1:]

                stack.enter_context(arch.o_proj[layer].register_forward_pre_hook(replace_z))
            yield at

    def _routing(self, layer: int, position_ids: Int[Tensor, "#row pos"] | None) -> experts.Routing | None:
        """What the router of a layer runs in; None where no row does without an expert."""
        ablations = [(row, a) for row, a in self.by_layer.get(layer, []) if a.site == "expert"]
        if not ablations:
            return None
        n_experts = self.arch.dims.n_experts[layer]
        device = self.lens.device_of(layer)
        removed = experts.removed(ablations, self.n_rows, n_experts, moved(position_ids, device), device)
        return experts.Routing(n_experts, removed)

    def _site(self, layer: int, sites: Sequence[str], position_ids: Int[Tensor, "#row pos"] | None) -> SiteEdit | None:
        """The edit of one site, whose parts are all heads or a single one; None where no row is edited there."""
        ablations = [(row, a) for row, a in self.by_layer.get(layer, []) if a.site in sites and a.mode != "twice"]
        if not ablations:
            return None
        dims, of_heads = self.arch.dims, "head" in sites
        kind = torch.full((self.n_rows, 1, dims.n_heads if of_heads else 1), KEPT)
        start, noises = torch.zeros_like(kind), []
        for row, a in sorted(ablations, key=lambda edit: edit[1].site == "head"):  # after its KV group
            parts = [0] if not of_heads else [a.index] if a.site == "head" else [*dims.query_heads(a.index)]
            kind[row, 0, parts], start[row, 0, parts] = _KINDS.get(a.mode, ZERO), a.start
            if a.mode == "noise":
                noises.append(self._noise(row, a, parts, position_ids))
        table = None
        if self.means is not None and any(a.mode in ("mean", "resample") for _, a in ablations):
            table = self.means.table("z" if of_heads else sites[0], layer)
        return SiteEdit(kind, start if start.any() else None, table, tuple(noises), position_ids)

    def _noise(self, row: int, a: Ablation, parts: list[int], position_ids: Any) -> Noise:
        positions = position_ids if len(position_ids) == 1 else position_ids[row : row + 1]
        if self.n_rows == 1:  # a condition that serves all rows
            positions = position_ids
        of_heads = a.site in ("head", "kv")
        width = self.arch.dims.d_head if of_heads else self.arch.dims.d_model
        columns = None
        if of_heads:
            with held(o_proj := self.arch.o_proj[a.layer]):
                columns = noise.columns(o_proj, [p * width + i for p in parts for i in range(width)], a)
        rows = slice(None) if self.n_rows == 1 else slice(row, row + 1)
        return Noise(rows, parts, noise.draw(a, positions, len(parts) * width), columns)


@contextmanager
def _twice(layer: nn.Module, rows: Bool[Tensor, " row"]) -> Iterator[None]:
    """Within the context some rows go through a layer again; it comes before other hooks, which see the second run."""
    forward = layer.forward

    def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        first = forward(x, *args, **kwargs)
        again, here = forward(hidden(first), *args, **kwargs), rows[:, None, None].to(hidden(first).device)
        return with_hidden(first, torch.where(here, hidden(again), hidden(first)))

    with weight_swap.replaced_forwards([(layer, call)]):
        yield
