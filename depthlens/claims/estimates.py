"""Effects of layer profiles with their intervals, under every view of `depthlens.claims.decision`.

Documents are drawn with replacement (`depthlens.analysis.bootstrap`), jointly where tasks and few-shot seeds share
them. Several tasks are combined by the mean over tasks within each draw, and several seeds by the mean over seeds; the
variance between seeds is added to that of the draws. Intervals are expanded percentile intervals of 95% (Hesterberg
2015); those in nats have Hall's correction for skewness (1992). All parts of a claim have to pass, so none needs a
correction for the others (an intersection-union test, Berger 1982, Technometrics 24:295-300); a claim is contradicted
by one part, whose error level is 2.5% on each side.

*Relative loss* is ``loss / (baseline - floor)``, where the floor is what a broken model scores. The *share* of a third
is its part of the summed loss of all layers. Tasks at chance, and for shares tasks without a proven loss, are left out
by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy

from depthlens.analysis.bootstrap import interval, ratio, widened
from depthlens.analysis.layer_profiles import Profile, drawn
from depthlens.analysis.stats import ALPHA
from depthlens.claims.decision import MIN_DOCS, Estimate, Part, Spec, View
from depthlens.errors import UserError

Source = Callable[[str], list[Profile]]  # from what stands behind a layer in the conditions of a sweep to its profiles
Sweeps = Sequence[Source]  # one a few-shot seed or template
Statistic = Callable[[Profile, np.ndarray, np.ndarray], np.ndarray]  # profile, loss, baseline to [draw, ...]
MIN_SUBTASKS = 10  # of a group: intervals over fewer, which are drawn whole, cover too seldom
Pairs = Sequence[tuple[int, int]]  # terms of a sum, by number, that are about the same documents


@dataclass(frozen=True)
class Term:
    """The mean of a statistic over the tasks of some sweeps, with its sign in a sum.

    Attributes:
        sign: 1 or -1.
        sweeps: One a few-shot seed or template.
        statistic: Of one profile.
        placed: Whether it needs a proven loss (shares) or a score above chance (relative losses).
        guard: Sweeps whose scores have to be above chance for the same tasks, where the metric has no chance level.
    """

    sign: int
    sweeps: Sweeps
    statistic: Statistic
    placed: bool = False
    guard: Sweeps = ()


@dataclass(frozen=True)
class Draws:
    """A sum of terms for the sample itself and for every draw.

    Attributes:
        values: Shape [1 + n_boot, ...].
        of_documents: The same without the noise between few-shot seeds.
        n: Documents; the fewest of the tasks.
        units: What is drawn, the fewest of the tasks: documents, or whole tasks of a group.
        seeds: The fewest of the terms.
        tasks: ``task metric`` of each that was used.
        left: Why others were left out.
        why: Why there are no values; "" if there are.
        skewed: Whether some scores are not 0 or 1; see `depthlens.analysis.bootstrap.interval`.
    """

    values: np.ndarray
    of_documents: np.ndarray
    n: int
    units: int
    seeds: int
    tasks: tuple[str, ...]
    left: tuple[str, ...]
    why: str = ""
    skewed: bool = False

    def without_effect(self, view: str) -> Estimate:
        """An estimate that has the facts about the draws, and no numbers."""
        return Estimate(view, n=self.n, seeds=self.seeds, tasks=self.tasks, left=self.left, why=self.why)


def relative(profile: Profile, loss: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Loss of each layer as a share of what the whole model scores above the floor. Shape [draw, layer]."""
    return ratio(loss, (base - float(profile.floor or 0.0))[:, None])


def first_tenth(profile: Profile) -> np.ndarray:
    """Which removed layers are among the first tenth of the model's, at least two. Shape [layer]."""
    return profile.layers < max(2, math.ceil(profile.n_layers / 10))


