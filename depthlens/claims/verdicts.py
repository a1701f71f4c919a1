"""The study's claims C1-C7 as tests that any model can pass or fail, and the verdicts of sweeps on them.

Every claim was fixed before any result was seen: its statement, statistic, threshold and error rate are in
`depthlens.claims.registry`, the arithmetic in `depthlens.claims.estimates`. One rule for all: a claim is **supported**
where the whole interval of its effect lies on the claimed side of the threshold, **contradicted** where the whole
interval lies on the other side, **undecided** where the interval holds the threshold though it is narrow enough to show
an effect that matters, and else, where it is too wide for that, where there are fewer than 30 documents, where a task
is at chance or where a sweep is missing, **cannot judge**. Of several parts all have to be supported, and one
contradicted part contradicts the claim.

Limits: a verdict is about the model and tasks given, not about models. Each claim is an answer to its own question at
the 5% level; the seven are not corrected for one another.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from depthlens import arguments
from depthlens.analysis.stats import ALPHA
from depthlens.claims import estimates as tests
from depthlens.claims.decision import CANNOT, CONTRADICTED, DIFFERENT, LEAST, SUPPORTED, UNDECIDED, Part
from depthlens.claims.registry import CLAIMS, SWEEPS, Claim, Evidence

__all__ = ["CLAIMS", "Claim", "Evidence", "Verdict", "headline", "heterogeneity", "judge", "table"]

N_BOOT = 2000
VERDICTS = (SUPPORTED, CONTRADICTED, UNDECIDED, CANNOT)
COLUMNS = ("verdict", "what", "effect", "ci_low", "ci_high", "threshold", "unit", "n", "tasks", "needed", "sentence")
_WORST_FIRST = (CONTRADICTED, CANNOT, UNDECIDED, SUPPORTED)


@dataclass(frozen=True, repr=False)
class Verdict:
    """What the evidence says of a claim.

    Attributes:
        claim: The claim.
        verdict: One of `VERDICTS`.
        effect: The estimate that the verdict hangs on (of several, the one nearest to failing); None without one.
        ci_low: Lower end of its corrected interval.
        ci_high: Upper end.
        threshold: That it is held against.
        unit: Of these numbers.
        what: What the effect is.
        claimed: The side of the threshold that is claimed, e.g. "below 0.1".
        n: Documents; the fewest of the tasks.
        tasks: ``task metric`` of each that was used.
        sentence: One line with all numbers, of every part.
        needed: About how many documents would decide it, as far as more documents can; else None.
        parts: All estimates.
    """

    claim: Claim
    verdict: str
    effect: float | None
    ci_low: float | None
    ci_high: float | None
    threshold: float
    unit: str
    what: str
    claimed: str
    n: int
    tasks: tuple[str, ...]
    sentence: str
    needed: int | None
    parts: tuple[Part, ...]

    def __repr__(self) -> str:
        return self.sentence


class Verdicts(list):
    """A list of verdicts that prints as a table; `table` has all its columns."""

    def __repr__(self) -> str:
        return f"{headline(self)}\n{self._shown().to_string(index=False, na_rep='')}"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(headline(self))}</p>{self._shown().to_html(index=False, border=0, na_rep='')}"

    def _shown(self) -> pd.DataFrame:
        numbers = {"effect": 2, "ci_low": 2, "ci_high": 2}
        return table(self)[["claim", "verdict", "what", *numbers, "threshold", "unit", "n"]].round(numbers)


def judge(evidence: Evidence, *, seed: int = 0, n_boot: int = N_BOOT) -> list[Verdict]:
    """Judge all claims.

    Args:
        evidence: What there is.
        seed: Of the bootstraps.
        n_boot: Number of draws; fewer than 200 do not reach the tails of corrected intervals.

    Returns:
        One verdict a claim, in their order.

    Raises:
        UserError: too few draws, or a result that is not the sweep that its field asks for.
    """
    arguments.made_by(evidence, "likelihood", "depthlens.claims.verdicts.Evidence(...)", "evidence")
    arguments.whole("n_boot", n_boot, 200, fix="; the tails of an interval need them")
    arguments.check(seed=seed)
    return Verdicts(_verdict(claim, evidence, seed, n_boot) for claim in CLAIMS)


def table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Verdicts as a table: claim, `COLUMNS`."""
    rows = [[v.claim.id, *(getattr(v, c) if c != "tasks" else ", ".join(v.tasks) for c in COLUMNS)] for v in verdicts]
    numbers = dict.fromkeys(("effect", "ci_low", "ci_high"), "float64") | {"needed": "Int64"}
    return pd.DataFrame(rows, columns=["claim", *COLUMNS]).astype(numbers)


