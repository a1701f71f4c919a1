"""Does reasoning lie deeper than something else? The study's claims C2 and C4 as contrasts of two profiles.

What is compared is the *deep share* of a profile: the share of its summed loss that comes from layers of the middle and
the last third of the depth (two thirds where every layer costs the same). The study's claims say that it is larger for
what needs reasoning or writing than for what is held against it:

* C4: a reasoning task against a knowledge task, scored alike;
* C2: a task that is written against the likelihood of the same answers, or a choice among them.

The difference has a percentile bootstrap interval over documents, drawn jointly where both profiles have the same
(`depthlens.analysis.layer_profiles`). A claim is **shown** where the interval lies above 0, **the opposite** is where
it lies below, and else it is **undecided**: no difference is proven, which is not to say that there is none.

Limits: shares say where losses lie and not how large they are; a score that falls to its floor for every early layer
cannot tell these apart, while a log-likelihood, which has no floor, puts most of its loss where the model breaks down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from depthlens.analysis.depth import third_losses
from depthlens.analysis.layer_profiles import N_BOOT, Profile, drawn, interval, profiles
from depthlens.analysis.results import Result
from depthlens.errors import unknown
from depthlens.metrics import ANSWER_LOGPROB

SHOWN, OPPOSITE, UNDECIDED, UNJUDGED = "shown", "the opposite", "undecided", "cannot be judged"


@dataclass(frozen=True)
class Contrast:
    """How much more of one profile's losses than of another's lies in the middle and last third.

    Attributes:
        claim: What is asked, in words.
        task: What is said to lie deeper; with ``answer_logprob`` where that is its metric.
        other: What it is held against.
        verdict: ``shown``, ``the opposite``, ``undecided`` or ``cannot be judged``.
        why: Why it cannot be judged, else "".
        share: Deep share of ``task``.
        other_share: Deep share of ``other``.
        difference: The first minus the second.
        ci_low: Of the difference.
        ci_high: Of the difference.
    """

    claim: str
    task: str
    other: str
    verdict: str
    why: str
    share: float = np.nan
    other_share: float = np.nan
    difference: float = np.nan
    ci_low: float = np.nan
    ci_high: float = np.nan

    def __str__(self) -> str:
        head = f"{self.claim}: {self.task} against {self.other}: "
        if self.why:
            return f"{head}**{self.verdict}** ({self.why})."
        shares = f"{self.share:.0%} against {self.other_share:.0%} of the losses lie in the middle and last third"
        gap, low, high = (f"{100 * v:+.0f}" for v in (self.difference, self.ci_low, self.ci_high))
        return f"{head}**{self.verdict}**; {shares}, a difference of {gap} [{low}, {high}] points."


def views(result: Result) -> Result:
    """Two views of every task: its first own metric, and the likelihood of its answers where that was measured."""
    own = result.baselines[result.baselines["metric"] != ANSWER_LOGPROB].drop_duplicates("task")
    kept = set(own[["task", "metric"]].itertuples(index=False, name=None))
    docs = result.docs
    chosen = [(t, m) in kept or m == ANSWER_LOGPROB for t, m in zip(docs["task"], docs["metric"], strict=True)]
    return Result(docs[chosen], result.record, result.asked)


def contrasts(
    result: Result, written: str, others: Sequence[str] = (), knowledge: Sequence[str] = (), **options: int
) -> list[Contrast]:
    """Every contrast that the tasks of a result allow.

    Args:
        result: A layer sweep, with ``measure="both"`` for contrasts of likelihoods.
        written: The reasoning task that is written.
        others: The same problems put otherwise.
        knowledge: Tasks that ask for knowledge.
        options: ``seed`` and ``n_boot`` of the bootstrap.

    Raises:
        UserError: a task that the result has not, or no single-layer conditions.
    """
    seen = {(p.task, p.metric == ANSWER_LOGPROB): p for p in profiles(views(result))}
    own = {task: p for (task, is_likelihood), p in seen.items() if not is_likelihood}
    likely = {task: p for (task, is_likelihood), p in seen.items() if is_likelihood}
    for task in (written, *others, *knowledge):
        if task not in own:
            raise unknown("task", task, own)
    pairs = [("Reasoning deeper than knowledge (C4)", own[written], own[task]) for task in knowledge]
    if written in likely:
        by = "Reasoning deeper than knowledge (C4), by likelihood"
        pairs += [(by, likely[written], likely[task]) for task in knowledge]
        pairs += [("Writing deeper than the likelihood of the same (C2)", own[written], likely[written])]
    pairs += [("Writing deeper than choosing (C2)", own[written], own[task]) for task in others]
    return [contrast(claim, one, other, **options) for claim, one, other in pairs]


def contrast(claim: str, one: Profile, other: Profile, *, seed: int = 0, n_boot: int = N_BOOT) -> Contrast:
    """Difference of the deep shares of two profiles, with its interval and verdict.

    Args:
        claim: What is asked, in words.
        one: The profile that is said to lie deeper.
        other: The one it is held against.
        seed: Of the bootstrap.
        n_boot: Number of draws.
    """
    names = [f"{p.task} {ANSWER_LOGPROB}" if p.metric == ANSWER_LOGPROB else p.task for p in (one, other)]
    if why := "; ".join(f"{name}: {p.unplaced}" for name, p in zip(names, (one, other), strict=True) if p.unplaced):
        return Contrast(claim, *names, UNJUDGED, why)
    a, b = (
        1 - third_losses(p, *means, "importance")[:, 0]
        for p, means in zip((one, other), drawn([one, other], seed=seed, n_boot=n_boot), strict=True)
    )
    low, high = map(float, interval(a - b, min(len(one.documents), len(other.documents))))
    verdict = SHOWN if low > 0 else OPPOSITE if high < 0 else UNDECIDED
    gap = float(a[0] - b[0])
    return Contrast(claim, *names, verdict, "", float(a[0]), float(b[0]), gap, low, high)


def verdict(found: Sequence[Contrast]) -> str:
    """One sentence: does this model, on these documents, show what the study reports?"""
    by = {v: [c for c in found if c.verdict == v] for v in (SHOWN, OPPOSITE, UNDECIDED, UNJUDGED)}
    judged = len(found) - len(by[UNJUDGED])
    if not judged:
        return "Whether this model shows the study's effect **cannot be judged** here: no two losses can be compared."
    counts = ", ".join(f"{len(rows)} {name}" for name, rows in by.items() if rows)
    if len(by[SHOWN]) == judged:
        said = "This model **shows** the study's effect"
    elif by[SHOWN] and by[OPPOSITE]:
        said = "This model shows the study's effect **in part, and its opposite in part**"
    elif by[SHOWN]:
        said = "This model shows the study's effect **in part**"
    elif by[OPPOSITE]:
        said = "This model shows the **opposite** of the study's effect"
    else:
        said = "This model **does not prove** the study's effect, nor its opposite"
    return f"{said}: of {len(found)} contrasts, {counts}."
