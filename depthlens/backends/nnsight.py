"""nnsight: conditions written into a trace, which reads and assigns values while the model runs.

Sites: layer, ``layer.input`` and ``layer.output``; attn and mlp, the ``output`` of the sublayer; head and KV group, the
``input`` of ``o_proj``; experts, the router's own forward, inside of which a trace does not see. ``layer.skip`` would
save the layer's work, but a forward pass is shared by all rows and it skips for every one of them, so rows are selected
by assignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from depthlens.ablations import Condition
from depthlens.backends.forward_arguments import arguments, logits
from depthlens.backends.protocol import Means, Positions
from depthlens.backends.row_edits import RowEdits
from depthlens.backends.weight_swap import replaced_forwards
from depthlens.models.architectures import hidden, with_hidden
from depthlens.models.lens import Lens
from depthlens.models.library_views import wrap


class NnsightBackend:
    """Applies conditions in traces of a model of its own, so that edits of ``lens.nnsight`` do not matter."""

    name = "nnsight"

    def __init__(self, lens: Lens, means: Means | None = None) -> None:
        self.lens = lens
        self.means = means
        self.model = wrap(lens)
        self.family = lens.arch.family

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
        edits = RowEdits(conditions, self.lens, self.means, kwargs["position_ids"])
        final_norm = attrgetter(self.family.final_norm)(self.model)
        with replaced_forwards(edits.routers(self.model._module)):
            with self.model.trace(input_ids=tokens, **kwargs):
                self._edit(edits, len(tokens))
                states = final_norm.output.save()
        return logits(self.lens, states, positions), kwargs["cache"]

    def _edit(self, edits: RowEdits, n_rows: int) -> None:
        """Inside a trace: read and assign in the order in which the model computes."""
        layers = attrgetter(self.family.layers)(self.model)
        for i in edits.layers:
            at, layer = edits.at(i), layers[i]
            resid_pre: Any = layer.input if at.layer is not None else None
            if at.z is not None:
                o_proj = attrgetter(self.family.o_proj)(layer)
                o_proj.input = at.z(o_proj.input)
            for edit, path in ((at.attn, self.family.mixes(i)), (at.mlp, self.family.mlp)):
                if edit is not None:
                    part = attrgetter(path)(layer)
                    value = hidden(part.output)  # of some mixtures of experts with all tokens in one row
                    rows = value.reshape(n_rows, -1, value.shape[-1])
                    part.output = with_hidden(part.output, edit(rows).reshape(value.shape))
            if at.layer is not None:
                layer.output = with_hidden(layer.output, at.layer(resid_pre, hidden(layer.output)))
