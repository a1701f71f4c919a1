"""The claims about where in depth a task is done: knowledge (C3), reasoning (C4), and what distillation moves (C6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from depthlens.ablations import parse_condition
from depthlens.analysis.numbers.means import Mean, Ratio
from depthlens.analysis.result.losses import Losses
from depthlens.analysis.result.profiles import by_document, comparable
from depthlens.claims.evidence import Evidence
from depthlens.claims.measures import (
    ALL,
    CAPPED,
    DEEPER,
    FIRST,
    MEANS,
    SPARED,
    SUFFIX,
    balanced,
    capped,
    crossed,
    excess,
    judged,
    log_odds,
    not_measured,
    pooled,
    shared,
)
from depthlens.claims.parts import (
    ANSWERS,
    CONTROLLED,
    FEWEST,
    MOVED,
    STUDY,
    Effect,
    Part,
    Question,
    missing,
    named,
    part,
)
from depthlens.errors import UserError

EVEN, DEPTH, GAP = "times an even share", "of depth", "of the gap"
SHALLOW = Question("The first third holds more of the loss for {name} than an even share, by {effect}", EVEN, 0.5)
SHALLOWER = Question(
    "The first third holds more of the loss for {name} than for plain text, by {effect}", EVEN, 0.5, row=CONTROLLED
)
DEEP = Question("The first third holds less of the loss for reasoning than for {name}, by {effect}", EVEN, 0.5)
DEEPER_THAN = DEEP._replace(row=CONTROLLED)
RESHAPED = Question("The centre of the losses on reasoning moved from that of the base by {effect}", DEPTH, 0.05, MOVED)
SHIFT = Question(
    "Beyond knowledge and the control, the losses on reasoning moved by {effect}", DEPTH, 0.05, MOVED, CONTROLLED
)
GAINED = Question("The best transplant, chosen on other documents, gains {effect}", ANSWERS, 0.10)
RECOVERED = Question("The best transplant, chosen on other documents, recovers {effect}", GAP, 0.25, row=CONTROLLED)

Side = tuple[
    str, str
]  # a field of sweeps, and the field whose tasks are taken of it and say that the model can do them


def _able(evidence: Evidence, fields: Sequence[str]) -> tuple[dict[str, set[str]], list[str]]:
    """Tasks of fields that the model can do, and why others are left out."""
    able, notes = {}, []
    for name in dict.fromkeys(fields):
        kept, left = judged(evidence.profiles(name))
        able[name] = {p.task for p in kept}
        notes += left
    return able, notes


def _in_depth(
    evidence: Evidence,
    question: Question,
    pairs: Sequence[tuple[Side, Side]],
    of: Callable[[Losses], Mean],
    *,
    weigh: bool = True,
) -> Part:
    """A part about depth: a statistic on one side minus that on the other; a second pair of sides is subtracted.

    Args:
        evidence: The evidence.
        question: What the part asks. Controlled, L0 and L1 are left out.
        pairs: Of sides.
        of: The statistic, of losses in log-odds.
        weigh: Weigh documents so that both sides are equally easy.
    """
    needed = list(dict.fromkeys(name for pair in pairs for side in pair for name in side))
    if lacking := [name for name in needed if not evidence.results(name)]:
        return missing(question, not_measured(lacking))
    able, notes = _able(evidence, [like for pair in pairs for _, like in pair])

    def effect(view: str, seed: int) -> list[Effect]:
        found = []
        for pair in pairs:
            sides, easy = [], []
            for field, like in pair:
                profiles = [p for p in evidence.profiles(field, SUFFIX[view], seed) if p.task in able[like]]
                sides.append(log_odds(pooled([p.beyond(FIRST if view in (DEEPER, CAPPED) else 0) for p in profiles])))
                easy.append(evidence.easy(field, seed, able[like]))
            if view == CAPPED:
                sides = [capped(side) for side in sides]
            a, b = balanced(sides[0], sides[1], easy) if weigh and view != CAPPED else sides
            found.append(of(a) - of(b))
        return [found[0] - found[1] if len(found) > 1 else found[0]]

    if weigh and not evidence.has_other_margins(needed):
        notes.append("documents are weighted by the prompts whose losses are judged; give margins, or two seeds")
    tasks = sorted(task for names in able.values() for task in names)
    main, views = (DEEPER, (CAPPED, ALL, SPARED, MEANS)) if question.row == CONTROLLED else (ALL, (SPARED, MEANS))
    return part(question, effect, seeds=evidence.n_seeds(*needed), main=main, views=views, tasks=tasks, notes=notes)


def _shares(evidence: Evidence, question: Question, own: str, rival: str | None = None) -> Part:
    """How much of the lost answers the first third has beyond an even share, on one field or more than on another."""
    fields = [own, rival] if rival else [own]
    if lacking := [name for name in fields if not evidence.results(name)]:
        return missing(question, not_measured(lacking))
    able, notes = _able(evidence, fields)

    def effect(view: str, seed: int) -> list[Effect]:
        found = [
            excess(pooled([p for p in evidence.profiles(name, SUFFIX[view], seed) if p.task in able[name]]))
            for name in fields
        ]
        return [found[1] - found[0] if rival else found[0]]

    tasks = sorted(task for names in able.values() for task in names)
    seeds = evidence.n_seeds(*fields)
    return part(question, effect, seeds=seeds, main=ALL, views=(SPARED, MEANS), tasks=tasks, notes=notes)


def c3(evidence: Evidence) -> Iterator[Part]:
    """The first third of the layers holds at least half more of the loss than its even share.

    For knowledge, for retrieval, and for facts that the prompt gives: of all lost answers. Controlled, for the first
    two: at least half an even share more than for plain text of the same length, without L0 and L1, in log-odds per
    answer token, on documents weighted to be equally easy.
    """
    for name, own, control in (("knowledge", "continuation", "text"), ("retrieval", "retrieval", "long_text")):
        yield _shares(evidence, named(SHALLOW, name), own)
        yield _in_depth(evidence, named(SHALLOWER, name), [(("tokens", own), ("tokens", control))], excess)
    yield _shares(evidence, named(SHALLOW, "facts in the prompt"), "open_book")


def c4(evidence: Evidence) -> Iterator[Part]:
    """The first third of the layers holds less of the loss on reasoning, by at least half an even share.

    Of lost answers: less on worked solutions than on knowledge. Controlled: less on worked solutions than on copying as
    long a text, and less on a step of reasoning than on knowledge; without L0 and L1, in log-odds per answer token, on
    documents weighted to be equally easy.
    """
    yield _shares(evidence, named(DEEP, "knowledge"), "reasoning", "continuation")
    for name, own, control in (("copying", "reasoning", "copying"), ("knowledge", "reasoning_choice", "continuation")):
        pair = ("tokens", own), ("tokens", control)
        yield _in_depth(evidence, named(DEEPER_THAN, name), [pair], lambda profile: excess(profile, first=False))


def _centre(profile: Losses) -> Mean:
    return shared(profile, profile.depth)


def c6(evidence: Evidence) -> Iterator[Part]:
    """The losses on reasoning moved in depth, and transplants move reasoning accuracy.

    Their centre of mass moved by at least 0.05 of depth from that of the base. Controlled: from that of a fine-tune of
    the same budget without reasoning, beyond the same on knowledge, without L0 and L1, each question with itself and
    weighted to be equally easy to both models. The transplant that recovers most on one half of the questions gains at
    least 10% of the answers of the other half; controlled: at least a quarter of the gap.
    """
    yield _in_depth(
        evidence, RESHAPED, [(("tokens", "reasoning_choice"), ("base", "reasoning_choice"))], _centre, weigh=False
    )
    pairs = [(("tokens", like), ("control", like)) for like in ("reasoning_choice", "continuation")]
    yield _in_depth(evidence, SHIFT, pairs, _centre)
    if lacking := [name for name in ("reasoning", "transplants") if not evidence.results(name)]:
        yield from (missing(question, not_measured(lacking)) for question in (GAINED, RECOVERED))
        return
    yield from _transplants(evidence)


def _transplants(evidence: Evidence) -> Iterator[Part]:
    found, donors = evidence.results("transplants"), evidence.results("reasoning")
    result = found[0].primary()
    first = next(iter(result.every_losses.values()))
    names = [name for name in first.conditions if not _everything(name, result.n_layers)]
    if not names:
        fault = "every transplant takes all layers; transplant some of them"
        yield from (missing(question, fault) for question in (GAINED, RECOVERED))
        return
    pairs = []
    for seed, sweep in enumerate(found):
        own, goal = (r.primary().select(tasks=first.task) for r in (sweep, donors[min(seed, len(donors) - 1)]))
        comparable(own, goal, ("task", "metric", "doc_id"))
        pairs.append(by_document(own.losses().select(names), goal.losses()))
    yield from recovered(pairs)


def recovered(pairs: Sequence[tuple[Losses, Losses]]) -> Iterator[Part]:
    """What the transplant that recovers most on one half of the questions gains and recovers on the other.

    Args:
        pairs: For each few-shot seed the losses of the base under transplants, and those of the donor.
    """
    halves = [(own.halves(), goal.halves()) for own, goal in pairs]
    best = [int(np.argmin(sum(own[fold].loss.mean(0) for own, _ in halves))) for fold in (0, 1)]
    first = pairs[0][0]
    if first.n_questions < FEWEST:
        why = f"{first.n_questions} questions are too few; take at least {FEWEST}"
        yield from (missing(question, why) for question in (GAINED, RECOVERED))
        return
    notes = [f"the best is {' or '.join(dict.fromkeys(first.conditions[i] for i in best))}"]
    for question in (GAINED, RECOVERED):

        def effect(view: str, seed: int, row: str = question.row) -> list[Effect]:
            own, goal = pairs[seed]
            gap = own.over(goal.base - own.base)
            if row == CONTROLLED and not gap.interval()[0] > 0:
                raise UserError(f"{own.task}: the donor is not shown to be better than the base")
            folds: list[Effect] = []
            for tested, chose in ((1, 0), (0, 1)):
                half, aim = halves[seed][0][tested], halves[seed][1][tested]
                gain = -half.mean()[best[chose]]
                folds.append(gain if row == STUDY else Ratio(gain, half.over(aim.base - half.base)))
            return [crossed(folds)]

        yield part(question, effect, seeds=len(pairs), main=ALL, tasks=[first.task], notes=notes)


def _everything(condition: str, n_layers: int) -> bool:
    return {a.layer for a in parse_condition(condition).ablations if a.site == "layer"} >= set(range(n_layers))
