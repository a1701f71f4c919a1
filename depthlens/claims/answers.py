"""The claims about lost answers: few critical layers (C1), protocols (C2), a trend with depth (C7) that varies (C8)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from depthlens.analysis.numbers.means import Mean, Ratio
from depthlens.analysis.result.losses import Losses
from depthlens.claims import questions
from depthlens.claims.able import Able
from depthlens.claims.evidence import Evidence
from depthlens.claims.measures import ALL, DEEPER, FIRST, crossed, even, log_odds, shared
from depthlens.claims.parts import STUDY, Effect, Estimate, Part, Question, mean_of, named
from depthlens.errors import UserError

NEAR = (0.6, 0.9)  # layers of these ranks by cost, whose mean is that of the layer at three quarters


def _floors(able: Able) -> Iterator[str]:
    """The measured floor of each task beside the guessed one."""
    for p in able.every:
        if p.floor is not None and p.broken is None:
            yield f"the floor of {p.label} is {p.floor:.2f} by its form; it was not measured"
        elif p.floor is not None and p.broken is not None:
            yield f"a broken model scores {p.broken.mean():.2f} on {p.label} ({p.floor:.2f} by its form)"


def _over_tasks(able: Able, questions: Sequence[Question], of: Callable[[Losses], Mean]) -> Iterator[Part]:
    """Parts that are the mean over the tasks of some fields: absolute, and as a share of what there is to lose."""

    def effect(view: str, row: str) -> list[Effect]:
        chosen = able.profiles(view)
        losses, room = mean_of([of(p) for p in chosen]), mean_of([p.room for p in chosen])
        return [losses] if row == STUDY else [Ratio(losses, room)]

    for question in questions:
        yield able.part(question, partial(effect, row=question.row), notes=[*_floors(able)])


def c1(evidence: Evidence) -> Iterator[Part]:
    """Of the layers after the first two, three quarters cost less than 10%; L0 and L1 cost at least 10% more.

    Under each of two likelihood protocols (letters, answer texts): of all answers, and of what there is to lose.
    """

    def later(profile: Losses) -> Mean:
        beyond = profile.beyond(FIRST)
        order = np.argsort(beyond.loss.mean(0), kind="stable")
        low, high = (int(np.ceil(share * len(order))) for share in NEAR)
        return beyond.mean(even(np.isin(np.arange(len(order)), order[low - 1 : high])))

    def critical(profile: Losses) -> Mean:
        return profile.mean(even(profile.layers < FIRST) - even(profile.layers >= FIRST))

    for field, name in (("letters", "letters"), ("continuation", "answer texts")):
        able = Able(evidence, [field])
        yield from _over_tasks(able, [named(question, name) for question in questions.HARMLESS], later)
        yield from _over_tasks(able, [named(question, name) for question in questions.CRITICAL], critical)


def c2(evidence: Evidence) -> Iterator[Part]:
    """The same questions cost more without a deep layer where their answers are written.

    They are chosen among options and written, once with a short answer and once with a worked solution. The mean loss
    of a layer beyond the first third is larger by at least 10% where they are written: of all answers; controlled, of
    what there is to lose under one protocol for both, whichever of the two that is. And texts that go on without such
    a layer lose their coherence: at least 10% more of their 4-grams occurred before.
    """
    yield from _written(evidence, "a letter", "generation", "letters")
    yield from _written(evidence, "a worked solution", "reasoning", "reasoning_continuation")
    yield from _loops(evidence)


def _deep(profile: Losses) -> Mean:
    """What a layer beyond the first third costs."""
    return profile.mean(even(profile.thirds > 0))


def _loops(evidence: Evidence) -> Iterator[Part]:
    """How much more texts repeat themselves without a deep layer: of all 4-grams, and of those that were new before."""

    def effect(view: str, row: str) -> list[Effect]:
        found = next(p for p in evidence.profiles("texts") if p.metric == "repetition")
        more = _deep(found)  # repetition is turned: less of it is better
        return [more] if row == STUDY else [Ratio(more, found.over(1 + found.base, (0.0, 1.0)))]

    for question in questions.LOOPS:
        yield Able(evidence, []).part(question, partial(effect, row=question.row), needed=["texts"])


def _written(evidence: Evidence, name: str, written: str, chosen: str) -> Iterator[Part]:
    """The loss of deep layers on the tasks of one field minus that on the tasks of another with the same questions."""
    able = Able(evidence, [written, chosen])
    notes = [*_floors(able), *_unparsed(able, written)]

    def effect(view: str, row: str) -> list[Effect]:
        every = itertools.product(able.profiles(view, written), able.profiles(view, chosen))
        pairs = [pair for pair in every if pair[0].documents == pair[1].documents]
        if not pairs:
            raise UserError("the written and the chosen tasks ask other questions")
        more = mean_of([_deep(a) - _deep(b) for a, b in pairs])
        if row == STUDY:
            return [more]
        return [Ratio(more, mean_of([side.room for side in sides])) for sides in zip(*pairs, strict=True)]

    for question in questions.WRITTEN:
        yield able.part(named(question, name), partial(effect, row=question.row), notes=notes)


def _unparsed(able: Able, field: str) -> Iterator[str]:
    """How many written answers could not be read, with a layer beyond the first third removed."""
    for task in sorted(able.tasks(field)):
        result = getattr(able.evidence, field)
        docs = result.docs[(result.docs["task"] == task) & (result.docs["layer"] * 3 >= result.n_layers)]
        if docs["parsed"].notna().any():
            share = 1 - docs["parsed"].dropna().astype(float).mean()
            yield f"{share:.0%} of the answers to {task} cannot be read without a layer beyond the first third"


# fields by the way in which their tasks are answered: letters or texts are chosen, or answers are written
TASKS = {
    "letters": "letters", "continuation": "texts", "generation": "written", "retrieval": "texts",
    "reasoning": "written", "reasoning_choice": "texts",
}  # fmt: skip


def _trend(profile: Losses) -> Mean:
    return profile.mean(even(profile.thirds == 0) - even(profile.thirds == 2))


def c7(evidence: Evidence) -> Iterator[Part]:
    """A layer of the first third costs more than one of the last third.

    The mean over every task that is not at chance is at least 5% of the answers; each task stands beside it.
    Controlled: at least a quarter of what a layer costs on average, without L0 and L1, in log-odds per answer token.
    """
    able = Able(evidence, [*filter(evidence.has, TASKS)] or TASKS)
    (found,) = _over_tasks(able, [questions.TREND], _trend)
    if not found.main.why:
        found = replace(found, beside={**found.beside, **{p.label: Estimate.of([_trend(p)]) for p in able.every}})
    yield found

    def slope(view: str) -> list[Effect]:
        odds = [log_odds(p) for p in able.profiles(view, "tokens")]
        return [Ratio(mean_of([_trend(p) for p in odds]), mean_of([p.over(p.loss.mean(1)) for p in odds]))]

    yield able.part(questions.SLOPE, slope, needed=["tokens"], main=DEEPER, views=[ALL])


def c8(evidence: Evidence) -> Iterator[Part]:
    """What a task or a protocol needs differs in depth.

    By how much more a layer of the first third costs than one of the last third differs by at least 10% of the answers
    between two tasks that are answered in one way, and between two protocols of the same questions. One half of the
    questions chooses the two, the other tests them. Controlled: tasks by half of what a layer costs on average, without
    L0 and L1, in log-odds per answer token; protocols by 10% of what there is to lose under one of them for both,
    whichever of the two that is.
    """
    able = Able(evidence, [*filter(evidence.has, TASKS)] or TASKS)
    way = {p.task: TASKS[name] for name, profiles in able.kept.items() for p in profiles}

    def tasks(view: str) -> list[Effect]:
        by_way = sorted(able.profiles(view), key=lambda p: way[p.task])  # of equal differences the first is taken
        return [_apart(by_way, _trend, lambda a, b: way[a.task] == way[b.task])]

    def in_odds(view: str) -> list[Effect]:
        found = [log_odds(p.beyond(FIRST)) for p in able.profiles(view, "tokens")]
        return [_apart(found, _slope, lambda a, b: True)]

    def protocols(view: str, *sides: int) -> list[Effect]:
        found = able.profiles(view)
        return [_apart(found, _trend, lambda a, b: a.documents == b.documents, side) for side in sides or [None]]

    yield able.part(named(questions.VARIES, "tasks"), tasks)
    yield able.part(named(questions.VARIES_MORE, "tasks"), in_odds, needed=["tokens"], main=DEEPER)
    yield able.part(named(questions.VARIES, questions.PROTOCOLS), protocols)
    yield able.part(named(questions.VARIES_RELATIVE, questions.PROTOCOLS), lambda view: protocols(view, 0, 1))


def _slope(profile: Losses) -> Mean:
    """`_trend` in multiples of the mean loss of a layer."""
    return shared(profile, len(profile.layers) * (even(profile.thirds == 0) - even(profile.thirds == 2)))


def _apart(
    profiles: Sequence[Losses],
    statistic: Callable[[Losses], Mean],
    alike: Callable[[Losses, Losses], bool],
    side: int | None = None,
) -> Effect:
    """How far apart two profiles are that differ most on the other half of the questions, in the direction found there.

    Args:
        profiles: Of tasks or protocols.
        statistic: Of a profile.
        alike: Whether two profiles are compared.
        side: The one of the two whose `room` the difference is a share of; None: the difference itself.

    Raises:
        UserError: no two are compared.
    """
    places = itertools.combinations(range(len(profiles)), 2)
    pairs = [(i, j) for i, j in places if alike(profiles[i], profiles[j])]
    if not pairs:
        raise UserError("there are no two of them that the model is shown to do")
    halves: list[tuple[Losses, Losses]] = [p.halves() for p in profiles]
    folds: list[Effect] = []
    for chooses, tests in ((0, 1), (1, 0)):
        guess = [float(statistic(half[chooses]).value) for half in halves]
        turned = [pair if guess[pair[0]] >= guess[pair[1]] else pair[::-1] for pair in pairs]
        more, less = max(turned, key=lambda pair, guess=guess: guess[pair[0]] - guess[pair[1]])  # type: ignore[misc]
        a, b = halves[more][tests], halves[less][tests]
        apart = statistic(a) - statistic(b)
        folds.append(apart if side is None else Ratio(apart, (a, b)[side].room))
    return crossed(folds)
