"""The study's claims C1-C7 as tests that any model can pass or fail, and the verdicts of sweeps on them.

Every claim was fixed before any result was seen: its statement, statistic, threshold and error rate are in
`depthlens.claims.registry`. One rule for all, in `depthlens.claims.decision`: a claim is **supported** where every
deciding interval is on the claimed side of its threshold, every view of the data agrees in sign, and three few-shot
seeds were measured. It is **contradicted** where one deciding interval is on the other side and no view disagrees. It
is **undecided** where an interval contains the threshold although the documents give 80% power at an effect that
matters, or where views disagree or are missing. Otherwise the verdict is **cannot judge**: too few documents, a task at
chance, or a missing sweep.

Limits: a verdict is about the model and tasks given, not about models. Each claim is an answer to its own question at
the 5% level; the seven are not corrected for one another.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pandas as pd

from depthlens import arguments
from depthlens.analysis import displays
from depthlens.analysis.result_folder import RECORD_FILE
from depthlens.analysis.saving import Contents, Saveable, json_record
from depthlens.claims import scorecard_html
from depthlens.claims.decision import (
    CANNOT,
    CONTRADICTED,
    DIFFERENT,
    MIN_DOCS,
    SUPPORTED,
    UNDECIDED,
    Estimate,
    Part,
)
from depthlens.claims.registry import CLAIMS, SWEEPS, Claim, Evidence

VERDICTS_FILE = "verdicts.parquet"
N_BOOT = 2000
VERDICTS = (SUPPORTED, CONTRADICTED, UNDECIDED, CANNOT)
COLUMNS = (
    "verdict", "what", "effect", "ci_low", "ci_high", "threshold", "unit", "n", "seeds", "holds", "fails", "tasks",
    "needed", "sentence",
)  # fmt: skip
LETTERS = "abcdefgh"  # of the parts of a claim
_NEXT = "next: describe() says why, parts has every estimate, dl.plots.scorecard(...) draws them"
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
        seeds: Few-shot seeds or templates.
        holds: Views under which every part is on its claimed side.
        fails: Views under which some part is not, or was not measured.
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
    seeds: int
    holds: tuple[str, ...]
    fails: tuple[str, ...]
    tasks: tuple[str, ...]
    sentence: str
    needed: int | None
    parts: tuple[Part, ...]

    def __repr__(self) -> str:
        return self.sentence

    @property
    def deciding(self) -> Part:
        """The part that `effect`, its interval, `what` and `unit` are of."""
        return _deciding(self.parts)

    @property
    def numbers(self) -> tuple[str, str, str]:
        """Effect, interval and claimed side as texts; empty where there is no effect."""
        if self.effect is None or self.ci_low is None or self.ci_high is None:
            return "", "", ""
        return f"{self.effect:.2f} {self.unit}", f"[{self.ci_low:.2f}, {self.ci_high:.2f}]", self.claimed

    @property
    def reasons(self) -> list[str]:
        """Why parts have no estimate, each reason once."""
        return list(dict.fromkeys(part.main.why for part in self.parts if part.main.why))

    @property
    def under(self) -> str:
        """Under how many views the claim holds, and under which it does not."""
        if not self.swept or self.effect is None:
            return ""
        failed = [view for view in self.fails if view in self.swept]
        text = f"{len(self.holds)} of {len(self.swept)} views"
        text += f", not {', '.join(failed)}" if failed and self.holds else ""
        unswept = [view for view in self.fails if view not in self.swept]
        return text + (f"; not swept: {', '.join(unswept)}" if unswept else "")

    @property
    def swept(self) -> tuple[str, ...]:
        """Views that were measured."""
        measured = {e.view for p in self.parts for e in (p.main, *p.others) if e.n}
        return tuple(view for view in (*self.holds, *self.fails) if view in measured)


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
        rows = [[v.claim.id, *map(_cell, (getattr(v, c) for c in COLUMNS))] for v in self]
        numbers = dict.fromkeys(("effect", "ci_low", "ci_high"), "float64") | {"needed": "Int64"}
        return pd.DataFrame(rows, columns=["claim", *COLUMNS]).astype(numbers)

    @property
    def parts(self) -> pd.DataFrame:
        """One row a part of a claim and view.

        The columns are claim, part, what, view, effect, ci_low, ci_high, threshold, unit, n, seeds, tasks, verdict (of
        the part) and why.
        """
        rows = [
            (v.claim.id, LETTERS[i], p.spec.what, e.view, e.effect, e.low, e.high, p.spec.threshold, p.spec.unit,
             e.n, e.seeds, ", ".join(e.tasks), p.verdict if e is p.main else "", e.why)
            for v in self
            for i, p in enumerate(v.parts)
            for e in (p.main, *p.others)
        ]  # fmt: skip
        columns = ["claim", "part", "what", "view", "effect", "ci_low", "ci_high", "threshold", "unit", "n", "seeds"]
        return pd.DataFrame(rows, columns=[*columns, "tasks", "verdict", "why"])

    def describe(self) -> list[str]:
        """How many claims came out how, then one sentence a claim with all its numbers."""
        return [headline(self), *(verdict.sentence for verdict in self)]

    def __repr__(self) -> str:
        return displays.as_text(headline(self), self.overview, [_NEXT] if self else [])

    def _repr_html_(self) -> str:
        return scorecard_html.scorecard(self, headline(self)) + displays.paragraphs([_NEXT] if self else [])

    @property
    def overview(self) -> pd.DataFrame:
        """What fits a glance, one row a claim: claim, verdict, effect, interval, claimed, n, seeds, holds under."""
        rows = [(v.claim.id, v.verdict, *v.numbers, v.n or "", v.seeds or "", v.under) for v in self]
        columns = ["claim", "verdict", "effect", "95% interval", "claimed", "n", "seeds", "holds under"]
        return pd.DataFrame(rows, columns=columns)

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
    arguments.made_by(evidence, "letters", "depthlens.claims.Evidence(...)", "evidence")
    n_boot = arguments.whole("n_boot", n_boot, 200, fix="; the tails of an interval need them")
    seed = arguments.check(seed=seed)["seed"]
    ids = [claim.id for claim in CLAIMS]
    chosen = ids if claims is None else arguments.chosen("claim", claims, ids)
    verdicts = (verdict_of(c, _parts(c, evidence, seed, n_boot)) for c in CLAIMS if c.id in chosen)
    return Verdicts(verdicts, {"models": evidence.models, "seed": seed, "n_boot": n_boot})


def headline(verdicts: Sequence[Verdict]) -> str:
    """How many claims came out how, in one sentence."""
    count = Counter(v.verdict for v in verdicts)
    measured = [v for v in verdicts if v.n]
    text = (
        f"{count[SUPPORTED]} of {len(verdicts)} claims supported, {count[CONTRADICTED]} contradicted, "
        f"{count[UNDECIDED]} undecided, {count[CANNOT]} cannot be judged"
    )
    text += f" ({len(verdicts) - len(measured)} of them not measured)." if len(measured) < len(verdicts) else "."
    lacks = [dict.fromkeys(lack for p in v.parts for lack in p.missing) for v in measured]
    common = [lack for lack in lacks[0] if all(lack in others for others in lacks)] if lacks else []
    return text + (f" None could be supported without {_listed(common)}." if common else "")


def _listed(nouns: Sequence[str]) -> str:
    *first, last = nouns
    return f"{', '.join(first)} and {last}" if first else last


def _cell(value: Any) -> Any:
    return ", ".join(value) if isinstance(value, tuple) else value


def _parts(claim: Claim, evidence: Evidence, seed: int, n_boot: int) -> list[Part]:
    if missing := claim.missing(evidence):
        why = ("; or " if claim.any_of else "; and ").join(f"{SWEEPS[name]} ({name}=)" for name in missing)
        return [Part(spec, Estimate(why=f"not measured; it needs {why}")) for spec in claim.specs]
    parts = claim.parts(evidence, seed, n_boot)
    if evidence.same_examples(claim.needs):
        parts = [replace(part, lacks=(*part.lacks, "few-shot seeds that draw other examples")) for part in parts]
    return parts


def verdict_of(claim: Claim, parts: Sequence[Part]) -> Verdict:
    """The verdict that the parts of a claim give."""
    worst = combined(parts)
    binding = _deciding(parts)
    main = binding.main
    known = math.isfinite(main.effect)
    effect, low, high = (
        value if known and math.isfinite(value) else None for value in (main.effect, main.low, main.high)
    )
    needed = [p.needed for p in parts if p.verdict == CANNOT]
    enough = None if None in needed or worst != CANNOT else max((n for n in needed if n is not None), default=None)
    reasons = "; ".join(dict.fromkeys(_part_sentence(p) for p in parts))
    views = list(dict.fromkeys(e.view for p in parts for e in (p.main, *p.others) if e.view))
    holds = tuple(v for v in views if all(v in p.holds for p in parts if any(v == e.view for e in (p.main, *p.others))))
    missing = list(dict.fromkeys(lack for p in parts for lack in p.missing))
    more = f"; about {enough} documents would give each part 80% power" if enough else ""
    more += f"; support also needs {_listed(missing)}" if enough and missing else ""
    if worst == CANNOT and any(p.verdict == CANNOT and p.needs_seeds for p in parts):
        more = "; few-shot seeds differ so much that more seeds are needed, and not only more documents"
    if worst == UNDECIDED and missing and all(p.passes for p in parts):
        more += f"; every test passes, but {_listed(missing)} are missing"
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
        n=main.n,
        seeds=main.seeds,
        holds=holds,
        fails=tuple(v for v in views if v not in holds),
        tasks=main.tasks,
        sentence=f"{claim.id} {worst}: {reasons}{more}.",
        needed=enough,
        parts=tuple(parts),
    )


def combined(parts: Sequence[Part]) -> str:
    """The verdict on a claim of several parts: contradicted if one is, supported if all are."""
    return min((p.verdict for p in parts), key=_WORST_FIRST.index)


def _deciding(parts: Sequence[Part]) -> Part:
    """Of the parts whose verdict is that of the claim, the one that is nearest to failing."""
    worst = combined(parts)
    return min((p for p in parts if p.verdict == worst), key=_margin)


def _margin(part: Part) -> float:
    """How far an estimate is on the claimed side, in half widths of its interval."""
    gap = part.main.effect - part.spec.threshold
    gap = abs(gap) - part.spec.margin if part.spec.side == DIFFERENT else gap * part.spec.side
    half = (part.main.high - part.main.low) / 2
    return gap / half if half > 0 else math.inf if math.isfinite(part.main.effect) else -math.inf


def _part_sentence(part: Part) -> str:
    spec, main = part.spec, part.main
    if not math.isfinite(main.effect):
        why = main.why or f"{spec.what} has no interval"
        return f"{why} (n = {main.n})" if main.n else why
    test = f", p = {part.p:.2g}" if part.p else ""
    text = f"{spec.what} is {main.effect:.2f} [{main.low:.2f}, {main.high:.2f}] {spec.unit}, claimed {spec.claimed}"
    text += f" (n = {main.n}{test}, {', '.join(main.tasks)})"
    if part.verdict == CANNOT and not main.why:
        text += ", too few documents" if main.n < MIN_DOCS else ", too wide to decide"
    text += f", but {main.why}" if main.why else ""
    text += f", but {part.obstacle}" if part.obstacle and spec.passes(main.low, main.high) else ""
    if part.passes or spec.fails(main.low, main.high):  # views that say something else
        against = [e for e in part.others if e.n and (e.view in part.holds) != part.passes]
        text += f"; it is {_listed([f'{e.effect:.2f} with {e.view}' for e in against])}" if against else ""
    return text + (f"; left out: {'; '.join(main.left)}" if main.left else "")
