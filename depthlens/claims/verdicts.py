"""The study's claims C1-C7 as tests that any model can pass or fail, and what sweeps say of them.

Each part of a claim has one of the five states of `depthlens.claims.parts`, and a claim that of its worst part. A state
is about the model and the tasks that were given, not about models. Each claim answers its own question at the 5% level;
the seven are not corrected for one another.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd

from depthlens import arguments
from depthlens.analysis.result.findings import Finding, paragraphs
from depthlens.claims import scorecard_html
from depthlens.claims.claims import CLAIMS
from depthlens.claims.evidence import Evidence
from depthlens.claims.parts import STATES, Part, worst

DECIDES = "decides"  # the name in the column ``view`` of the estimate that decides
COLUMNS = [
    "claim", "part", "what", "view", "state", "effect", "ci_low", "ci_high", "matters", "claimed", "unit", "n", "tasks",
    "notes", "why", "worst", "sentence",
]  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Verdicts(Finding):
    """What the evidence says of every claim; it prints as a table.

    Attributes:
        parts: One row a part of a claim and estimate. ``view`` is "decides" for the estimate that decides, which has a
            ``state`` and a ``sentence``, and else names the estimate that stands beside it. ``worst`` marks the part
            that decides the claim.
        record: The models.

    Example:
        >>> verdicts.states
        {'C1': 'shown', 'C2': 'open'}
        >>> verdicts.table[["claim", "state"]]
          claim  state
        0    C1  shown
        1    C2   open
    """

    NEXT: ClassVar[str] = (
        "next: describe() has every part in a sentence, parts every estimate, plot() draws them"
    )

    parts: pd.DataFrame
    record: dict[str, Any]

    @property
    def table(self) -> pd.DataFrame:
        """One row a claim: that of the part which decides it, with the claim's statement."""
        rows = self.parts[self.parts["worst"]].drop(columns=["view", "worst"]).reset_index(drop=True)
        statements = {claim.id: claim.statement for claim in CLAIMS}
        return rows.assign(statement=rows["claim"].map(statements))

    @property
    def states(self) -> dict[str, str]:
        """The state of every claim, by its id."""
        return dict(zip(self.table["claim"], self.table["state"], strict=True))

    @property
    def headline(self) -> str:
        """How many claims are in which state, in one sentence."""
        count = Counter(self.states.values())
        return (
            f"{len(self.table)} claims: "
            + ", ".join(f"{count[state]} {state}" for state in STATES if count[state])
            + "."
        )

    def describe(self) -> list[str]:
        """How many claims are in which state, then one sentence a part with its numbers."""
        rows = self.parts[self.parts["view"] == DECIDES]
        return [self.headline, *(f"{r.claim}{r.part} {r.state}: {r.sentence}" for r in rows.itertuples())]

    def display(self) -> tuple[str, pd.DataFrame, list[str]]:
        """What is shown: one row a claim. A notebook shows the scorecard in its place."""
        return self.headline, self.table[["claim", "state", "what", "effect", "ci_low", "ci_high", "matters", "n"]], []

    def _repr_html_(self) -> str:
        return scorecard_html.scorecard(self) + paragraphs([self.NEXT])


def judge(evidence: Evidence, *, claims: str | Sequence[str] | None = None) -> Verdicts:
    """Say what the evidence shows of the claims.

    Args:
        evidence: The results to judge them by.
        claims: Which claims, e.g. ``["C2", "C4"]``; None judges all.

    Raises:
        UserError: an unknown claim, or a result that is not the sweep that its field asks for.

    Example:
        >>> verdicts = dl.claims.judge(dl.claims.Evidence(letters=letters, continuation=facts), claims="C1")
        >>> verdicts.states
        {'C1': 'shown'}
    """
    ids = [claim.id for claim in CLAIMS]
    chosen = ids if claims is None else arguments.chosen("claim", claims, ids)
    rows = [row for claim in CLAIMS if claim.id in chosen for row in _rows(claim.id, claim.parts(evidence))]
    return Verdicts(pd.DataFrame(rows, columns=COLUMNS), {"models": evidence.models})


def _rows(claim: str, parts: Sequence[Part]) -> Iterator[tuple[Any, ...]]:
    decides = worst(parts)
    for letter, part in zip(string.ascii_lowercase, parts, strict=False):
        q, tasks = part.question, ", ".join(part.tasks)
        what = q.what.replace("{effect}", "…")
        for view, found in {DECIDES: part.main, **part.beside}.items():
            main = view == DECIDES
            own = "; ".join(part.notes), found.why or part.but, part is decides, part.sentence
            texts = own if main else ("", found.why, False, "")
            numbers = found.effect, found.low, found.high, q.matters, q.claim, q.of, found.n
            yield claim, letter, what, view, part.state if main else "", *numbers, tasks, *texts
