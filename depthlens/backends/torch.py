"""Reference backend: plain PyTorch hooks on the Hugging Face module, one condition per row of the batch.

Sites (pre-norm decoder, ``resid_mid = resid_pre + attn_out``, ``resid_post = resid_mid + mlp_out``):

- layer: ``resid_post`` is replaced by ``resid_pre`` (skip) or ``resid_pre`` + mean contribution;
- attn, mlp: ``attn_out`` or ``mlp_out`` is replaced by zero or its mean;
- head, KV group: the head's slice of ``z``, the *input* of ``o_proj``, is replaced. Acting there and not on the
  query, key or value projections removes exactly one query head under grouped-query attention;
- any of these under ``@donor``: the part is computed with another model's weights, see
  `depthlens.backends.weight_swap`.

Hooks never write into tensors they did not make: they select with ``torch.where``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from depthlens.ablations import Ablation, Condition
from depthlens.backends import weight_swap
from depthlens.backends.forward_arguments import arguments, logits
from depthlens.backends.protocol import Means, Positions
from depthlens.errors import UserError
from depthlens.models.architectures import hidden, with_hidden
from depthlens.models.lens import Donor, Lens


class TorchBackend:
    """Applies conditions with forward hooks; correct for every kind of condition on every supported family."""

    name = "torch"

    def __init__(self, lens: Lens, means: Means | None = None) -> None:
        self.lens = lens
        self.means = means

    @contextmanager
    def ablate(
        self, conditions: Sequence[Condition], position_ids: Int[Tensor, "#row pos"] | None = None
    ) -> Iterator[None]:
        """Within the context, row ``i`` of every batch runs under ``conditions[i]``; after it the model is whole again.

        ``position_ids`` are needed by ``@resample`` only.

        Raises:
            UserError: a condition does not fit the model, or asks for a mean and none was given. Nothing is hooked.
        """
        edits = RowEdits(conditions, self.lens, self.means, position_ids, self.lens.donor)
        with ExitStack() as stack:
            stack.enter_context(edits.donations.embeddings())
            for layer in edits.layers:
                stack.enter_context(edits.hooked(layer))
            yield

    @torch.no_grad()
    def forward(
        self,
        tokens: Int[Tensor, "row pos"],
        attention_mask: Int[Tensor, "row cached_and_pos"],
        conditions: Sequence[Condition],
        *,
        cache: Any = None,
        positions: Positions | None = None,
    ) -> tuple[list[Float[Tensor, "_ d_vocab"]], Any]:
        """See `depthlens.backends.protocol.Backend.forward`."""
        kwargs = arguments(self.lens, tokens, attention_mask, cache, keep_cache=positions is None)
        del kwargs["logits_to_keep"]  # the model below its unembedding
        with self.ablate(conditions, kwargs["position_ids"]):
            out = self.lens.model.base_model(input_ids=tokens, **kwargs)
        positions = positions or [[tokens.shape[1] - 1]] * len(tokens)
        donations = weight_swap.RowDonations(
            [c for c, asked in zip(conditions, positions, strict=True) for _ in asked], self.lens, self.lens.donor
        )
        with donations.embeddings():
            return logits(out.last_hidden_state, self.lens.arch.unembed, positions), kwargs["cache"]


Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LayerEdits:
    """Edits of one layer, row by row; None where no row is edited.

    Attributes:
        layer: From ``resid_pre`` and ``resid_post`` to the new ``resid_post``. All of shape [row, pos, d_model].
        attn: From ``attn_out`` to the new one. Shape [row, pos, d_model].
        mlp: From ``mlp_out`` to the new one. Shape [row, pos, d_model].
        z: From all heads' ``z``, side by side, to the new ones. Shape [row, pos, n_heads * d_head].
    """

    layer: Callable[[Tensor, Tensor], Tensor] | None
    attn: Edit | None
    mlp: Edit | None
    z: Edit | None


class RowEdits:
    """Which rows of a batch are edited where, and the hooks that do it.

    Args:
        conditions: One per row.
        lens: A loaded model.
        means: What ``@mean`` and ``@resample`` put in place of a part.
        position_ids: Position of each token in its sequence, which ``@resample`` needs.
        donor: What ``@donor`` takes weights from; None also where a backend cannot.

    Raises:
        UserError: a condition does not fit the model, or needs means, a prompt or a donor and there is none.
    """

    def __init__(
        self,
        conditions: Sequence[Condition],
        lens: Lens,
        means: Means | None,
        position_ids: Int[Tensor, "#row pos"] | None = None,
        donor: Donor | None = None,
    ) -> None:
        self.arch = lens.arch
        self.means = means
        self.position_ids = position_ids
        self.device = lens.device
        self.n_rows = len(conditions)
        for condition in dict.fromkeys(conditions):
            condition.validate(lens.dims)
            if condition.uses_donor and donor is None:
                raise UserError(f"condition {condition} takes weights from a donor, and none was given")
            if condition.uses_mean and means is None:
                raise UserError(f"condition {condition} needs the means of a reference set and none was given")
            if condition.uses_resample and (means is None or means.sample is None):
                raise UserError(f"condition {condition} needs a reference prompt and none was given")
            if condition.uses_resample and position_ids is None:
                raise UserError(f"condition {condition} needs to know positions, which only a sweep gives")
        self.by_layer: dict[int, list[tuple[int, Ablation]]] = {}
        for row, condition in enumerate(conditions):
            for ablation in condition.ablations:
                if ablation.mode != "donor":
                    self.by_layer.setdefault(ablation.layer, []).append((row, ablation))
        self.donations = weight_swap.RowDonations(conditions, lens, donor)
        self.layers = sorted({*self.by_layer, *self.donations.layers})

    def at(self, layer: int) -> LayerEdits:
        """The edits of one layer as functions of tensors, for whatever library provides the tensors."""
        return LayerEdits(self._skip(layer), self._replace(layer, "attn"), self._replace(layer, "mlp"), self._z(layer))

    @contextmanager
    def hooked(self, layer: int) -> Iterator[None]:
        """Within the context the rows of one layer are edited by forward hooks."""
        arch, at = self.arch, self.at(layer)
        with ExitStack() as stack:
            if layer in self.donations.layers:
                stack.enter_context(self.donations.layer(layer))
            if (edit_layer := at.layer) is not None:

                def skip(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
                    resid_pre = args[0] if args else kwargs["hidden_states"]
                    return with_hidden(output, edit_layer(resid_pre, hidden(output)))

                stack.enter_context(arch.layers[layer].register_forward_hook(skip, with_kwargs=True))
            for edit, modules in ((at.attn, arch.attn), (at.mlp, arch.mlp)):
                if edit is not None:

                    def replace(module: nn.Module, args: tuple, output: Any, edit: Edit = edit) -> Any:
                        return with_hidden(output, edit(hidden(output)))

                    stack.enter_context(modules[layer].register_forward_hook(replace))
            if (edit_z := at.z) is not None:

                def replace_z(module: nn.Module, args: tuple) -> tuple:
                    return edit_z(args[0]), *args[1:]

                stack.enter_context(arch.o_proj[layer].register_forward_pre_hook(replace_z))
            yield

    def _masks(self, layer: int, site: str) -> tuple[Tensor, Tensor] | None:
        """Rows that are edited, and those of them that get the mean, each [row, 1, 1]; None where no row is."""
        modes = {row: a.mode for row, a in self.by_layer.get(layer, []) if a.site == site}
        if not modes:
            return None
        edited = torch.zeros(self.n_rows, 1, 1, dtype=torch.bool)
        by_mean = edited.clone()
        for row, mode in modes.items():
            edited[row] = True
            by_mean[row] = mode == "mean"
        return edited.to(self.device), by_mean.to(self.device)

    def _skip(self, layer: int) -> Callable[[Tensor, Tensor], Tensor] | None:
        if (masks := self._masks(layer, "layer")) is None:
            return None
        edited, by_mean = masks

        def edit(resid_pre: Tensor, resid_post: Tensor) -> Tensor:
            new = resid_pre
            if self.means is not None:
                new = torch.where(by_mean, resid_pre + self.means.layer[layer].to(resid_pre), resid_pre)
            return torch.where(edited, new, resid_post)

        return edit

    def _replace(self, layer: int, site: str) -> Edit | None:
        if (masks := self._masks(layer, site)) is None:
            return None
        edited, by_mean = masks

        def edit(value: Tensor) -> Tensor:
            new = torch.zeros_like(value)
            if self.means is not None:
                new = torch.where(by_mean, getattr(self.means, site)[layer].to(value), new)
            return torch.where(edited, new, value)

        return edit

    def _z(self, layer: int) -> Edit | None:
        edits = [(row, a) for row, a in self.by_layer.get(layer, []) if a.site in ("head", "kv")]
        if not edits:
            return None
        dims = self.arch.dims
        edited = torch.zeros(self.n_rows, 1, dims.n_heads, 1, dtype=torch.bool)
        by_mean, by_sample = edited.clone(), edited.clone()
        for row, a in edits:
            for head in [a.index] if a.site == "head" else dims.query_heads(a.index):
                edited[row, :, head] = True
                by_mean[row, :, head] = a.mode == "mean"
                by_sample[row, :, head] = a.mode == "resample"
        resampled = bool(by_sample.any())
        edited, by_mean, by_sample = (mask.to(self.device) for mask in (edited, by_mean, by_sample))

        def edit(flat: Tensor) -> Tensor:
            z = flat.unflatten(-1, (dims.n_heads, dims.d_head))  # [row, pos, n_heads, d_head]
            new = torch.zeros_like(z)
            if self.means is not None:
                new = torch.where(by_mean, self.means.z[layer].to(z), new)
                if resampled and self.position_ids is not None:
                    new = torch.where(by_sample, self.means.sampled(layer, self.position_ids).to(z), new)
            return torch.where(edited, new, z).flatten(-2)

        return edit
