"""What a part of a claim says: an effect with its interval against what matters, in one of five states.

Sign and size are separate answers, so that no truth has two opposite states (equivalence and minimum-effect tests,
Wellek 2010, chapter 1):

* **shown**: the whole interval is at or beyond what matters;
* **in sign only**: it is above 0, and contains what matters;
* **smaller**: it is below what matters;
* **reversed**: it is below 0;
* **open**: it contains 0 and what matters, or there is none.

A part whose claim is that an effect is small is *shown* where the interval is below what matters, and *reversed* where
it is not. A claim has the state of the part that is worst for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from depthlens.analysis.numbers.means import Mean
from depthlens.errors import UserError

SHOWN, SIGN, SMALLER, REVERSED, OPEN = STATES = ("shown", "in sign only", "smaller", "reversed", "open")
WORST_FIRST = (REVERSED, SMALLER, OPEN, SIGN, SHOWN)
AT_LEAST, UNDER, MOVED = "at least", "under", "either way at least"
ANSWERS, PROBABILITY = "of the answers", "of the probability"


class Question(NamedTuple):
    """What a part asks, fixed before a model is judged.

    Attributes:
        what: The effect as a sentence that lacks its number, such as "without a later layer the model loses {effect}".
        of: What the number is of: "of its answers" of a share (printed in percent), or a unit such as "of depth".
        matters: The least effect that matters, or the bound that it is claimed to stay under.
        claim: `AT_LEAST`, `UNDER`, or `MOVED`: at least so much in either direction.
    """

    what: str
    of: str
    matters: float
    claim: str = AT_LEAST


def named(question: Question, name: str) -> Question:
    """The question about one task or list of heads."""
    return question._replace(what=question.what.replace("{name}", name))


@dataclass(frozen=True)
class Estimate:
    """An effect with its interval; NaN where there is none.

    Attributes:
        effect: The effect.
        low: Lower end of its 95% interval.
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
    def of(cls, mean: Mean, too_few: str = "") -> Estimate:
        """The estimate that a mean gives, and why it cannot be judged."""
        effect, (low, high) = float(mean.value), map(float, mean.interval())
        known = math.isfinite(effect + low + high)
        return cls(effect, low, high, mean.n, too_few or ("" if known else "nothing is lost that could be shared out"))


@dataclass(frozen=True)
class Part:
    """One part of a claim.

    Attributes:
        question: What it asks.
        main: The estimate that decides.
        beside: Estimates by name that do not decide: other views, tasks and metrics, and each few-shot seed.
        tasks: ``task metric`` of each that was used.
        notes: What else to know: measured floors, unparsed answers, tasks that were left out.
        but: Why the part is not *shown* although its interval is; "" if nothing speaks against it.
    """

    question: Question
    main: Estimate
    beside: Mapping[str, Estimate] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    but: str = ""

    @property
    def state(self) -> str:
        """One of `STATES`."""
        if self.main.why:
            return OPEN
        found = state(self.main.low, self.main.high, self.question.matters, self.question.claim)
        return OPEN if found == SHOWN and self.but else found

    @property
    def sentence(self) -> str:
        """The part in one sentence with its numbers."""
        q, main = self.question, self.main
        if not math.isfinite(main.effect):
            return f"No estimate: {main.why}."
        effect, low, high, matters = map(self.number, (main.effect, main.low, main.high, q.matters))
        text = q.what.replace("{effect}", f"{effect} {q.of} [{low}, {high}]")
        text += f"; the claim is {q.claim} {matters} (n = {main.n})"
        against = main.why or self.but
        return f"{text}, but {against}." if against else f"{text}."

    def number(self, value: float) -> str:
        """A number of this part as text: shares of answers in percent."""
        return f"{100 * value:.3g}%" if self.question.of in (ANSWERS, PROBABILITY) else f"{value:.2f}"


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
    if high < 0:
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
        return gap / half if half > 0 else -math.inf

    return min(parts, key=lambda part: (WORST_FIRST.index(part.state), distance(part)))


def part(
    question: Question,
    of: Callable[[str, int], Mean],
    *,
    seeds: int,
    main: str,
    views: Iterable[str] = (),
    tasks: Sequence[str] = (),
    notes: Sequence[str] = (),
    too_few: str = "",
) -> Part:
    """A part whose effect is a mean under every view and few-shot seed.

    Args:
        question: What it asks.
        of: From a view and the number of a seed to the effect. It raises `UserError` where there is none.
        seeds: Few-shot seeds; the effect is the mean over them, and each stands beside it.
        main: The view that decides.
        views: Views that stand beside it.
        tasks: See `Part`.
        notes: See `Part`.
        too_few: Why the estimates cannot be judged; "" if they can.
    """

    def estimate(view: str, numbers: Iterable[int]) -> Estimate:
        try:
            found = [of(view, i) for i in numbers]
        except UserError as error:
            return Estimate(why=str(error))
        return Estimate.of(average(found), too_few)

    beside = {view: estimate(view, range(seeds)) for view in views}
    if seeds > 1:
        beside |= {f"few-shot seed {i + 1}": estimate(main, [i]) for i in range(seeds)}
    return Part(question, estimate(main, range(seeds)), beside, tuple(tasks), tuple(notes))


def average(means: Sequence[Mean]) -> Mean:
    """The mean of several means of the same shape."""
    total = means[0]
    for mean in means[1:]:
        total = total + mean
    return total * (1 / len(means))


def missing(question: Question, why: str) -> Part:
    """A part that was not measured."""
    return Part(question, Estimate(why=why))
