"""The study's claims C1-C7 as tests that any model can pass or fail, and the verdicts of sweeps on them.

Every claim was fixed before any result was seen: its statement, statistic, threshold and error rate are in
`depthlens.claims.registry`, the arithmetic in `depthlens.claims.estimates`. One rule for all: a claim is **supported**
where the whole interval of its effect is on the claimed side of the threshold, **contradicted** where the whole
interval is on the other side, and **undecided** where the interval contains the threshold although it is narrow enough
to show an effect that matters. Otherwise the verdict is **cannot judge**: the interval is too wide for that, there are
fewer than 30 documents, a task is at chance or a sweep is missing. Of several parts all have to be supported, and one
contradicted part contradicts the claim.

Limits: a verdict is about the model and tasks given, not about models. Each claim is an answer to its own question at
the 5% level; the seven are not corrected for one another.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

import pandas as pd

from depthlens import arguments
from depthlens.analysis.bootstrap import interval
from depthlens.analysis.result_folder import RECORD_FILE
from depthlens.analysis.saving import Contents, Saveable, json_record
from depthlens.analysis.stats import ALPHA
from depthlens.claims import estimates as tests
from depthlens.claims.decision import CANNOT, CONTRADICTED, DIFFERENT, MIN_DOCS, SUPPORTED, UNDECIDED, Part
from depthlens.claims.registry import CLAIMS, SWEEPS, Claim, Evidence

VERDICTS_FILE = "verdicts.parquet"
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
        effect: The estimate that decides the verdict (of several, the one nearest to failing); None without one.
        ci_low: Lower end of its corrected interval.
        ci_high: Upper end.
        threshold: That it is compared with.
        unit: Of these numbers.
        what: What the effect is.
        claimed: The side of the threshold that is claimed, e.g. "below 0.1".
        n: Documents; the fewest of the tasks.
        tasks: ``task metric`` of each that was used.
        sentence: One line with all numbers, of every part.
        needed: About how many documents would decide it; None where more documents would not.
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


class Verdicts(list[Verdict], Saveable):
    """Verdicts, one a claim, which print as a table.

    Attributes:
        record: Seed and number of draws.
    """

    TABLES: ClassVar[tuple[str, ...]] = (VERDICTS_FILE,)

    def __init__(self, verdicts: Iterable[Verdict] = (), record: dict[str, Any] | None = None) -> None:
        super().__init__(verdicts)
        self.record = json_record(record or {})

    @property
    def table(self) -> pd.DataFrame:
        """One row a claim: claim, and what `Verdict` has: `COLUMNS`."""
        rows = [[v.claim.id, *(getattr(v, c) if c != "tasks" else ", ".join(v.tasks) for c in COLUMNS)] for v in self]
        numbers = dict.fromkeys(("effect", "ci_low", "ci_high"), "float64") | {"needed": "Int64"}
        return pd.DataFrame(rows, columns=["claim", *COLUMNS]).astype(numbers)

    def describe(self) -> list[str]:
        """How many claims came out how, then one sentence a claim with all its numbers."""
        return [headline(self), *(verdict.sentence for verdict in self)]

    def __repr__(self) -> str:
        return f"{headline(self)}\n{self._rounded().to_string(index=False, na_rep='')}"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(headline(self))}</p>{self._rounded().to_html(index=False, border=0, na_rep='')}"

    def _rounded(self) -> pd.DataFrame:
        numbers = {"effect": 2, "ci_low": 2, "ci_high": 2}
        return self.table[["claim", "verdict", "what", *numbers, "threshold", "unit", "n"]].round(numbers)

    def contents(self) -> Contents:
        """What is to be written; see `depthlens.analysis.saving.Saveable`."""
        claims = [{"id": v.claim.id, "parts": [part.as_json() for part in v.parts]} for v in self]
        record = {"kind": "Verdicts", "claims": claims, "record": self.record}
        return Contents({VERDICTS_FILE: self.table}, {RECORD_FILE: record})

    @classmethod
    def from_contents(cls, contents: Contents) -> Verdicts:
        """The verdicts that were written; see `depthlens.analysis.saving.Saveable`."""
        record, by_id = contents.records[RECORD_FILE], {claim.id: claim for claim in CLAIMS}
        verdicts = (
            verdict_of(by_id[entry["id"]], [Part.from_json(part) for part in entry["parts"]])
            for entry in record["claims"]
        )
        return cls(verdicts, record["record"])


def judge(
    evidence: Evidence, *, claims: str | Sequence[str] | None = None, seed: int = 0, n_boot: int = N_BOOT
) -> Verdicts:
    """Judge the claims.

    Args:
        evidence: The results to judge them by.
        claims: Which claims, e.g. ``["C2", "C4"]``; None judges all.
        seed: Of the bootstraps.
        n_boot: Number of draws; fewer than 200 do not reach the tails of corrected intervals.

    Returns:
        One verdict a claim, in their order.

    Raises:
        UserError: an unknown claim, too few draws, or a result that is not the sweep that its field asks for.
    """
    arguments.made_by(evidence, "likelihood", "depthlens.claims.Evidence(...)", "evidence")
    arguments.whole("n_boot", n_boot, 200, fix="; the tails of an interval need them")
    arguments.check(seed=seed)
    ids = [claim.id for claim in CLAIMS]
    chosen = ids if claims is None else arguments.chosen("claim", claims, ids)
    verdicts = (verdict_of(c, _parts(c, evidence, seed, n_boot)) for c in CLAIMS if c.id in chosen)
    models = sorted({model for sweep in evidence.sweeps for model in sweep.docs["model"].unique()})
    return Verdicts(verdicts, {"models": models, "seed": seed, "n_boot": n_boot})


def headline(verdicts: Sequence[Verdict]) -> str:
    """How many claims came out how, in one sentence."""
    count = Counter(v.verdict for v in verdicts)
    return (
        f"{count[SUPPORTED]} of {len(verdicts)} claims supported, {count[CONTRADICTED]} contradicted, "
        f"{count[UNDECIDED]} undecided, {count[CANNOT]} cannot be judged."
    )


def heterogeneity(evidence: Evidence, *, seed: int = 0, n_boot: int = N_BOOT) -> str:
    """Whether the depth trend of C7 differs between tasks: one sentence.

    It does where the interval of the difference of two tasks excludes 0, Bonferroni-corrected over all pairs.
    """
    tasks, values = tests.trends(evidence.all_profiles(), seed=seed, n_boot=n_boot)
    if len(tasks) < 2:
        count = "1 task" if len(tasks) == 1 else f"{len(tasks)} tasks"
        return f"Only {count} can be judged: nothing to compare the trend between."
    names = [f"{p.task} {p.metric}" for p in tasks]
    lowest, highest = values[0].argmin(), values[0].argmax()
    pairs = list(combinations(range(len(tasks)), 2))
    differ = []
    for i, j in pairs:
        n = min(len(tasks[k].documents) for k in (i, j))
        low, high = interval(values[:, i] - values[:, j], n, ALPHA / len(pairs))
        if low > 0 or high < 0:
            differ.append(f"{names[i]} and {names[j]}")
    span = f"from {values[0, lowest]:+.2f} ({names[lowest]}) to {values[0, highest]:+.2f} ({names[highest]})"
    verdict = f"provably differs between {'; '.join(differ)}" if differ else "does not provably differ between tasks"
    return f"The depth trend runs {span} {tests.TREND.unit} and {verdict} ({len(tasks)} tasks)."


def _parts(claim: Claim, evidence: Evidence, seed: int, n_boot: int) -> list[Part]:
    if missing := claim.missing(evidence):
        why = ("; or " if claim.any_of else "; and ").join(f"{SWEEPS[name]} ({name}=)" for name in missing)
        return [Part(spec, why=f"run {why}") for spec in claim.specs]
    return claim.parts(evidence, seed, n_boot)


def verdict_of(claim: Claim, parts: Sequence[Part]) -> Verdict:
    """The verdict that the parts of a claim give."""
    worst = combined(parts)
    binding = min((p for p in parts if p.verdict == worst), key=_margin)
    known = math.isfinite(binding.effect)
    effect, low, high = (
        value if known and math.isfinite(value) else None for value in (binding.effect, binding.low, binding.high)
    )
    needed = [p.needed for p in parts if p.verdict in (CANNOT, UNDECIDED)]
    enough = max((n for n in needed if n is not None), default=None)
    if None in needed or worst not in (CANNOT, UNDECIDED):
        enough = None
    reasons = "; ".join(dict.fromkeys(_part_sentence(p) for p in parts))
    more = f"; about {enough} documents would be enough" if enough else ""
    return Verdict(
        claim=claim,
        verdict=worst,
        effect=effect,
        ci_low=low,
        ci_high=high,
        threshold=binding.spec.threshold,
        unit=binding.spec.unit,
        what=binding.spec.what,
        claimed=binding.spec.claimed,
        n=binding.n,
        tasks=binding.tasks,
        sentence=f"{claim.id} {worst}: {reasons}{more}.",
        needed=enough,
        parts=tuple(parts),
    )


def combined(parts: Sequence[Part]) -> str:
    """The verdict on a claim of several parts: contradicted if one is, supported if all are."""
    return min((p.verdict for p in parts), key=_WORST_FIRST.index)


def _margin(part: Part) -> float:
    """How far an estimate is on the claimed side, in half widths of its interval."""
    gap = part.effect - part.spec.threshold
    gap = abs(gap) if part.spec.side == DIFFERENT else gap * part.spec.side
    return gap / part.half if part.half > 0 else math.inf if math.isfinite(part.effect) else -math.inf


def _part_sentence(part: Part) -> str:
    if not math.isfinite(part.effect):
        why = part.why or f"{part.spec.what} has no interval"
        return f"{why} (n = {part.n})" if part.n else why
    spec = part.spec
    test = f", p_adjusted = {part.p:.2g}" if part.p else ""
    text = f"{spec.what} is {part.effect:.2f} [{part.low:.2f}, {part.high:.2f}] {spec.unit}, claimed {spec.claimed}"
    text += f" (n = {part.n}{test}, {', '.join(part.tasks)})"
    text += (", too few documents" if part.n < MIN_DOCS else ", too wide to decide") if part.wide else ""
    text += f", but {part.why}" if part.why else ""
    return text + (f"; left out: {'; '.join(part.left)}" if part.left else "")
