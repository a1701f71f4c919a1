"""Do retrieval heads change from one token of the answer to the next?

Lin et al. 2026 (Retrieval Heads are Dynamic, arXiv 2602.11162) find that the heads that retrieve differ between the
steps of one answer, which a mean over steps hides. The first token of an answer has to be found; the later ones can be
had by continuing the phrase, which an induction head does.

Two lists of highest heads differ by chance alone, because each is drawn from few needles. Needles are therefore split
in two halves, and a list from one half is always compared with a list from the other: at the same token, and at
different tokens. Heads change by step where the second comparison finds less in common than the first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from depthlens import arguments
from depthlens.ablations import Head
from depthlens.analysis.tables import DescribedTable
from depthlens.errors import UserError, unknown
from depthlens.experiments.head_detectors import COPY_PASTE, DETECTORS, QUERY_TO_GOLD, scores_by_token
from depthlens.experiments.head_losses import scores_record
from depthlens.experiments.needle_recall import recalled_needles
from depthlens.models.lens import Lens, one_thread
from depthlens.store.answer_cache import AnswerStore, Where
from depthlens.store.parts import DEFAULT
from depthlens.tasks.needles import Needle

METHODS = tuple(name for name in DETECTORS if name != QUERY_TO_GOLD)  # that one scores the question, not the answer
STEPS = ("first", "later")
N_SPLITS = 100


@one_thread
def retrieval_by_step(
    lens: Lens,
    needles: Sequence[Needle],
    *,
    method: str = COPY_PASTE,
    k: int = 10,
    seed: int = 0,
    batch_tokens: int | None = None,
    store: Where = DEFAULT,
    progress: bool = True,
) -> DescribedTable:
    """Score every head at the first token of the answers and at the later ones, and compare the highest heads.

    Args:
        lens: A loaded model.
        needles: From `depthlens.tasks`; those count that are recalled and whose answer has several tokens.
        method: ``copy_paste``, ``write_aware`` or ``write_from_needle``, as in `depthlens.retrieval_scores`.
        k: Length of the lists of highest heads.
        seed: Seed of the splits of the needles in halves.
        batch_tokens: As in `depthlens.recalled_needles`.
        store: Where scores are found and kept; see `depthlens.layer_sweep`.
        progress: Show a bar.

    Returns:
        One row a head: layer, head, condition, first (mean over needles of its score at the first token), later (mean
        over needles of its mean at the others), spread (mean over needles of the standard deviation over tokens), n
        (needles). The sentences say how many of ``k`` heads two lists share, mean over 100 splits.

    Raises:
        UserError: an unknown method, a ``k`` that does not fit, or fewer than four needles to compare.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    arguments.loaded(lens)
    dims = lens.dims
    k = arguments.whole("k", k, 1, dims.n_layers * dims.n_heads - 1, of=" of heads")
    seed = arguments.check(seed=seed)["seed"]
    recalled = recalled_needles(lens, needles, batch_tokens=batch_tokens, store=store, progress=progress)
    longer = [needle for needle in recalled if len(needle.steps) > 1]
    if len(longer) < 4:
        fault = f"{len(longer)} of {len(needles)} needles are recalled and have several tokens"
        raise UserError(f"{fault}; two halves need four, give more needles")
    answers = AnswerStore(store, lens)
    cache = answers.entry("needles", method=f"{method} by token")
    by_token = scores_by_token(lens, longer, method, progress=progress, cache=cache)
    cases = np.array([[case[0], case[1:].mean(0)] for case in by_token])  # [needle, step, n_layers, n_heads]
    layer, head = (x.ravel() for x in np.indices((dims.n_layers, dims.n_heads)))
    table = pd.DataFrame({"layer": layer, "head": head, "condition": dims.head_names})
    for i, step in enumerate(STEPS):
        table[step] = cases[:, i].mean(0).ravel()
    table["spread"] = np.mean([case.std(0) for case in by_token], axis=0).ravel()
    table["n"] = len(longer)
    record = scores_record(lens, answers, method, {"k": k, "seed": seed, "needles": len(longer)})
    return DescribedTable(table, [_sentence(cases, DETECTORS[method].label, k, seed)], record)


def _sentence(cases: np.ndarray, label: str, k: int, seed: int) -> str:
    """What lists of k heads share, at the same token and at different tokens.

    Args:
        cases: Shape [needle, step, n_layers, n_heads].
        label: Name of the detector.
        k: Length of the lists.
        seed: Seed of the splits.
    """
    rng = np.random.default_rng(seed)
    shared = np.zeros((N_SPLITS, 2, 2))
    for split in shared:
        order = rng.permutation(len(cases))
        halves = [cases[order[i::2]].mean(0) for i in range(2)]
        lists = [[_top(step, k) for step in half] for half in halves]
        split[:] = [[len(a & b) for b in lists[1]] for a in lists[0]]
    (first, across), (back, later) = shared.mean(0)
    return (
        f"{label}: of the {k} highest heads, two halves of the needles share {first:.1f} at the first token of the "
        f"answer and {later:.1f} at the later ones; the first token in one half and the later ones in the other share "
        f"{(across + back) / 2:.1f} (n = {len(cases)} needles, {N_SPLITS} splits)."
    )


def _top(scores: np.ndarray, k: int) -> set[Head]:
    order = np.argsort(-scores, axis=None, kind="stable")[:k]
    return {(int(i) // scores.shape[1], int(i) % scores.shape[1]) for i in order}
