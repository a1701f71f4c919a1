"""The claims on layers: C1, C2, C3, C4 and C7 as estimates. What they mean: `depthlens.claims.registry`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import scipy

from depthlens.analysis.bootstrap import interval, ratio
from depthlens.analysis.layer_profiles import Profile
from depthlens.analysis.power import POWER
from depthlens.analysis.stats import ALPHA
from depthlens.claims import estimates
from depthlens.claims.decision import ABOVE, BELOW, CONTRADICTED, DEEPER_LAYERS, DIFFERENT, Estimate, Part, Spec, View
from depthlens.claims.estimates import Draws, Sweeps, Term

_RELATIVE, _SHARE = "of the score above the floor", "of all loss"
SMALL_LOSS = 0.10
HARMLESS_LOSS = 0.015  # documents are planned for layers that cost so much and are to be shown under SMALL_LOSS
_BOTH_PROTOCOLS = ((0, 1),)

HARMLESS = {
    name: Spec(f"the share of layers beyond the first tenth that cost under {SMALL_LOSS:.0%}, {name}", "of layers",
               0.5, ABOVE, 0.25)
    for name in ("letters", "continuation")
}  # fmt: skip
RIVAL = {
    name: Spec(f"the costliest later layer minus half of the first tenth's mean, {name}", _RELATIVE, 0.0, BELOW, 0.2,
               power=0.92)
    for name in ("letters", "continuation")
}  # fmt: skip
PROTOCOL = Spec(
    "the mean loss beyond the first third, written letter minus likeliest letter",
    _RELATIVE,
    0.0,
    ABOVE,
    0.1,
    difference=True,
)
WRONG = Spec(
    "the mean loss beyond the first third where the written letter can be parsed, written minus likeliest letter",
    _RELATIVE,
    0.0,
    ABOVE,
    0.1,
    power=0.75,
)
SHALLOW = {
    name: Spec(f"the first third's share per token for {name} minus that for plain text", _SHARE, 0.0, ABOVE, 0.15,
               main=DEEPER_LAYERS, difference=True)
    for name in ("knowledge", "retrieval")
}  # fmt: skip
BEYOND_COPYING = Spec("the share beyond the first third, reasoning minus copying a solution", _SHARE, 0.0, ABOVE, 0.15,
                      difference=True)  # fmt: skip
BEYOND_KNOWLEDGE = Spec("the share beyond the first third per token, reasoning minus knowledge", _SHARE, 0.0, ABOVE,
                        0.15, difference=True)  # fmt: skip
MOSTLY_DEEP = Spec("the share beyond the first third for reasoning", _SHARE, 0.5, ABOVE, 0.15)
TREND = Spec("the mean loss of a last-third layer minus that of a first-third layer", _RELATIVE, 0.0, BELOW, 0.1,
             main=DEEPER_LAYERS, difference=True)  # fmt: skip
SPREAD = Spec(
    "the standard deviation between tasks of the last third's mean loss minus the first third's",
    _RELATIVE,
    0.0,
    DIFFERENT,
    0.05,
    main=DEEPER_LAYERS,
)


def few_harmful(by_protocol: dict[str, Sweeps], *, seed: int, n_boot: int) -> list[Part]:
    """C1 under each likelihood protocol: most later layers are shown to be harmless, and none rivals the first."""
    parts = []
    for name, sweeps in by_protocol.items():

        def harmless(view: View, sweeps: Sweeps = sweeps) -> Estimate:
            term = Term(1, sweeps, _later)
            least = _least_error(estimates.choose([term], view))
            return _harmless(estimates.draw([term], view, seed=seed, n_boot=n_boot), least, view)

        def rival(view: View, sweeps: Sweeps = sweeps) -> Estimate | None:
            if not any(estimates.first_tenth(p).any() for found in estimates.of_view(sweeps, view) for p in found):
                return None  # no layer of the first tenth is left
            return _largest(estimates.draw([Term(1, sweeps, _against_first)], view, seed=seed, n_boot=n_boot), view)

        parts += [estimates.viewed(HARMLESS[name], harmless), estimates.viewed(RIVAL[name], rival)]
    return parts


def _later(profile: Profile, loss: np.ndarray, base: np.ndarray) -> np.ndarray:
    return estimates.relative(profile, loss, base)[:, ~estimates.first_tenth(profile)]


def _against_first(profile: Profile, loss: np.ndarray, base: np.ndarray) -> np.ndarray:
    of_layer, first = estimates.relative(profile, loss, base), estimates.first_tenth(profile)
    return of_layer[:, ~first] - of_layer[:, first].mean(1, keepdims=True) / 2


def _least_error(chosen: estimates.Chosen) -> float:
    """The least standard error of the mean over tasks of a layer's relative loss if it were `SMALL_LOSS`.

    A layer that happened to lose little in the sample varies little there, so that its own standard error would call
    it harmless too often. A loss of right and wrong answers whose mean is m varies by at least m (1 - m). This is the
    idea of score tests: the variance is that under the hypothesis.
    """
    ((_, by_seed),) = chosen.terms
    over_floor = [(p, max(float(p.base.mean()) - float(p.floor or 0.0), 1e-9)) for p in by_seed[0]]
    squares = [SMALL_LOSS * (1 - SMALL_LOSS * over) / over / len(p.documents) for p, over in over_floor]
    return float(np.sqrt(sum(squares)) / len(squares)) if squares else 0.0


def _harmless(draws: Draws, least: float, view: View) -> Estimate:
    """The share of layers under `SMALL_LOSS`; its interval is from those shown to be, to those not shown to be over.

    Each layer has a one-sided test on either side. How many layers are shown is a confidence bound for the number of
    false hypotheses, by closed testing with Simes' test, which needs tests that are not negatively dependent (Goeman &
    Solari 2011, Statistical Science 26:584-597). Layers that are under `SMALL_LOSS` together support one another.
    """
    if not draws.values.size:
        return estimates.estimate(draws, view.name)
    values = draws.values[0]
    se = np.maximum(np.nanstd(draws.values[1:], axis=0, ddof=1), least)
    z = (SMALL_LOSS - values) / se
    freedom = max(draws.units - 1, 1)
    under, over = (number_shown(scipy.stats.t.sf(side, freedom)) / len(values) for side in (z, -z))
    # power: for a layer with the median standard error that costs HARMLESS_LOSS, in the unit of the share
    typical = float(np.median(se)) * HARMLESS["letters"].matters / (SMALL_LOSS - HARMLESS_LOSS)
    return replace(
        draws.without_effect(view.name), effect=float((values < SMALL_LOSS).mean()), low=under, high=1 - over,
        se=typical, critical=float(scipy.stats.t.ppf(1 - ALPHA / 2, freedom)),
    )  # fmt: skip


def number_shown(p: np.ndarray) -> int:
    """The least number of false hypotheses, with 97.5% confidence; p-values of shape [hypothesis].

    With p sorted, it is m - h, where h is the largest i for which Simes' test does not reject the i largest:
    ``i p_(m-i+j) > j alpha`` for all j from 1 to i (Hommel 1988, Biometrika 75:383-386).
    """
    p, m = np.sort(np.nan_to_num(p, nan=1.0)), len(p)  # what has no test is not shown
    accepted = [i for i in range(1, m + 1) if (i * p[m - i :] > np.arange(1, i + 1) * ALPHA / 2).all()]
    return m - max(accepted, default=0)


def _largest(draws: Draws, view: View) -> Estimate:
    """The largest of several effects, between the largest of simultaneous lower and the largest of single upper bounds.

    All single upper bounds have to be on one side to support, which needs no correction (intersection-union); one of
    the lower bounds is enough to contradict, which does.
    """
    if not draws.values.size:
        return estimates.estimate(draws, view.name)
    low, se = estimates.lower_bounds(draws.values, draws.units)
    high = interval(draws.values, draws.units)[1]
    worst = int(np.argmax(high))
    critical = float(scipy.stats.t.ppf(1 - ALPHA / 2, max(draws.units - 1, 1)))
    of_documents = float(np.nanstd(draws.of_documents[1:, worst], ddof=1))
    return replace(
        draws.without_effect(view.name), effect=float(draws.values[0].max()), low=float(low.max()),
        high=float(high.max()), se=float(se[worst]), se_documents=of_documents, critical=critical,
    )  # fmt: skip


def generation_costs_more(letters: Sweeps, written: Sweeps, *, seed: int, n_boot: int) -> list[Part]:
    """C2: of identical prompts, beyond the first third; in all, and where the written answer could be parsed."""
    terms = [Term(1, written, estimates.beyond_first_third), Term(-1, letters, estimates.beyond_first_third)]
    protocol = estimates.part(PROTOCOL, terms, seed=seed, n_boot=n_boot, pairs=_BOTH_PROTOCOLS)
    # answers that are equal under both protocols lose a smaller share of a written score, whose floor is lower: what
    # contradicts has to contradict with the floor of letters for both, too
    one_floor = [replace(terms[0], sweeps=_with_floors(written, letters)), terms[1]]
    again = estimates.part(PROTOCOL, one_floor, seed=seed, n_boot=n_boot, pairs=_BOTH_PROTOCOLS)
    protocol = replace(protocol, p_against=float(again.verdict != CONTRADICTED))
    # a letter that can be parsed is one of the options, whose floor is guessing
    parsed = estimates.viewed(WRONG, lambda view: _where_parsed(one_floor, view, seed, n_boot))
    # a broken writer often writes what cannot be parsed, and where it can be less is broken: too little contradicts
    # nothing
    return [protocol, replace(parsed, p_against=1.0)]


def _with_floors(sweeps: Sweeps, of: Sweeps | None = None) -> Sweeps:
    """Sweeps with the floors that others have for the same documents; without others, all floors are 0."""

    def of_seed(own: estimates.Source, other: estimates.Source | None) -> estimates.Source:
        def profiles(suffix: str) -> list[Profile]:
            if other is None:
                return [p if p.floor is None else replace(p, floor=0.0) for p in own(suffix)]
            floors = {p.documents: p.floor for p in other(suffix)}
            return [replace(p, floor=floors.get(p.documents, p.floor)) for p in own(suffix)]

        return profiles

    return [of_seed(own, of[min(i, len(of) - 1)] if of else None) for i, own in enumerate(sweeps)]


def _where_parsed(terms: Sequence[Term], view: View, seed: int, n_boot: int) -> Estimate:
    """The difference of relative losses, pooled over pairs of document and layer whose written answer was parsed."""
    chosen = estimates.choose(terms, view, _BOTH_PROTOCOLS)
    if not chosen.every:
        return estimates.estimate(chosen.none, view.name)
    by_seed = []
    found = [by_seed for _, by_seed in chosen.terms]
    n_seeds = max(map(len, found))  # one seed stands beside several
    for written, letters in zip(*(f * n_seeds if len(f) == 1 else f for f in found), strict=True):
        of_task = []
        by_documents = {p.documents: p for p in letters}
        for i, profile in enumerate(written):
            counts = profile.draws(n_boot, seed + i)
            deep = profile.thirds > 0
            parsed = np.ones_like(profile.values) if profile.parsed is None else profile.parsed.astype(float)
            both = (_pooled(p, parsed[:, deep], deep, counts) for p in (profile, by_documents[profile.documents]))
            of_task.append(np.subtract(*both))
        by_seed.append(np.mean(of_task, axis=0))
    return estimates.estimate(chosen.draws(np.stack(by_seed)), view.name)


def _pooled(profile: Profile, parsed: np.ndarray, deep: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Loss over what there was to lose, both summed over parsed documents and layers. Shape [draw]."""
    over_floor = (profile.base - float(profile.floor or 0.0))[:, None]
    lost = (profile.loss[:, deep] * parsed).sum(1)
    return ratio(counts @ lost, counts @ (over_floor * parsed).sum(1))


