"""A part of a claim: an effect with an interval that decides, in one of five states.

Sign and size are separate answers, so that no truth has two opposite states (equivalence and minimum-effect tests,
Wellek 2010, chapter 1):

* **shown**: the whole interval is at or beyond what matters;
* **in sign only**: it is above 0, and contains what matters;
* **smaller**: it is below what matters;
* **reversed**: it is below 0;
* **open**: it contains 0 and what matters, or there is none.

A part whose claim is that an effect is small is *shown* where the interval is below what matters, and *reversed* where
it is not. A claim has the state of the part that is worst for it, once as the study says it and once controlled.

One may look again as documents come in: intervals of `LEVEL` hold together at five looks, each at twice as many
documents as the one before (Pocock 1977, Biometrika 64:191-199), and for two parts, in 95% of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from depthlens.analysis.numbers.means import Mean, Ratio
from depthlens.errors import UserError

SHOWN, SIGN, SMALLER, REVERSED, OPEN = STATES = ("shown", "in sign only", "smaller", "reversed", "open")
WORST_FIRST = (REVERSED, SMALLER, OPEN, SIGN, SHOWN)
AT_LEAST, UNDER, MOVED, APART = "at least", "under", "either way at least", "at least, as chosen on the other half,"
STUDY, CONTROLLED = ROWS = ("as the study says it", "controlled")
ANSWERS, SCORE, GRAMS = SHARES = "of the answers", "of the score above the floor", "of its 4-grams"
LEVEL = 0.993  # five looks at twice as many documents each, and two parts a row; docs/methods.md
FEWEST = 20  # questions of a task, and documents that the weights of overlap amount to
Effect = Mean | Ratio


class Question(NamedTuple):
    """What a part asks, fixed before a model is judged.

    Attributes:
        what: The effect as a sentence that lacks its number, such as "without a later layer the model loses {effect}".
        of: What the number is of: "of its answers" of a share (printed in percent), or a unit such as "of depth".
        matters: The least effect that matters, or the bound that it is claimed to stay under. It is a convention.
        claim: `AT_LEAST`, `UNDER`, `MOVED`: at least so much in either direction, or `APART`: at least so much in the
            direction that other documents chose, so that less than nothing is just too small.
        row: As the study says it, or controlled: one of `ROWS`.
    """

    what: str
    of: str
    matters: float
    claim: str = AT_LEAST
    row: str = STUDY


def named(question: Question, name: str) -> Question:
    """The question about one task or list of heads."""
    return question._replace(what=question.what.replace("{name}", name))


@dataclass(frozen=True)
class Estimate:
    """An effect with its interval; NaN where there is none.

    Attributes:
        effect: The effect.
        low: Lower end of its interval (`LEVEL`).
        high: Upper end.
        n: Units: questions, or the subjects of a group. The fewest of the tasks.
        why: Why there is no effect, "" if there is one.
    """

    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    why: str = ""

    @classmethod
    def of(cls, effects: Sequence[Effect]) -> Estimate:
        """The estimate that an effect gives; of one that is measured in several ways what all of them allow."""
        ends = [tuple(map(float, effect.interval(LEVEL))) for effect in effects]
        low, high = float(np.min(ends)), float(np.max(ends))  # NaN where one of them is
        why = "" if low > -math.inf or high < math.inf else "nothing is lost that could be shared out"
        return cls(float(effects[0].value), low, high, min(effect.n for effect in effects), why)


@dataclass(frozen=True)
class Part:
    """One part of a claim.

    Attributes:
        question: What it asks.
        main: The estimate that decides.
        beside: Estimates by name that do not decide: other views and tasks.
        tasks: Those that were used.
        notes: What else to know: measured floors, unparsed answers, tasks that were left out.
        but: Why the part is not *shown* although its interval is; "" if nothing speaks against it.
        minutes: How much longer it takes to decide it, at the pace of what was measured; None: this is not known.
    """

    question: Question
    main: Estimate
    beside: Mapping[str, Estimate] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    but: str = ""
    minutes: float | None = None

    @property
    def needed(self) -> int | None:
        """Documents at which the present estimate would not be open; None: it is not, or that cannot be said."""
        main, matters, claim = self.main, self.question.matters, self.question.claim
        half = (main.high - main.low) / 2
        effect = abs(main.effect) if claim == MOVED else main.effect
        away = abs(effect - matters) if claim == UNDER else max(abs(effect), abs(effect - matters))
        if self.state != OPEN or main.why or self.but or not math.isfinite(half + away) or not away:
            return None
        return max(FEWEST, math.ceil(main.n * (half / away) ** 2))

    @property
    def state(self) -> str:
        """One of `STATES`."""
        return self.state_at(1.0)

    def state_at(self, times: float) -> str:
        """The state where so many times the least effect would matter."""
        if self.main.why:
            return OPEN
        found = state(self.main.low, self.main.high, times * self.question.matters, self.question.claim)
        return OPEN if found == SHOWN and self.but else found

    @property
    def states(self) -> dict[str, str]:
        """The states of the estimates that stand beside, by name."""
        return {name: replace(self, main=found).state for name, found in self.beside.items()}

    @property
    def sentence(self) -> str:
        """The part in one sentence with its numbers."""
        q, main = self.question, self.main
        if main.why and math.isnan(main.effect):
            return f"No estimate: {main.why}."
        effect, low, high, matters = map(self.number, (main.effect, main.low, main.high, q.matters))
        text = q.what.replace("{effect}", f"{effect} {q.of} [{low}, {high}]")
        text += f"; the claim is {q.claim} {matters} (n = {main.n})"
        against = main.why or self.but
        if needed := self.needed:
            text += f"; at this estimate some {needed} documents would decide"
            text += "" if self.minutes is None else f", in {max(self.minutes, 1):.0f} min more"
        return f"{text}, but {against}." if against else f"{text}."

    def number(self, value: float) -> str:
        """A number of this part as text: shares of answers in percent."""
        if math.isinf(value):
            return "-∞" if value < 0 else "∞"
        return f"{100 * value:.3g}%" if self.question.of in SHARES else f"{value:.2f}"


def state(low: float, high: float, matters: float, claim: str = AT_LEAST) -> str:
    """The state of an interval: one of `STATES`; see the module.

    Args:
        low: Lower end.
        high: Upper end.
        matters: Above 0.
        claim: See `Question`.
    """
    if claim == MOVED:
        if low < 0 < high and max(-low, high) < matters:
            return SMALLER
        low, high = (low, high) if low + high > 0 else (-high, -low)
    if claim == UNDER:
        return SHOWN if high < matters else REVERSED if low >= matters else OPEN
    if low >= matters:
        return SHOWN
    if high < 0 and claim != APART:
        return REVERSED
    if high < matters:
        return SMALLER
    return SIGN if low > 0 else OPEN


def worst(parts: Sequence[Part]) -> Part:
    """The part that decides: the worst for the claim, and of equal ones the one that is nearest to failing."""

    def distance(part: Part) -> float:
        half = (part.main.high - part.main.low) / 2
        effect = abs(part.main.effect) if part.question.claim == MOVED else part.main.effect
        gap = (effect - part.question.matters) * (-1 if part.question.claim == UNDER else 1)
        return gap / half if half > 0 and math.isfinite(gap) else -math.inf

    return min(parts, key=lambda part: (WORST_FIRST.index(part.state), distance(part)))


def part(
    question: Question,
    of: Callable[[str], Sequence[Effect]],
    *,
    main: str,
    views: Iterable[str] = (),
    tasks: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Part:
    """A part whose effect is a mean under every view.

    Args:
        question: What it asks.
        of: From a view to the effect, or to several ways of measuring it. It raises `UserError` where there is none.
        main: The view that decides.
        views: Views that stand beside it.
        tasks: See `Part`.
        notes: See `Part`.
    """

    def estimate(view: str) -> Estimate:
        try:
            return Estimate.of(of(view))
        except UserError as error:
            return Estimate(why=str(error))

    return Part(question, estimate(main), {view: estimate(view) for view in views}, tuple(tasks), tuple(notes))


def mean_of(means: Sequence[Mean]) -> Mean:
    """The mean of several means."""
    return sum(means[1:], start=means[0]) * (1 / len(means))


def too_few(n: int) -> str:
    """Why so many questions are too few to judge by; "" if they are not."""
    return f"{n} questions are too few; take at least {FEWEST}" if n < FEWEST else ""


def missing(question: Question, why: str) -> Part:
    """A part that was not measured."""
    return Part(question, Estimate(why=why))
