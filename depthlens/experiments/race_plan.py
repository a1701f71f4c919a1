"""What a race would cost: at least, if no condition changes anything, and as a sweep of all its documents."""

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
from depthlens.experiments.race import MARGIN, wave_end
from depthlens.models.lens import Lens, one_thread
from depthlens.tasks import document_choice, groups


@dataclass(frozen=True)
class RacePlan:
    """The range in which the cost of a race lies, and its cost if no condition changes anything.

    Attributes:
        least: If every condition is decided at the end of the first wave after which all can be: each document loses or
            gains all that it can.
        unchanged: If no condition changes any score, so that all are spared at once; None in a race for the costliest,
            and where a task has fewer documents than that takes.
        most: If one condition is open until the end, and so are all others.
        n_least: Documents of each task in `least`.
        n_unchanged: Documents of each task that it takes to spare all; None in a race for the costliest.
    """

    least: Plan
    unchanged: Plan | None
    most: Plan
    n_least: int
    n_unchanged: int | None

    def __repr__(self) -> str:
        start = f"At least, if the race ends after {self.n_least} documents of each task:"
        lines = [start, repr(self.least), ""]
        if self.unchanged is not None:
            middle = f"If no condition changes anything, all are spared after {self.n_unchanged} documents"
            lines += [f"{middle} of each task:", repr(self.unchanged), ""]
        elif self.n_unchanged is not None:
            middle = f"It takes {self.n_unchanged} documents of each task to spare all conditions that change nothing"
            lines += [f"{middle}. There are fewer, so that they can only be found critical, or stay undecided.", ""]
        return "\n".join([*lines, "At most, if all conditions stay to the end:", repr(self.most)])


def fewest_documents(n_conditions: int, alpha: float, gain: float) -> int:
    """Documents at whose wave's end all conditions can be decided, if every document brings the same evidence.

    Args:
        n_conditions: Those of all tasks.
        alpha: Probability of any wrong decision.
        gain: What a bet of 1 gains of every document.
    """
    limit = math.log(n_conditions / alpha)  # in the worst case: the other null of every condition has lost its capital
    gains = betting.log_gains(np.array([gain]))
    n = wave_end(0)
    while betting.log_capital(n * gains) < limit:
        n = wave_end(n)
    return n


@one_thread
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

    An order of attribution, from which a race for the costliest heads starts, is not counted: it takes one forward and
    one backward pass over 16 documents, which the race does not have.

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
    most_gained = (1 + margin) / (1 - margin)  # of a loss of -1, by the bet that the condition is spared
    n_least = wave_end(0) if top is not None else fewest_documents(n_conditions, alpha, most_gained)
    n_unchanged = None if top is not None else fewest_documents(n_conditions, alpha, margin / (1 - margin))

    def cost(n: int | float) -> Plan:
        """Of n documents of each task, of a group's tasks by their sizes."""
        share = {name: min(1.0, n / sizes[labels[name]]) for name in documents}
        some = {name: [*numbers[: math.ceil(share[name] * len(numbers))]] for name, numbers in documents.items()}
        asked = cast(EvalOptions, {**options, "limit": None, "samples": some})
        return planning.plan(lens, tasks, ablate, donor=donor, **asked)

    most = math.inf if max_documents is None else max_documents
    n_least = int(min(n_least, most))
    enough = n_unchanged is not None and n_unchanged <= min(most, *sizes.values())
    unchanged = cost(n_unchanged) if n_unchanged is not None and enough else None
    return RacePlan(cost(n_least), unchanged, cost(most), n_least, n_unchanged)