def shallow(name: str, tokens: Sweeps, text: Sweeps, *, guard: Sweeps, seed: int, n_boot: int) -> Part:
    """One part of C3: the first third holds a larger share of the losses per token than for plain text.

    Not of right answers: a model finds the next word of plain text without most layers, so that there is no loss to
    place.
    """
    pairs = ((1, tokens), (-1, text))
    terms = [Term(sign, sweeps, estimates.first_share, placed=True, guard=guard) for sign, sweeps in pairs]
    return estimates.part(SHALLOW[name], terms, seed=seed, n_boot=n_boot)


def reasoning_deeper(
    reasoning: Sweeps, copying: Sweeps, reasoning_tokens: Sweeps, knowledge_tokens: Sweeps, guard: Sweeps,
    *, seed: int, n_boot: int,
) -> list[Part]:  # fmt: skip
    """C4: deeper than copying as long a text, deeper than knowledge token by token, and mostly deep in itself."""

    def share(sign: int, sweeps: Sweeps) -> Term:
        return Term(sign, sweeps, estimates.deep_share, placed=True, guard=guard)

    return [
        estimates.part(BEYOND_COPYING, [share(1, reasoning), share(-1, copying)], seed=seed, n_boot=n_boot),
        estimates.part(
            BEYOND_KNOWLEDGE, [share(1, reasoning_tokens), share(-1, knowledge_tokens)], seed=seed, n_boot=n_boot
        ),
        estimates.part(MOSTLY_DEEP, [share(1, reasoning)], seed=seed, n_boot=n_boot),
    ]


