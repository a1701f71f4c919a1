"""Which needles a model recalls: only those can show where it looks while it answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from depthlens import arguments
from depthlens.ablations import BASELINE
from depthlens.cluster import pool
from depthlens.engine.engine import Engine
from depthlens.errors import UserError
from depthlens.models.lens import Lens, one_thread
from depthlens.store.answer_cache import AnswerStore, Where
from depthlens.store.parts import DEFAULT
from depthlens.tasks.needles import Needle


@one_thread
def recalled_needles(
    lens: Lens,
    needles: Sequence[Needle],
    *,
    batch_tokens: int | None = None,
    store: Where = DEFAULT,
    progress: bool = True,
) -> list[Needle]:
    """The needles whose answer greedy decoding writes token by token.

    Returns:
        None where the model recalls none.

    Raises:
        UserError: no needles.
    """
    arguments.loaded(lens)
    cache = AnswerStore(store, lens).entry("needles")
    workers = pool.workers_of({})  # of the environment
    engine = Engine(lens, batch_tokens=batch_tokens, progress=progress, cache=cache, workers=workers)
    return recalled(lens, engine, needles)


def recall_table(needles: Sequence[Needle], recalled: Sequence[Needle]) -> pd.DataFrame:
    """How many needles were asked and how many recalled: one row a depth and context length, or a task.

    Args:
        needles: All that were asked.
        recalled: Those that `recalled_needles` returned.
    """
    return pd.DataFrame(groups(needles, recalled))


def recalled(lens: Lens, engine: Engine, needles: Sequence[Needle]) -> list[Needle]:
    """The same with an engine of the caller's."""
    if not needles or not all(isinstance(needle, Needle) for needle in needles):
        raise UserError("no needles; give at least one, from depthlens.tasks.needles")
    (answers,) = engine.loglikelihood([n.request for n in needles], [BASELINE], desc="recall")
    return [n for n, answer in zip(needles, answers, strict=True) if answer.is_greedy]


def groups(needles: Sequence[Needle], recalled: Sequence[Needle]) -> list[dict[str, Any]]:
    """How many needles were asked and recalled, by depth and context length, or by task."""

    def key(needle: Needle) -> tuple:
        return tuple((k, v) for k, v in needle.about.items() if k in ("depth", "context_length", "task"))

    n_asked, n_recalled = Counter(map(key, needles)), Counter(map(key, recalled))
    return [{**dict(k), "asked": n, "recalled": n_recalled[k]} for k, n in n_asked.items()]
