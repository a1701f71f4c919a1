"""The study's seven claims, each as parts that can fail and can hold.

Losses are shares of what the whole model scores above a broken one (`Losses.relative`). Where two tasks or models
are compared in depth (C3, C4, C6), losses are of the log-odds of the right answer per token, and only documents count
that are matched on the whole model's log-odds: a share of any other loss depends on how easy a task is
(`docs/methods.md` has the simulations). The rules are fixed before they meet a new model; docs/results.md lists those
that were changed after results were seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from depthlens.ablations import parse_condition
from depthlens.analysis.numbers.means import UNLIMITED, Mean
from depthlens.analysis.numbers.words import not_above_chance
from depthlens.analysis.result.losses import Losses, too_few
from depthlens.analysis.result.profiles import by_document, comparable
from depthlens.claims import heads
from depthlens.claims.evidence import Evidence
from depthlens.claims.parts import ANSWERS, MOVED, UNDER, Estimate, Part, Question, average, missing, named, part
from depthlens.errors import UserError

LOSS, DEPTH, GAP = "of all loss", "of depth", "of the gap"
FIRST = 2  # layers that C1 calls the first few, and that views of depth leave out
CALIPER = 0.3  # of matched log-odds; docs/methods.md has the bias that it leaves
MOST_ODDS = 7.0  # log-odds are cut off there: a probability of 0.999
ALL, SPARED, MEANS = "all layers", "first token spared", "mean ablation"
DEEPER = "without L0 and L1"
SUFFIX = {ALL: "", DEEPER: "", SPARED: "[1:]", MEANS: "@mean"}

HARMLESS = Question("Scored by {name}, a later layer costs {effect} on average", ANSWERS, 0.10, UNDER)
CRITICAL = Question("Scored by {name}, L0 or L1 costs {effect} more than a later layer on average", ANSWERS, 0.10)
WRITTEN = Question("A layer beyond the first third costs {effect} more if {name} is written, not chosen", ANSWERS, 0.10)
SHALLOW = Question("The first third holds more of the loss for {name} than for plain text, by {effect}", LOSS, 0.15)
DEEP = Question("Reasoning has a larger share of its loss beyond the first third than {name}, by {effect}", LOSS, 0.15)
SHIFT = Question("Beyond knowledge and the control, the losses on reasoning moved by {effect}", DEPTH, 0.05, MOVED)
RECOVERED = Question("The best transplant, chosen on other documents, recovers {effect}", GAP, 0.25)
TREND = Question("A layer of the first third costs {effect} more than one of the last third", ANSWERS, 0.05)


def log_odds(profile: Losses) -> Losses:
    """A profile of log-probabilities per token as one of log-odds of the right answer."""

    def odds(values: np.ndarray) -> np.ndarray:
        probability = np.exp(np.minimum(values, 0.0))
        with np.errstate(divide="ignore"):
            return np.clip(np.log(probability) - np.log1p(-probability), -MOST_ODDS, MOST_ODDS)

    values, base = odds(profile.values), odds(profile.base)
    return replace(profile, metric="log_odds", values=values, base=base, limits=UNLIMITED, floor=None, broken=None)


def pooled(profiles: Sequence[Losses]) -> Losses:
    """The documents of several tasks as one profile.

    Raises:
        UserError: no task.
    """
    if not profiles:
        raise UserError("no task can be judged")
    return replace(
        profiles[0],
        label=", ".join(profile.label for profile in profiles),
        values=np.concatenate([p.values for p in profiles]),
        base=np.concatenate([p.base for p in profiles]),
        documents=tuple(name for p in profiles for name in p.documents),
        units=tuple(unit for p in profiles for unit in p.units),
    )


def matched(a: Losses, b: Losses) -> tuple[Losses, Losses]:
    """Documents of two profiles in pairs whose whole-model scores differ by less than `CALIPER`.

    Each document of the profile that has fewer takes the nearest one that is left, in a fixed order that does not
    depend on any removal.

    Raises:
        UserError: they are too few.
    """
    few, many = (a, b) if len(a.base) <= len(b.base) else (b, a)
    free = np.ones(len(many.base), dtype=bool)
    pairs = []
    for i in np.random.default_rng(0).permutation(len(few.base)):
        gaps = np.where(free, np.abs(many.base - few.base[i]), np.inf)
        j = int(gaps.argmin())
        if gaps[j] < CALIPER:
            free[j] = False
            pairs.append((int(i), j))
    chosen = few.select(documents=[i for i, _ in pairs]), many.select(documents=[j for _, j in pairs])
    if lacking := chosen[0].too_few or chosen[1].too_few:
        raise UserError(f"of {few.label} and {many.label} with matched log-odds, {lacking}")
    return chosen if few is a else chosen[::-1]


def even(chosen: np.ndarray) -> np.ndarray:
    """Weights that take the mean over chosen layers. Shape [layer].

    Raises:
        UserError: no layer is chosen.
    """
    if not chosen.any():
        raise UserError("no such layer was removed")
    return chosen / chosen.sum()


def _judged(profiles: Sequence[Losses]) -> tuple[list[Losses], list[str]]:
    """Profiles of tasks that the model can do, and why others are left out."""
    left = [p for p in profiles if p.at_chance]
    why = [f"{p.label} is left out: {p.base.mean():.2f} is {not_above_chance(len(p.base))}" for p in left]
    return [p for p in profiles if not p.at_chance], why


def _over_tasks(evidence: Evidence, question: Question, names: Sequence[str], of: Callable[[Losses], Mean]) -> Part:
    """A part that is the mean over the tasks of some fields."""
    seeds = evidence.n_seeds(*names)
    every = [p for name in names for p in evidence.profiles(name)]
    kept, left = _judged(every)
    tasks = {p.task for p in kept}

    def effect(view: str, seed: int) -> Mean:
        chosen = [p for name in names for p in evidence.profiles(name, SUFFIX[view], seed) if p.task in tasks]
        if not chosen:
            raise UserError("; ".join(left) or "no task")
        return average([of(p) for p in chosen])

    notes = [*left, *map(_floor, kept)]
    labels = [f"{p.task} {p.metric}" for p in kept]
    few = next((p.too_few for p in kept if p.too_few), "")
    return part(question, effect, seeds=seeds, main=ALL, views=(SPARED, MEANS), tasks=labels, notes=notes, too_few=few)


def _floor(profile: Losses) -> str:
    """The measured floor of a task beside the guessed one."""
    if profile.broken is None:
        return f"the floor of {profile.label} is {profile.floor:.2f} by its form; it was not measured"
    return f"a broken model scores {profile.broken.mean():.2f} on {profile.label} ({profile.floor:.2f} by its form)"


def _c1(evidence: Evidence) -> Iterator[Part]:
    """The first two layers cost much, and the layers after them little.

    Under each of two likelihood protocols (letters, answer texts) the mean loss of the layers after L1 is under 10% of
    the answers, and the mean loss of L0 and L1 is larger by at least 10%.
    """

    def later(profile: Losses) -> Mean:
        return profile.relative(even(profile.layers >= FIRST))

    def critical(profile: Losses) -> Mean:
        return profile.relative(even(profile.layers < FIRST) - even(profile.layers >= FIRST))

    for field, name in (("letters", "letters"), ("continuation", "answer texts")):
        yield _over_tasks(evidence, named(HARMLESS, name), [field], later)
        yield _over_tasks(evidence, named(CRITICAL, name), [field], critical)


def _c2(evidence: Evidence) -> Iterator[Part]:
    """Deep layers cost more where answers are written.

    The same questions are chosen among options and written, once with a short answer and once with a worked solution.
    The mean loss of a layer beyond the first third is larger by at least 10% of the answers where they are written.
    """
    yield _written(evidence, named(WRITTEN, "a letter"), "generation", "letters")
    yield _written(evidence, named(WRITTEN, "a worked solution"), "reasoning", "reasoning_continuation")


def _written(evidence: Evidence, question: Question, written: str, chosen: str) -> Part:
    """The loss of deep layers on the tasks of one field minus that on the tasks of another with the same questions."""
    if lacking := [field for field in (written, chosen) if not evidence.results(field)]:
        return missing(question, _not_measured(lacking))
    kept, left = _judged([*evidence.profiles(written), *evidence.profiles(chosen)])
    able = {p.task for p in kept}
    rivals = {p.documents: p.task for p in evidence.profiles(chosen) if p.task in able}
    own = [p for p in evidence.profiles(written) if p.task in able and p.documents in rivals]
    pairs = {p.task: rivals[p.documents] for p in own}

    def effect(view: str, seed: int) -> Mean:
        if not pairs:
            raise UserError("; ".join(left) or "the written and the chosen tasks ask other questions")
        a, b = ({p.task: p for p in evidence.profiles(name, SUFFIX[view], seed)} for name in (written, chosen))
        return average([_deep(a[task]) - _deep(b[rival]) for task, rival in pairs.items()])

    few = next((p.too_few for p in kept if p.too_few), "")
    notes = [*left, *map(_floor, kept), *_unparsed(evidence, written, list(pairs))]
    seeds, tasks = evidence.n_seeds(written, chosen), [*pairs, *pairs.values()]
    return part(question, effect, seeds=seeds, main=ALL, views=(SPARED, MEANS), tasks=tasks, notes=notes, too_few=few)


def _deep(profile: Losses) -> Mean:
    return profile.relative(even(profile.thirds > 0))


def _unparsed(evidence: Evidence, field: str, tasks: Sequence[str]) -> Iterator[str]:
    """How many written answers could not be read, with a layer beyond the first third removed."""
    result = evidence.results(field)[0].primary()
    for task in tasks:
        docs = result.docs[(result.docs["task"] == task) & (result.docs["layer"] * 3 >= result.n_layers)]
        if docs["parsed"].notna().any():
            share = 1 - docs["parsed"].dropna().astype(float).mean()
            yield f"{share:.0%} of the answers to {task} cannot be read without a layer beyond the first third"


def _in_depth(
    evidence: Evidence,
    question: Question,
    pairs: Sequence[tuple[tuple[str, str], tuple[str, str]]],
    of: Callable[[Losses], Mean],
) -> Part:
    """A part about depth: a statistic on one side minus that on the other, with matched log-odds of the whole model.

    Args:
        evidence: The evidence.
        question: What the part asks.
        pairs: Of sides, each the field of sweeps in nats and the field whose tasks are taken of it and say by their
            accuracy that the model can do them; a second pair is subtracted.
        of: The statistic, of losses in log-odds.
    """
    needed = [name for pair in pairs for side in pair for name in side]
    if lacking := [name for name in dict.fromkeys(needed) if not evidence.results(name)]:
        return missing(question, _not_measured(lacking))
    able, notes = {}, []
    for name in dict.fromkeys(like for pair in pairs for _, like in pair):
        kept, left = _judged(evidence.profiles(name))
        able[name] = {p.task for p in kept}
        notes += left

    def effect(view: str, seed: int) -> Mean:
        found = []
        for pair in pairs:
            sides = []
            for field, like in pair:
                profiles = [p for p in evidence.profiles(field, SUFFIX[view], seed) if p.task in able[like]]
                sides.append(log_odds(pooled([p.beyond(FIRST if view == DEEPER else 0) for p in profiles])))
            a, b = matched(*sides)
            # a document is matched with another one, also where both sides ask the same
            other = replace(b, units=tuple(f"control {unit}" for unit in b.units))
            found.append(of(_placed(a)) - of(_placed(other)))
        return found[0] - found[1] if len(found) > 1 else found[0]

    tasks = sorted(task for names in able.values() for task in names)
    seeds, views = evidence.n_seeds(*dict.fromkeys(needed)), (ALL, SPARED, MEANS)
    return part(question, effect, seeds=seeds, main=DEEPER, views=views, tasks=tasks, notes=notes)


def _of_third(deep: bool) -> Callable[[Losses], Mean]:
    return lambda p: p.share((p.thirds > 0 if deep else p.thirds == 0).astype(float))


def _placed(profile: Losses) -> Losses:
    """The profile with losses that can be shared out: a layer whose removal gains has none.

    Either half of the questions says which layers gain in the other half: with the same documents the noise of
    a layer that does nothing would count as a loss.

    Raises:
        UserError: no loss is shown.
    """
    half = pd.factorize(pd.Index(profile.units))[0] % 2
    costs = np.array([of.loss.mean(0) > 0 for of in profile.halves()[::-1]])
    found = replace(profile, values=np.where(costs[half], profile.values, profile.base[:, None]))
    if found.unplaced:
        raise UserError(f"{profile.label}: {found.unplaced}")
    return found


def _c3(evidence: Evidence) -> Iterator[Part]:
    """The first third of the layers holds more of the loss than it does for plain text.

    Its share of the summed loss is larger by at least 15 points than for plain text of the same length, for knowledge
    and for retrieval. Without L0 and L1, in log-odds per answer token, on documents with matched log-odds.
    """
    for name, own, control in (("knowledge", "continuation", "text"), ("retrieval", "retrieval", "long_text")):
        pair = ("tokens", own), ("tokens", control)
        yield _in_depth(evidence, named(SHALLOW, name), [pair], _of_third(deep=False))


def _c4(evidence: Evidence) -> Iterator[Part]:
    """The layers beyond the first third hold more of the loss on reasoning.

    Their share of the summed loss is larger by at least 15 points for worked solutions than for copying as long a text,
    and for a step of reasoning than for knowledge. Without L0 and L1, in log-odds per answer token, on documents with
    matched log-odds.
    """
    for name, own, control in (("copying", "reasoning", "copying"), ("knowledge", "reasoning_choice", "continuation")):
        pair = ("tokens", own), ("tokens", control)
        yield _in_depth(evidence, named(DEEP, name), [pair], _of_third(deep=True))


def _c6(evidence: Evidence) -> Iterator[Part]:
    """The losses on reasoning moved in depth, and transplants move reasoning accuracy.

    Their centre of mass moved by at least 0.05 of depth from that of a fine-tune of the same budget without reasoning,
    beyond the same on knowledge: without L0 and L1, in log-odds per answer token, on documents on which both models
    have matched log-odds. (The base is the same for both, so that its centres cancel.) The transplant that recovers
    most on every other question recovers at least a quarter of the gap on the rest.
    """
    pairs = [(("tokens", like), ("control", like)) for like in ("reasoning_choice", "continuation")]
    yield _in_depth(evidence, SHIFT, pairs, lambda profile: profile.centre)
    yield _transplants(evidence)


def _transplants(evidence: Evidence) -> Part:
    found, donors = evidence.results("transplants"), evidence.results("reasoning")
    result = found[0].primary()
    first = next(iter(result.every_losses.values()))
    names = [name for name in first.conditions if not _everything(name, result.n_layers)]
    if not names:
        return missing(RECOVERED, "every transplant takes all layers; transplant some of them")
    pairs = []
    for seed, sweep in enumerate(found):
        own, goal = (r.primary().select(tasks=first.task) for r in (sweep, donors[min(seed, len(donors) - 1)]))
        comparable(own, goal, ("task", "metric", "doc_id"))
        pairs.append(by_document(own.losses().select(names), goal.losses()))
    return recovered(pairs)


def recovered(pairs: Sequence[tuple[Losses, Losses]]) -> Part:
    """What the transplant that recovers most on every other question recovers on the rest.

    Args:
        pairs: For each few-shot seed the losses of the base under transplants, and those of the donor.
    """
    halves = [(own.halves(), goal.halves()) for own, goal in pairs]
    best = int(np.argmin(sum(own[0].loss.mean(0) for own, _ in halves)))
    tested = pairs[0][0].halves()[1]

    def effect(view: str, seed: int) -> Mean:
        (_, own), (_, goal) = halves[seed]
        gap = own.over(goal.base - own.base)
        if not gap.interval()[0] > 0:
            raise UserError(f"{own.task}: the donor is not shown to be better than the base")
        return -own.mean()[best] / gap

    few, notes = too_few(tested.units, tested.units), [f"the best is {tested.conditions[best]}"]
    return part(RECOVERED, effect, seeds=len(pairs), main=ALL, tasks=[tested.task], notes=notes, too_few=few)


def _everything(condition: str, n_layers: int) -> bool:
    return {a.layer for a in parse_condition(condition).ablations if a.site == "layer"} >= set(range(n_layers))


TASKS = ("letters", "continuation", "generation", "retrieval", "reasoning", "reasoning_choice")


def _c7(evidence: Evidence) -> Iterator[Part]:
    """A layer of the first third costs more than one of the last third.

    The mean over every task that is not at chance is at least 5% of the answers, without L0 and L1. Each task and the
    spread between tasks stand beside it.
    """

    def trend(profile: Losses) -> Mean:
        deeper = profile.beyond(FIRST)
        return deeper.relative(even(deeper.thirds == 0) - even(deeper.thirds == 2))

    fields = [name for name in TASKS if evidence.results(name)]
    found = _over_tasks(evidence, TREND, fields, trend)
    if np.isnan(found.main.effect):
        yield found
        return
    kept, _ = _judged([p for name in fields for p in evidence.profiles(name)])
    effects = {p.label: trend(p) for p in kept}
    beside = {label: Estimate.of(effect) for label, effect in effects.items()}
    notes = (*found.notes, *_spread(list(effects.values())))
    yield replace(found, beside={**found.beside, **beside}, notes=notes)


def _spread(effects: Sequence[Mean]) -> Iterator[str]:
    """How much an effect varies between tasks beyond sampling noise (Paule & Mandel 1982)."""
    if len(effects) < 3:
        return
    from statsmodels.stats.meta_analysis import combine_effects  # slow to import

    values, variances = (
        np.array([float(x) for x in of]) for of in zip(*((e.value, e.error**2) for e in effects), strict=True)
    )
    with np.errstate(divide="ignore"):  # of equal effects it divides by 0, for a number that is not used here
        tau = float(np.sqrt(max(combine_effects(values, variances, method_re="iterated").tau2, 0.0)))
    yield f"between tasks the difference has a standard deviation of {100 * tau:.2g}% of answers beyond sampling noise"


def _not_measured(fields: Sequence[str]) -> str:
    return f"not measured: the evidence has no {' and no '.join(fields)}"


@dataclass(frozen=True, repr=False)
class Claim:
    """A claim of the study and how it is put to the test.

    Attributes:
        id: ``C1`` to ``C7``.
        statement: The claim, in our words.
        of: From the evidence to the parts; its docstring is the test in plain words.
        needs: The fields of `Evidence` it takes; one of them is enough where ``any_of``.
        questions: Of the parts; they are named where evidence is missing.
        any_of: See ``needs``.

    Example:
        >>> claim = dl.claims.CLAIMS[2]
        >>> claim
        C3: Knowledge and retrieval depend mostly on shallow layers.
        >>> claim.needs
        ('continuation', 'retrieval', 'text', 'long_text', 'tokens')
    """

    id: str
    statement: str
    of: Callable[[Evidence], Iterator[Part]]
    needs: tuple[str, ...]
    questions: tuple[Question, ...]
    any_of: bool = False

    def __repr__(self) -> str:
        return f"{self.id}: {self.statement}"

    @property
    def test(self) -> str:
        """What the parts compare, in plain words."""
        return " ".join((self.of.__doc__ or "").split())

    def parts(self, evidence: Evidence) -> list[Part]:
        """What the evidence says of each part."""
        lacks = [name for name in self.needs if not evidence.results(name)]
        if lacks and not (self.any_of and len(lacks) < len(self.needs)):
            why = _not_measured(lacks)
            return [missing(named(question, "..."), why) for question in self.questions]
        return list(self.of(evidence))


CLAIMS = (
    Claim(
        "C1",
        "Under likelihood metrics most single layers can be removed with little loss; only the first few are critical.",
        _c1, ("letters", "continuation"), (HARMLESS, CRITICAL),
    ),
    Claim(
        "C2",
        "Under generation middle and deep layers become indispensable: the metric decides which layers look important.",
        _c2, ("letters", "generation"), (WRITTEN,),
    ),
    Claim(
        "C3",
        "Knowledge and retrieval depend mostly on shallow layers.",
        _c3, ("continuation", "retrieval", "text", "long_text", "tokens"), (SHALLOW,),
    ),
    Claim(
        "C4",
        "Reasoning accuracy depends mostly on middle and deep layers, more than knowledge does.",
        _c4, ("continuation", "reasoning", "copying", "reasoning_choice", "tokens"), (DEEP,),
    ),
    Claim(
        "C5",
        "A few attention heads carry retrieval and a few carry reasoning: removing those hurts far more than others.",
        heads.parts, ("heads",), (heads.COSTS, heads.EXCESS, heads.OWN_TASK),
    ),
    Claim(
        "C6",
        "Distillation reshapes where reasoning lives in depth; transplanting distilled parts moves reasoning accuracy.",
        _c6, ("continuation", "reasoning", "reasoning_choice", "tokens", "control", "transplants"), (SHIFT, RECOVERED),
    ),
    Claim(
        "C7",
        "Very deep layers are on the whole less effective than early ones; how much varies by task, metric and model.",
        _c7, TASKS, (TREND,), any_of=True,
    ),
)  # fmt: skip
