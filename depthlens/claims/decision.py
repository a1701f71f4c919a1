"""The rule that compares an estimate of a claim with what was fixed before any result was seen.

The rule is in `Part.verdict`. An interval on one side of the threshold passes or fails, however wide it is. A pass
counts only if every view of the data agrees in sign, see `VIEWS`, and if at least `MIN_SEEDS` few-shot seeds or
templates were measured. A difference that is shown to be smaller than what matters fails, too (an equivalence test,
Wellek 2010, chapter 1). An interval that contains the threshold means "undecided" where the documents give 80% power at
the least effect that matters, and "cannot judge" where they do not. Below 30 documents no interval counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import scipy

from depthlens.analysis.power import POWER, documents_for_power
from depthlens.analysis.stats import ALPHA
from depthlens.errors import UserError

SUPPORTED, CONTRADICTED, UNDECIDED, CANNOT = "supported", "contradicted", "undecided", "cannot judge"
ABOVE, BELOW, DIFFERENT = 1, -1, 0
MIN_DOCS = 30
MIN_SEEDS = 3
# power to plan for, so that 80% are left where the width of the interval is noisy, too, or where other documents choose
# other heads (`benchmarks/claim_errors.py`)
_NOISY = 0.87
_MOSTLY_SEEDS = 3  # times the standard error of documents; noise alone rarely reaches it
_MOST_TIMES = 100  # the documents at hand: a plan for more is not given


@dataclass(frozen=True)
class View:
    """One way to compute every effect.

    Attributes:
        name: As in tables and sentences.
        suffix: What stands behind a layer in the conditions of the sweep: "", ``[1:]`` or ``@mean``.
        left_out: Number of first layers that are left out.
    """

    name: str
    suffix: str
    left_out: int


ALL = View("all layers", "", 0)
DEEPER_LAYERS = View("without L0 and L1", "", 2)
SPARED = View("first token spared", "[1:]", 0)
MEAN = View("mean ablation", "@mean", 0)
VIEWS = (ALL, DEEPER_LAYERS, SPARED, MEAN)
# views of effects that are estimated with one few-shot seed at a time
SEED_VIEWS = tuple(f"few-shot seed {i + 1}" for i in range(MIN_SEEDS))


@dataclass(frozen=True)
class Spec:
    """What was fixed beforehand.

    Attributes:
        what: The effect, as a noun phrase.
        unit: Of the effect.
        threshold: The value that the claim compares the effect with.
        side: `ABOVE` or `BELOW` the threshold, or `DIFFERENT` from it.
        matters: The least distance from the threshold that matters; power is planned for it.
        margin: Of `DIFFERENT`: the distance from the threshold that has to be exceeded.
        main: The view that decides; None of an effect that has no views.
        difference: Whether the threshold means "no difference". A difference that is shown to be smaller than
            ``matters`` then contradicts, because no number of documents shows that there is none at all.
        power: What documents are planned for, where `Part.planned` would leave less or more than 75% to 90% of
            simulations in which the part passes (``benchmarks/claim_errors.py --power``).
    """

    what: str
    unit: str
    threshold: float
    side: int
    matters: float
    margin: float = 0.0
    main: View | None = ALL
    difference: bool = False
    power: float | None = None

    @property
    def claimed(self) -> str:
        """The claimed side in words."""
        if self.side == DIFFERENT and self.margin:
            return f"more than {self.margin:g} from {self.threshold:g}"
        return f"{ {ABOVE: 'above', BELOW: 'below', DIFFERENT: 'other than'}[self.side] } {self.threshold:g}"

    def passes(self, low: float, high: float) -> bool:
        """Whether a whole interval, or an estimate given as both of its ends, is on the claimed side."""
        low, high = low - self.threshold, high - self.threshold
        if self.side == DIFFERENT:
            return low > self.margin or high < -self.margin
        return low > 0 if self.side == ABOVE else high < 0

    def fails(self, low: float, high: float) -> bool:
        """Whether it is on the other side; nothing is on the other side of `DIFFERENT`."""
        low, high = low - self.threshold, high - self.threshold
        return self.side != DIFFERENT and (high < 0 if self.side == ABOVE else low > 0)

    def negligible(self, low: float, high: float) -> bool:
        """Whether it shows that a difference is within the margin, or smaller than what matters."""
        low, high = low - self.threshold, high - self.threshold
        if self.side == DIFFERENT:
            return max(-low, high) < (self.margin or self.matters)
        return self.difference and (high < self.matters if self.side == ABOVE else low > -self.matters)

    def agrees(self, effect: float, main: float) -> bool:
        """Whether an effect under another view speaks for the claim as the one that decides does."""
        return self.passes(effect, effect) and (effect - self.threshold) * (main - self.threshold) > 0

    @property
    def views(self) -> tuple[View, ...]:
        """The views, that which decides first. If it leaves layers out, so do all but `ALL`."""
        if self.main is None:
            return ()
        left_out = self.main.left_out
        others = [v if v in (ALL, DEEPER_LAYERS) else View(v.name, v.suffix, left_out) for v in VIEWS if v != self.main]
        return self.main, *others


@dataclass(frozen=True)
class Estimate:
    """An effect under one view.

    Attributes:
        view: Its name; "" where the effect has no views.
        effect: NaN where there is none.
        low: Lower end of its interval.
        high: Upper end.
        n: Documents; the fewest of the tasks.
        seeds: Few-shot seeds or templates; the fewest of the sweeps.
        se: Standard error, from which the power is planned.
        se_documents: The part of it that more documents lower; the rest is between few-shot seeds. NaN: all of it.
        critical: How many standard errors are between the effect and the end of its interval.
        tasks: ``task metric`` of each that was used.
        left: Why others were left out.
        why: Why there is no estimate, or why it cannot count; "" if it counts.
    """

    view: str = ""
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    seeds: int = 0
    se: float = math.nan
    se_documents: float = math.nan
    critical: float = math.nan
    tasks: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    why: str = ""

    @property
    def counts(self) -> bool:
        """Whether there are an effect and an interval that count."""
        return not self.why and self.n >= MIN_DOCS and math.isfinite(self.effect + self.low + self.high)

    def as_json(self) -> dict[str, Any]:
        """The estimate as JSON has it: None for NaN."""
        fields = asdict(self)
        return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in fields.items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Estimate:
        """The estimate that `as_json` wrote."""
        values: dict[str, Any] = {key: math.nan if value is None else value for key, value in fields.items()}
        return cls(**values | {"tasks": tuple(fields["tasks"]), "left": tuple(fields["left"])})


@dataclass(frozen=True)
class Part:
    """One part of a claim: what was fixed beforehand, and the estimates of its effect.

    Attributes:
        spec: What was fixed beforehand.
        main: The estimate that decides.
        others: Those of the other views.
        p: Adjusted p-value of a further test that has to be below 0.05 to support; 0 where there is none.
        p_against: The same to contradict.
        lacks: What else support needs and there is not, as noun phrases.
        obstacle: Why there is no support although the interval is on the claimed side, as a clause; see ``p``.
    """

    spec: Spec
    main: Estimate
    others: tuple[Estimate, ...] = ()
    p: float = 0.0
    p_against: float = 0.0
    lacks: tuple[str, ...] = ()
    obstacle: str = ""

    def as_json(self) -> dict[str, Any]:
        """The part as JSON has it."""
        others = [e.as_json() for e in self.others]
        return {"spec": asdict(self.spec), "main": self.main.as_json(), "others": others} | {
            name: getattr(self, name) for name in ("p", "p_against", "lacks", "obstacle")
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Part:
        """The part that `as_json` wrote."""
        spec = fields["spec"]
        spec = Spec(**spec | {"main": None if spec["main"] is None else View(**spec["main"])})
        others = tuple(Estimate.from_json(e) for e in fields["others"])
        # verdicts that were saved before there were these have none
        lacks, obstacle = tuple(fields.get("lacks", ())), fields.get("obstacle", "")
        return cls(spec, Estimate.from_json(fields["main"]), others, fields["p"], fields["p_against"], lacks, obstacle)

    @property
    def holds(self) -> tuple[str, ...]:
        """Views under which the effect is on the claimed side."""
        return tuple(e.view for e in (self.main, *self.others) if e.view and self.spec.passes(e.effect, e.effect))

    @property
    def missing(self) -> tuple[str, ...]:
        """Views that have no effect because they were not swept, seeds that are too few, and `lacks`."""
        lacks = [f"the view {e.view}" for e in self.others if not e.n]
        if self.spec.main is not None and self.main.seeds < MIN_SEEDS:
            lacks.append(f"{MIN_SEEDS} few-shot seeds")
        return (*lacks, *self.lacks)

    @property
    def passes(self) -> bool:
        """Whether the deciding interval is on the claimed side, whatever other views say."""
        return self.main.counts and self.spec.passes(self.main.low, self.main.high) and self.p < ALPHA

    @property
    def verdict(self) -> str:
        """Supported or contradicted where the deciding interval is on one side, and no view disagrees in sign.

        A view that was not measured does not keep the other side from contradicting. A difference that is shown to be
        within the margin, or smaller than what matters, contradicts only under every view and with several seeds, and
        where no view shows any.
        """
        main, spec = self.main, self.spec
        if not main.counts:
            return CANNOT
        if self.passes and not self.missing and all(spec.agrees(e.effect, main.effect) for e in self.others):
            return SUPPORTED
        effects = [e.effect for e in self.others if math.isfinite(e.effect)]
        passes, fails = spec.passes(main.low, main.high), spec.fails(main.low, main.high)
        negligible = not passes and spec.negligible(main.low, main.high)
        against = fails and all(spec.fails(e, e) for e in effects)
        shown = any(e.counts and spec.passes(e.low, e.high) for e in self.others)
        every = len(effects) == len(self.others)  # a view may have been swept and have no effect
        against |= negligible and every and not (self.missing or shown) and all(spec.negligible(e, e) for e in effects)
        if against and self.p_against < ALPHA:
            return CONTRADICTED
        crosses = not (passes or fails or negligible)
        return CANNOT if crosses and main.se > 0 and (self.planned or math.inf) > main.n else UNDECIDED

    @property
    def planned(self) -> int | None:
        """Documents for 80% power at the least effect that matters, at least 30.

        See `depthlens.analysis.power.documents_for_power`. An interval that includes the noise of a few few-shot seeds
        has a width that varies itself, and lists of heads vary with the documents that choose them, which `_NOISY`
        makes up for. None where there is no standard error, where
        no number is enough, and where more seeds are needed (`needs_seeds`).
        """
        main = self.main
        if main.n < 2 or not (math.isfinite(main.critical) and main.se > 0) or self.needs_seeds:
            return None
        alpha = 2 * float(scipy.stats.t.sf(main.critical, main.n - 1))  # simultaneous bounds have a smaller one
        noisy = main.se_documents < main.se or self.spec.main is None
        power = self.spec.power or (_NOISY if noisy else POWER)
        documents = documents_for_power(self.spec.matters, main.critical * main.se, main.n, alpha=alpha, power=power)
        return None if documents is None else max(MIN_DOCS, documents)

    @property
    def needs_seeds(self) -> bool:
        """Whether nearly all noise is between few-shot seeds, so that more documents would not lower it."""
        return 0 < self.main.se_documents < self.main.se / _MOSTLY_SEEDS

    @property
    def needed(self) -> int | None:
        """Documents that would decide, where too few are the only reason for "cannot judge"; see `planned`.

        None also where they are more than a hundred times as many.
        """
        planned = None if self.verdict != CANNOT or self.main.why else self.planned
        return planned if planned and self.main.n < planned <= _MOST_TIMES * self.main.n else None


def beside(of_view: Mapping[str, Sequence[Part]], wanted: Sequence[str]) -> list[Part]:
    """Parts that were estimated under one view at a time. The first decides, and the others stand beside it.

    Args:
        of_view: The parts under each view, by its name.
        wanted: Views that support needs; those without parts are named as missing.

    Raises:
        UserError: a view has other parts than the first.
    """
    (decides, parts), *others = of_view.items()
    for name, rivals in others:
        if [p.spec for p in rivals] != [p.spec for p in parts]:
            raise UserError(f"{name} has other lists, tasks or metrics than {decides}; measure the same under both")
    seeds = len(of_view.keys() & set(SEED_VIEWS))
    absent = tuple(Estimate(name, why="not measured") for name in wanted if name not in of_view)
    found = []
    for i, part in enumerate(parts):
        estimates = tuple(replace(rivals[i].main, view=name) for name, rivals in others)
        found.append(replace(part, main=replace(part.main, view=decides, seeds=seeds), others=(*estimates, *absent)))
    return found
