"""What parts of claims measure: losses of tasks that a model can do, and losses in depth that can be compared.

Losses in depth are in log-odds, on documents that are weighted to be equally easy.

A share of any loss depends on how easy a task is. Documents of two profiles are therefore weighted with their
probability to be of the other one, by a logistic regression on how likely the whole model finds the right answer: with
these overlap weights every document counts, and means and squares of the log-odds are equal on both sides (Li, Morgan &
Zalesky 2018, JASA 113:390-400). The log-odds that weigh are of another choice of examples than those that are lowered:
else a document that was lucky would weigh more and lose more.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from depthlens.analysis.numbers.means import UNLIMITED, Mean, Ratio
from depthlens.analysis.numbers.words import not_above_chance
from depthlens.analysis.result.losses import Losses
from depthlens.claims.parts import FEWEST, LEVEL, Effect, mean_of, too_few
from depthlens.errors import UserError

FIRST = 2  # layers that C1 calls the first few, and that controlled views of depth leave out
ALL, DEEPER, CAPPED = "all layers", "without L0 and L1", "losses of at most 1 log-odd, without weights"
NOT_MEASURED = "not measured"
MOST_ODDS = 15.0  # a probability of 0.9999997; documents beyond say nothing that float32 could tell


def odds(values: np.ndarray) -> np.ndarray:
    """Log-odds of log-probabilities, cut off at `MOST_ODDS`."""
    probability = np.exp(np.minimum(values, 0.0))
    with np.errstate(divide="ignore"):
        return np.clip(np.log(probability) - np.log1p(-probability), -MOST_ODDS, MOST_ODDS)


def log_odds(profile: Losses) -> Losses:
    """A profile of log-probabilities per token as one of log-odds of the right answer, without documents at the cut."""
    inside = np.abs(odds(profile.base)) < MOST_ODDS
    kept = profile if inside.all() else profile.select(documents=np.flatnonzero(inside))
    values, base = odds(kept.values), odds(kept.base)
    return replace(kept, metric="log_odds", values=values, base=base, limits=UNLIMITED, floor=None, broken=None)


def pooled(profiles: Sequence[Losses]) -> Losses:
    """The documents of several tasks as one profile."""
    return replace(
        profiles[0],
        label=", ".join(profile.label for profile in profiles),
        values=np.concatenate([p.values for p in profiles]),
        base=np.concatenate([p.base for p in profiles]),
        documents=tuple(name for p in profiles for name in p.documents),
        units=tuple(unit for p in profiles for unit in p.units),
    )


def balanced(a: Losses, b: Losses, easy: Sequence[Mapping[str, float]]) -> tuple[Losses, Losses]:
    """Both profiles with every document weighted, so that the whole model finds both sides equally easy.

    Args:
        a: Losses in log-odds.
        b: The same of other tasks, or of another model.
        easy: For either side by document the log-odds that weigh; documents without are left out.

    Raises:
        UserError: too few documents are as easy as those of the other side.
    """
    from statsmodels.genmod.families import Binomial  # slow to import
    from statsmodels.genmod.generalized_linear_model import GLM

    known = [[of.get(name, np.nan) for name in side.documents] for side, of in zip((a, b), easy, strict=True)]
    inside = [np.flatnonzero(np.abs(np.array(of, dtype=float)) < MOST_ODDS) for of in known]
    sides = [side.select(documents=at) for side, at in zip((a, b), inside, strict=True)]
    margins = [np.array(of, dtype=float)[at] for of, at in zip(known, inside, strict=True)]
    if min(map(len, margins)) < FEWEST:
        raise UserError(f"{a.label} and {b.label} have {min(map(len, margins))} documents; take at least {FEWEST}")
    second = np.repeat([0.0, 1.0], list(map(len, margins)))
    x = np.concatenate(margins)
    x = (x - x.mean()) / max(x.std(), 1e-9)
    with warnings.catch_warnings():  # sides that do not overlap are said below
        warnings.simplefilter("ignore")
        chance = GLM(second, np.column_stack([np.ones_like(x), x, x**2]), family=Binomial()).fit().fittedvalues
    weights = np.where(second == 0, chance, 1 - chance)
    found = []
    for side, of in zip(sides, (weights[second == 0], weights[second == 1]), strict=True):
        amount = of.sum() ** 2 / max(np.square(of).sum(), 1e-300)
        if not amount >= FEWEST:
            first, other, this = (f"{one.label} ({one.model})" for one in (a, b, side))
            fault = f"the documents of {first} and {other} are not equally easy: those of {this} that are"
            raise UserError(f"{fault} amount to {amount:.0f}; take at least {FEWEST}, or easier or harder tasks")
        scaled = of / of.mean()
        found.append(replace(side, base=side.base * scaled, values=side.values * scaled[:, None]))
    return found[0], found[1]


def capped(profile: Losses, most: float = 1.0) -> Losses:
    """Losses of at most so many log-odds: of documents that have room for it, they depend little on how easy these are.

    They are unbiased unless damage is in proportion to the log-odds.
    """
    return replace(profile, values=np.maximum(profile.values, profile.base[:, None] - most))


def excess(profile: Losses, *, first: bool = True) -> Mean:
    """How much more of all losses the first third of the depth has than its even share of the layers.

    0 where losses are spread evenly, 1 where the first third has twice its share.

    Raises:
        UserError: no loss is shown that could be shared out.
    """
    in_first = profile.thirds == 0
    weights = in_first / in_first.mean() - 1
    return shared(profile, weights if first else -weights)


def shared(profile: Losses, weights: np.ndarray) -> Mean:
    """`Losses.share`, of losses that are shown to be there."""
    if not profile.over(profile.loss.sum(1)).interval(LEVEL)[0] > 0:
        raise UserError(f"no loss is shown on {profile.label} that could be shared out")
    return profile.share(weights)


def even(chosen: np.ndarray) -> np.ndarray:
    """Weights that take the mean over chosen layers. Shape [layer].

    Raises:
        UserError: no layer is chosen.
    """
    if not chosen.any():
        raise UserError("no such layer was removed")
    return chosen / chosen.sum()


def judged(profiles: Sequence[Losses]) -> tuple[list[Losses], list[str]]:
    """Profiles of tasks that the model can do, with enough questions, and why others are left out."""
    faults = [
        too_few(p.n_questions) or (f"{p.base.mean():.2f} is {not_above_chance(len(p.base))}" if p.at_chance else "")
        for p in profiles
    ]
    kept = [p for p, fault in zip(profiles, faults, strict=True) if not fault]
    return kept, [f"{p.label} is left out: {fault}" for p, fault in zip(profiles, faults, strict=True) if fault]


def crossed(folds: Sequence[Effect]) -> Effect:
    """The mean of an effect on two halves of the questions, where the other half has chosen what is tested.

    Of quotients it is the mean of the numerators, over that of the divisors.
    """
    n = sum(fold.n for fold in folds)

    def mean(of: Sequence[Mean]) -> Mean:
        return replace(mean_of(of), n=n)

    if ratios := [fold for fold in folds if isinstance(fold, Ratio)]:
        return Ratio(mean([fold.part for fold in ratios]), mean([fold.whole for fold in ratios]))
    return mean([fold for fold in folds if isinstance(fold, Mean)])


def not_measured(fields: Sequence[str]) -> str:
    return f"{NOT_MEASURED}: no {', no '.join(fields)}"
