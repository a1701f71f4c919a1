"""The tests behind the study's claims: profiles in, estimates with intervals out. What they mean: `depthlens.claims`.

Each claim is one estimate or several (`depthlens.claims.decision`), all fixed before any result was seen. Documents are
drawn with replacement (`depthlens.analysis.bootstrap`), jointly where tasks share them. Several tasks are combined by
the mean over tasks within each draw. Intervals are expanded percentile intervals (Hesterberg 2015). A claim of m parts
uses intervals of level ``1 - 0.05 / m`` (Bonferroni), so that the chance of any false statement about its parts stays
at 5%.

Both scales are defined in `depthlens.analysis.depth`. The *relative loss*, ``loss / (baseline - chance)``, says how
much a removal costs. The *share of importance*, a third's part of the summed loss of all layers, says where the losses
are. Tasks at chance, and for shares tasks without a proven loss, are left out by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats as sps

from depthlens.ablations import parse_condition
from depthlens.analysis import stats
from depthlens.analysis.bootstrap import interval, ratio
from depthlens.analysis.depth import centre, third_losses
from depthlens.analysis.layer_profiles import Profile, drawn
from depthlens.analysis.stats import ALPHA
from depthlens.claims.decision import ABOVE, BELOW, DIFFERENT, Part, Spec
from depthlens.metrics import metric_unit

_RELATIVE, _SHARE = "of the score above chance", "of all loss"
Statistic = Callable[[Profile, np.ndarray, np.ndarray], np.ndarray]


class Term(NamedTuple):
    """The mean of a statistic over tasks, with its sign in a sum."""

    sign: int
    tasks: Sequence[Profile]
    statistic: Statistic


MEDIAN = Spec("the median loss of a layer beyond the first tenth", _RELATIVE, 0.1, BELOW, 0.1)
FIRST = Spec("the mean loss of a first-tenth layer minus that of the others", _RELATIVE, 0.0, ABOVE, 0.2)
PROTOCOL = Spec("the mean loss beyond the first third, generation minus likelihood", _RELATIVE, 0.0, ABOVE, 0.1)
SHALLOW = {
    name: Spec(f"the first third's share of importance for {name}", _SHARE, 0.5, ABOVE, 0.15)
    for name in ("knowledge", "retrieval")
}
DEEPER = Spec("the share beyond the first third, reasoning minus knowledge", _SHARE, 0.0, ABOVE, 0.15)
HEADS = Spec("the cost of the list beyond random heads", "of the score", 0.0, ABOVE, 0.1)
SHIFT = Spec("the shift of the centre of the losses, distilled minus base", "of depth", 0.0, DIFFERENT, 0.05)
RECOVERED = Spec("the most that a transplant recovers", "of the gap", 0.0, ABOVE, 0.25)
TREND = Spec("the mean loss of a last-third layer minus that of a first-third layer", _RELATIVE, 0.0, BELOW, 0.1)


def relative(profile: Profile, loss: np.ndarray, base: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Loss of each chosen layer as a share of what the whole model scores above chance. Shape [draw, layer]."""
    return ratio(loss[:, chosen], (base - profile.floor)[:, None])


def first_tenth(profile: Profile) -> np.ndarray:
    """Which removed layers are among the first tenth of the model's, at least two. Shape [layer]."""
    return profile.layers < max(2, math.ceil(profile.n_layers / 10))


def first_share(profile: Profile, loss: np.ndarray, base: np.ndarray) -> np.ndarray:
    """The first third's share of the summed loss. Shape [draw]."""
    return third_losses(profile, loss, base, "importance")[:, 0]


