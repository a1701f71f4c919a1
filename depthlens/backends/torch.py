"""What a backend is, and the reference backend: plain PyTorch hooks on the Hugging Face module.

A backend gets rows of tokens and gives logits, one condition a row of the batch. `depthlens.backends.row_edits` says
what each condition does where.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from depthlens.ablations import BASELINE, Condition
from depthlens.backends import site_edits
from depthlens.backends.row_edits import Means, RowEdits, repeated, require
from depthlens.errors import UserError
from depthlens.models import in_force
from depthlens.models.architectures import body_of, head, put_forward
from depthlens.models.lens import ALONE, Lens

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

        Where something that is not ours is in force (`depthlens.models.in_force`), the whole model is called, so that
        it runs once, as in a call by hand.

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
        logits = self._logits(tokens, attention_mask, conditions, use_cache=positions is None, cache=cache)
        positions = [[-1]] * len(tokens) if positions is None else positions
        rows = [row for row, places in enumerate(positions) for _ in places]
        found = logits(rows, [place for places in positions for place in places])
        return list(found.split([len(places) for places in positions])), cache

    def _logits(
        self, tokens: Rows, attention_mask: Rows, conditions: Sequence[Condition], **how: Any
    ) -> Callable[[list[int], list[int]], Float[Tensor, "place d_vocab"]]:
        """Run rows of tokens, called ``how``; returns what gives the logits of some rows' places."""
        position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        edits = RowEdits(conditions, self.lens, self.means, position_ids, tokens)
        how |= {"attention_mask": attention_mask, "position_ids": position_ids}
        if not self.lens.remote and in_force.foreign(self.lens.model):
            if how["use_cache"]:
                how["logits_to_keep"] = 1  # as `generate` of transformers calls it: a hook on the head sees one place
            with applied(edits):
                every = self.lens.model(input_ids=tokens, **how).logits
            return lambda rows, places: every[rows, places]
        states = self._states(edits, tokens, how)

        def unembedded(rows: list[int], places: list[int]) -> Tensor:
            # the unembedding costs as much as several layers: only the positions that are asked for go through it
            with RowEdits([conditions[row] for row in rows], self.lens).embeddings():
                return head(self.lens.model, states[rows, places])

        return unembedded

    @torch.no_grad()
    def score(
        self,
        tokens: Rows,
        attention_mask: Rows,
        conditions: Sequence[Condition],
        positions: Positions,
        targets: Positions,
        *,
        unembed_rows: int,
    ) -> Float[Tensor, "2 row"]:
        """Log-likelihoods of tokens, row by row.

        Args:
            tokens: Rows, padded on the right.
            attention_mask: 0 for padding.
            conditions: One a row.
            positions: Per row, those that predict the targets.
            targets: Per row.
            unembed_rows: Positions that are unembedded at once.

        Returns:
            Sums of log-probabilities, and how many targets are not the likeliest. Shape [2, row].
        """
        logits = self._logits(tokens, attention_mask, conditions, use_cache=False, cache=None)
        answer = torch.zeros(2, len(tokens), dtype=torch.float64)
        for some in predictions(positions, targets).split(unembed_rows):
            rows, places, wanted = some.T
            site_edits.add_scores(answer, logits(rows.tolist(), places.tolist()), rows, wanted)
        return answer

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

    def _states(self, edits: RowEdits, tokens: Rows, kwargs: dict[str, Any]) -> States:
        with applied(edits):
            return body_of(self.lens.model)(input_ids=tokens, **kwargs).last_hidden_state


def predictions(positions: Positions, targets: Positions) -> Int[Tensor, "prediction 3"]:
    """Row, position and target of each prediction."""
    rows = enumerate(zip(positions, targets, strict=True))
    return torch.tensor([(row, p, t) for row, of_row in rows for p, t in zip(*of_row, strict=True)])


@contextmanager
def applied(edits: RowEdits) -> Iterator[None]:
    """Within the context forward hooks edit the rows of every call of the model."""
    require(edits.conditions, edits.lens, edits.means)
    with ExitStack() as stack:
        stack.enter_context(edits.embeddings())
        for layer in edits.layers:
            stack.enter_context(edits.hooked(layer))
        stack.enter_context(repeated(edits))
        stack.enter_context(in_force.aside())
        yield


# models of which conditions are in force, with these, and what takes the forwards away that obey them
_edited: dict[nn.Module, tuple[list[in_force.Entered], ExitStack]] = {}


@contextmanager
def entered(one: in_force.Entered) -> Iterator[None]:
    """Within the context a condition is in force (`depthlens.models.in_force`), also where the user calls the model.

    Raises:
        UserError: the condition does not fit the model, or asks for a mean and none was given. Nothing is in force.
    """
    require([one.condition], one.lens, one.means)
    model = one.lens.model
    with ALONE:
        if model not in _edited:
            _edited[model] = [], ExitStack()
            for module, forward in _obedient(one.lens):
                put_forward(_edited[model][1], module, forward)
        _edited[model][0].append(one)
    in_force.ENTERED.set((*in_force.ENTERED.get(), one))
    try:
        yield
    finally:
        one.left = True
        in_force.ENTERED.set(tuple(other for other in in_force.ENTERED.get() if not other.left))
        with ALONE:
            conditions, undo = _edited[model]
            conditions.remove(one)
            if not conditions:
                del _edited[model]
                undo.close()


def _obedient(lens: Lens) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
    """Body and unembedding of a model, with forwards that obey the conditions in force where they are called."""
    body, unembed = body_of(lens.model), lens.arch.unembed
    of_body, of_unembed = body.forward, unembed.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        with ALONE:  # hooks are on the modules that all threads share
            if not (now := in_force.entered(lens.model)):
                return of_body(*args, **kwargs)
            if twice := next((one.condition for one in now if one.condition.uses("repeat")), None):
                if kwargs.get("cache", kwargs.get("past_key_values")) is not None:
                    raise UserError(f"condition {twice} runs a layer twice, and a cache holds it once; use_cache=False")
                kwargs["use_cache"] = False
            lens.bind()  # a module may have been replaced since
            tokens = args[0] if args else kwargs.get("input_ids")
            with applied(RowEdits([BASELINE], lens, None, _positions(tokens, kwargs), tokens)):
                return of_body(*args, **kwargs)

    def logits(*args: Any, **kwargs: Any) -> Any:
        others = [forward for module, forward in RowEdits([BASELINE], lens).forwards(-1) if module is unembed]
        return [of_unembed, *others][-1](*args, **kwargs)

    yield body, run
    yield unembed, logits


def _positions(tokens: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
    """Where the tokens of a call stand, as transformers finds it. Shape [#row, pos]."""
    if (given := kwargs.get("position_ids")) is not None:
        return given
    tokens = kwargs["inputs_embeds"] if tokens is None else tokens
    cache = kwargs.get("cache", kwargs.get("past_key_values"))
    start = 0 if cache is None else cache.get_seq_length()
    return torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]
