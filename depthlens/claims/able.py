"""The tasks of the evidence that the model can do, and parts of claims that are measured on them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from depthlens.ablations.conditions import chosen
from depthlens.analysis.numbers.means import UNLIMITED, Mean
from depthlens.analysis.result.losses import Losses
from depthlens.claims.evidence import Evidence
from depthlens.claims.measures import ALL, CAPPED, DEEPER, FIRST, crossed, judged, not_measured
from depthlens.claims.parts import ANSWERS, AT_LEAST, UNDER, Effect, Estimate, Part, Question, missing, part
from depthlens.errors import UserError
from depthlens.metrics import in_nats, metric_unit


class Able:
    """The tasks of some fields of the evidence that the model can do.

    Args:
        evidence: The evidence.
        names: The fields.

    Attributes:
        kept: By field, the profiles of these tasks with all layers.
        notes: Why other tasks are left out.
    """

    def __init__(self, evidence: Evidence, names: Iterable[str]) -> None:
        self.evidence = evidence
        self.kept: dict[str, list[Losses]] = {}
        self.notes: list[str] = []
        for name in dict.fromkeys(names):
            self.kept[name], left = judged(evidence.profiles(name))
            self.notes += left

    @property
    def every(self) -> list[Losses]:
        """The profiles of all fields with all layers."""
        return [profile for of_field in self.kept.values() for profile in of_field]

    def tasks(self, *names: str) -> set[str]:
        """Names of the tasks of some fields; of all where none is named."""
        return {profile.task for name in names or self.kept for profile in self.kept[name]}

    def profiles(self, view: str, *names: str, like: Sequence[str] = ()) -> list[Losses]:
        """The profiles of these tasks under a view.

        Args:
            view: It says whether L0 and L1 are left out.
            names: The fields that are read; none: all that were judged.
            like: The fields whose tasks are taken of these; none: all.

        Raises:
            UserError: there is no task.
        """
        every = [p for name in names or self.kept for p in self.evidence.profiles(name)]
        first = FIRST if view in (DEEPER, CAPPED) else 0
        found = [p.beyond(first) for p in every if p.task in self.tasks(*like)]
        if not found:
            raise UserError("; ".join(self.notes) or "no task can be judged")
        return found

    def part(
        self,
        question: Question,
        effect: Callable[[str], Sequence[Effect]],
        *,
        needed: Sequence[str] = (),
        main: str = ALL,
        views: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> Part:
        """A part that is measured on these tasks, or says what was not given.

        Args:
            question: See `depthlens.claims.parts.part`.
            effect: See there.
            needed: The fields that it reads; none: those that were judged.
            main: See there.
            views: See there.
            notes: Beside the tasks that were left out.
        """
        needed = needed or [*self.kept]
        if lacking := [name for name in needed if not self.evidence.has(name)]:
            return missing(question, not_measured(lacking))
        tasks = self.tasks() & {profile.task for name in needed for profile in self.evidence.profiles(name)}
        return part(question, effect, main=main, views=views, tasks=sorted(tasks), notes=[*self.notes, *notes])


def tested(
    what: str,
    losses: Losses,
    some: Sequence[str],
    others: Sequence[str] = (),
    *,
    best: bool = False,
    at_least: float | None = None,
    under: float | None = None,
) -> Part:
    """A claim of one's own, such as another paper's: what conditions cost, and whether it is as large as is claimed.

    Losses are means over conditions. They are not clipped, unlike those of critical parts in nats.

    Args:
        what: The effect as a sentence, with ``{effect}`` where its number stands.
        losses: Of a task, such as ``result.losses("mmlu")``.
        some: Conditions.
        others: Conditions whose mean loss is subtracted.
        best: Of ``some`` take the one that costs least on one half of the questions, and judge it on the other half.
        at_least: The least effect that matters, in the unit of the losses.
        under: In place of it, what the effect is claimed to stay under.

    Returns:
        The part; ``state`` and ``sentence`` say what was found, and ``beside`` has the estimates of each half of the
        questions. It is open where the model is at chance on the task, or has answered too few questions.

    Raises:
        UserError: not one of ``at_least`` and ``under``, or a condition that the losses do not have.

    Example:
        >>> losses = result.losses("organism_one_hop")
        >>> claim = dl.claims.tested("the model loses {effect} without L1", losses, ["L1"], at_least=0.1)
        >>> claim.state, claim.sentence
        ('open', 'No estimate: organism_one_hop is left out: 12 questions are too few; take at least 20.')
    """
    bounds = {AT_LEAST: at_least, UNDER: under}
    given = [(matters, claim) for claim, matters in bounds.items() if matters is not None]
    if len(given) != 1:
        raise UserError(f"at_least {at_least} and under {under}: give one of them")
    some, others = (chosen(list(names), losses.conditions) if names else [] for names in (some, others))
    nats = in_nats(losses.metric)
    of = (metric_unit(losses.metric) or losses.metric.replace("_", " ")) if nats else ANSWERS
    limits = UNLIMITED if nats else losses.loss_limits

    def cost(on: Losses, conditions: Sequence[str]) -> Mean:
        found = on.select(list(conditions))
        return on.over((found.base[:, None] - found.values).mean(1), limits)

    def effect(on: Losses) -> Effect:
        if best:
            pairs = [(chooses.select(list(some)), tests) for chooses, tests in itertools.permutations(on.halves())]
            picked = [(tests, chooses.conditions[chooses.mean().value.argmin()]) for chooses, tests in pairs]
            return crossed([cost(tests, [name]) for tests, name in picked])
        return cost(on, some) - cost(on, others) if others else cost(on, some)

    def estimate(on: Losses) -> Estimate:
        able, left = judged([on])
        return Estimate.of([effect(on)]) if able else Estimate(why=left[0])

    beside = dict(zip(("one half", "other half"), map(estimate, losses.halves()), strict=True))
    return Part(Question(what, of, *given[0]), estimate(losses), beside)
