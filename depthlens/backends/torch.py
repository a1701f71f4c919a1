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
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from depthlens.ablations import Ablation, Condition
from depthlens.backends import weight_swap
from depthlens.backends.protocol import Means
from depthlens.errors import UserError
from depthlens.models import pairs
from depthlens.models.architectures import hidden, with_hidden


class TorchBackend:
    """Applies conditions with forward hooks; correct for every kind of condition on every supported family."""

    name = "torch"

    def __init__(self, lens: Any, means: Means | None = None) -> None:
        self.lens = lens
        self.means = means

    @contextmanager
    def ablate(self, conditions: Sequence[Condition], position_ids: Tensor | None = None) -> Iterator[None]:
        """Within the context, row ``i`` of every batch runs under ``conditions[i]``; after it the model is whole again.

        ``position_ids``, of shape [row or 1, pos], are only asked for by ``@resample``.

        Raises:
            UserError: a condition does not fit the model, or asks for a mean and none was given. Nothing is hooked.
        """
        edits = RowEdits(conditions, self.lens, self.means, position_ids, self.lens.donor)
        handles: list[Any] = []
        try:
            handles += edits.donations.hook_ends()
            for layer in edits.layers:
                handles += edits.hook(layer)
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor,
        conditions: Sequence[Condition],
        *,
        cache: Any = None,
        positions: Sequence[Sequence[int]] | None = None,
    ) -> tuple[list[Tensor], Any]:
        """See `depthlens.backends.protocol.Backend.forward`."""
        model, arch = self.lens.model, self.lens.arch
        position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        keep_cache = positions is None  # only generation goes on from here
        with self.ablate(conditions, position_ids):
            out = model.base_model(
                input_ids=tokens,
                attention_mask=attention_mask,
                position_ids=position_ids,
                cache=cache if cache is not None else DynamicCache(config=model.config) if keep_cache else None,
                use_cache=keep_cache,
            )
        states = out.last_hidden_state  # [row, pos, d_model]
        # the unembedding is as dear as several layers: only the positions asked for go through it
        wanted = [[tokens.shape[1] - 1]] * len(tokens) if positions is None else positions
        picked = torch.cat([states[i, list(p)] for i, p in enumerate(wanted)])
        with weight_swap.ends(self.lens, [c for c, p in zip(conditions, wanted, strict=True) for _ in p]):
            logits = arch.unembed(picked).split([len(p) for p in wanted])
        return list(logits), out.cache if keep_cache else None


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
    attn: Callable[[Tensor], Tensor] | None
    mlp: Callable[[Tensor], Tensor] | None
    z: Callable[[Tensor], Tensor] | None


