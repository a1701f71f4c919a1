"""What the conditions of a batch's rows do to each layer, as functions of tensors and as forward hooks.

Sites (pre-norm decoder, ``resid_mid = resid_pre + attn_out``, ``resid_post = resid_mid + mlp_out``):

- layer: ``resid_post`` is replaced by ``resid_pre`` (skip) or ``resid_pre`` + a contribution (the mean, or that to a
  reference prompt);
- attn, mlp: ``attn_out`` or ``mlp_out`` is replaced by zero, its mean, or that of a reference prompt;
- head, KV group: the head's slice of ``z``, the *input* of ``o_proj``, is replaced. Acting there and not on the
  query, key or value projections removes exactly one query head under grouped-query attention;
- layer ``x2``: the layer gets its own output once more, and keeps keys and values of the second run apart;
- expert: the layer's router cannot choose it, see `depthlens.backends.expert_removal`;
- layer, attn, mlp, head or KV group under ``@noise``: noise is added there, see `depthlens.backends.noise`;
- any of these under ``@donor``, ``@int8`` or ``@int4``: the part is computed with other weights, see
  `depthlens.backends.weight_swap`.

Each acts at the positions from the ablation's ``start`` on. Hooks never write into tensors they did not make: they
select with ``torch.where``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache

from depthlens.ablations import WEIGHTS, Ablation, Condition
from depthlens.backends import expert_removal, noise, weight_swap
from depthlens.backends.protocol import Means, classes
from depthlens.errors import UserError
from depthlens.models import experts, quantised
from depthlens.models.architectures import hidden, with_hidden
from depthlens.models.lens import Donor, Lens
from depthlens.models.placement import held, moved

Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LayerEdits:
    """Edits of one layer, row by row; None where no row is edited.

    Attributes:
        layer: From ``resid_pre`` and ``resid_post`` to the new ``resid_post``. All of shape [row, pos, d_model].
        attn: From ``attn_out`` to the new one. Shape [row, pos, d_model].
        mlp: From ``mlp_out`` to the new one. Shape [row, pos, d_model].
        z: From all heads' ``z``, side by side, to the new ones. Shape [row, pos, n_heads * d_head].
        routing: What the layer's router runs in.
        twice: Rows that go through the layer twice. Shape [row].
    """

    layer: Callable[[Tensor, Tensor], Tensor] | None
    attn: Edit | None
    mlp: Edit | None
    z: Edit | None
    routing: expert_removal.Routing | None
    twice: Bool[Tensor, " row"] | None


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
        """The edits of one layer as functions of tensors, for whatever library provides the tensors.

        Args:
            layer: Layer number.
            keep: Positions of the batch that go on after the attention, as in `Architecture.step`; None: all.
        """
        position_ids, keep = moved((self.position_ids, keep), self.lens.device_of(layer))
        late = position_ids if keep is None or position_ids is None else position_ids[:, keep]
        of_layer = self._site(layer, ("layer",), late)
        attn, mlp = self._site(layer, ("attn",), position_ids), self._site(layer, ("mlp",), late)
        heads, n_heads = self._site(layer, ("head", "kv"), position_ids), self.arch.dims.n_heads

        def skip(resid_pre: Tensor, resid_post: Tensor) -> Tensor:
            assert of_layer
            return of_layer(resid_post[:, :, None], resid_pre[:, :, None])[:, :, 0]

        def replace(site: SiteEdit, value: Tensor) -> Tensor:
            return site(value[:, :, None], value.new_zeros(()))[:, :, 0]

        def replace_z(flat: Tensor) -> Tensor:
            assert heads
            z = flat.unflatten(-1, (n_heads, -1))  # [row, pos, n_heads, d_head]
            return heads(z, z.new_zeros(())).flatten(-2)

        return LayerEdits(
            skip if of_layer else None,
            (lambda value: replace(attn, value)) if attn else None,
            (lambda value: replace(mlp, value)) if mlp else None,
            replace_z if heads else None,
            self._routing(layer, late),
            self._twice(layer),
        )

    def routers(self, view: nn.Module) -> list[tuple[nn.Module, weight_swap.Forward]]:
        """Routers of another library's copy of the model, each with the forward that its rows ask for."""
        found = [(self.arch.routers[layer], self._routing(layer, self.position_ids)) for layer in self.layers]
        return [routing.around(experts.same_router(view, router)) for router, routing in found if router and routing]

    @contextmanager
    def hooked(self, layer: int, keep: Int[Tensor, " kept"] | None = None, cache: Any = None) -> Iterator[LayerEdits]:
        """Within the context the rows of one layer are edited by forward hooks; see `at`.

        Args:
            layer: Layer number.
            keep: See `at`.
            cache: Keys and values of second runs (transformers' class), where texts are written.
        """
        arch, at = self.arch, self.at(layer, keep)
        with ExitStack() as stack:
            if at.twice is not None:
                stack.enter_context(_twice(arch.layers[layer], at.twice, cache))
            if layer in self.donations.layers:
                stack.enter_context(self.donations.layer(layer))
            if (edit_layer := at.layer) is not None:

                def skip(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
                    resid_pre = args[0] if args else kwargs["hidden_states"]  # may be where the layer before is
                    resid_post = hidden(output)
                    return with_hidden(output, edit_layer(moved(resid_pre, resid_post.device), resid_post))

                stack.enter_context(arch.layers[layer].register_forward_hook(skip, with_kwargs=True))
            for edit, modules in ((at.attn, arch.attn), (at.mlp, arch.mlp)):
                if edit is not None:

                    def replace(module: nn.Module, args: tuple, output: Any, edit: Edit = edit) -> Any:
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

    def _twice(self, layer: int) -> Bool[Tensor, " row"] | None:
        twice = torch.zeros(self.n_rows, dtype=torch.bool)
        twice[[row for row, a in self.by_layer.get(layer, []) if a.mode == "twice"]] = True
        return twice.to(self.lens.device_of(layer)) if twice.any() else None

    def _routing(self, layer: int, position_ids: Int[Tensor, "#row pos"] | None) -> expert_removal.Routing | None:
        """What the router of a layer runs in; None where no row does without an expert."""
        ablations = [(row, a) for row, a in self.by_layer.get(layer, []) if a.site == "expert"]
        if not ablations:
            return None
        n_experts = self.arch.dims.n_experts[layer]
        device = self.lens.device_of(layer)
        removed = expert_removal.removed(ablations, self.n_rows, n_experts, position_ids, device)
        return expert_removal.Routing(n_experts, removed)

    def _site(self, layer: int, sites: Sequence[str], position_ids: Int[Tensor, "#row pos"] | None) -> SiteEdit | None:
        """The edit of one site, whose parts are all heads or a single one; None where no row is edited there."""
        ablations = [(row, a) for row, a in self.by_layer.get(layer, []) if a.site in sites and a.mode != "twice"]
        if not ablations:
            return None
        dims, of_heads = self.arch.dims, "head" in sites
        parts_of = [
            [0] if not of_heads else [a.index] if a.site == "head" else [*dims.query_heads(a.index)]
            for _, a in ablations
        ]
        edits = [(row, a, parts) for (row, a), parts in zip(ablations, parts_of, strict=True)]
        mean = sample = None
        if self.means is not None and any(a.mode == "mean" for _, a in ablations):
            mean = self.means.z[layer] if of_heads else getattr(self.means, sites[0])[layer][:, None]
        if self.means is not None and position_ids is not None and any(a.mode == "resample" for _, a in ablations):
            sample = self.means.sampled("z" if of_heads else sites[0], layer, position_ids)
            sample = sample if of_heads else sample[:, :, None]
        o_proj = self.arch.o_proj[layer] if of_heads else None
        n_parts = dims.n_heads if of_heads else 1
        return SiteEdit(edits, (self.n_rows, n_parts), position_ids, mean, sample, o_proj, self.lens.device_of(layer))


@contextmanager
def _twice(layer: nn.Module, rows: Bool[Tensor, " row"], cache: Any) -> Iterator[None]:
    """Within the context some rows go through a layer again; it comes before other hooks, which see the second run."""
    forward = layer.forward

    def other(value: Any) -> Any:
        return cache if isinstance(value, Cache) else value

    def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        first = forward(x, *args, **kwargs)
        again = forward(hidden(first), *map(other, args), **{name: other(value) for name, value in kwargs.items()})
        return with_hidden(first, torch.where(rows[:, None, None], hidden(again), hidden(first)))

    with weight_swap.replaced_forwards([(layer, call)]):
        yield


class SiteEdit:
    """The edit of one site of a layer, for all rows and parts (heads; else there is one part).

    Args:
        edits: Row, ablation, and the parts that it is about.
        shape: Numbers of rows and parts.
        position_ids: Where the tokens stand, if an ablation depends on it.
        mean: What ``@mean`` puts in place, by class of the token.
        sample: What ``@resample`` puts in place, by position.
        o_proj: What the heads' z goes through, where the parts are heads.
        device: Where the tensors are.
    """

    def __init__(
        self,
        edits: Sequence[tuple[int, Ablation, list[int]]],
        shape: tuple[int, int],
        position_ids: Int[Tensor, "#row pos"] | None,
        mean: Float[Tensor, "token_class part width"] | None,
        sample: Float[Tensor, "row pos part width"] | None,
        o_proj: nn.Module | None,
        device: torch.device,
    ) -> None:
        self.position_ids = position_ids
        self.mean = mean
        self.sample = sample
        self.o_proj = o_proj
        self.n_rows, n_parts = shape
        self.noisy = [edit for edit in edits if edit[1].mode == "noise"]
        masks = {mode: torch.zeros(self.n_rows, 1, n_parts, 1, dtype=torch.bool) for mode in ("", "mean", "resample")}
        starts = torch.zeros(self.n_rows, 1, n_parts, 1, dtype=torch.long)
        for row, a, parts in edits:
            masks[""][row, :, parts] = True
            starts[row, :, parts] = a.start
            if a.mode in masks:
                masks[a.mode][row, :, parts] = True
        self.edited, self.by_mean, self.by_sample = (mask.to(device) for mask in masks.values())
        self.starts = starts.to(device) if starts.any() else None

    def __call__(
        self, value: Float[Tensor, "row pos part width"], base: Float[Tensor, "*_"]
    ) -> Float[Tensor, "row pos part width"]:
        """The new value.

        Args:
            value: What the model computes there.
            base: What is there without the part: ``resid_pre`` of a layer, else 0.
        """
        new = base
        if self.mean is not None and self.position_ids is not None:
            new = torch.where(self.by_mean, base + self.mean.to(value)[classes(self.position_ids)], new)
        if self.sample is not None:
            new = torch.where(self.by_sample, base + self.sample.to(value), new)
        if self.noisy:
            new = self._with_noise(value, base, new)
        return torch.where(self._active(), new, value)

    def _active(self) -> Tensor:
        """Where rows are edited, of shape [row, pos or 1, part, 1]."""
        if self.starts is None or self.position_ids is None:
            return self.edited
        return self.edited & (self.position_ids[:, :, None, None] >= self.starts)

    def _with_noise(self, value: Tensor, base: Tensor, new: Tensor) -> Float[Tensor, "row pos part width"]:
        """``new``, but for the noisy parts what the model computes and noise of the norm of what the part writes."""
        assert self.position_ids is not None
        new = new.expand_as(value).clone()
        written = value - base
        for row, ablation, parts in self.noisy:
            rows = slice(None) if self.n_rows == 1 else slice(row, row + 1)
            position_ids = self.position_ids
            position_ids = position_ids if len(position_ids) == 1 else position_ids[rows]
            of_part = written[rows, :, parts].flatten(2)  # [row, pos, part * width]
            drawn = noise.draw(ablation, position_ids, of_part.shape[-1])
            columns = None
            if self.o_proj is not None:
                with held(self.o_proj):
                    width = value.shape[-1]
                    columns = quantised.columns(self.o_proj, [p * width + i for p in parts for i in range(width)])
            added = noise.scaled(drawn, of_part, columns).unflatten(-1, (len(parts), -1))
            new[rows, :, parts] = value[rows, :, parts] + added.to(value)
        return new
