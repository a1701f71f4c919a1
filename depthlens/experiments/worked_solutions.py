r"""The tokens of worked solutions by kind: computed, copied, or plain text.

A number in a solution is **computed** where its value does not occur before: not in the question, not earlier in the
solution, not in the few-shot examples. It is **copied** where its value occurs in the question or earlier in the
solution. Everything that is not a number is **text**. Two kinds of numbers could be both, and are left out: a number
that is written as a result (after ``=``) and whose value occurs before by chance, and a number that occurs only in the
examples, or in the question as a word ("two").

``53 - 12 = 41``: 53 and 12 are copied from the question, 41 is computed; where ``41 + 17 = 58`` follows, 41 is copied.

Limits: what the model knows without the prompt (7 days a week) is computed by this rule, and so is a number that the
solution merely introduces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import numpy as np
import pandas as pd

from depthlens import arguments
from depthlens.analysis.words import WORDS, numbers
from depthlens.errors import UserError
from depthlens.experiments.options import EvalOptions, load_tasks, prepare, settled
from depthlens.models.lens import Lens, one_thread
from depthlens.requests import LoglikelihoodRequest
from depthlens.tasks.measures import Answers, Text, align
from depthlens.tasks.prepared_task import identity

KINDS = ("computed", "copied", "text")


@dataclass(frozen=True)
class Span:
    """Neighbouring tokens of one kind.

    Attributes:
        kind: ``computed``, ``copied`` or ``text``.
        start: Position of the first token, in ``context + continuation``.
        end: Position after the last.
    """

    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class ComputedNumber:
    """A computed number, and the token positions of the numbers that it could come from.

    Attributes:
        tokens: The number itself.
        operands: Numbers before it on its line, since the last result there.
        previous: The last result before it that is not among the operands.
    """

    tokens: tuple[int, ...]
    operands: tuple[int, ...]
    previous: tuple[int, ...]


@dataclass(frozen=True)
class Solution:
    """One worked solution.

    Attributes:
        doc_id: Document of the task.
        text: Prompt and solution.
        spans: Tokens of the solution by kind, in order; what is left out is in none.
        results: The computed numbers, in order.
        question: Token positions of the question (few-shot examples are not a part of it).
        n_unclear: Numbers that were left out.
        doc_hash: What the document is; see `depthlens.tasks.prepared_task.identity`.
    """

    doc_id: int
    text: Text
    spans: tuple[Span, ...]
    results: tuple[ComputedNumber, ...]
    question: tuple[int, ...]
    n_unclear: int
    doc_hash: str = ""

    def request(self, span: Span) -> LoglikelihoodRequest:
        """The tokens of a span, after everything before them."""
        tokens = self.text.tokens
        return LoglikelihoodRequest(tokens[: span.start], tokens[span.start : span.end])

    def frame(self, logprobs: Sequence[float] | None = None) -> pd.DataFrame:
        """The spans in reading order: kind, text, n_tokens, and nats_per_token where their log-probabilities are given.

        Args:
            logprobs: Of each span, in nats, e.g. by `Engine.loglikelihood` of its `request`.
        """
        whole = self.text.context + self.text.continuation
        offsets = self.text.offsets
        rows = [
            (s.kind, whole[offsets[s.start][0] : offsets[s.end - 1][1]].strip(" "), s.end - s.start) for s in self.spans
        ]
        table = pd.DataFrame(rows, columns=["kind", "text", "n_tokens"])
        if logprobs is not None:
            table["nats_per_token"] = -np.array(logprobs, dtype=float) / table["n_tokens"]
        return table

    def n_tokens(self, kind: str) -> int:
        return sum(s.end - s.start for s in self.spans if s.kind == kind)


def kinds(solution: str, question: str, examples: str = "") -> list[tuple[int, int, str | None]]:
    """Every number of a solution: start, end, and ``computed``, ``copied`` or None where it could be both.

    Args:
        solution: The worked solution.
        question: What was asked.
        examples: What comes before the question.
    """
    known = {value for _, _, value in numbers(question)}
    words = re.findall(r"[a-z]+", question.lower())
    unclear = {value for _, _, value in numbers(examples)} | {WORDS[w] for w in words if w in WORDS}
    found: list[tuple[int, int, str | None]] = []
    for start, end, value in numbers(solution):
        is_result = solution[:start].rstrip(" $-").endswith("=")
        if value in known:
            # after "=" it is a result that happens to stand before; a repeated "x = 41 = 41" is too rare to matter
            kind = None if is_result else "copied"
        else:
            kind = None if value in unclear else "computed"
        found.append((start, end, kind))
        known.add(value)
    return found


def take_apart(doc_id: int, text: Text, question: str) -> Solution:
    """Spans and results of a solution.

    Args:
        doc_id: Document of the task.
        text: Prompt (which ends with the question) and solution.
        question: The question as text; where the prompt does not hold it, the whole prompt is the question.
    """
    at = max(text.context.rfind(question.strip()), 0)
    found = kinds(text.continuation, text.context[at:], text.context[:at])
    n = len(text.request.context)
    kind_of: dict[int, str | None] = dict.fromkeys(range(n, len(text.tokens)), "text")
    places: list[tuple[int, int, str | None, tuple[int, ...]]] = []
    shift = len(text.context)
    for start, end, kind in found:
        tokens = tuple(p for p in text.positions(shift + start, shift + end) if p >= n)
        places.append((start, end, kind, tokens))
        for p in tokens:
            # a token that holds the end of one number and the start of the next is of no one kind
            kind_of[p] = kind if kind_of[p] == "text" else None
    asked = text.positions(at, len(text.context))  # with the spaces between them
    return Solution(
        doc_id,
        text,
        tuple(_runs(kind_of, [t for *_, t in places])),
        tuple(_results(text.continuation, places)),
        tuple(range(min(asked, default=0), max(asked, default=-1) + 1)),
        sum(kind is None for *_, kind, _ in places),
    )


def _runs(kind_of: dict[int, str | None], of_numbers: list[tuple[int, ...]]) -> Iterator[Span]:
    """Neighbouring tokens of one kind; every number is a span of its own."""
    starts = {tokens[0] for tokens in of_numbers if tokens}
    positions = sorted(kind_of)
    begin = None
    for p in positions:
        if begin is not None and (kind_of[p] != kind_of[begin] or p in starts):
            if (kind := kind_of[begin]) is not None:
                yield Span(kind, begin, p)
            begin = None
        begin = p if begin is None else begin
    if begin is not None and (kind := kind_of[begin]) is not None:
        yield Span(kind, begin, positions[-1] + 1)


def _results(solution: str, places: list[tuple[int, int, str | None, tuple[int, ...]]]) -> Iterator[ComputedNumber]:
    last: tuple[int, ...] = ()
    operands: list[int] = []
    line_end = 0
    for start, _, kind, tokens in places:
        if "\n" in solution[line_end:start]:
            operands = []
        line_end = start
        if kind == "computed" and tokens:
            previous = tuple(p for p in last if p not in operands)
            yield ComputedNumber(tokens, tuple(operands), previous)
            last, operands = tokens, []
        else:
            operands += tokens


@one_thread
def worked_solutions(lens: Lens, tasks: str | Sequence[str], **options: Unpack[EvalOptions]) -> list[Solution]:
    """Worked solutions of generative lm-eval tasks: their reference answers, taken apart.

    Args:
        lens: The model that reads them.
        tasks: One lm-eval task (or group) or several, e.g. ``arithmetic_cot`` or ``gsm8k``.
        options: `EvalOptions`: limit, samples, num_fewshot, include_path, seed.

    Raises:
        UserError: unknown task, one that is not generative, or one whose answers compute nothing.
    """
    arguments.loaded(lens)
    chosen = settled(options)
    names = arguments.names("tasks", tasks, "arithmetic_cot")
    found = []
    for prepared in prepare(lens, load_tasks(names, chosen), chosen):
        if prepared.output_type != "generate_until":
            raise UserError(f"task {prepared.name} is {prepared.output_type}; worked solutions need a generative task")
        for doc_id, (context, solution) in Answers(prepared).pairs.items():
            text = align(prepared.encoder, prepared.name, context, solution)
            doc = prepared.docs[doc_id]
            found_in = take_apart(doc_id, text, prepared.task.doc_to_text(doc))
            found.append(replace(found_in, doc_hash=identity(prepared.task, doc)))
    if not any(s.results for s in found):
        raise UserError(
            f"tasks {', '.join(names)}: none of {len(found)} answers has a number that does not occur before it; "
            "take another task"
        )
    return found
