"""Worked solutions that the model writes itself: those whose final answer is right, taken apart as references are.

A reference solution is somebody else's text. What a head does on it need not be what it does when the model solves the
problem. Here the model answers each prompt greedily, and lm-eval's own scoring says which answers are right: those that
any filter of the task's first metric accepts, so that a lost answer format does not count as a wrong solution.

Limits: a right answer can follow from wrong steps. The written text is encoded anew with its prompt, which can give
other tokens than those that were written. Heads are then compared on the problems that the whole model can solve, which
are the easier ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from depthlens.ablations import BASELINE
from depthlens.cluster import pool
from depthlens.engine.engine import Engine
from depthlens.errors import UserError, unknown
from depthlens.experiments import worked_solutions
from depthlens.experiments.options import EvalOptions, task_options
from depthlens.experiments.worked_solutions import Solution, take_apart
from depthlens.models.lens import NO_GENERATION, Lens
from depthlens.store.answer_cache import AnswerStore
from depthlens.tasks import harness
from depthlens.tasks.measures import align
from depthlens.tasks.prepared_task import Prepared, identity

REFERENCE, OWN = "reference", "own"
MIN_RIGHT = 8  # solutions; a mean over fewer says nothing of the model


def chosen(
    lens: Lens, names: Sequence[str], solutions: str, options: EvalOptions, answers: AnswerStore
) -> tuple[list[Solution], dict[str, Any]]:
    """Worked solutions of tasks, and what the record says of them.

    Args:
        lens: A loaded model.
        names: Of the tasks.
        solutions: ``reference`` or ``own``.
        options: All of them; see `depthlens.experiments.options.settled`.
        answers: Where written texts are read and kept.

    Raises:
        UserError: an unknown kind of solutions, or see `written_solutions` and `worked_solutions.worked_solutions`.
    """
    if solutions not in (REFERENCE, OWN):
        raise unknown("solutions", solutions, (REFERENCE, OWN))
    if solutions == REFERENCE:
        return worked_solutions.worked_solutions(lens, names, **task_options(options)), {"solutions": REFERENCE}
    solved, n_asked = written_solutions(lens, names, options, answers)
    return solved, {"solutions": OWN, "n_right": len(solved), "n_asked": n_asked}


def written_solutions(
    lens: Lens, names: Sequence[str], options: EvalOptions, answers: AnswerStore
) -> tuple[list[Solution], int]:
    """The right solutions that the model writes, and how many it was asked for.

    Raises:
        UserError: a task that is not generative, a model that cannot write, or fewer than 8 right solutions.
    """
    if lens.stream:
        raise UserError(NO_GENERATION)
    loaded = harness.load_tasks(names, **task_options(options))
    found: list[Solution] = []
    n_asked = 0
    for prepared in harness.prepare(lens, loaded, limit=options["limit"], samples=options["samples"]):
        worked_solutions.generative(prepared)
        engine = Engine(
            lens,
            batch_tokens=options["batch_tokens"],
            progress=options["progress"],
            cache=answers.entry(prepared.name),
            workers=pool.workers_of(options),
        )
        (texts,) = prepared.run(engine, [BASELINE])
        right = _right(prepared, texts)
        n_asked += len(prepared.docs)
        for instance, text in zip(prepared.task.instances, texts, strict=True):
            if instance.doc_id in right:
                aligned = align(prepared.encoder, prepared.name, instance.args[0], text.rstrip())
                question = prepared.task.doc_to_text(instance.doc)
                solution = take_apart(instance.doc_id, aligned, question)
                found.append(replace(solution, doc_hash=identity(prepared.task, instance.doc)))
    if len(found) < MIN_RIGHT:
        fault = f"the model solves {len(found)} of {n_asked} problems, and {MIN_RIGHT} right solutions are needed"
        raise UserError(f"tasks {', '.join(names)}: {fault}; take more documents, or solutions='reference'")
    return found, n_asked


def _right(prepared: Prepared, texts: Sequence[str]) -> set[int]:
    """Documents whose answer some filter of the task's first metric accepts."""
    scored = [(score.metric.split(",")[0], score.doc_id, score.value) for score in prepared.score(texts)]
    return {doc_id for metric, doc_id, value in scored if metric == scored[0][0] and value == 1}
