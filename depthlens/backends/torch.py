"""Reference backend: plain PyTorch hooks on the Hugging Face module, one condition per row of the batch.

`depthlens.backends.row_edits` says what each condition does where.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from depthlens.ablations import Condition
from depthlens.backends.protocol import Backend
from depthlens.backends.row_edits import RowEdits
from depthlens.models.architectures import body_of


class TorchBackend(Backend):
    """Applies conditions with forward hooks; correct for every kind of condition on every supported family."""

    name = "torch"
    takes_weights = True

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
        with self._hooked(RowEdits(conditions, self.lens, self.means, position_ids, self.lens.donor)):
            yield

    @contextmanager
    def _hooked(self, edits: RowEdits) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(edits.donations.embeddings())
            for layer in edits.layers:
                stack.enter_context(edits.hooked(layer))
            yield

    def _states(
        self, edits: RowEdits, tokens: Int[Tensor, "row pos"], kwargs: dict[str, Any]
    ) -> Float[Tensor, "row pos d_model"]:
        with self._hooked(edits):
            return body_of(self.lens.model)(input_ids=tokens, **kwargs).last_hidden_state
