"""The study's claims C1-C8 as tests that any model can pass or fail, and what sweeps say of them.

Each part of a claim has one of the five states of `depthlens.claims.parts`, and each of a claim's two rows that of its
worst part: *as the study says it*, and *controlled*. A state is about the model and the tasks that were given, not
about models. Each row answers its own question at the 5% level; they are not corrected for one another.
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jinja2
import pandas as pd

from depthlens import look
from depthlens.analysis.result.findings import Finding, paragraphs
from depthlens.claims.claims import CLAIMS, chosen_claims
from depthlens.claims.evidence import Evidence
from depthlens.claims.parts import OPEN, REVERSED, ROWS, SHOWN, SIGN, SMALLER, STATES, UNDER, Part, worst

DECIDES = "decides"  # the name in the column ``view`` of the estimate that decides
COLUMNS = [
    "claim", "row", "part", "what", "view", "state", "at_half", "at_double", "effect", "ci_low", "ci_high", "matters",
    "claimed", "unit", "n", "needed", "minutes", "tasks", "notes", "why", "worst", "sentence",
]  # fmt: skip
# symbol, ground, text: symbol and word say the same as the colour, and text keeps a contrast of 4.5 to 1
CHIPS = {
    SHOWN: ("✓", look.PALETTE[0], "#FFFFFF"),
    SIGN: ("+", look.CLAIMED, look.PALETTE[2]),
    SMALLER: ("≈", look.EMPTY, look.PALETTE[2]),
    REVERSED: ("✗", look.PALETTE[1], look.PALETTE[2]),
    OPEN: ("?", "#FFFFFF", look.PALETTE[2]),
}
WIDE = 150  # of a bar, in pixels
FAR = 10.0  # times what matters
TEMPLATES = jinja2.Environment(loader=jinja2.PackageLoader("depthlens.claims"), autoescape=True)


@dataclass(frozen=True, eq=False, repr=False)
class Verdicts(Finding):
    """What the evidence says of every claim; it prints as a table.

    Attributes:
        parts: One row a part of a claim and estimate. ``row`` is "as the study says it" or "controlled". ``view`` is
            "decides" for the estimate that decides, which has a ``state`` and a ``sentence``, and else names the
            estimate that stands beside it. ``at_half`` and ``at_double`` are the states where half or twice as much
            would matter; ``needed`` are the documents at which an open part would be decided by its present estimate,
            ``minutes`` how much longer that takes, guessed from what this call
            took: too few where it read most from the store.
            ``worst`` marks the part that decides the row of the claim.
        record: The models.

    Example:
        >>> verdicts.states["C1"]
        {'as the study says it': 'shown', 'controlled': 'shown'}
        >>> verdicts.table[["claim", "row", "state"]]
          claim                   row  state
        0    C1  as the study says it  shown
        1    C1            controlled  shown
        2    C2  as the study says it   open
        3    C2            controlled   open
    """

    NEXT: ClassVar[str] = "next: describe() has every part in a sentence, parts every estimate"

    parts: pd.DataFrame
    record: dict[str, Any]

    @classmethod
    def of(cls, parts: Mapping[str, Sequence[Part]], models: Sequence[str]) -> Verdicts:
        """The verdicts that the parts of claims give."""
        rows = [row for claim, of in parts.items() for row in _rows(claim, of)]
        return cls(pd.DataFrame(rows, columns=COLUMNS), {"models": list(models)})

    @property
    def table(self) -> pd.DataFrame:
        """One row for either row of a claim: that of the part which decides it, with the claim's statement."""
        decide = self.parts[self.parts["worst"]].drop(columns=["view", "worst"])
        order = decide["claim"] + decide["row"].map({row: str(i) for i, row in enumerate(ROWS)})
        rows = decide.iloc[order.argsort(kind="stable")].reset_index(drop=True)
        statements = {claim.id: claim.statement for claim in CLAIMS}
        return rows.assign(statement=rows["claim"].map(statements))

    @property
    def states(self) -> dict[str, dict[str, str]]:
        """The state of every claim, by its id and row."""
        rows = self.table.groupby("claim", sort=False)
        return {claim: dict(zip(of["row"], of["state"], strict=True)) for claim, of in rows}

    @property
    def decided(self) -> list[str]:
        """Claims of which neither row is open."""
        return [claim for claim, of in self.states.items() if OPEN not in of.values()]

    @property
    def headline(self) -> str:
        """How many claims are decided, and how many are in which state, in one sentence."""
        rows = [
            f"{row}, " + ", ".join(f"{n} {state}" for state in STATES if (n := list(of["state"]).count(state)))
            for row, of in self.table.groupby("row", sort=False)
        ]
        return f"{len(self.states)} claims, {len(self.decided)} decided: {'; '.join(rows)}."

    def describe(self) -> list[str]:
        """How many claims are in which state, then one sentence a part with its numbers."""
        rows = self.parts[self.parts["view"] == DECIDES]
        return [self.headline, *(f"{r.claim}{r.part} ({r.row}) {r.state}: {r.sentence}" for r in rows.itertuples())]

    def display(self) -> tuple[str, pd.DataFrame, list[str]]:
        """What is shown: two rows a claim. A notebook shows the scorecard in its place."""
        columns = ["claim", "row", "state", "what", "effect", "ci_low", "ci_high", "matters", "n", "needed"]
        return self.headline, self.table[columns], []

    def _repr_html_(self) -> str:
        return scorecard(self) + paragraphs([self.NEXT])


