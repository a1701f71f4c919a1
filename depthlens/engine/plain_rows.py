"""Plain causal attention of whole rows for walks layer by layer, and what bounds the length of a text.

The rows are a layout for `depthlens.models.architectures.Architecture.step` under
`depthlens.engine.tree_attention.walking`. Unlike a tree's, their attention can be differentiated.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from depthlens.errors import UserError
from depthlens.models.architectures import rotary_settings
from depthlens.models.lens import Lens

# settings of configurations that let a token see fewer tokens than all before it
WINDOWS = ("sliding_window", "attention_chunk_size", "index_topk")


def window_of(lens: Lens) -> int | None:
    """Tokens up to which every layer lets a token see all tokens before it; None: no bound."""
    config = lens.model.config.get_text_config()
    return min((n for name in WINDOWS if (n := getattr(config, name, None))), default=None)


def refuse_scaled_angles(lens: Lens, longest: int) -> None:
    """Raise a `UserError` where texts are so long that their rotary angles follow the longest one of a batch."""
    config = lens.model.config.get_text_config()
    for said in rotary_settings(config):
        kind = said.get("rope_type", "")
        of_config = config.max_position_embeddings if kind == "dynamic" else None  # some configurations have none
        limit = said.get("original_max_position_embeddings") if kind == "longrope" else of_config
        if limit is not None and longest > limit:
            fault = f"{longest} tokens: beyond {limit} the rotary angles of {lens.name!r} ({kind}) change"
            raise UserError(f"{fault} for all texts of a batch, and so do their scores; give shorter texts")


def refuse_window(lens: Lens, longest: int, what: str) -> None:
    """Raise a `UserError` where the model's attention window is shorter than what these layouts let it see.

    Or where `refuse_scaled_angles` does.
    """
    refuse_scaled_angles(lens, longest)
    window = window_of(lens)
    if window is not None and longest > window:
        fault = f"{what} walk {longest} tokens, and the attention window is {window}"
        raise UserError(f"{fault}; give shorter prompts, or use another method")


class CausalRows:
    """Rows of equal length, padded on the right: every token sees itself and those before it.

    Attributes:
        position_ids: Shape [1, pos].
    """

    def __init__(self, n_pos: int, device: torch.device) -> None:
        self.position_ids: Tensor = torch.arange(n_pos, device=device)[None]

    def attention(
        self,
        layer: int,
        query: Float[Tensor, "row n_heads pos d_head"],
        key: Float[Tensor, "row n_kv_heads pos d_head"],
        value: Float[Tensor, "row n_kv_heads pos d_value"],
        scale: float,
    ) -> Float[Tensor, "row n_heads pos d_value"]:
        """See `depthlens.engine.tree_attention.Layout.attention`."""
        shared = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=shared)