class RowEdits:
    """Which rows of a batch are edited where, and the hooks that do it.

    Args:
        conditions: One per row.
        lens: A loaded model.
        means: What ``@mean`` and ``@resample`` put in place of a part.
        position_ids: Position of each token in its sequence, which ``@resample`` asks for. Shape [row or 1, pos].
        donor: What ``@donor`` takes weights from; None also where a backend cannot.
    """

    def __init__(
        self,
        conditions: Sequence[Condition],
        lens: Any,
        means: Means | None,
        position_ids: Tensor | None = None,
        donor: pairs.Donor | None = None,
    ) -> None:
        self.arch = lens.arch
        self.means = means
        self.position_ids = position_ids
        self.device = lens.device
        self.n_rows = len(conditions)
        by_layer: dict[int, list[tuple[int, Ablation]]] = {}
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
        for row, condition in enumerate(conditions):
            for ablation in condition.ablations:
                if ablation.mode != "donor":
                    by_layer.setdefault(ablation.layer, []).append((row, ablation))
        self.by_layer = by_layer
        self.donations = weight_swap.RowDonations(conditions, lens, donor)
        self.layers = sorted({*by_layer, *self.donations.layers})

    def at(self, layer: int) -> LayerEdits:
        """The edits of one layer as functions of tensors, for whatever library brings the tensors."""
        edits = self.by_layer.get(layer, [])

        def sublayer(site: str) -> Callable[[Tensor], Tensor] | None:
            rows = self._rows(edits, site)
            return self._replace(rows, getattr(self.means, site)[layer] if self.means else None) if rows else None

        skipped = self._rows(edits, "layer")
        return LayerEdits(
            layer=self._skip(skipped, layer) if skipped else None,
            attn=sublayer("attn"),
            mlp=sublayer("mlp"),
            z=self._heads(edits, layer) if any(a.site in ("head", "kv") for _, a in edits) else None,
        )

    def hook(self, layer: int) -> list[Any]:
        """Register the hooks of one layer; returns their handles."""
        arch, at = self.arch, self.at(layer)
        handles: list[Any] = self.donations.hook(layer)
        if at.layer is not None:

            def skip(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
                resid_pre = args[0] if args else kwargs["hidden_states"]
                return with_hidden(output, at.layer(resid_pre, hidden(output)))

            handles.append(arch.layers[layer].register_forward_hook(skip, with_kwargs=True))
        for edit, modules in ((at.attn, arch.attn), (at.mlp, arch.mlp)):
            if edit is not None:
                handles.append(
                    modules[layer].register_forward_hook(
                        lambda module, args, output, edit=edit: with_hidden(output, edit(hidden(output)))
                    )
                )
        if at.z is not None:
            handles.append(
                arch.o_proj[layer].register_forward_pre_hook(lambda module, args: (at.z(args[0]), *args[1:]))
            )
        return handles

    @staticmethod
    def _rows(edits: list[tuple[int, Ablation]], site: str) -> dict[int, str]:
        return {row: a.mode for row, a in edits if a.site == site}

    def _masks(self, rows: dict[int, str]) -> tuple[Tensor, Tensor]:
        """Rows that are edited, and those of them that get the mean. Each of shape [row, 1, 1]."""
        edited = torch.zeros(self.n_rows, 1, 1, dtype=torch.bool)
        by_mean = edited.clone()
        for row, mode in rows.items():
            edited[row] = True
            by_mean[row] = mode == "mean"
        return edited.to(self.device), by_mean.to(self.device)

    def _skip(self, rows: dict[int, str], layer: int) -> Callable[[Tensor, Tensor], Tensor]:
        edited, by_mean = self._masks(rows)

        def edit(resid_pre: Tensor, resid_post: Tensor) -> Tensor:
            new = resid_pre
            if self.means is not None:
                new = torch.where(by_mean, resid_pre + self.means.layer[layer].to(resid_pre), resid_pre)
            return torch.where(edited, new, resid_post)

        return edit

    def _replace(self, rows: dict[int, str], mean: Tensor | None) -> Callable[[Tensor], Tensor]:
        edited, by_mean = self._masks(rows)

        def edit(value: Tensor) -> Tensor:
            new = torch.zeros_like(value)
            if mean is not None:
                new = torch.where(by_mean, mean.to(value), new)
            return torch.where(edited, new, value)

        return edit

    def _heads(self, edits: list[tuple[int, Ablation]], layer: int) -> Callable[[Tensor], Tensor]:
        dims = self.arch.dims
        edited = torch.zeros(self.n_rows, 1, dims.n_heads, 1, dtype=torch.bool)
        by_mean, by_sample = edited.clone(), edited.clone()
        for row, a in edits:
            heads = [a.index] if a.site == "head" else dims.query_heads(a.index) if a.site == "kv" else []
            for head in heads:
                edited[row, :, head] = True
                by_mean[row, :, head] = a.mode == "mean"
                by_sample[row, :, head] = a.mode == "resample"
        edited, by_mean, by_sample = (mask.to(self.device) for mask in (edited, by_mean, by_sample))
        resampled = bool(by_sample.any())

        def edit(flat: Tensor) -> Tensor:
            z = flat.unflatten(-1, (dims.n_heads, dims.d_head))  # [row, pos, n_heads, d_head]
            new = torch.zeros_like(z)
            if self.means is not None:
                new = torch.where(by_mean, self.means.z[layer].to(z), new)
            if resampled:
                new = torch.where(by_sample, self.means.sampled(layer, self.position_ids).to(z), new)
            return torch.where(edited, new, z).flatten(-2)

        return edit