def depth_trend(roles: Sequence[Sweeps], *, seed: int, n_boot: int) -> list[Part]:
    """C7: a layer of the last third costs less than one of the first, and how much differs between tasks."""
    terms = [Term(1, sweeps, estimates.depth_difference) for sweeps in _one_task_each(roles)]

    def trend(view: View) -> Estimate:
        draws = estimates.draw(terms, view, seed=seed, n_boot=n_boot, apart=True)
        if draws.values.size:
            draws = replace(draws, values=draws.values.mean(1), of_documents=draws.of_documents.mean(1))
        return estimates.estimate(draws, view.name)

    def spread(view: View, terms: Sequence[Term] = terms) -> Estimate:
        return between_tasks(estimates.draw(terms, view, seed=seed, n_boot=n_boot, apart=True), view)

    varies = estimates.viewed(SPREAD, spread)
    # tasks with the same answers differ by their floors: what varies has to vary with one floor, too
    one_floor = [replace(term, sweeps=_with_floors(term.sweeps)) for term in terms]
    if varies.passes and not estimates.viewed(SPREAD, lambda view: spread(view, one_floor)).passes:
        varies = replace(varies, lacks=("variation with one floor for all tasks",))
    return [estimates.viewed(TREND, trend), varies]


def _one_task_each(roles: Sequence[Sweeps]) -> list[Sweeps]:
    """Sweeps of one task each; a task that several roles have counts once."""
    found: dict[str, Sweeps] = {}
    for sweeps in roles:
        for task in dict.fromkeys(p.task for sweep in sweeps for p in sweep(TREND.views[0].suffix)):
            found.setdefault(task, estimates.of_tasks(sweeps, {task}))
    return list(found.values())