def judge(evidence: Evidence, *, claims: str | Sequence[str] | None = None) -> Verdicts:
    """Say what the evidence shows of the claims.

    Args:
        evidence: The results to judge them by.
        claims: Which claims, e.g. ``["C2", "C4"]``; None judges all.

    Raises:
        UserError: an unknown claim, or a result that is not the sweep that its field asks for.

    Example:
        >>> verdicts = dl.claims.judge(dl.claims.Evidence(letters=letters, continuation=facts), claims="C1")
        >>> verdicts.states["C1"]["controlled"]
        'shown'
    """
    return Verdicts.of({claim.id: claim.parts(evidence) for claim in chosen_claims(claims)}, evidence.models)


def _rows(claim: str, parts: Sequence[Part]) -> Iterator[tuple[Any, ...]]:
    decide = [worst(of) for row in ROWS if (of := [part for part in parts if part.question.row == row])]
    for letter, part in zip(string.ascii_lowercase, parts, strict=False):
        q, tasks = part.question, ", ".join(part.tasks)
        what = q.what.replace("{effect}", "…")
        for view, found in {DECIDES: part.main, **part.beside}.items():
            main = view == DECIDES
            states = (part.state, part.state_at(0.5), part.state_at(2.0)) if main else ("", "", "")
            more = (part.needed, part.minutes) if main else (None, None)
            own = "; ".join(part.notes), found.why or part.but, part in decide, part.sentence
            texts = own if main else ("", found.why, False, "")
            numbers = found.effect, found.low, found.high, q.matters, q.claim, q.of, found.n, *more
            yield claim, q.row, letter, what, view, *states, *numbers, tasks, *texts


def scorecard(verdicts: Verdicts) -> str:
    """The scorecard as HTML: a chip for each state, a bar for each effect, and the part that decides in words.

    It has its styles inside, so that JupyterLab, a page and an index show the same; an index finds it by its class.
    Under each claim are its two rows, of which the first has the id of the claim.
    """
    rows = [
        (row, CHIPS[row.state], _bar(row) if math.isfinite(row.effect) else None) for row in verdicts.table.itertuples()
    ]
    template = TEMPLATES.get_template("scorecard.html.j2")
    return template.render(rows=rows, headline=verdicts.headline, look=look, wide=WIDE)


def _bar(row: Any) -> dict[str, float]:
    """Where on its bar effect, interval, 0 and what matters are, and the claimed side."""
    ends = -FAR * row.matters, FAR * row.matters  # beyond, an interval is cut
    shown = {"zero": 0.0, "matters": row.matters, "low": row.ci_low, "high": row.ci_high, "effect": row.effect}
    shown = {name: min(max(value, ends[0]), ends[1]) for name, value in shown.items()}
    least, span = min(shown.values()), max(shown.values()) - min(shown.values())
    at = {name: round(8 + (WIDE - 16) * (value - least) / span, 1) for name, value in shown.items()}
    claimed = (0.0, at["matters"]) if row.claimed == UNDER else (at["matters"], float(WIDE))
    return at | dict(zip(("start", "end"), claimed, strict=True))
