"""Verdicts of several runs side by side, and whether their estimates are shown to differ.

That a claim is supported by one run and not by another is no difference between them: the estimates are compared. The
verdicts' folder has estimates and intervals but no documents, so both count as independent, and the interval of their
difference comes from both intervals (MOVER: Zou & Donner 2008, Statistics in Medicine 27:1693-1702):

    low = d - sqrt((e1 - l1)^2 + (u2 - e2)^2),   high = d + sqrt((u1 - e1)^2 + (e2 - l2)^2)

The p-value reads d over its half of this interval as a normal variable; Holm's correction covers all parts of all
claims and all pairs of runs. Where the runs share documents, whose scores are then positively correlated, this is
conservative: a difference is missed rather than invented. Estimates whose intervals have no width (shares of layers)
are not compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy

from depthlens.analysis import run_settings, stats
from depthlens.analysis.stats import ALPHA

if TYPE_CHECKING:
    from depthlens.analysis.run_families import Run

PART = ["claim", "part", "what", "view", "unit", "threshold", "tasks"]  # equal where the same thing was estimated
COLUMNS = [
    "place", *PART, "run", "claim_verdict", "verdict", "effect", "ci_low", "ci_high", "n", "seeds", "why", "reference",
    "difference", "difference_low", "difference_high", "p_adjusted", "shown",
]  # fmt: skip
_MAIN = ("run", "claim_verdict", "verdict", "effect", "ci_low", "ci_high", "n", "seeds", "why")


def in_common(runs: Sequence[Run]) -> bool:
    """Whether two runs have verdicts on results of the same place."""
    places = [place for run in runs for place in run.verdicts]
    return len(set(places)) < len(places)


def compare(runs: Sequence[Run], settings: pd.DataFrame, stages: bool) -> tuple[pd.DataFrame, list[str]]:
    """Put the verdicts of runs side by side and test the differences of their estimates.

    Only the estimate that decides a part is compared, and only where the part is the same (statistic, threshold, view,
    tasks) and the results that the verdicts are of have the same settings.

    Args:
        runs: The runs; `Run.verdicts` has a row a part and view, with the columns of `PART` and ``claim_verdict``.
        settings: Of `depthlens.analysis.run_settings.table`.
        stages: Whether each run is compared with the one before, instead of with the first.

    Returns:
        A table of `COLUMNS`, and sentences on what was not compared.
    """
    rows: list[dict[str, Any]] = []
    notes = []
    for place in dict.fromkeys(place for run in runs for place in run.verdicts):
        found = {run.name: _deciding(run.verdicts[place]) for run in runs if place in run.verdicts}
        apart = _apart(settings, place)
        names = list(found)
        for i, name in enumerate(names):
            reference = names[i - 1 if stages else 0] if i else ""
            both = [s for s in apart if {name, reference} <= apart[s].keys()]  # of tasks that both have
            if differs := [s for s in both if apart[s][name] != apart[s][reference]]:
                values = "; ".join(f"{s} {apart[s][reference]} and {apart[s][name]}" for s in differs)
                notes.append(
                    f"verdicts of {name} are not compared with {reference}: {reference} and {name} differ in {values}"
                )
                reference = ""
            if reference and (others := _unmatched(found[name], found[reference])):
                fault = f"{', '.join(others)} of {name} and {reference} are of other tasks, views or thresholds"
                notes.append(f"{fault}, and are not compared")
            rows += _rows(place, name, found, reference)
    table = pd.DataFrame(rows, columns=COLUMNS)
    p = stats.holm_of_known(table["p_adjusted"].to_numpy(dtype=float))
    return table.assign(p_adjusted=p, shown=p < ALPHA), notes


def _deciding(parts: pd.DataFrame) -> pd.DataFrame:
    """The first row of each part: its main estimate."""
    return parts.drop_duplicates(["claim", "part"]).reset_index(drop=True)


def _apart(settings: pd.DataFrame, place: str) -> dict[str, Mapping[str, str]]:
    """The settings of a place that decide and differ, by name, each with the value of every run."""
    rows = settings[
        (settings["place"] == place) & (settings["kind"] == run_settings.DECIDES) & ~settings["equal"].astype(bool)
    ]
    return {
        f"{setting} of {task}": dict(zip(of["run"], of["value"], strict=True))
        for (task, setting), of in rows.groupby(["task", "setting"], sort=False)
    }


def _unmatched(own: pd.DataFrame, other: pd.DataFrame) -> list[str]:
    """Parts of claims that have an estimate in both runs, but not the same one."""
    known = {f"{r.claim}{r.part}": tuple(getattr(r, c) for c in PART) for r in other.itertuples() if _known(r)}
    names = [(f"{r.claim}{r.part}", tuple(getattr(r, c) for c in PART)) for r in own.itertuples() if _known(r)]
    return [name for name, values in names if name in known and known[name] != values]


def _known(row: Any) -> bool:
    return bool(np.isfinite(float(row.effect)))


def _rows(place: str, name: str, found: Mapping[str, pd.DataFrame], reference: str) -> Iterator[dict[str, Any]]:
    others = {tuple(row[PART]): row for _, row in found[reference].iterrows()} if reference else {}
    for _, row in found[name].iterrows():
        yield {
            "place": place,
            **row[PART].to_dict(),
            **{column: row[column] for column in _MAIN if column != "run"},
            "run": name,
            **_difference(row, others.get(tuple(row[PART])), reference),
        }


def _difference(row: pd.Series, other: pd.Series | None, reference: str) -> dict[str, Any]:
    """The difference of two estimates; its p-value is not corrected yet."""
    names = ("difference", "difference_low", "difference_high", "p_adjusted")
    ends = ("effect", "ci_low", "ci_high")
    if other is None or not np.isfinite([*row[list(ends)].astype(float), *other[list(ends)].astype(float)]).all():
        return {"reference": "", **dict.fromkeys(names, math.nan)}
    (e1, l1, u1), (e2, l2, u2) = (tuple(map(float, of[list(ends)])) for of in (row, other))
    gap = e1 - e2
    low, high = gap - math.hypot(e1 - l1, u2 - e2), gap + math.hypot(u1 - e1, e2 - l2)
    half = gap - low if gap > 0 else high - gap  # of the side on which 0 is
    if half <= 0:  # shares of layers may have intervals without width, which tell nothing of the noise
        return {"reference": "", **dict.fromkeys(names, math.nan)}
    p = float(2 * scipy.stats.norm.sf(abs(gap) / half * scipy.stats.norm.ppf(1 - ALPHA / 2)))
    return {"reference": reference, **dict(zip(names, (gap, low, high, p), strict=True))}
