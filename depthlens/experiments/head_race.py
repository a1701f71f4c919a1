"""Which heads cost most, by a race that starts from attribution's order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from depthlens.analysis.races import Race
from depthlens.analysis.results import Result
from depthlens.errors import UserError
from depthlens.experiments.options import EvalOptions, load_tasks
from depthlens.experiments.race import race
from depthlens.metrics import ANSWER_LOGPROB
from depthlens.models.lens import Lens
from depthlens.tasks import document_choice

GUESSED_FROM = 16  # documents, which the race does not see


def head_race(
    lens: Lens,
    tasks: str | Sequence[str],
    ablate: Sequence[str],
    estimate: Callable[[dict[str, Any], EvalOptions], Result] | None,
    options: EvalOptions,
    **of_race: Any,
) -> Race:
    """A race of heads, or of groups of them.

    Rivals must be chosen before their documents are seen, so attribution sees others: 16 that are drawn by ``seed``.

    Args:
        lens: The model.
        tasks: Names.
        ablate: A condition a head.
        estimate: Makes attribution's estimates for loaded tasks; None: there are none, and the order is that of depth.
        options: All of `EvalOptions`.
        of_race: ``top``, ``margin``, ``alpha`` and ``max_documents``, where they are given.

    Raises:
        UserError: there are too few documents for both.
    """
    loaded = load_tasks(tasks, options)
    if of_race.get("top") is None or estimate is None:
        return race(lens, loaded, ablate, **of_race, **options)
    guess, rest = _split(loaded, options)
    asked = {**options, "limit": None, "samples": guess, "measure": ANSWER_LOGPROB}
    losses = estimate({name: loaded[name] for name in guess}, cast(EvalOptions, asked)).losses()
    mean = losses.groupby("condition", sort=False)["loss"].mean().sort_values(ascending=False, kind="stable")
    options = cast(EvalOptions, {**options, "limit": None, "samples": rest})
    return race(lens, {name: loaded[name] for name in rest}, ablate, order=list(mean.index), **of_race, **options)


def _split(tasks: Mapping[str, Any], options: EvalOptions) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Documents for the guess and for the race, by task."""
    every = []
    for name, task in tasks.items():
        chosen = document_choice.chosen(name, task, options["limit"], options["samples"])
        every += [(name, number) for number in (range(len(task.eval_docs)) if chosen is None else chosen)]
    if len(every) < 2 * GUESSED_FROM:
        fault = f"{len(every)} documents are too few for a race for the costliest, which needs {2 * GUESSED_FROM}"
        raise UserError(f"{fault}; raise limit, or use method='exact'")
    drawn = np.random.default_rng(options["seed"]).permutation(len(every))
    parts: tuple[dict[str, list[int]], dict[str, list[int]]] = ({}, {})
    for place, at in enumerate(drawn):
        name, number = every[at]
        parts[place >= GUESSED_FROM].setdefault(name, []).append(number)
    return parts
