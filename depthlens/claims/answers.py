"""The claims about lost answers: few critical layers (C1), protocols (C2), a trend with depth (C7) that varies (C8)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from depthlens.analysis.numbers.means import Mean, Ratio
from depthlens.analysis.result.losses import Losses
from depthlens.claims.evidence import Evidence
from depthlens.claims.measures import (
    ALL,
    DEEPER,
    FIRST,
    MEANS,
    SPARED,
    SUFFIX,
    crossed,
    even,
    judged,
    log_odds,
    not_measured,
    shared,
)
from depthlens.claims.parts import (
    ANSWERS,
    APART,
    AT_LEAST,
    CONTROLLED,
    GRAMS,
    SCORE,
    STUDY,
    UNDER,
    Effect,
    Estimate,
    Part,
    Question,
    mean_of,
    missing,
    named,
    part,
)
from depthlens.errors import UserError

LAYER = "times the mean loss of a layer"
NEAR = (0.6, 0.9)  # layers of these ranks by cost, whose mean is that of the layer at three quarters


def _both(what: str, matters: float, claim: str = AT_LEAST) -> tuple[Question, Question]:
    """A question in answers as the study asks it, and in shares of what there is to lose."""
    return Question(what, ANSWERS, matters, claim), Question(what, SCORE, matters, claim, CONTROLLED)


HARMLESS = _both("Scored by {name}, three quarters of the layers after L1 cost no more than {effect} each", 0.10, UNDER)
CRITICAL = _both("Scored by {name}, L0 or L1 costs {effect} more than a later layer on average", 0.10)
WRITTEN = _both("A layer beyond the first third costs {effect} more if {name} is written, not chosen", 0.10)
LOOPS = (
    Question("A text that is written without a layer beyond the first third repeats {effect} more", GRAMS, 0.10),
    Question("Of what was new, a text without such a layer repeats {effect}", GRAMS, 0.10, row=CONTROLLED),
)
TREND = Question("A layer of the first third costs {effect} more than one of the last third", ANSWERS, 0.05)
SLOPE = TREND._replace(of=LAYER, matters=0.25, row=CONTROLLED)
VARIES = Question(
    "What the first third costs beyond the last differs between two {name} by {effect}", ANSWERS, 0.10, APART
)
VARIES_MORE = VARIES._replace(of=LAYER, matters=0.5, row=CONTROLLED)
VARIES_RELATIVE = VARIES._replace(of=SCORE, row=CONTROLLED)


def _floor(profile: Losses) -> str:
    """The measured floor of a task beside the guessed one."""
    if profile.broken is None:
        return f"the floor of {profile.label} is {profile.floor:.2f} by its form; it was not measured"
    return f"a broken model scores {profile.broken.mean():.2f} on {profile.label} ({profile.floor:.2f} by its form)"


def _over_tasks(
    evidence: Evidence, questions: Sequence[Question], names: Sequence[str], of: Callable[[Losses], Mean]
) -> Iterator[Part]:
    """Parts that are the mean over the tasks of some fields: absolute, and as a share of what there is to lose."""
    seeds = evidence.n_seeds(*names)
    kept, left = judged([p for name in names for p in evidence.profiles(name)])
    tasks = {p.task for p in kept}
    notes = [*left, *(_floor(p) for p in kept if p.floor is not None)]
    for question in questions:

        def effect(view: str, seed: int, row: str = question.row) -> list[Effect]:
            chosen = [p for name in names for p in evidence.profiles(name, SUFFIX[view], seed) if p.task in tasks]
            if not chosen:
                raise UserError("; ".join(left) or "no task")
            losses, room = mean_of([of(p) for p in chosen]), mean_of([p.room for p in chosen])
            return [losses] if row == STUDY else [Ratio(losses, room)]

        labels = [f"{p.task} {p.metric}" for p in kept]
        yield part(question, effect, seeds=seeds, main=ALL, views=(SPARED, MEANS), tasks=labels, notes=notes)


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
        yield from _over_tasks(evidence, [named(question, name) for question in HARMLESS], [field], later)
        yield from _over_tasks(evidence, [named(question, name) for question in CRITICAL], [field], critical)


def c2(evidence: Evidence) -> Iterator[Part]:
    """The same questions cost more without a deep layer where their answers are written.

    They are chosen among options and written, once with a short answer and once with a worked solution. The mean loss
    of a layer beyond the first third is larger by at least 10% where they are written: of all answers; controlled, of
    what there is to lose under one protocol for both, whichever of the two that is. And texts that go on without such
    a layer lose their coherence: at least 10% more of their 4-grams occurred before.
    """
    for name, written, chosen in (
        ("a letter", "generation", "letters"),
        ("a worked solution", "reasoning", "reasoning_continuation"),
    ):
        yield from _written(evidence, name, written, chosen)
    yield from _loops(evidence)


def _loops(evidence: Evidence) -> Iterator[Part]:
    """How much more texts repeat themselves without a deep layer: of all 4-grams, and of those that were new before."""
    if not evidence.results("texts"):
        yield from (missing(question, not_measured(["texts"])) for question in LOOPS)
        return

    def effect(view: str, seed: int, row: str) -> list[Effect]:
        found = next(p for p in evidence.profiles("texts", SUFFIX[view]) if p.metric == "repetition")
        more = found.mean(even(found.thirds > 0))  # repetition is turned: less of it is better
        return [more] if row == STUDY else [Ratio(more, found.over(1 + found.base, (0.0, 1.0)))]

    for question in LOOPS:
        yield part(question, functools.partial(effect, row=question.row), seeds=1, main=ALL, views=(SPARED, MEANS))


def _written(evidence: Evidence, name: str, written: str, chosen: str) -> Iterator[Part]:
    """The loss of deep layers on the tasks of one field minus that on the tasks of another with the same questions."""
    if lacking := [field for field in (written, chosen) if not evidence.results(field)]:
        yield from (missing(named(question, name), not_measured(lacking)) for question in WRITTEN)
        return
    kept, left = judged([*evidence.profiles(written), *evidence.profiles(chosen)])
    able = {p.task for p in kept}
    rivals = {p.documents: p.task for p in evidence.profiles(chosen) if p.task in able}
    own = [p for p in evidence.profiles(written) if p.task in able and p.documents in rivals]
    pairs = {p.task: rivals[p.documents] for p in own}
    notes = [*left, *map(_floor, kept), *_unparsed(evidence, written, list(pairs))]
    seeds, tasks = evidence.n_seeds(written, chosen), [*pairs, *pairs.values()]
    for question in WRITTEN:

        def effect(view: str, seed: int, row: str = question.row) -> list[Effect]:
            if not pairs:
                raise UserError("; ".join(left) or "the written and the chosen tasks ask other questions")
            a, b = ({p.task: p for p in evidence.profiles(name, SUFFIX[view], seed)} for name in (written, chosen))
            both = [(a[task], b[rival]) for task, rival in pairs.items()]
            more = mean_of([x.mean(even(x.thirds > 0)) - y.mean(even(y.thirds > 0)) for x, y in both])
            if row == STUDY:
                return [more]
            return [Ratio(more, mean_of([pair[i].room for pair in both])) for i in (0, 1)]

        asked = named(question, name)
        yield part(asked, effect, seeds=seeds, main=ALL, views=(SPARED, MEANS), tasks=tasks, notes=notes)


def _unparsed(evidence: Evidence, field: str, tasks: Sequence[str]) -> Iterator[str]:
    """How many written answers could not be read, with a layer beyond the first third removed."""
    result = evidence.results(field)[0].primary()
    for task in tasks:
        docs = result.docs[(result.docs["task"] == task) & (result.docs["layer"] * 3 >= result.n_layers)]
        if docs["parsed"].notna().any():
            share = 1 - docs["parsed"].dropna().astype(float).mean()
            yield f"{share:.0%} of the answers to {task} cannot be read without a layer beyond the first third"


PROTOCOLS = "protocols of the same questions"
TASKS = ("letters", "continuation", "generation", "retrieval", "reasoning", "reasoning_choice")
# fields whose tasks are answered in one way: letters are chosen, texts are chosen, answers are written
ALIKE = (("letters",), ("continuation", "retrieval", "reasoning_choice"), ("generation", "reasoning"))


def _trend(profile: Losses) -> Mean:
    return profile.mean(even(profile.thirds == 0) - even(profile.thirds == 2))


def c7(evidence: Evidence) -> Iterator[Part]:
    """A layer of the first third costs more than one of the last third.

    The mean over every task that is not at chance is at least 5% of the answers; each task stands beside it.
    Controlled: at least a quarter of what a layer costs on average, without L0 and L1, in log-odds per answer token.
    """
    fields = [name for name in TASKS if evidence.results(name)]
    (found,) = _over_tasks(evidence, [TREND], fields, _trend)
    kept, _ = judged([p for name in fields for p in evidence.profiles(name)])
    if not found.main.why:
        found = replace(found, beside={**found.beside, **{p.label: Estimate.of([_trend(p)]) for p in kept}})
    yield found
    if not evidence.results("tokens"):
        yield missing(SLOPE, not_measured(["tokens"]))
        return
    tasks = {p.task for p in kept}

    def effect(view: str, seed: int) -> list[Effect]:
        first = FIRST if view == DEEPER else 0
        profiles = [p.beyond(first) for p in evidence.profiles("tokens", SUFFIX[view], seed) if p.task in tasks]
        if not profiles:
            raise UserError("no task of tokens is one that the model is shown to do")
        odds = [log_odds(p) for p in profiles]
        means = [p.over(p.loss.mean(1)) for p in odds]
        return [Ratio(mean_of([_trend(p) for p in odds]), mean_of(means))]

    labels = sorted(p.task for p in evidence.profiles("tokens") if p.task in tasks)
    views = (ALL, SPARED, MEANS)
    yield part(SLOPE, effect, seeds=evidence.n_seeds("tokens"), main=DEEPER, views=views, tasks=labels)


def c8(evidence: Evidence) -> Iterator[Part]:
    """What a task or a protocol needs differs in depth.

    By how much more a layer of the first third costs than one of the last third differs by at least 10% of the answers
    between two tasks that are answered in one way, and between two protocols of the same questions. One half of the
    questions chooses the two, the other tests them. Controlled: tasks by half of what a layer costs on average, without
    L0 and L1, in log-odds per answer token; protocols by 10% of what there is to lose under one of them for both,
    whichever of the two that is.
    """
    fields = [name for name in TASKS if evidence.results(name)]
    kept, left = judged([p for name in fields for p in evidence.profiles(name) if p.floor is not None])
    able = {p.task for p in kept}

    seeds = evidence.n_seeds(*fields)

    def profiles(view: str, seed: int, names: Sequence[str] = fields) -> list[Losses]:
        return [p for name in names for p in evidence.profiles(name, SUFFIX[view], seed) if p.task in able]

    def tasks(view: str, seed: int) -> list[Effect]:
        found = [profiles(view, seed, [name for name in names if name in fields]) for names in ALIKE]
        ends = np.cumsum([0, *map(len, found)])
        pairs = [pair for a, b in itertools.pairwise(ends) for pair in itertools.combinations(range(a, b), 2)]
        return [_apart(list(itertools.chain(*found)), pairs, _trend)]

    def in_odds(view: str, seed: int) -> list[Effect]:
        found = [log_odds(p.beyond(FIRST)) for p in profiles(view, seed, ["tokens"])]
        return [_apart(found, list(itertools.combinations(range(len(found)), 2)), _slope)]

    def protocols(view: str, seed: int, rooms: Sequence[int | None]) -> list[Effect]:
        found = profiles(view, seed)
        pairs = itertools.combinations(range(len(found)), 2)
        same = [(i, j) for i, j in pairs if found[i].documents == found[j].documents]
        return [_apart(found, same, _trend, side) for side in rooms]

    for question, of, main in (
        (named(VARIES, "tasks"), tasks, ALL),
        (named(VARIES_MORE, "tasks"), in_odds, DEEPER),
        (named(VARIES, PROTOCOLS), functools.partial(protocols, rooms=[None]), ALL),
        (named(VARIES_RELATIVE, PROTOCOLS), functools.partial(protocols, rooms=[0, 1]), ALL),
    ):
        views = (SPARED, MEANS)
        yield part(question, of, seeds=seeds, main=main, views=views, tasks=sorted(able), notes=left)


def _slope(profile: Losses) -> Mean:
    """`_trend` in multiples of the mean loss of a layer."""
    return shared(profile, len(profile.layers) * (even(profile.thirds == 0) - even(profile.thirds == 2)))


def _apart(
    profiles: Sequence[Losses],
    pairs: Sequence[tuple[int, int]],
    statistic: Callable[[Losses], Mean],
    side: int | None = None,
) -> Effect:
    """How far apart two profiles are that differ most on the other half of the questions, in the direction found there.

    Args:
        profiles: Of tasks or protocols.
        pairs: Those that are compared.
        statistic: Of a profile.
        side: The one of the two whose `room` the difference is a share of; None: the difference itself.

    Raises:
        UserError: there is no pair.
    """
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
