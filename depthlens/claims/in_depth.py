"""The claims about where in depth a task is done: knowledge (C3), reasoning (C4), and what distillation moves (C6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from depthlens.ablations import parse_condition
from depthlens.analysis.numbers.means import Mean, Ratio
from depthlens.analysis.result.losses import Losses
from depthlens.analysis.result.profiles import by_document, comparable
from depthlens.claims import measures, questions
from depthlens.claims.able import Able
from depthlens.claims.evidence import Evidence
from depthlens.claims.measures import ALL, CAPPED, DEEPER, excess, shared
from depthlens.claims.parts import CONTROLLED, STUDY, Effect, Part, Question, missing, named, part, too_few
from depthlens.errors import UserError

# a field of sweeps, and the field whose tasks are taken of it and say that the model can do them
Side = tuple[str, str]


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
    able = Able(evidence, [like for pair in pairs for _, like in pair])

    def difference(view: str, pair: tuple[Side, Side]) -> Mean:
        a, b = (measures.log_odds(measures.pooled(able.profiles(view, field, like=[like]))) for field, like in pair)
        if view == CAPPED:
            a, b = measures.capped(a), measures.capped(b)
        elif weigh:
            a, b = measures.balanced(a, b, [evidence.easy(field, able.tasks(like)) for field, like in pair])
        return of(a) - of(b)

    def effect(view: str) -> list[Effect]:
        first, *second = (difference(view, pair) for pair in pairs)
        return [first - second[0] if second else first]

    needed = list(dict.fromkeys(name for pair in pairs for side in pair for name in side))
    main, views = (DEEPER, [CAPPED, ALL]) if question.row == CONTROLLED else (ALL, [])
    by_own = weigh and not evidence.has_other_margins(needed)
    notes = ["documents are weighted by the prompts whose losses are judged; give margins"] if by_own else []
    return able.part(question, effect, needed=needed, main=main, views=views, notes=notes)


def _shares(evidence: Evidence, question: Question, *fields: str) -> Part:
    """How much of the lost answers the first third has beyond an even share, on one field, or less than on another."""
    able = Able(evidence, fields)

    def effect(view: str) -> list[Effect]:
        own, *rival = (excess(measures.pooled(able.profiles(view, name, like=[name]))) for name in fields)
        return [rival[0] - own if rival else own]

    return able.part(question, effect)


def c3(evidence: Evidence) -> Iterator[Part]:
    """The first third of the layers holds at least half more of the loss than its even share.

    For knowledge, for retrieval, and for facts that the prompt gives: of all lost answers. Controlled, for the first
    two: at least half an even share more than for plain text of the same length, without L0 and L1, in log-odds per
    answer token, on documents weighted to be equally easy.
    """
    for name, own, control in (("knowledge", "continuation", "text"), ("retrieval", "retrieval", "long_text")):
        yield _shares(evidence, named(questions.SHALLOW, name), own)
        yield _in_depth(evidence, named(questions.SHALLOWER, name), [(("tokens", own), ("tokens", control))], excess)
    yield _shares(evidence, named(questions.SHALLOW, "facts in the prompt"), "open_book")


def c4(evidence: Evidence) -> Iterator[Part]:
    """The first third of the layers holds less of the loss on reasoning, by at least half an even share.

    Of lost answers: less on worked solutions than on knowledge. Controlled: less on worked solutions than on copying as
    long a text, and less on a step of reasoning than on knowledge; without L0 and L1, in log-odds per answer token, on
    documents weighted to be equally easy.
    """
    yield _shares(evidence, named(questions.DEEP, "knowledge"), "reasoning", "continuation")
    for name, own, control in (("copying", "reasoning", "copying"), ("knowledge", "reasoning_choice", "continuation")):
        pair = ("tokens", own), ("tokens", control)
        yield _in_depth(evidence, named(questions.DEEPER_THAN, name), [pair], partial(excess, first=False))


def _centre(profile: Losses) -> Mean:
    return shared(profile, profile.depth)


def c6(evidence: Evidence) -> Iterator[Part]:
    """The losses on reasoning moved in depth, and transplants move reasoning accuracy.

    Their centre of mass moved by at least 0.05 of depth from that of the base. Controlled: from that of a fine-tune of
    the same budget without reasoning, beyond the same on knowledge, without L0 and L1, each question with itself and
    weighted to be equally easy to both models. The transplant that recovers most on one half of the questions gains at
    least 10% of the answers of the other half; controlled: at least a quarter of the gap.
    """
    own = [(("tokens", "reasoning_choice"), ("base", "reasoning_choice"))]
    yield _in_depth(evidence, questions.RESHAPED, own, _centre, weigh=False)
    pairs = [(("tokens", like), ("control", like)) for like in ("reasoning_choice", "continuation")]
    yield _in_depth(evidence, questions.SHIFT, pairs, _centre)
    if lacking := [name for name in ("reasoning", "transplants") if not evidence.has(name)]:
        yield from (missing(question, measures.not_measured(lacking)) for question in questions.TRANSPLANTS)
        return
    result, donor = (getattr(evidence, name).primary() for name in ("transplants", "reasoning"))
    first = next(iter(result.every_losses.values()))
    own, goal = (each.select(tasks=first.task) for each in (result, donor))
    comparable(own, goal, ("task", "metric", "doc_id"))
    names = [name for name in first.conditions if not _everything(name, result.n_layers)]
    yield from recovered(*by_document(own.losses().select(names), goal.losses()))


def recovered(own: Losses, goal: Losses) -> Iterator[Part]:
    """What the transplant that recovers most on one half of the questions gains and recovers on the other.

    Args:
        own: Losses of the base under transplants.
        goal: Those of the donor.
    """
    fault = "" if own.conditions else "every transplant takes all layers; transplant some of them"
    if fault := fault or too_few(own.n_questions):
        yield from (missing(question, fault) for question in questions.TRANSPLANTS)
        return
    halves = list(zip(own.halves(), goal.halves(), strict=True))
    best = [int(half.mean().value.argmin()) for half, _ in halves]

    def effect(view: str, row: str) -> list[Effect]:
        gap = own.over(goal.base - own.base)
        if row == CONTROLLED and not gap.interval()[0] > 0:
            raise UserError(f"{own.task}: the donor is not shown to be better than the base")
        folds: list[Effect] = []
        for (half, aim), chosen in zip(reversed(halves), best, strict=True):
            gain = -half.mean()[chosen]
            folds.append(gain if row == STUDY else Ratio(gain, half.over(aim.base - half.base)))
        return [measures.crossed(folds)]

    notes = [f"the best is {' or '.join(dict.fromkeys(own.conditions[i] for i in best))}"]
    for question in questions.TRANSPLANTS:
        yield part(question, partial(effect, row=question.row), main=ALL, tasks=[own.task], notes=notes)


def _everything(condition: str, n_layers: int) -> bool:
    return {a.layer for a in parse_condition(condition).ablations if a.site == "layer"} >= set(range(n_layers))
