"""What a backend is, and the reference backend: plain PyTorch hooks on the Hugging Face module.

A backend gets rows of tokens and gives logits, one condition a row of the batch. `depthlens.backends.row_edits` says
what each condition does where.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from depthlens.ablations import Condition
from depthlens.backends.row_edits import Means, RowEdits, RowWeights
from depthlens.models.architectures import body_of, head
from depthlens.models.lens import Lens

Positions = Sequence[Sequence[int]]  # by row
Rows = Int[Tensor, "row pos"]  # tokens, or what belongs to each
States = Float[Tensor, "row pos d_model"]


class Backend(ABC):
    """Applies conditions, one per row of a batch.

    Args:
        lens: A loaded model.
        means: What ``@mean`` and ``@resample`` put in place of a part.
    """

    name: str

    def __init__(self, lens: Lens, means: Means | None = None) -> None:
        self.lens = lens
        self.means = means

    @torch.no_grad()
    def forward(
        self,
        tokens: Rows,
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
        if cache is None and positions is None:  # only generation continues from it
            cache = DynamicCache(config=self.lens.model.config)
        position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        edits = RowEdits(conditions, self.lens, self.means, position_ids)
        kwargs = {"attention_mask": attention_mask, "position_ids": position_ids, "use_cache": positions is None}
        states = self._states(edits, tokens, kwargs | {"cache": cache})
        # the unembedding costs as much as several layers: only the positions that are asked for go through it
        positions = [[tokens.shape[1] - 1]] * len(tokens) if positions is None else positions
        picked = torch.cat([states[row, list(places)] for row, places in enumerate(positions)])
        under = [c for c, places in zip(conditions, positions, strict=True) for _ in places]
        with RowWeights(under, self.lens).embeddings():
            logits = head(self.lens.model, picked)
        return list(logits.split([len(places) for places in positions])), cache

    @abstractmethod
    def _states(self, edits: RowEdits, tokens: Rows, kwargs: dict[str, Any]) -> States:
        """Final residual streams, after the last norm, of rows that are edited.

        Args:
            edits: What the conditions of the rows do.
            tokens: Token ids.
            kwargs: Of the Hugging Face model's forward.
        """


class TorchBackend(Backend):
    """Applies conditions with forward hooks; correct for every kind of condition on every supported family."""

    name = "torch"

    def ablate(
        self, conditions: Sequence[Condition], position_ids: Int[Tensor, "#row pos"] | None = None
    ) -> AbstractContextManager[None]:
        """Within the context, row ``i`` of every batch runs under ``conditions[i]``; after it the model is whole again.

        ``position_ids`` are needed by conditions whose effect depends on the position: ``@mean``, ``@resample``,
        ``@noise``, and those that spare the first tokens.

        Raises:
            UserError: a condition does not fit the model, or asks for a mean and none was given. Nothing is hooked.
        """
        return self._hooked(RowEdits(conditions, self.lens, self.means, position_ids))

    @contextmanager
    def _hooked(self, edits: RowEdits) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(edits.embeddings())
            for layer in edits.layers:
                stack.enter_context(edits.hooked(layer))
            yield

    def _states(self, edits: RowEdits, tokens: Rows, kwargs: dict[str, Any]) -> States:
        with self._hooked(edits):
            return body_of(self.lens.model)(input_ids=tokens, **kwargs).last_hidden_state