def beyond_first_third(profile: Profile, loss: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Mean relative loss of the layers of the middle and last third. Shape [draw]."""
    return relative(profile, loss, base)[:, profile.thirds > 0].mean(1)


def first_share(profile: Profile, loss: np.ndarray, base: np.ndarray) -> np.ndarray:
    """The first third's share of the summed loss. Shape [draw]."""
    return ratio(loss[:, profile.thirds == 0].sum(1), loss.sum(1))


def deep_share(profile: Profile, loss: np.ndarray, base: np.ndarray) -> np.ndarray:
    """The share beyond the first third of the summed loss. Shape [draw]."""
    return 1 - first_share(profile, loss, base)


def depth_difference(profile: Profile, loss: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Mean relative loss of the layers of the last third minus that of the first. Shape [draw]."""
    of_layer = relative(profile, loss, base)
    return of_layer[:, profile.thirds == 2].mean(1) - of_layer[:, profile.thirds == 0].mean(1)


def usable(chosen: Sequence[Profile], term: Term, view: View) -> tuple[list[Profile], list[str]]:
    """Profiles that a term can be taken of, and why the others cannot."""
    used, left = [], []
    guards: dict[str, Profile] = {}  # a task that is at chance with one seed is not judged
    for p in (p for sweep in term.guard for p in sweep(view.suffix) if p.floor is not None):
        guards[p.task] = p if p.at_chance or p.task not in guards else guards[p.task]
    for profile in chosen:
        why = profile.unusable("importance" if term.placed else "above_chance")
        if not why and profile.floor is None:
            if not term.placed:
                why = f"{profile.metric} has no floor"
            elif profile.task not in guards:
                why = f"no accuracy of {profile.task} says that the model can do it"
            elif guards[profile.task].at_chance:
                why = f"accuracy {guards[profile.task].base.mean():.2f} is at chance"
        if why:
            left.append(f"{profile.label}: {why}")
        else:
            used.append(profile)
    return used, left


def of_tasks(sweeps: Sweeps, tasks: Collection[str]) -> Sweeps:
    """Sweeps of some of their tasks."""

    def only(sweep: Source) -> Source:
        return lambda suffix: [p for p in sweep(suffix) if p.task in tasks]

    return [only(sweep) for sweep in sweeps]


def of_view(sweeps: Sweeps, view: View) -> list[list[Profile]]:
    """The profiles of every seed.

    Raises:
        UserError: the view was not swept, or seeds have other tasks.
    """
    chosen = [[p.beyond(view.left_out) for p in sweep(view.suffix)] for sweep in sweeps]
    for found in chosen[1:]:
        if [p.label for p in found] != [p.label for p in chosen[0]]:
            raise UserError("the few-shot seeds have other tasks; run the same tasks with every seed")
    return chosen


@dataclass(frozen=True)
class Chosen:
    """Profiles that the terms of a sum can be taken of, by term, and by seed.

    Attributes:
        terms: The terms, each with its profiles.
        n: Documents; the fewest of the tasks.
        seeds: The fewest of the terms.
        left: Why tasks were left out.
    """

    terms: list[tuple[Term, list[list[Profile]]]]
    n: int
    seeds: int
    left: tuple[str, ...]

    @property
    def every(self) -> list[Profile]:
        """All profiles."""
        return [p for _, by_seed in self.terms for found in by_seed for p in found]

    def draws(self, values: np.ndarray) -> Draws:
        """What was drawn of them, [seed, 1 + n_boot, ...]."""
        tasks = tuple(dict.fromkeys(f"{p.task} {p.metric}" for p in self.every))
        why = "" if self.n > 1 else "one document"
        units = min(len(set(p.subtasks or p.documents)) for p in self.every)
        if units < min(self.n, MIN_SUBTASKS):
            why = why or f"{units} tasks of a group are too few to draw from; take {MIN_SUBTASKS}"
        skewed = not all(p.binary for p in self.every)
        wide = widened(values, units)
        return Draws(wide, values.mean(axis=0), self.n, units, self.seeds, tasks, self.left, why, skewed)

    @property
    def none(self) -> Draws:
        """Draws without values."""
        why = "; ".join(self.left) or "no task"
        return Draws(np.empty(0), np.empty(0), self.n, self.n, self.seeds, (), self.left, why)


def choose(terms: Sequence[Term], view: View, pairs: Pairs = ()) -> Chosen:
    """The profiles of a view that each term can be taken of. A task is left out for every seed if it is for one.

    Of ``pairs`` of terms, each task is left out whose documents the other term has not, or cannot be taken of: else
    their difference would be one between tasks.

    Raises:
        UserError: see `of_view`; or terms have several seeds, but not equally many.
    """
    kept: list[tuple[Term, list[list[Profile]]]] = []
    left: list[str] = []
    every: list[Profile] = []
    for term in terms:
        by_seed = of_view(term.sweeps, view)
        checked = [usable(found, term, view) for found in by_seed]
        labels = set.intersection(*({p.label for p in used} for used, _ in checked))
        left += [why for _, reasons in checked for why in reasons]
        kept.append((term, [[p for p in used if p.label in labels] for used, _ in checked]))
        every += [p for found in by_seed for p in found]
    for pair in pairs:
        left += _leave_unpaired(kept, pair)
    used = [p for _, by_seed in kept for found in by_seed for p in found]
    counts = sorted({len(found) for _, found in kept} - {1})
    if len(counts) > 1:
        raise UserError(f"sweeps have {' and '.join(map(str, counts))} few-shot seeds; run all with the same")
    seeds = min((len(found) for _, found in kept), default=1)
    return Chosen(kept, min((len(p.documents) for p in used or every), default=0), seeds, tuple(dict.fromkeys(left)))


def _leave_unpaired(kept: list[tuple[Term, list[list[Profile]]]], pair: tuple[int, int]) -> list[str]:
    """Leave out of two terms, in place, the tasks whose documents only one of them has, and say which."""
    shared = set.intersection(*({p.documents for p in kept[i][1][0]} for i in pair))
    alone = dict.fromkeys(p.label for i in pair for p in kept[i][1][0] if p.documents not in shared)
    for i in pair:
        term, by_seed = kept[i]
        kept[i] = term, [[p for p in found if p.documents in shared] for found in by_seed]
    return [f"{label}: its documents can be used on one side of the difference only" for label in alone]


def _without_few(chosen: Chosen) -> Chosen:
    """Without terms of too few documents to judge, as long as others have enough; they are named."""
    sizes = [min(len(p.documents) for p in found[0]) for _, found in chosen.terms]
    if not sizes or max(sizes) < MIN_DOCS or min(sizes) >= MIN_DOCS:
        return chosen
    enough = [term for term, n in zip(chosen.terms, sizes, strict=True) if n >= MIN_DOCS]
    few = [
        f"{found[0][0].label}: {n} documents" for (_, found), n in zip(chosen.terms, sizes, strict=True) if n < MIN_DOCS
    ]
    return replace(chosen, terms=enough, n=min(n for n in sizes if n >= MIN_DOCS), left=(*chosen.left, *few))


def draw(terms: Sequence[Term], view: View, *, seed: int, n_boot: int, apart: bool = False, pairs: Pairs = ()) -> Draws:
    """A sum of terms under one view, with documents drawn jointly for all of them.

    Args:
        terms: The terms.
        view: The view.
        seed: Of the bootstrap.
        n_boot: Number of draws.
        apart: Give the values of the terms side by side and not their sum, shape [1 + n_boot, term]; terms without a
            usable task are left out, and do not leave the sum without a value.
        pairs: See `choose`.

    Raises:
        UserError: see `choose`.
    """
    chosen = choose(terms, view, pairs)
    if apart:
        chosen = _without_few(replace(chosen, terms=[(term, found) for term, found in chosen.terms if found[0]]))
    if not chosen.terms or not all(found[0] for _, found in chosen.terms):
        return chosen.none
    means = iter(drawn(chosen.every, seed=seed, n_boot=n_boot))
    # [seed, 1 + n_boot, ...] by term; what has one seed stands beside what has several
    values = [
        term.sign * np.stack([np.mean([term.statistic(p, *next(means)) for p in found], axis=0) for found in by_seed])
        for term, by_seed in chosen.terms
    ]
    return chosen.draws(np.stack(np.broadcast_arrays(*values), axis=-1) if apart else sum(values[1:], start=values[0]))


def estimate(draws: Draws, view: str) -> Estimate:
    """A scalar effect with its interval."""
    if not draws.values.size:
        return draws.without_effect(view)
    low, high = map(float, interval(draws.values, draws.units, skewed=draws.skewed))
    critical = float(scipy.stats.t.ppf(1 - ALPHA / 2, max(draws.units - 1, 1)))
    se = (high - low) / 2 / critical
    of_documents = float(np.diff(interval(draws.of_documents, draws.units, skewed=draws.skewed))[0]) / 2 / critical
    return replace(
        draws.without_effect(view), effect=float(draws.values[0]), low=low, high=high, se=se,
        se_documents=of_documents, critical=critical,
    )  # fmt: skip


def viewed(spec: Spec, of: Callable[[View], Estimate | None]) -> Part:
    """A part of a claim: its estimate under every view. A view that was not swept has none, and says so.

    ``of`` gives None for a view under which the effect has no meaning.
    """
    estimates = []
    for view in spec.views:
        try:
            estimates.append(of(view))
        except UserError as e:
            estimates.append(Estimate(view.name, why=str(e)))
    main, *others = estimates
    return Part(spec, main or Estimate(why="has no meaning here"), tuple(e for e in others if e is not None))


def part(spec: Spec, terms: Sequence[Term], *, seed: int, n_boot: int, pairs: Pairs = ()) -> Part:
    """A part of a claim whose effect is a sum of terms."""
    return viewed(spec, lambda view: estimate(draw(terms, view, seed=seed, n_boot=n_boot, pairs=pairs), view.name))


def lower_bounds(draws: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Simultaneous 97.5% lower bounds of several effects, by the largest deviation over draws in standard errors.

    Source: Westfall & Young 1993; Romano & Wolf 2005, Econometrica 73:1237-1282, single step.

    Args:
        draws: The sample's own values first. Shape [1 + n_boot, part].
        n: Documents.

    Returns:
        Lower bounds, standard errors. Shapes [part].
    """
    se = np.nanstd(draws[1:], axis=0, ddof=1)
    deviations = (draws[1:] - draws[0]) / np.where(se > 0, se, np.inf)
    tail = scipy.stats.norm.cdf(np.sqrt(n / (n - 1)) * scipy.stats.t.ppf(ALPHA / 2, n - 1)) if n > 1 else 0.0
    # an effect lies as far below its estimate as draws lie above it
    return draws[0] - float(np.nanquantile(deviations.max(1), 1 - tail)) * se, se
