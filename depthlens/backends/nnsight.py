"""nnsight: conditions written into a trace, which reads and assigns values while the model runs, here or on a server.

Sites: layer, ``layer.input`` and ``layer.output``; attn and mlp, the ``output`` of the sublayer; head and KV group, the
``input`` of ``o_proj``. ``layer.skip`` would save the layer's work, but a forward pass is shared by all rows and it
skips for every one of them, so rows are selected by assignment.

A server has no depthlens: what a block that is sent names is numbers, tensors, torch, parts of the model, and the edits
of `depthlens.backends.site_edits`, which travel with it. Two numbers a row come back, or its text.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import nnsight
import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from depthlens.ablations import Condition
from depthlens.backends import site_edits
from depthlens.backends.row_edits import Means, RowEdits
from depthlens.backends.torch import Backend, Rows, States, predictions
from depthlens.errors import UserError
from depthlens.models.lens import Lens, wrap


class NnsightBackend(Backend):
    """Applies conditions in traces, of a model of its own, so that edits of ``lens.nnsight`` do not matter."""

    name = "nnsight"

    def __init__(self, lens: Lens, means: Means | None = None) -> None:
        super().__init__(lens, means)
        nnsight.register(site_edits)  # which travel by value
        self.remote: Any = lens.remote
        self.model = lens.remote.model if lens.remote else wrap(lens)
        self.family = family = lens.arch.family
        self.parts: list[tuple[Any, Any, Any, Any]] = []
        for i, layer in enumerate(attrgetter(family.layers)(self.model)):
            o_proj = None if i in lens.dims.headless else attrgetter(family.o_proj)(layer)
            self.parts.append((layer, attrgetter(family.mixes(i))(layer), o_proj, attrgetter(family.mlp)(layer)))

    def _states(self, edits: RowEdits, tokens: Rows, kwargs: dict[str, Any]) -> States:
        edited, put = [(self.parts[i], edits.at(i)) for i in edits.layers], site_edits.trace
        final_norm = attrgetter(self.family.final_norm)(self.model)
        with self.model.trace(input_ids=tokens, logits_to_keep=1, **kwargs):
            for parts, edit in edited:
                put(edit, *parts)
            states = final_norm.output.save()
        return states

    def score(self, tokens: Rows, *about: Any, unembed_rows: int) -> Tensor:
        """See `Backend.score`; on a server the model makes the logits itself, where any row asks for them."""
        if not self.remote:
            return super().score(tokens, *about, unembed_rows=unembed_rows)
        _, conditions, positions, targets = about  # causal attention needs no mask where rows are padded on the right
        kept = sorted({place for of_row in positions for place in of_row})
        spots = [[kept.index(place) for place in of_row] for of_row in positions]
        asked = [some.T for some in predictions(spots, targets).split(unembed_rows)]
        edited, places = self._edited(conditions), torch.tensor(kept)
        put, add, model = site_edits.trace, site_edits.add_scores, self.model  # a block that names self would send it
        position_ids = torch.arange(tokens.shape[1])[None]

        def trace(sender: Any) -> Tensor:
            with model.trace(input_ids=tokens, use_cache=False, logits_to_keep=places, backend=sender):
                for parts, edit in edited:
                    put(edit, *parts, position_ids)
                logits = model.output.logits
                answer = nnsight.save(torch.zeros(2, len(tokens), dtype=torch.float64))
                for rows, at, wanted in asked:
                    add(answer, logits[rows.to(logits.device), at.to(logits.device)], rows, wanted)
            return answer

        return self.remote.attempt(trace)

    def write(
        self, tokens: Rows, mask: Rows, conditions: Sequence[Condition], n_new: int, rules: Any, eos: Sequence[int]
    ) -> list[list[int]]:
        """New tokens of each row, by Hugging Face's ``generate`` on a server.

        Args:
            tokens: Prompts, padded on the left.
            mask: 0 for padding.
            conditions: One a row.
            n_new: Most tokens of a text.
            rules: Processors of logits that the model's generation configuration asks for.
            eos: Tokens that end a text.

        Raises:
            UserError: a rule depends on the length of a prompt, which is padded there.
        """
        if others := [rule for rule in rules if not isinstance(rule, RepetitionPenaltyLogitsProcessor)]:
            fault = f"a server applies {type(others[0]).__name__} of its generation configuration in its own way"
            raise UserError(f"model {self.lens.name}: {fault}; load the model here to write texts")
        settings = {
            "max_new_tokens": n_new,
            "do_sample": False,
            "num_beams": 1,
            "repetition_penalty": float(self.lens.model.generation_config.repetition_penalty or 1.0),
            "eos_token_id": [*eos] or None,
            "pad_token_id": eos[0] if eos else 0,  # only ever after the end
        }
        edited, width = self._edited(conditions), tokens.shape[1]
        read, put = (mask.cumsum(-1) - 1).clamp(min=0), site_edits.trace

        def trace(sender: Any) -> Tensor:
            answer: Any = None
            with self.model.generate(**settings, backend=sender) as tracer:
                with tracer.invoke(input_ids=tokens, attention_mask=mask):
                    for step in tracer.iter[: n_new if edited else 0]:
                        position_ids = read[:, -1:] + step if step else read
                        for parts, edit in edited:
                            put(edit, *parts, position_ids)
                with tracer.invoke():
                    answer = nnsight.save(tracer.result[:, width:].cpu())
            return answer

        with warnings.catch_warnings():  # a trace has a step for every token that may be written; often fewer are
            warnings.filterwarnings("ignore", message=".*the loop asked for a step the run did not make")
            return self.remote.attempt(trace).tolist()

    def _edited(self, conditions: Sequence[Condition]) -> list[tuple[tuple[Any, Any, Any, Any], site_edits.LayerEdits]]:
        """Parts of the model on a server, each layer's with its edits, which travel by value.

        Raises:
            UserError: a condition does not fit the model, or asks for means that were not given.
        """
        means = self.means and self.means.to("cpu")
        edits = RowEdits(conditions, self.lens, means, torch.zeros(1, 1, dtype=torch.long))
        return [(self.parts[i], edits.at(i)) for i in edits.layers]

    def read(self, tokens: Rows, edits: Sequence[dict[str, site_edits.Sums]]) -> None:
        """Run rows of tokens on a server, of which the `site_edits.Sums` of each layer add up what they are given."""
        edited, put = list(zip(self.parts, edits, strict=True)), site_edits.trace

        def trace(sender: Any) -> list[list[Tensor]]:
            totals: Any = None
            with self.model.trace(input_ids=tokens, use_cache=False, logits_to_keep=1, backend=sender):
                totals = nnsight.save([])
                for parts, edit in edited:
                    put(edit, *parts)
                    totals.append([sums.total for sums in edit.values()])
            return totals

        for edit, of_layer in zip(edits, self.remote.attempt(trace), strict=True):
            for sums, total in zip(edit.values(), of_layer, strict=True):
                sums.total = total
