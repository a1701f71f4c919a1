"""What a race would cost: between a race that nothing holds up, and a sweep of all its documents."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np

from depthlens import arguments
from depthlens.ablations import Condition, expand
from depthlens.analysis import betting
from depthlens.analysis.stats import ALPHA
from depthlens.experiments import planning
from depthlens.experiments.options import EvalOptions, load_tasks, settled
from depthlens.experiments.planning import Plan
from depthlens.experiments.race import FIRST_WAVE, MARGIN
from depthlens.models.lens import Lens
from depthlens.tasks import document_choice, groups


@dataclass(frozen=True)
class RacePlan:
    """The range in which the cost of a race lies.

    Attributes:
        least: If every condition is decided as early as one can be that changes nothing.
        most: If one of them is open until the end, and so are all others.
        n_least: Documents of each task in `least`; a condition that costs nearly everything is decided before.
    """

    least: Plan
    most: Plan
    n_least: int

    def __repr__(self) -> str:
        start = f"At least, if every condition is decided after {self.n_least} documents of each task:"
        return "\n".join([start, repr(self.least), "", "At most, if all conditions stay to the end:", repr(self.most)])


def fewest_documents(n_conditions: int, margin: float, alpha: float) -> int:
    """Documents after which conditions that change nothing are spared."""
    limit = math.log(n_conditions / alpha)
    gains = betting.log_gains(np.array([margin / (1 - margin)]))
    n = 1
    while betting.log_capital(n * gains) < limit:
        n += 1
    return n


def plan_race(
    lens: Lens,
    tasks: str | Sequence[str] | dict[str, Any],
    ablate: str | Iterable[str | Condition],
    *,
    margin: int | float = MARGIN,
    alpha: int | float = ALPHA,
    max_documents: int | None = None,
    top: int | None = None,
    donor: str | Path | Lens | None = None,
    **options: Unpack[EvalOptions],
) -> RacePlan:
    """What `depthlens.race` with the same arguments would cost; for the arguments see there.

    Raises:
        UserError: for anything asked for that does not exist.
    """
    arguments.loaded(lens)
    chosen = settled(options)
    if not isinstance(tasks, dict) or not tasks:
        tasks = load_tasks(cast(Sequence[str], tasks), chosen)
    documents = {
        name: document_choice.chosen(name, task, chosen["limit"], chosen["samples"]) or range(len(task.eval_docs))
        for name, task in tasks.items()
    }
    labels = {name: name if (member := groups.of(task)) is None else member.group for name, task in tasks.items()}
    sizes = Counter[str]()
    for name, numbers in documents.items():
        sizes[labels[name]] += len(numbers)
    n_conditions = (len(expand(ablate, lens.dims)) - 1) * len(sizes)
    n_least = FIRST_WAVE if top is not None else fewest_documents(n_conditions, margin, alpha)

    def cost(n: int | float) -> Plan:
        """Of n documents of each task, of a group's tasks by their sizes."""
        share = {name: min(1.0, n / sizes[labels[name]]) for name in documents}
        some = {name: [*numbers[: math.ceil(share[name] * len(numbers))]] for name, numbers in documents.items()}
        asked = cast(EvalOptions, {**options, "limit": None, "samples": some})
        return planning.plan(lens, tasks, ablate, donor=donor, **asked)

    most = math.inf if max_documents is None else max_documents
    return RacePlan(cost(min(n_least, most)), cost(most), int(min(n_least, most)))
