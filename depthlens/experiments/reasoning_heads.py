"""Which heads carry computation: what their removal costs on computed and on copied numbers of worked solutions.

**Tokens by kind.** A number in a solution is **computed** where its value does not occur before: not in the question,
not earlier in the solution, not in the few-shot examples. It is **copied** where its value occurs in the question or
earlier in the solution. Everything that is not a number is **text**. Two kinds of numbers could be both, and are left
out: a number that is written as a result (after ``=``) and whose value occurs before by chance, and a number that
occurs only in the examples, or in the question as a word ("two").

``53 - 12 = 41``: 53 and 12 are copied from the question, 41 is computed; where ``41 + 17 = 58`` follows, 41 is copied.

Limits: what the model knows without the prompt (7 days a week) is computed by this rule, and so is a number that the
solution merely introduces.

**Heads.** The loss on the tokens of worked solutions, teacher-forced, is measured separately for the three kinds.
Removing a head that helps to write any number raises the loss on both kinds of numbers. Removing a head that computes
raises the contrast, computed minus copied.

Limits: teacher forcing measures the reference solution, which need not be how the model would solve the problem. The
whole model is less sure of computed numbers than of copied ones, and where it is less sure, any damage costs more:
``record["baseline"]`` has its surprisal by kind.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Unpack

import numpy as np
import pandas as pd

from depthlens import arguments
from depthlens.ablations import AnyHead
from depthlens.analysis.heads.scores import HeadScores
from depthlens.analysis.numbers.words import WORDS, numbers
from depthlens.arguments import EvalOptions
from depthlens.errors import UserError
from depthlens.experiments.attribution import ATTRIBUTION, EXACT, address, losses, removed_alone
from depthlens.experiments.condition_runs import OF_CONDITIONS, load_tasks, prepare, settled, task_options, tasks_record
from depthlens.models.lens import Lens, one_thread
from depthlens.requests import LoglikelihoodRequest
from depthlens.store.answer_cache import AnswerStore
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
class Solution:
    """One worked solution.

    Attributes:
        doc_id: Document of the task.
        text: Prompt and solution.
        kinds: The kind of each token of the solution; None: it is left out.
        spans: Neighbouring tokens of one kind, in order; of numbers those of one number.
        n_unclear: Numbers that were left out.
        doc_hash: What the document is; see `depthlens.tasks.prepared_task.identity`.
    """

    doc_id: int
    text: Text
    kinds: tuple[str | None, ...]
    spans: tuple[Span, ...]
    n_unclear: int
    doc_hash: str = ""

    def request(self, span: Span) -> LoglikelihoodRequest:
        """The tokens of a span, after everything before them."""
        tokens = self.text.tokens
        return LoglikelihoodRequest(tokens[: span.start], tokens[span.start : span.end])


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


def take_apart(doc_id: int, text: Text, question: str, doc_hash: str = "") -> Solution:
    """Spans of a solution.

    Args:
        doc_id: Document of the task.
        text: Prompt (which ends with the question) and solution.
        question: The question as text; where the prompt does not hold it, the whole prompt is the question.
        doc_hash: See `Solution`.
    """
    at = max(text.context.rfind(question.strip()), 0)
    found = kinds(text.continuation, text.context[at:], text.context[:at])
    n = len(text.request.context)
    kind_of: dict[int, str | None] = dict.fromkeys(range(n, len(text.tokens)), "text")
    number_of: dict[int, int] = {}
    shift = len(text.context)
    for start, end, kind in found:
        tokens = [p for p in text.positions(shift + start, shift + end) if p >= n]
        # a token that holds the end of one number and the start of the next is of no one kind
        kind_of |= {p: kind if kind_of[p] == "text" else None for p in tokens}
        number_of |= dict.fromkeys(tokens, start)
    runs = [(kind, [*run]) for (kind, _), run in groupby(kind_of, lambda p: (kind_of[p], number_of.get(p)))]
    return Solution(
        doc_id,
        text,
        tuple(kind_of.values()),
        tuple(Span(kind, run[0], run[-1] + 1) for kind, run in runs if kind),
        sum(kind is None for *_, kind in found),
        doc_hash,
    )


@one_thread
def worked_solutions(lens: Lens, tasks: str | Sequence[str], **options: Unpack[EvalOptions]) -> list[Solution]:
    """Worked solutions of generative lm-eval tasks: their reference answers, taken apart.

    Args:
        lens: The model that reads them.
        tasks: One lm-eval task (or group) or several, e.g. ``arithmetic_cot`` or ``gsm8k``.
        options: `EvalOptions`: limit, samples, num_fewshot, include_path, seed.

    Raises:
        UserError: unknown task, one that is not generative, or one whose answers compute nothing.

    Example:
        >>> solutions = dl.worked_solutions(base, "arithmetic_cot", limit=2, num_fewshot=0)
        >>> len(solutions)
        2
    """
    chosen = settled(options)
    loaded = load_tasks(tasks, chosen)
    found = []
    for prepared in prepare(lens, loaded, chosen):
        if prepared.output_type != "generate_until":
            raise UserError(f"task {prepared.name} is {prepared.output_type}; worked solutions need a generative task")
        for doc_id, (context, solution) in Answers(prepared).pairs.items():
            text = align(prepared.encoder, prepared.name, context, solution)
            task, doc = prepared.task, prepared.docs[doc_id]
            found.append(take_apart(doc_id, text, task.doc_to_text(doc), identity(task, doc)))
    if not any("computed" in s.kinds for s in found):
        fault = f"tasks {', '.join(loaded)}: none of {len(found)} answers computes a number"
        raise UserError(f"{fault}; take another task")
    return found


@one_thread
def reasoning_scores(
    lens: Lens,
    tasks: str | Sequence[str] = "arithmetic_cot",
    *,
    method: str = EXACT,
    heads: Sequence[AnyHead] | None = None,
    **options: Unpack[EvalOptions],
) -> dict[str, HeadScores]:
    """Score every head by what its removal costs on computed, copied and plain tokens of worked solutions.

    Args:
        lens: A loaded model.
        tasks: One generative lm-eval task or several whose reference answers are worked solutions, such as ``gsm8k``.
        method: ``exact`` removes every head in turn; ``attribution`` estimates all of them
            (`depthlens.experiments.attribution`).
        heads: Heads to remove, with ``exact``; None for all.
        options: `EvalOptions`: limit, num_fewshot, include_path, seed, batch_tokens, store, progress.

    Returns:
        Loss in nats per token, means over the solutions that have tokens of the kind: ``computed`` is on numbers that
        occur nowhere before, ``copied`` on numbers that occur in the question or earlier in the solution, ``text`` on
        everything else. ``contrast`` is computed minus copied, over the solutions that have both.
        ``record["baseline"]`` of each says how well the whole model writes each kind: a loss on tokens that it cannot
        write means little.

    Raises:
        UserError: anything asked for that does not exist, or tasks without worked solutions.

    Example:
        >>> reasoning = dl.reasoning_scores(base, "arithmetic_cot", limit=2, method="attribution")
        >>> list(reasoning)
        ['computed', 'copied', 'text', 'contrast']
        >>> chosen = reasoning["contrast"].top(3)
    """
    chosen = settled(options, without=OF_CONDITIONS)
    arguments.one_of(EXACT, ATTRIBUTION)("method", method)
    removed = removed_alone(lens, heads, method)
    answers = AnswerStore(chosen["store"], lens)
    names = arguments.names("tasks", tasks, "arithmetic_cot")
    solved = worked_solutions(lens, names, **task_options(chosen))
    cells = [(s, kind) for s, one in enumerate(solved) for kind in KINDS if kind in one.kinds]  # tokens of a kind
    places = pd.Series(range(len(cells)), pd.MultiIndex.from_tuples(cells)).unstack().reindex(columns=KINDS)
    rows = {kind: places[kind].dropna().to_numpy(dtype=int) for kind in KINDS}
    both = places[[*KINDS[:2]]].dropna().to_numpy(dtype=int).T  # [(computed, copied), solution]
    needed = {f"{kind} tokens": rows[kind] for kind in KINDS} | {"both computed and copied numbers": both[0]}
    if lacking := [name for name, some in needed.items() if not len(some)]:
        fault = f"none of {len(solved)} solutions has {lacking[0]}"
        raise UserError(f"tasks {', '.join(names)}: {fault}; take more documents")
    requests = [solved[s].text.request for s, _ in cells]
    weights = [[float(of_token == kind) for of_token in solved[s].kinds] for s, kind in cells]  # its tokens count
    entry = answers.entry(f"solutions {' '.join(names)}", method=address(method))
    lost, clean = losses(lens, requests, method, chosen, entry, weights=weights, heads=removed)
    n_tokens = np.array([sum(of_cell) for of_cell in weights])
    lost, clean = lost / n_tokens[:, None, None], clean / n_tokens
    about = {"documents": [s.doc_hash for s in solved], "n_unclear": sum(s.n_unclear for s in solved)}
    about["baseline"] = {
        kind: {"n_tokens": int(n_tokens[at].sum()), "nats_per_token": float(clean[at].mean())}
        for kind, at in rows.items()
    }
    record = answers.record(method=method, **tasks_record(names, chosen), **about)
    suffix = ", by attribution" if method == ATTRIBUTION else ""

    values = {f"{kind} tokens": lost[at] for kind, at in rows.items()}
    values["computed minus copied tokens"] = lost[both[0]] - lost[both[1]]
    scores = (
        HeadScores.of_cases(f"loss on {name}{suffix}", "nats", of, record, tested=True, heads=removed)
        for name, of in values.items()
    )
    return dict(zip((*KINDS, "contrast"), scores, strict=True))
