"""Which heads carry computation: what their removal costs on computed and on copied numbers of worked solutions.

The loss on the tokens of worked solutions, teacher-forced, is measured separately for *computed* numbers, *copied*
numbers and plain *text* (`depthlens.experiments.worked_solutions`). Removing a head that helps to write any number
raises the loss on both kinds of numbers. Removing a head that computes raises the contrast, computed minus copied.

The whole model is less sure of computed numbers than of copied ones, and where it is less sure, any damage costs more.
So the *normalised* contrast measures each loss in units of the whole model's own surprisal on tokens of that kind,

    mean loss on computed / mean -log p of computed  -  mean loss on copied / mean -log p of copied.

It is a difference of ratios of means over solutions. Its interval is that of the linearised ratio (the delta method;
Cochran 1977, Sampling Techniques, section 6.4), so that the noise of the surprisal is in it.

Limits: teacher forcing measures the given solution; a reference need not be how the model would solve the problem, and
its own solution (``solutions="own"``) is measured on the problems that it solves. A kind that the model writes almost
surely has a surprisal near 0, and a ratio to it is large for the smallest loss: read ``record["baseline"]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
from jaxtyping import Float

from depthlens import arguments
from depthlens.ablations import Head
from depthlens.analysis.head_scores import HeadScores, ReasoningScores
from depthlens.cluster import pool
from depthlens.engine.engine import Engine
from depthlens.errors import UserError, unknown
from depthlens.experiments import own_solutions
from depthlens.experiments.attribution import attribute
from depthlens.experiments.head_losses import ATTRIBUTION, EXACT, removed_alone, scores_record, single
from depthlens.experiments.options import WITHOUT_CONDITIONS, EvalOptions, settled, tasks_record
from depthlens.experiments.worked_solutions import KINDS, Solution
from depthlens.models.lens import Lens, one_thread
from depthlens.requests import LoglikelihoodRequest
from depthlens.store.answer_cache import AnswerCache, AnswerStore, cache_usage

Cell = tuple[int, str]  # solution, kind of token


@one_thread
def reasoning_scores(
    lens: Lens,
    tasks: str | Sequence[str] = "arithmetic_cot",
    *,
    method: str = EXACT,
    heads: Sequence[Head] | None = None,
    solutions: str = own_solutions.REFERENCE,
    **options: Unpack[EvalOptions],
) -> ReasoningScores:
    """Score every head by what its removal costs on computed, copied and plain tokens of worked solutions.

    Args:
        lens: A loaded model.
        tasks: One generative lm-eval task or several whose reference answers are worked solutions, such as ``gsm8k``.
        method: ``exact`` removes every head in turn; ``attribution`` estimates all of them
            (`depthlens.experiments.attribution`).
        heads: Heads to remove, with ``exact``; None for all.
        solutions: ``reference``: the task's own; ``own``: those that the model writes greedily and whose final answer
            is right (`depthlens.experiments.own_solutions`).
        options: `EvalOptions`: limit, num_fewshot, include_path, seed, batch_tokens, store, progress.

    Returns:
        Loss in nats per token, means over the solutions that have tokens of the kind. ``record["baseline"]`` says how
        well the whole model writes each kind: a loss on tokens that it cannot write means little.

    Raises:
        UserError: anything asked for that does not exist, tasks without worked solutions, or fewer than 8 right ones of
            the model's own.
    """
    arguments.loaded(lens)
    chosen = settled(options, without=WITHOUT_CONDITIONS)
    if method not in (EXACT, ATTRIBUTION):
        raise unknown("method", method, (EXACT, ATTRIBUTION))
    removed = removed_alone(lens, heads, method)
    answers = AnswerStore(chosen["store"], lens)
    names = arguments.names("tasks", tasks, "arithmetic_cot")
    solved, about = own_solutions.chosen(lens, names, solutions, chosen, answers)
    cells = [(s, kind) for s in range(len(solved)) for kind in KINDS if solved[s].n_tokens(kind)]
    with_both = _with_both_kinds(names, solved, cells)
    cache = answers.entry(f"solutions {' '.join(names)}", method="exact" if method == EXACT else "attribution zero")
    losses, clean = (_exact if method == EXACT else _attributed)(lens, solved, cells, removed, chosen, cache)
    n_tokens = np.array([solved[s].n_tokens(kind) for s, kind in cells])
    losses, clean = losses / n_tokens[:, None, None], clean / n_tokens
    source = tasks_record(names, chosen)
    of = {kind: [i for i, cell in enumerate(cells) if cell[1] == kind] for kind in KINDS}
    record = scores_record(lens, answers, method, source) | about
    record["documents"] = [s.doc_hash for s in solved]  # which of them chose these scores
    record["store"] = cache_usage([cache])
    record["n_unclear"] = sum(s.n_unclear for s in solved)
    record["baseline"] = {
        kind: {"n_tokens": int(n_tokens[rows].sum()), "nats_per_token": float(clean[rows].mean())}
        for kind, rows in of.items()
    }
    suffix = ", by attribution" if method == ATTRIBUTION else ""

    def scores(name: str, values: np.ndarray, unit: str = "nats") -> HeadScores:
        return HeadScores.of_cases(f"loss on {name}{suffix}", unit, values, record, tested=True, heads=removed)

    index = {cell: i for i, cell in enumerate(cells)}
    both = {kind: [index[s, kind] for s in with_both] for kind in ("computed", "copied")}
    kinds = {kind: scores(f"{kind} tokens", losses[of[kind]]) for kind in KINDS}
    kinds["contrast"] = scores("computed minus copied tokens", losses[both["computed"]] - losses[both["copied"]])
    relative = [ratio_cases(losses[rows], -clean[rows]) for rows in both.values()]
    name = "computed minus copied tokens, in units of surprisal"
    kinds["normalised"] = scores(name, relative[0] - relative[1], "")
    return ReasoningScores.of_kinds(kinds, record)


def ratio_cases(
    losses: Float[np.ndarray, "case n_layers n_heads"], surprisal: Float[np.ndarray, " case"]
) -> Float[np.ndarray, "case n_layers n_heads"]:
    """Values whose mean is mean(losses) / mean(surprisal), and whose spread is that of this ratio to first order.

    Each is ``R + (loss - R * surprisal) / mean(surprisal)`` with R the ratio.
    """
    mean = surprisal.mean()
    ratio = losses.mean(0) / mean
    return ratio + (losses - ratio * surprisal[:, None, None]) / mean


def _with_both_kinds(tasks: Sequence[str], solved: Sequence[Solution], cells: Sequence[Cell]) -> list[int]:
    """Solutions that have both computed and copied numbers."""
    for kind in KINDS:
        if not any(cell[1] == kind for cell in cells):
            raise UserError(
                f"tasks {', '.join(tasks)}: none of {len(solved)} solutions has {kind} tokens; take more documents"
            )
    both = [s for s in range(len(solved)) if {(s, "computed"), (s, "copied")} <= {*cells}]
    if not both:
        raise UserError(
            f"tasks {', '.join(tasks)}: no solution has both computed and copied numbers; take more documents"
        )
    return both


def _exact(
    lens: Lens,
    solved: Sequence[Solution],
    cells: Sequence[Cell],
    removed: list[Head] | None,
    options: EvalOptions,
    cache: AnswerCache,
) -> tuple[np.ndarray, np.ndarray]:
    """Losses [cell, n_layers, n_heads] and clean log-probabilities [cell], summed over the tokens of each cell."""
    about: dict[str, Any] = {"progress": options["progress"], "workers": pool.workers_of(options)}
    engine = Engine(lens, batch_tokens=options["batch_tokens"], cache=cache, **about)
    spans = [(c, span) for c, (s, kind) in enumerate(cells) for span in solved[s].spans if span.kind == kind]
    requests = [solved[cells[c][0]].request(span) for c, span in spans]
    by_span, clean_by_span = single(lens, engine, requests, removed)
    losses, clean = np.zeros((len(cells), *by_span.shape[1:])), np.zeros(len(cells))
    np.add.at(losses, [c for c, _ in spans], by_span)
    np.add.at(clean, [c for c, _ in spans], clean_by_span)
    return losses, clean


def _attributed(
    lens: Lens,
    solved: Sequence[Solution],
    cells: Sequence[Cell],
    removed: list[Head] | None,
    options: EvalOptions,
    cache: AnswerCache,
) -> tuple[np.ndarray, np.ndarray]:
    """The same, estimated."""
    requests, weights = zip(*(weighted_tokens(solved[s], kind) for s, kind in cells), strict=True)
    batch_tokens, progress = options["batch_tokens"], options["progress"]
    change, clean = attribute(
        lens, requests, weights=weights, batch_tokens=batch_tokens, progress=progress, cache=cache
    )
    return -change.numpy(), clean.numpy()


def weighted_tokens(solution: Solution, kind: str) -> tuple[LoglikelihoodRequest, list[float]]:
    """The whole solution as one continuation, in which the tokens of one kind count."""
    n = len(solution.text.request.context)
    weights = [0.0] * len(solution.text.request.continuation)
    for span in solution.spans:
        if span.kind == kind:
            weights[span.start - n : span.end - n] = [1.0] * (span.end - span.start)
    return solution.text.request, weights