def between_tasks(draws: Draws, view: View) -> Estimate:
    """The standard deviation of an effect between tasks beyond sampling noise, with its Q-profile interval.

    Cochran's Q generalised to estimates that share documents: with V the covariance of the tasks' estimates over
    draws and ``Q(t) = e' (V + t^2 I)^-1 e``, e the residuals from the weighted mean, Q(t) has the distribution of
    Hotelling's T^2 with n - 1 degrees of freedom at the true t (Viechtbauer 2007, Statistics in Medicine 26:37-52). The
    estimate is the t at which Q is its median.
    """
    blank = draws.without_effect(view.name)
    if not draws.values.size or draws.values.shape[1] < 2:
        return replace(blank, why=draws.why or "one task: nothing to compare the trend between")
    effects, drawn = draws.values[0], draws.values[1:]
    # a draw in which the whole model scores no more than the floor has no relative loss
    cov = np.cov(drawn[np.isfinite(drawn).all(1)], rowvar=False)
    m, n = len(effects), draws.units
    if n <= m:
        return replace(blank, why=f"{n} documents for {m} tasks")
    scale = (n - 1) * (m - 1) / (n - m + 1)

    def excess(t: float, expected: float) -> float:
        weights = np.linalg.inv(cov + t**2 * np.eye(m))
        rest = effects - (weights @ effects).sum() / weights.sum()
        return float(rest @ weights @ rest) - expected

    def solve(quantile: float) -> float:
        top = float(np.ptp(effects)) + float(np.sqrt(np.trace(cov)))
        expected = scale * float(scipy.stats.f.ppf(quantile, m - 1, n - m + 1))
        if excess(0.0, expected) <= 0:
            return 0.0
        while excess(top, expected) > 0:
            top *= 2
        return float(scipy.optimize.brentq(excess, 0.0, top, args=(expected,)))

    low, middle, high = (solve(quantile) for quantile in (1 - ALPHA / 2, 0.5, ALPHA / 2))
    critical = float(scipy.stats.norm.ppf(1 - ALPHA / 2))
    # what a spread t of the tasks has to be larger than, as an effect than its standard error: the power is that of Q,
    # noncentral chi-squared with (m - 1) t^2 / v where v is the variance of one task's effect
    needed = scipy.optimize.brentq(
        lambda nc: scipy.stats.ncx2.sf(scipy.stats.chi2.ppf(1 - ALPHA / 2, m - 1), m - 1, nc) - POWER, 1e-3, 1e4
    )
    se = float(np.sqrt(np.trace(cov) / m * needed / (m - 1)) / (critical + scipy.stats.norm.ppf(POWER)))
    return replace(blank, effect=middle, low=low, high=high, se=se, critical=critical)
