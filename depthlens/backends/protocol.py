"""What a backend is: rows of tokens in, logits out, one condition a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from depthlens.ablations import Condition
from depthlens.models.architectures import head
from depthlens.models.lens import Lens

Positions = Sequence[Sequence[int]]  # by row
# what a token can be, in the order of the means' axis: the first of its sequence, which draws attention whatever it is
TOKEN_CLASSES = ("first", "other")


def classes(position_ids: Int[Tensor, "#row pos"]) -> Int[Tensor, "#row pos"]:
    """Index of each token's class in `TOKEN_CLASSES`, from where it stands in its own sequence."""
    return (position_ids > 0).long()


@dataclass(frozen=True)
class Means:
    """What ``@mean`` and ``@resample`` ablations put in place of a part, from a named reference.

    The means are by class of the token, see `TOKEN_CLASSES`: one mean over all positions would hold a part of the first
    token's state, which is larger than others by orders of magnitude.

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
    layer: Float[Tensor, "n_layers token_class d_model"]
    attn: Float[Tensor, "n_layers token_class d_model"]
    mlp: Float[Tensor, "n_layers token_class d_model"]
    z: Float[Tensor, "n_layers token_class n_heads d_head"]
    sample: Mapping[str, Tensor] | None = None

    def to(self, device: torch.device | str) -> Means:
        """The same on a device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        if self.sample is not None:
            moved["sample"] = {site: value.to(device) for site, value in self.sample.items()}
        return replace(self, **moved)

    @property
    def measured(self) -> bool:
        """Whether there are means, and not only a sample."""
        return self.layer.shape[1] > 0

    def table(self, site: str, layer: int) -> Float[Tensor, "entry part width"]:
        """What can be put in place at a site: zeros, means by class of the token, and the reference prompt's positions.

        See `depthlens.backends.site_edits.SiteEdit`.
        """
        mean = self.z[layer] if site == "z" else getattr(self, site)[layer][:, None]
        if not self.measured:
            mean = mean.new_zeros(len(TOKEN_CLASSES), *mean.shape[1:])
        sample = mean[:0] if self.sample is None or site not in self.sample else self.sample[site][layer]
        sample = sample if sample.dim() == mean.dim() else sample[:, None]
        parts = torch.zeros_like(mean[:1]), mean, sample.to(mean.device)
        return torch.cat([part.to(torch.promote_types(mean.dtype, sample.dtype)) for part in parts])


@runtime_checkable
class Backend(Protocol):
    """Applies conditions, one per row of a batch."""

    name: str
    means: Means | None

    def forward(
        self,
        tokens: Int[Tensor, "row pos"],
        attention_mask: Int[Tensor, "row cached_and_pos"],
        conditions: Sequence[Condition],
        *,
        cache: Any = None,
        positions: Positions | None = None,
    ) -> tuple[list[Float[Tensor, "_ d_vocab"]], Any]:
        """Run rows of tokens, each under its own condition.

        Args:
            tokens: Token ids.
            attention_mask: 1 for real tokens, 0 for padding, cached ones included.
            conditions: One per row.
            cache: What an earlier call returned; the rows continue from there. None starts anew.
            positions: Per row, the positions in ``tokens`` whose logits are returned; None: the last one.

        Returns:
            Logits per row, each of shape [n_positions, d_vocab], and the cache.
        """
        ...


def arguments(
    lens: Lens,
    tokens: Int[Tensor, "row pos"],
    attention_mask: Int[Tensor, "row cached_and_pos"],
    cache: Any,
    keep_cache: bool,
) -> dict[str, Any]:
    """Keyword arguments of the Hugging Face model's forward; see `Backend.forward`.

    The model itself unembeds the last position only: `logits` unembeds those that are asked for.
    """
    if cache is None and keep_cache:
        cache = DynamicCache(config=lens.model.config)
    return {
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :],
        "cache": cache,
        "use_cache": keep_cache,
        "logits_to_keep": 1,
    }


def logits(
    lens: Lens, states: Float[Tensor, "row pos d_model"], positions: Positions | None
) -> list[Float[Tensor, "_ d_vocab"]]:
    """Logits of the positions that are asked for, per row; None: the last one.

    Args:
        lens: Its own head makes logits from states.
        states: Final residual stream after the last norm.
        positions: Per row.
    """
    # the unembedding costs as much as several layers: only the positions that are asked for go through it
    positions = [[states.shape[1] - 1]] * len(states) if positions is None else positions
    picked = torch.cat([states[row, list(places)] for row, places in enumerate(positions)])
    return list(head(lens.model, picked).split([len(places) for places in positions]))
