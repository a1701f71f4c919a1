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
from depthlens.errors import UserError, unknown

Seeds = Result | Sequence[Result] | None  # one result a few-shot seed
# sweeps of the model that is judged
MODEL_FIELDS = (
    "letters", "continuation", "generation", "retrieval", "text", "long_text", "open_book", "reasoning",
    "reasoning_continuation", "copying", "reasoning_choice", "tokens",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Evidence:
    """Results that the claims are judged by; what is missing leaves its claims open.

    Every sweep is ``condition_sweep(lens, tasks, ["layers", "layers[1:]", "layers@mean"])`` with the condition of
    `depthlens.analysis.result.losses.broken_condition`, as `depthlens.claims.ask` makes it. A field takes one result,
    or a sequence of results of several few-shot seeds. Of a task with several metrics the first is used.

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
        heads: Removal curves of two lists: the one that decides, then those under other views.
        head_tasks: The task that each list of ``heads`` is for, by the list's name.
        head_scores: What chose the heads of each list.
        base: Sweeps as ``tokens`` of the model that the judged one was trained from.
        control: Sweeps as ``tokens`` of a model that was fine-tuned from the same base with the same budget, but not on
            reasoning.
        margins: Results of the tasks of ``tokens`` with other examples, of the judged model and of the control, one or
            several: what the whole models score there says how easy documents are. Not needed with several seeds.
        transplants: Sweep of the base over conditions with ``@donor``; the donor is the model that is judged, with the
            few-shot seeds of ``reasoning``.

    Raises:
        UserError: sweeps of different models; few-shot seeds that are one; or ``head_tasks`` that do not fit ``heads``.

    Example:
        >>> evidence = dl.claims.Evidence(letters=letters, continuation=facts)
        >>> evidence.n_seeds("letters", "continuation")
        1
    """

    letters: Seeds = None
    continuation: Seeds = None
    generation: Seeds = None
    retrieval: Seeds = None
    text: Seeds = None
    long_text: Seeds = None
    open_book: Seeds = None
    reasoning: Seeds = None
    reasoning_continuation: Seeds = None
    copying: Seeds = None
    reasoning_choice: Seeds = None
    tokens: Seeds = None
    texts: Result | None = None
    heads: RemovalCurve | Sequence[RemovalCurve] | None = None
    head_tasks: dict[str, str] | None = None
    head_scores: dict[str, HeadScores] | None = None
    base: Seeds = None
    control: Seeds = None
    margins: Seeds = None
    transplants: Seeds = None

    def __post_init__(self) -> None:
        for name in (*MODEL_FIELDS, "base", "control", "transplants"):
            _refuse_same_seeds(name, self.results(name))
        models = sorted({m for name in MODEL_FIELDS for r in self.results(name) for m in r.docs["model"].unique()})
        if len(models) > 1:
            raise UserError(f"the sweeps are of models {', '.join(models)}; judge one model at a time")
        if self.heads is None or self.head_tasks is None:
            return
        pairs = list(zip(self.curves[0].tests["list"], self.curves[0].tests["task"], strict=True))
        for name, task in self.head_tasks.items():
            if (name, task) not in pairs:
                raise unknown("list and task", f"{name}: {task}", [f"{a}: {b}" for a, b in pairs])

    @property
    def curves(self) -> list[RemovalCurve]:
        """The removal curves, that which decides first; none where they were not given."""
        return _several(self.heads)

    def results(self, name: str) -> list[Result]:
        """The results of a field, one a few-shot seed or curve of heads; none where the field was not given."""
        return [curve.result for curve in self.curves] if name == "heads" else _several(getattr(self, name))

    def n_seeds(self, *names: str) -> int:
        """Few-shot seeds of several fields; a field with one stands beside those with several.

        Raises:
            UserError: two fields have several, but not equally many.
        """
        counts = sorted({len(self.results(name)) for name in names} - {0, 1})
        if len(counts) > 1:
            raise UserError(f"sweeps have {' and '.join(map(str, counts))} few-shot seeds; run all with the same")
        return counts[0] if counts else 1

    def profiles(self, name: str, suffix: str = "", seed: int = 0) -> list[Losses]:
        """The profiles of a field under one view."""
        found = self.results(name)
        return _profiles(found[min(seed, len(found) - 1)], suffix) if found else []

    def easy(self, name: str, seed: int, tasks: set[str]) -> dict[str, float]:
        """Log-odds of the whole model by document, with other examples than those of the sweep where there are any."""
        found = self.results(name)
        own = found[min(seed, len(found) - 1)]
        others = [found[(seed + 1) % len(found)]] if len(found) > 1 else self._margins(own)
        every = [losses for result in others or [own] for losses in result.every_losses.values()]
        model = own.docs["model"].iloc[0]
        chosen = [each for each in every if each.task in tasks and each.model == model]
        return {document: x for each in chosen for document, x in zip(each.documents, odds(each.base), strict=True)}

    def has_other_margins(self, names: Sequence[str]) -> bool:
        """Whether some other examples say how easy the documents of all sweeps of these fields in nats are."""
        sweeps = [self.results(name) for name in names if name in ("tokens", "control")]
        return all(len(found) > 1 or self._margins(found[0]) for found in sweeps)

    def _margins(self, sweep: Result) -> list[Result]:
        """The margins of the model of a sweep."""
        model = sweep.docs["model"].iloc[0]
        return [result for result in _several(self.margins) if (result.docs["model"] == model).any()]

    @property
    def models(self) -> list[str]:
        """Names of the models."""
        names = (*MODEL_FIELDS, "base", "control", "transplants")
        return sorted({str(m) for name in names for sweep in self.results(name) for m in sweep.docs["model"].unique()})


def _profiles(result: Result, suffix: str) -> list[Losses]:
    """The profiles of a result, made once for all claims and fields that take it."""
    kept: dict[Any, list[Losses]] = result.kept()
    if suffix not in kept:
        kept[suffix] = by_layer(result.primary(), suffix)
    return kept[suffix]


def _refuse_same_seeds(name: str, results: Sequence[Result]) -> None:
    """Refuse few-shot seeds of a field that are one seed, or that have the same examples."""
    if len(results) < 2:
        return
    if len({result.record.get("seed") for result in results}) < len(results):
        raise UserError(f"{name} has two sweeps of one few-shot seed; give one a seed")
    for task in results[0].record["tasks"]:
        drawn = [set(result.record["tasks"][task].get("examples") or ()) for result in results]
        if shared := sum(map(len, drawn)) - len(set().union(*drawn)):
            fault = f"{name}: few-shot seeds share {shared} examples of task {task}"
            raise UserError(f"{fault}; give seeds or fewer examples, so that they share none")


def _several(given: Any) -> list[Any]:
    """What a field of `Evidence` was given: nothing, one, or several."""
    return [] if given is None else [*given] if isinstance(given, list | tuple) else [given]
