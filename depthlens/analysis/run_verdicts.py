"""Verdicts of several runs side by side.

That a claim is shown by one run and not by another is no difference between them: it may be noise. To say that runs
differ, compare their losses on the same documents (`depthlens.analysis.run_differences`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from depthlens.analysis.run_families import Run

COLUMNS = [
    "place", "claim", "part", "what", "run", "claim_state", "state", "effect", "ci_low", "ci_high", "matters",
    "claimed", "unit", "n", "tasks", "why", "sentence",
]  # fmt: skip


def in_common(runs: Sequence[Run]) -> bool:
    """Whether two runs have verdicts on results of the same place."""
    places = [place for run in runs for place in run.verdicts]
    return len(set(places)) < len(places)


def table(runs: Sequence[Run]) -> pd.DataFrame:
    """`COLUMNS`: one row a place, run and part of a claim, with the estimate that decides the part."""
    found = [
        parts.drop_duplicates(["claim", "part"]).assign(place=place, run=run.name)
        for place in dict.fromkeys(place for run in runs for place in run.verdicts)
        for run in runs
        for parts in [run.verdicts.get(place)]
        if parts is not None
    ]
    return pd.concat(found, ignore_index=True)[COLUMNS] if found else pd.DataFrame(columns=COLUMNS)
