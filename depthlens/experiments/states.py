"""States of the residual stream as an array with labels, for probes and other analyses of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from depthlens import arguments
from depthlens.errors import UserError
from depthlens.experiments.geometry import residual_streams
from depthlens.experiments.one_prompt import words
from depthlens.experiments.texts import tokens_of
from depthlens.models.lens import Lens, one_thread


@dataclass(frozen=True, eq=False)
class States:
    """What `residual` found.

    Attributes:
        values: The residual stream, float32. Shape [text, depth, d_model].
        depths: How many layers each state has passed: 0 is the embedding, and layer L reads depth L. Shape [depth].
        texts: Those that were given. Shape [text].
        tokens: Text of the token that is read. Shape [text].
    """

    values: Float[np.ndarray, "text depth d_model"]
    depths: tuple[int, ...]
    texts: tuple[str, ...]
    tokens: tuple[str, ...]

    def __repr__(self) -> str:
        return f"States {[*self.values.shape]} [text, depth, d_model] at depths {[*self.depths]}"


@one_thread
@torch.no_grad()
def residual(
    lens: Lens, texts: str | Sequence[str], depths: Sequence[int] | None = None, position: int | Sequence[int] = -1
) -> States:
    """The residual stream of texts at one token of each, before layers; inside `dl.ablated` that of the model there.

    Args:
        lens: A loaded model.
        texts: Any.
        depths: How many layers the states have passed, such as 12 for what layer 12 reads; None: 0 to all.
        position: Of the token, in all texts or in each; negative counts from the end.

    Raises:
        UserError: no texts, a depth or a token that there is not, or a model whose layers cannot be walked.

    Example:
        >>> found = dl.residual(lens, ["Ada Ben SEP Cleo Dora SEP QA Cleo", "Ada Ben SEP QA Ada"])
        >>> found.values.shape, found.tokens
        ((2, 7, 256), ('Cleo', 'Ada'))
    """
    given = [texts] if isinstance(texts, str) else [*texts]
    every = range(lens.dims.n_layers + 1)
    chosen = [*every] if depths is None else arguments.layers("depths", [*depths], len(every))
    at = [position] * len(given) if isinstance(position, int) else [*position]
    if len(at) != len(given) or not given:
        raise UserError(f"position: {len(at)} for {len(given)} texts; give some texts, and one number or one for each")
    found: list[np.ndarray] = []
    tokens: list[str] = []
    for text, place in zip(given, at, strict=True):
        ids = tokens_of(lens, text)
        if not -len(ids) <= place < len(ids):
            fault = f"position {place}: {text!r} has {len(ids)} tokens"
            raise UserError(f"{fault}; give a number from {-len(ids)} to {len(ids) - 1}")
        streams = residual_streams(lens, ids)
        found.append(torch.stack([streams[depth][place].float() for depth in chosen]).numpy())
        tokens += words(lens, [ids[place]])
    return States(np.stack(found), tuple(chosen), tuple(given), tuple(tokens))
