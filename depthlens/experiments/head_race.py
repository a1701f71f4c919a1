"""Which heads cost most, by a race that starts from attribution's order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from depthlens.ablations import Condition, expand
from depthlens.analysis.races import Race
from depthlens.analysis.results import Result
from depthlens.cluster import options as cluster
from depthlens.errors import UserError
from depthlens.experiments.options import EvalOptions, load_tasks
from depthlens.experiments.race import check_top, race
from depthlens.metrics import ANSWER_LOGPROB
from depthlens.models.lens import Lens
from depthlens.tasks import document_choice, groups

GUESSED_FROM = 16  # documents, which the race does not see


def head_race(
    lens: Lens,
    tasks: str | Sequence[str] | dict[str, Any],
    ablate: str | Sequence[str],
    estimate: Callable[[dict[str, Any], EvalOptions], Result],
    options: EvalOptions,
    **of_race: Any,
) -> Race:
    """A race of heads, or of groups of them.

    Rivals must be chosen before their documents are seen, so attribution sees others: 16 that are drawn by ``seed``.
    Where it cannot run (another backend, an offloaded or a remote model), the order is that of depth.

    Args:
        lens: The model.
        tasks: Names, or tasks that are loaded.
        ablate: A condition a head; see `depthlens.condition_sweep`.
        estimate: Makes attribution's estimates for loaded tasks, of these heads at least.
        options: All of `EvalOptions`.
        of_race: Other arguments of `depthlens.race`, where they are given.

    Raises:
        UserError: there are too few documents for both.
    """
    loaded = tasks if isinstance(tasks, dict) else load_tasks(tasks, options)
    can_guess = options["backend"] == "torch" and lens.stream is None and lens.remote is None
    if (top := of_race.get("top")) is None or not can_guess:
        return race(lens, loaded, ablate, **of_race, **options)
    names = [str(condition) for condition in expand(ablate, lens.dims)[1:]]
    members = {name: groups.of(task) for name, task in loaded.items()}
    check_top(top, len(names), list(dict.fromkeys(name if m is None else m.group for name, m in members.items())))
    guess, rest = _split(loaded, options)
    asked = {**options, **dict.fromkeys(cluster.NAMES), "limit": None, "samples": guess, "measure": ANSWER_LOGPROB}
    losses = estimate({name: loaded[name] for name in guess}, cast(EvalOptions, asked)).losses()
    mean = losses.groupby("condition", sort=False)["loss"].mean().sort_values(ascending=False, kind="stable")
    options = cast(EvalOptions, {**options, "limit": None, "samples": rest})
    order = [name for name in mean.index if name in set(names)]
    return race(lens, {name: loaded[name] for name in rest}, ablate, order=order, **of_race, **options)


def way_of_removal(conditions: Sequence[Condition]) -> tuple[str, str] | None:
    """Site and mode of conditions that attribution can put in order; None where they are not of this kind.

    Each must remove one head, or one group of heads, at all positions, and all must do it in the same way.
    """
    parts = [condition.ablations for condition in conditions]
    ways = {(part.site, part.mode, part.start) for ablations in parts for part in ablations}
    if len(ways) != 1 or any(len(ablations) != 1 for ablations in parts):
        return None
    ((site, mode, start),) = ways
    return (site, mode) if site in ("head", "kv") and mode in ("zero", "mean") and start == 0 else None


def _split(tasks: Mapping[str, Any], options: EvalOptions) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Documents for the guess and for the race, by task."""
    every = []
    for name, task in tasks.items():
        chosen = document_choice.chosen(name, task, options["limit"], options["samples"])
        every += [(name, number) for number in (range(len(task.eval_docs)) if chosen is None else chosen)]
    if len(every) < 2 * GUESSED_FROM:
        fault = f"{len(every)} documents are too few for a race for the costliest, which needs {2 * GUESSED_FROM}"
        raise UserError(f"{fault}; raise limit, or leave top out")
    drawn = np.random.default_rng(options["seed"]).permutation(len(every))
    parts: tuple[dict[str, list[int]], dict[str, list[int]]] = ({}, {})
    for place, at in enumerate(drawn):
        name, number = every[at]
        parts[place >= GUESSED_FROM].setdefault(name, []).append(number)
    return parts