def headline(verdicts: Sequence[Verdict]) -> str:
    """How many claims came out how, in one sentence."""
    count = Counter(v.verdict for v in verdicts)
    said = [f"{count[SUPPORTED]} of {len(verdicts)} claims supported", f"{count[CONTRADICTED]} contradicted"]
    said += [f"{count[UNDECIDED]} undecided", f"{count[CANNOT]} cannot be judged"]
    return ", ".join(said) + "."


def heterogeneity(evidence: Evidence, *, seed: int = 0, n_boot: int = N_BOOT) -> str:
    """Whether the depth trend of C7 differs between tasks: one sentence.

    It does where the interval of the difference of two tasks excludes 0, Bonferroni-corrected over all pairs.
    """
    found, values = tests.trends(evidence.all_profiles(), seed=seed, n_boot=n_boot)
    if len(found) < 2:
        return f"Only {len(found)} task{'s' * (len(found) != 1)} can be judged: nothing to compare the trend between."
    names = [f"{p.task} {p.metric}" for p in found]
    least, most = values[0].argmin(), values[0].argmax()
    pairs = list(combinations(range(len(found)), 2))
    differ = []
    for i, j in pairs:
        n = min(len(found[k].documents) for k in (i, j))
        low, high = tests.ends(values[:, i] - values[:, j], n, 1 - ALPHA / len(pairs))
        if low > 0 or high < 0:
            differ.append(f"{names[i]} and {names[j]}")
    span = f"from {values[0, least]:+.2f} ({names[least]}) to {values[0, most]:+.2f} ({names[most]})"
    said = f"provably differs between {'; '.join(differ)}" if differ else "does not provably differ between tasks"
    return f"The depth trend runs {span} {tests.TREND.unit} and {said} ({len(found)} tasks)."


def _verdict(claim: Claim, evidence: Evidence, seed: int, n_boot: int) -> Verdict:
    if lacks := claim.missing(evidence):
        why = ("; or " if claim.any_of else "; and ").join(f"{SWEEPS[x]} ({x}=)" for x in lacks)
        parts = [Part(spec, why=f"run {why}") for spec in claim.specs]
    else:
        parts = claim.parts(evidence, seed, n_boot)
    worst = combined(parts)
    binding = min((p for p in parts if p.verdict == worst), key=_margin)
    known = math.isfinite(binding.effect)
    numbers = [
        value if known and math.isfinite(value) else None for value in (binding.effect, binding.low, binding.high)
    ]
    spec, needed = binding.spec, [p.needed for p in parts if p.verdict in (CANNOT, UNDECIDED)]
    enough = max(needed) if needed and None not in needed and worst in (CANNOT, UNDECIDED) else None
    said = "; ".join(dict.fromkeys(_said(p) for p in parts))
    more = f"; about {enough} documents would do" if enough else ""
    sentence = f"{claim.id} {worst}: {said}{more}."
    about = (spec.threshold, spec.unit, spec.what, spec.claimed)
    return Verdict(claim, worst, *numbers, *about, binding.n, binding.tasks, sentence, enough, tuple(parts))


def combined(parts: Sequence[Part]) -> str:
    """The verdict on a claim of several parts: contradicted if one is, supported if all are."""
    return min((p.verdict for p in parts), key=_WORST_FIRST.index)


def _margin(part: Part) -> float:
    """How far an estimate is on the claimed side, in half widths of its interval."""
    gap = part.effect - part.spec.threshold
    gap = abs(gap) if part.spec.side == DIFFERENT else gap * part.spec.side
    return gap / part.half if part.half > 0 else math.inf if math.isfinite(part.effect) else -math.inf


def _said(part: Part) -> str:
    if not math.isfinite(part.effect):
        why = part.why or f"{part.spec.what} has no interval"
        return f"{why} (n = {part.n})" if part.n else why
    spec = part.spec
    test = f", p_adjusted = {part.p:.2g}" if part.p else ""
    text = f"{spec.what} is {part.effect:.2f} [{part.low:.2f}, {part.high:.2f}] {spec.unit}, claimed {spec.claimed}"
    text += f" (n = {part.n}{test}, {', '.join(part.tasks)})"
    text += (", too few documents" if part.n < LEAST else ", too wide to tell") if part.wide else ""
    text += f", but {part.why}" if part.why else ""
    return text + (f"; left out: {'; '.join(part.left)}" if part.left else "")
