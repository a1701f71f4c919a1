"""Reference backend: plain PyTorch hooks on the Hugging Face module, one condition per row of the batch.

`depthlens.backends.row_edits` says what each condition does where.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from depthlens.ablations import Condition
from depthlens.backends import weight_swap
from depthlens.backends.protocol import Means, Positions, arguments, logits
from depthlens.backends.row_edits import RowEdits
from depthlens.models.architectures import body_of
from depthlens.models.lens import Lens


class TorchBackend:
    """Applies conditions with forward hooks; correct for every kind of condition on every supported family."""

    name = "torch"

    def __init__(self, lens: Lens, means: Means | None = None) -> None:
        self.lens = lens
        self.means = means

    @contextmanager
    def ablate(
        self,
        conditions: Sequence[Condition],
        position_ids: Int[Tensor, "#row pos"] | None = None,
    ) -> Iterator[None]:
        """Within the context, row ``i`` of every batch runs under ``conditions[i]``; after it the model is whole again.

        ``position_ids`` are needed by conditions whose effect depends on the position: ``@mean``, ``@resample``,
        ``@noise``, and those that spare the first tokens.

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
            out = body_of(self.lens.model)(input_ids=tokens, **kwargs)
        positions = positions or [[tokens.shape[1] - 1]] * len(tokens)
        donations = weight_swap.RowDonations(
            [c for c, asked in zip(conditions, positions, strict=True) for _ in asked], self.lens, self.lens.donor
        )
        with donations.embeddings():
            return logits(self.lens, out.last_hidden_state, positions), kwargs["cache"]
