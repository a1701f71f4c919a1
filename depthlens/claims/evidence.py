"""The sweeps that the study's claims are judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from depthlens.analysis.heads.curves import RemovalCurve
from depthlens.analysis.heads.scores import HeadScores
from depthlens.analysis.result.losses import Losses
from depthlens.analysis.result.profiles import by_layer
from depthlens.analysis.result.results import Result
from depthlens.claims.measures import odds
from depthlens.errors import UserError

# sweeps of the model that is judged
MODEL_FIELDS = (
    "letters", "continuation", "generation", "retrieval", "text", "long_text", "open_book", "reasoning",
    "reasoning_continuation", "copying", "reasoning_choice", "tokens",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Evidence:
    """Results that the claims are judged by; what is missing leaves its claims open.

    Every sweep is ``layer_sweep(lens, tasks)`` with the condition of
    `depthlens.analysis.result.losses.broken_condition`, as `depthlens.claims.ask` makes it. Of a task with several
    metrics the first is used.

    Attributes:
        letters: Tasks whose options are lettered, such as mmlu; the likeliest letter is the answer.
        continuation: Knowledge tasks, such as mmlu_continuation; the likeliest answer text is the answer.
        generation: The prompts of ``letters``, such as mmlu_generative; the model writes the letter.
        retrieval: Retrieval tasks with options, such as kv_retrieval_4_continuation.
        text: Plain text with options, as long as the prompts of ``continuation``; their control.
        long_text: Plain text with options, as long as the prompts of ``retrieval``; their control.
        open_book: The questions of ``continuation`` with the fact in the prompt, such as capitals_open_book.
        reasoning: Reasoning tasks with written solutions, such as gsm8k.
        reasoning_continuation: The questions of ``reasoning`` with options, such as arithmetic_continuation.
        copying: Solutions of equal length to be copied, such as solution_copy; the control of ``reasoning``.
        reasoning_choice: Reasoning tasks with options, such as arithmetic_step_continuation.
        tokens: All of these but for ``letters`` and ``generation``, with ``measure="token_logprob"``.
        texts: What `depthlens.free_text` gives of the removed layers: how much continuations repeat themselves.
        heads: Removal curve of two lists.
        head_tasks: The task that each list of ``heads`` is for, by the list's name.
        head_scores: What chose the heads of each list.
        base: Sweeps as ``tokens`` of the model that the judged one was trained from.
        control: Sweeps as ``tokens`` of a model that was fine-tuned from the same base with the same budget, but not on
            reasoning.
        margins: Results of the tasks of ``tokens`` with other examples, of the judged model and of the control, one or
            several: what the whole models score there says how easy documents are.
        transplants: Sweep of the base over conditions with ``@donor``; the donor is the model that is judged.

    Raises:
        UserError: sweeps of different models.

    Example:
        >>> evidence = dl.claims.Evidence(letters=letters, continuation=facts)
        >>> evidence.models
        ['m']
    """

    letters: Result | None = None
    continuation: Result | None = None
    generation: Result | None = None
    retrieval: Result | None = None
    text: Result | None = None
    long_text: Result | None = None
    open_book: Result | None = None
    reasoning: Result | None = None
    reasoning_continuation: Result | None = None
    copying: Result | None = None
    reasoning_choice: Result | None = None
    tokens: Result | None = None
    texts: Result | None = None
    heads: RemovalCurve | None = None
    head_tasks: dict[str, str] | None = None
    head_scores: dict[str, HeadScores] | None = None
    base: Result | None = None
    control: Result | None = None
    margins: Result | Sequence[Result] | None = None
    transplants: Result | None = None

    def __post_init__(self) -> None:
        if len(models := self._models(MODEL_FIELDS)) > 1:
            raise UserError(f"the sweeps are of models {', '.join(models)}; judge one model at a time")

    @property
    def models(self) -> list[str]:
        """Names of the models."""
        return self._models((*MODEL_FIELDS, "base", "control", "transplants"))

    def _models(self, names: Sequence[str]) -> list[str]:
        return sorted({getattr(self, name).model for name in names if self.has(name)})

    def has(self, name: str) -> bool:
        """Whether a field was given."""
        return getattr(self, name) is not None

    def profiles(self, name: str) -> list[Losses]:
        """The profiles of a field, made once for all claims; none where it was not given."""
        if not self.has(name):
            return []
        kept: dict[str, list[Losses]] = getattr(self, name).kept()
        if "profiles" not in kept:
            kept["profiles"] = by_layer(getattr(self, name).primary(), "")
        return kept["profiles"]

    def easy(self, name: str, tasks: set[str]) -> dict[str, float]:
        """Log-odds of the whole model by document, with other examples than those of the sweep where there are any."""
        own = getattr(self, name)
        every = [losses for result in self._margins(name) or [own] for losses in result.every_losses.values()]
        chosen = [each for each in every if each.task in tasks]
        return {document: x for each in chosen for document, x in zip(each.documents, odds(each.base), strict=True)}

    def has_other_margins(self, names: Sequence[str]) -> bool:
        """Whether some other examples say how easy the documents of all sweeps of these fields in nats are."""
        return all(self._margins(name) for name in names if name in ("tokens", "control") and self.has(name))

    def _margins(self, name: str) -> list[Result]:
        """The margins of the model of a sweep."""
        return [result for result in _several(self.margins) if result.model == getattr(self, name).model]


def _several(given: Any) -> list[Any]:
    """What a field of `Evidence` was given: nothing, one, or several."""
    return [] if given is None else [*given] if isinstance(given, list | tuple) else [given]