def depth_difference(profile: Profile, loss: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Mean relative loss of the layers of the last third minus that of the first. Shape [draw]."""
    thirds = third_losses(profile, loss, base, "above_chance")
    return thirds[:, 2] - thirds[:, 0]


def few_harmful(likelihood: Sequence[Profile], *, seed: int, n_boot: int) -> list[Part]:
    """C1: most layers cost little under likelihood, and the first ones cost more."""

    def median(profile: Profile, loss: np.ndarray, base: np.ndarray) -> np.ndarray:
        return np.median(relative(profile, loss, base, ~first_tenth(profile)), axis=1)

    def ahead(profile: Profile, loss: np.ndarray, base: np.ndarray) -> np.ndarray:
        first = first_tenth(profile)
        return relative(profile, loss, base, first).mean(1) - relative(profile, loss, base, ~first).mean(1)

    return [
        _part(spec, [Term(1, likelihood, statistic)], n_parts=2, seed=seed, n_boot=n_boot)
        for spec, statistic in ((MEDIAN, median), (FIRST, ahead))
    ]


def generation_costs_more(
    likelihood: Sequence[Profile], generation: Sequence[Profile], *, seed: int, n_boot: int
) -> list[Part]:
    """C2: middle and deep layers cost more under generation than under likelihood."""

    def beyond(profile: Profile, loss: np.ndarray, base: np.ndarray) -> np.ndarray:
        return relative(profile, loss, base, profile.thirds > 0).mean(1)

    terms = [Term(1, generation, beyond), Term(-1, likelihood, beyond)]
    return [_part(PROTOCOL, terms, seed=seed, n_boot=n_boot)]


def shallow(spec: Spec, tasks: Sequence[Profile], *, seed: int, n_boot: int) -> Part:
    """One part of C3: the first third holds more than half of all loss."""
    return _part(spec, [Term(1, tasks, first_share)], placed=True, n_parts=2, seed=seed, n_boot=n_boot)


def reasoning_deeper(
    knowledge: Sequence[Profile], reasoning: Sequence[Profile], *, seed: int, n_boot: int
) -> list[Part]:
    """C4: a larger share is beyond the first third for reasoning.

    Shares add up to 1, so the difference is that of the first third's shares, the other way round.
    """
    terms = [Term(1, knowledge, first_share), Term(-1, reasoning, first_share)]
    return [_part(DEEPER, terms, placed=True, seed=seed, n_boot=n_boot)]


def depth_trend(tasks: Sequence[Profile], *, seed: int, n_boot: int) -> list[Part]:
    """C7: a layer of the last third costs less than one of the first."""
    return [_part(TREND, [Term(1, tasks, depth_difference)], seed=seed, n_boot=n_boot)]


def trends(tasks: Sequence[Profile], *, seed: int, n_boot: int) -> tuple[list[Profile], np.ndarray]:
    """The difference that C7 is about for each task that has it: the sample's and every draw's. [1 + n_boot, task]."""
    used, _ = usable(tasks, placed=False)
    means = drawn(used, seed=seed, n_boot=n_boot)
    values = [depth_difference(p, *m) for p, m in zip(used, means, strict=True)]
    return used, np.stack(values, axis=1) if used else np.empty((1 + n_boot, 0))


def moved(base: Sequence[Profile], distilled: Sequence[Profile], *, seed: int, n_boot: int) -> Part:
    """One part of C6: the centre of mass of the losses moved; of the tasks whose losses both models let us place."""
    pairs = [(a, b) for a, b in zip(base, distilled, strict=True) if not (a.unplaced or b.unplaced)]
    left = tuple(f"{p.label}: {p.unplaced} in {p.model}" for p in [*base, *distilled] if p.unplaced)
    if not pairs:
        n = min(len(p.documents) for p in [*base, *distilled])
        return Part(SHIFT, n=n, left=left, why="; ".join(left))

    def position(profile: Profile, loss: np.ndarray, base: np.ndarray) -> np.ndarray:
        return centre(profile, loss)

    terms = [Term(1, [b for _, b in pairs], position), Term(-1, [a for a, _ in pairs], position)]
    return replace(_part(SHIFT, terms, placed=True, n_parts=2, seed=seed, n_boot=n_boot), left=left)


def recovered(table: pd.DataFrame, n_layers: int) -> Part:
    """One part of C6: some transplant recovers more than nothing of the gap.

    The largest of m true shares is between the largest lower and the largest upper bound of m simultaneous intervals.
    These are the intervals of the table, widened on both sides by the ratio of the normal quantiles of the corrected
    level (``1 - 0.05 / 2m``) and of 95%. A transplant of every layer is left out: it *is* the donor.

    Args:
        table: Of `depthlens.analysis.transplant_recovery`.
        n_layers: Of the base model.
    """
    rows = table[[not _everything(c, n_layers) for c in table["condition"]]]
    if not len(rows):
        return Part(RECOVERED, why="every transplant takes all layers; transplant some of them")
    left = tuple(f"{r.task}: {r.no_gap}" for r in rows.drop_duplicates("task").itertuples() if r.no_gap)
    rows = rows[rows["no_gap"] == ""]
    if not len(rows):
        return Part(RECOVERED, n=int(table["n"].min()), left=left, why="; ".join(left))
    wider = sps.norm.ppf(1 - ALPHA / 4 / len(rows)) / sps.norm.ppf(1 - ALPHA / 2)
    low = rows["recovered"] - wider * (rows["recovered"] - rows["ci_low"])
    high = rows["recovered"] + wider * (rows["ci_high"] - rows["recovered"])
    tasks = tuple(f"{r.task} {r.metric}" for r in rows.drop_duplicates("task").itertuples())
    effect = float(rows["recovered"].max())
    return Part(RECOVERED, effect, float(low.max()), float(high.max()), int(rows["n"].min()), tasks, left)


def separate(tests: pd.DataFrame, excess: pd.DataFrame, n_draws: int, own: dict[str, str]) -> list[Part]:
    """C5: every list costs more than random heads of the same layers, on its own task.

    The interval is over documents with the draws as they are (Student's t, widened to the corrected level). The rank
    test over draws, Holm-corrected over lists, accounts for the choice of the draws. A list is said to cost less than
    random heads only where its rank from the other side is as extreme.

    Args:
        tests: Of `depthlens.analysis.removal_curve.RemovalCurve`.
        excess: Of the same.
        n_draws: Random rivals of each list.
        own: The task of each list.
    """
    m = len(own)
    rows = [(name, _row(tests, name, task), _row(excess, name, task)) for name, task in own.items()]
    p_adjusted = stats.holm([float(test.p_value) for _, test, _ in rows])
    parts = []
    for (name, test, cost), p in zip(rows, p_adjusted, strict=True):
        unit = metric_unit(test.metric) or HEADS.unit
        spec = replace(HEADS, what=f"the cost of {name} beyond random heads", unit=unit)
        n, why = int(cost.n), ""
        if bool(test.at_chance):
            why = f"{test.task}: at chance"
        elif not m / (1 + n_draws) < ALPHA:
            why = f"{n_draws} random draws cannot reach p < {ALPHA} for {m} lists; give n_draws={math.ceil(m / ALPHA)}"
        elif n < 2:
            why = f"{test.task}: one document"
        wider = 1.0 if n < 2 else float(sps.t.ppf(1 - ALPHA / 2 / m, n - 1) / sps.t.ppf(1 - ALPHA / 2, n - 1))
        low, high = (cost.excess + wider * (bound - cost.excess) for bound in (cost.ci_low, cost.ci_high))
        tasks = (f"{test.task} {test.metric}",)
        against = min(1.0, m * (1 + 1 / (1 + n_draws) - float(test.p_value)))
        parts.append(
            Part(spec, float(cost.excess), float(low), float(high), n, tasks, p=float(p), p_against=against, why=why)
        )
    return parts


def usable(tasks: Sequence[Profile], *, placed: bool) -> tuple[list[Profile], tuple[str, ...]]:
    """Profiles that a statistic can be taken of, and why the others cannot.

    Args:
        tasks: All of them.
        placed: Whether it takes a proven loss (shares of importance) or a chance level (relative losses).
    """
    used, left = [], []
    for p in tasks:
        why = p.unusable("importance" if placed else "above_chance")
        if not why and not placed and p.floor is None:
            why = f"{p.metric} has no chance level"
        if why:
            left.append(f"{p.label}: {why}")
        else:
            used.append(p)
    return used, tuple(left)


def _part(spec: Spec, terms: Sequence[Term], *, seed: int, n_boot: int, placed: bool = False, n_parts: int = 1) -> Part:
    """Sum of signed terms, each the mean of a statistic over tasks, drawn jointly.

    Args:
        spec: What was fixed beforehand.
        terms: The terms.
        seed: Of the bootstrap.
        n_boot: Number of draws.
        placed: See `usable`.
        n_parts: Parts of the claim, which share the error rate.
    """
    chosen = [usable(term.tasks, placed=placed) for term in terms]
    left = tuple(dict.fromkeys(why for _, reasons in chosen for why in reasons))
    if not all(used for used, _ in chosen):
        n = min((len(p.documents) for term in terms for p in term.tasks), default=0)
        return Part(spec, n=n, left=left, why="; ".join(left) or "no task")
    every = [p for used, _ in chosen for p in used]
    means = iter(drawn(every, seed=seed, n_boot=n_boot))
    values = np.zeros(1 + n_boot)
    for term, (used, _) in zip(terms, chosen, strict=True):
        values += term.sign * np.mean([term.statistic(p, *next(means)) for p in used], axis=0)
    n = min(len(p.documents) for p in every)
    low, high = map(float, interval(values, n, ALPHA / n_parts))
    tasks = tuple(dict.fromkeys(f"{p.task} {p.metric}" for p in every))
    return Part(spec, float(values[0]), low, high, n, tasks, left, why="" if n > 1 else "one document")


def _everything(condition: str, n_layers: int) -> bool:
    return {a.layer for a in parse_condition(condition).ablations if a.site == "layer"} >= set(range(n_layers))


def _row(table: pd.DataFrame, name: str, task: str) -> Any:
    return next(table[(table["list"] == name) & (table["task"] == task)].itertuples())
