"""Where heads look while computed numbers of worked solutions are written: operands, previous result, question.

A head that computes should read what it computes from. Attention is read one layer at a time
(`depthlens.experiments.attention_patterns`), at the positions that predict the tokens of computed numbers
(`depthlens.experiments.worked_solutions`), teacher-forced.

Limits: attention says what can reach a head, not what the head does with it. What a position holds may have been
gathered from other positions by earlier layers.
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
from depthlens.experiments import attention_patterns, worked_solutions
from depthlens.experiments.measured import one_by_one
from depthlens.experiments.options import WITHOUT_CONDITIONS, EvalOptions, settled, task_options
from depthlens.experiments.worked_solutions import Solution
from depthlens.models.lens import Lens, one_thread
from depthlens.store.answer_cache import AnswerStore

SOURCES = ("operands", "previous_result", "question", "rest")


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
    solved = [s for s in worked_solutions.worked_solutions(lens, names, **task_options(chosen)) if s.results]
    dims = lens.dims
    shape = dims.n_layers, dims.n_heads, len(SOURCES)
    cache = AnswerStore(chosen["store"], lens).entry(f"results of {' '.join(names)}", method="attention at results")
    cases = [(s.text.tokens, s.question, s.results) for s in solved]
    values = one_by_one(
        cache,
        cases,
        [f"{head} {source}" for head in dims.head_names for source in SOURCES],
        lambda i: _masses(lens, solved[i]),
        desc="attention at results",
        unit="solution",
        progress=chosen["progress"],
    )
    totals = values.reshape(len(solved), *shape).sum(0)
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

    def see(layer: int, _: int, pattern: Tensor) -> None:
        masses[layer, :, :-1] = torch.einsum("hap,aps->hs", pattern, weights.to(pattern)).double().cpu().numpy()

    asked = [p - 1 for result in solution.results for p in result.tokens]
    attention_patterns.read(lens, [solution.text.tokens[:-1]], [asked], see)
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
