"""Which heads carry computation: what their removal costs on computed and on copied numbers of worked solutions.

The loss on the tokens of worked solutions, teacher-forced, is measured separately for *computed* numbers, *copied*
numbers and plain *text* (`depthlens.experiments.worked_solutions`). Removing a head that helps to write any number
raises the loss on both kinds of numbers. Removing a head that computes raises the contrast, computed minus copied.

The whole model is less sure of computed numbers than of copied ones, and where it is less sure, any damage costs more.
So the *normalised* contrast measures each loss in units of the whole model's own surprisal on tokens of that kind,

    mean loss on computed / mean -log p of computed  -  mean loss on copied / mean -log p of copied.

It is a difference of ratios of means over solutions. Its interval is that of the linearised ratio (the delta method;
Cochran 1977, Sampling Techniques, section 6.4), so that the noise of the surprisal is in it.

Limits: teacher forcing measures the reference solution, which need not be how the model would solve the problem. A kind
that the model writes almost surely has a surprisal near 0, and a ratio to it is large for the smallest loss: read
``record["baseline"]``.

A head that computes should read what it computes from. `attention_at_results` says where heads look at the positions
that predict the tokens of computed numbers. Attention says what can reach a head, not what the head does with it, and
what a position holds may have been gathered from other positions by earlier layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from depthlens import arguments, cluster
from depthlens.ablations import Head
from depthlens.analysis.head_scores import HeadScores, ReasoningScores
from depthlens.errors import UserError, unknown
from depthlens.experiments import attention_patterns
from depthlens.experiments.attribution import address
from depthlens.experiments.head_losses import ATTRIBUTION, EXACT, engine_of, losses, removed_alone
from depthlens.experiments.measured import made_record, measured
from depthlens.experiments.options import WITHOUT_CONDITIONS, EvalOptions, settled, task_options, tasks_record
from depthlens.experiments.worked_solutions import KINDS, Solution, worked_solutions
from depthlens.models.lens import Lens, one_thread
from depthlens.requests import LoglikelihoodRequest
from depthlens.store.answer_cache import AnswerStore

SOURCES = ("operands", "previous_result", "question", "rest")


@one_thread
def reasoning_scores(
    lens: Lens,
    tasks: str | Sequence[str] = "arithmetic_cot",
    *,
    method: str = EXACT,
    heads: Sequence[Head] | None = None,
    **options: Unpack[EvalOptions],
) -> ReasoningScores:
    """Score every head by what its removal costs on computed, copied and plain tokens of worked solutions.

    Args:
        lens: A loaded model.
        tasks: One generative lm-eval task or several whose reference answers are worked solutions, such as ``gsm8k``.
        method: ``exact`` removes every head in turn; ``attribution`` estimates all of them
            (`depthlens.experiments.attribution`).
        heads: Heads to remove, with ``exact``; None for all.
        options: `EvalOptions`: limit, num_fewshot, include_path, seed, batch_tokens, store, progress.

    Returns:
        Loss in nats per token, means over the solutions that have tokens of the kind. ``record["baseline"]`` says how
        well the whole model writes each kind: a loss on tokens that it cannot write means little.

    Raises:
        UserError: anything asked for that does not exist, or tasks without worked solutions.
    """
    arguments.loaded(lens)
    chosen = settled(options, without=WITHOUT_CONDITIONS)
    if method not in (EXACT, ATTRIBUTION):
        raise unknown("method", method, (EXACT, ATTRIBUTION))
    removed = removed_alone(lens, heads, method)
    answers = AnswerStore(chosen["store"], lens)
    names = arguments.names("tasks", tasks, "arithmetic_cot")
    solved = worked_solutions(lens, names, **task_options(chosen))
    cells = [(s, kind) for s in range(len(solved)) for kind in KINDS if solved[s].n_tokens(kind)]  # tokens of a kind
    of = {kind: [s for s, other in cells if other == kind] for kind in KINDS}  # solutions that have some
    with_both = [s for s in of["computed"] if s in of["copied"]]
    lacking = [f"solutions has {kind} tokens" for kind in KINDS if not of[kind]]
    lacking += [] if with_both else ["solutions has both computed and copied numbers"]
    if lacking:
        raise UserError(f"tasks {', '.join(names)}: none of {len(solved)} {lacking[0]}; take more documents")
    of_method = EXACT if method == EXACT else address(method, 0)
    cache = answers.entry(f"solutions {' '.join(names)}", method=of_method)
    requests, weights = zip(*(weighted_tokens(solved[s], kind) for s, kind in cells), strict=True)
    lost, clean = losses(engine_of(lens, chosen, cache), requests, method, weights=weights, heads=removed)
    n_tokens = np.array([solved[s].n_tokens(kind) for s, kind in cells])
    lost, clean = lost / n_tokens[:, None, None], clean / n_tokens
    index = {cell: i for i, cell in enumerate(cells)}
    rows = {kind: [index[s, kind] for s in of[kind]] for kind in KINDS}
    about = {"documents": [s.doc_hash for s in solved], "n_unclear": sum(s.n_unclear for s in solved)}
    about["baseline"] = {
        kind: {"n_tokens": int(n_tokens[at].sum()), "nats_per_token": float(clean[at].mean())}
        for kind, at in rows.items()
    }
    record = made_record(lens, answers, [cache], method=method, **tasks_record(names, chosen), **about)
    suffix = ", by attribution" if method == ATTRIBUTION else ""

    def scores(name: str, values: np.ndarray, unit: str = "nats") -> HeadScores:
        return HeadScores.of_cases(f"loss on {name}{suffix}", unit, values, record, tested=True, heads=removed)

    both = {kind: [index[s, kind] for s in with_both] for kind in ("computed", "copied")}
    kinds = {kind: scores(f"{kind} tokens", lost[at]) for kind, at in rows.items()}
    kinds["contrast"] = scores("computed minus copied tokens", lost[both["computed"]] - lost[both["copied"]])
    relative = [ratio_cases(lost[at], -clean[at]) for at in both.values()]
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


def weighted_tokens(solution: Solution, kind: str) -> tuple[LoglikelihoodRequest, list[float]]:
    """The whole solution as one continuation, in which the tokens of one kind count."""
    n = len(solution.text.request.context)
    weights = [0.0] * len(solution.text.request.continuation)
    for span in solution.spans:
        if span.kind == kind:
            weights[span.start - n : span.end - n] = [1.0] * (span.end - span.start)
    return solution.text.request, weights


@one_thread
def attention_at_results(
    lens: Lens,
    tasks: str | Sequence[str] = "arithmetic_cot",
    **options: Unpack[EvalOptions],
) -> pd.DataFrame:
    """Where every head looks while computed numbers of worked solutions are written.

    Attention mass at the positions that predict a computed number's tokens, averaged over its tokens, then over
    numbers: on its *operands* (numbers before it on the line), on the *previous result* where that is not among them,
    on the *question*, and on the *rest* (examples, ``<bos>``, words of the solution). The four add up to 1.

    Args:
        lens: A loaded model.
        tasks: As in `reasoning_scores`.
        options: `EvalOptions`: limit, num_fewshot, include_path, seed, store, progress.

    Returns:
        One row a head: layer, head, condition, operands, previous_result, question, rest, n (computed numbers).

    Raises:
        UserError: see `reasoning_scores`.
    """
    arguments.loaded(lens)
    chosen = settled(options, without=(*WITHOUT_CONDITIONS, *cluster.NAMES, "batch_tokens"))
    names = arguments.names("tasks", tasks, "arithmetic_cot")
    solved = [s for s in worked_solutions(lens, names, **task_options(chosen)) if s.results]
    dims = lens.dims
    shape = dims.n_layers, dims.n_heads, len(SOURCES)
    values, _ = measured(
        lens,
        [(s.text.tokens, s.question, s.results) for s in solved],
        [f"{head} {source}" for head in dims.head_names for source in SOURCES],
        lambda i: _masses(lens, solved[i]),
        label=f"results of {' '.join(names)}",
        method="attention at results",
        store=chosen["store"],
        shape=shape,
        unit="solution",
        progress=chosen["progress"],
    )
    totals = values.sum(0)
    n = sum(len(s.results) for s in solved)
    layer, head = (x.ravel() for x in np.indices(shape[:2]))
    table = pd.DataFrame({"layer": layer, "head": head, "condition": dims.head_names})
    for i, source in enumerate(SOURCES):
        table[source] = totals[..., i].ravel() / n
    return table.assign(n=n)


def _masses(lens: Lens, solution: Solution) -> np.ndarray:
    """Attention of every head from the results of one solution to each source. Shape [n_layers, n_heads, source]."""
    masses = np.zeros((lens.dims.n_layers, lens.dims.n_heads, len(SOURCES)))
    weights = _sources(solution).to(lens.device)

    def see(layer: int, pattern: Tensor, _: Tensor) -> None:
        masses[layer, :, :-1] = torch.einsum("hap,aps->hs", pattern, weights.to(pattern)).double().cpu().numpy()

    asked = [p - 1 for result in solution.results for p in result.tokens]
    attention_patterns.read(lens, solution.text.tokens[:-1], asked, see)
    masses[..., -1] = len(solution.results) - masses.sum(-1)
    return masses


def _sources(solution: Solution) -> Float[Tensor, "token pos 3"]:
    """Which positions are operands, previous result and question, for each token of each computed number.

    Each token weighs as one part of its number. Shape [token, pos, 3].
    """
    n_pos = len(solution.text.tokens) - 1
    rows = []
    for result in solution.results:
        kinds = torch.zeros(n_pos, len(SOURCES) - 1)
        # later lines win: a position is an operand before it is anything else
        for column, positions in ((2, solution.question), (1, result.previous), (0, result.operands)):
            kinds[list(positions)] = 0.0
            kinds[list(positions), column] = 1.0
        rows += [kinds / len(result.tokens)] * len(result.tokens)
    return torch.stack(rows)
