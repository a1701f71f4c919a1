"""The few rows of a summary that a result shows when it is printed: the damage first, a fair share for every metric."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from depthlens.analysis.stats import BASELINE, GROUP

ROWS = 12
_COLUMNS = ["condition", *GROUP, "n", "value", "delta", "ci_low", "ci_high", "p_adjusted"]


def shown(summary: pd.DataFrame, losses: Sequence[float] | None) -> tuple[str, pd.DataFrame, list[str]]:
    """What to print of a summary.

    Args:
        summary: See `depthlens.analysis.results.Result`.
        losses: Of its conditions without the baselines, positive for worse; None where that is not known.

    Returns:
        A headline; a table, group by group (model, task and metric), each with its baseline and its worst losses; and a
        line on how much is left out.
    """
    counts = {c: summary[c].nunique() for c in ("model", "task", "metric", "condition")}
    sizes = ", ".join(f"{n} {name}{'' if n == 1 else 's'}" for name, n in counts.items())
    ordered = _by_loss(summary, losses)
    n_groups = len(ordered[GROUP].drop_duplicates())
    most = max(ROWS, min(2 * n_groups, 2 * ROWS))
    # a fair share: the first row of every group, then the second of every group, and so on
    chosen = ordered.groupby(GROUP, sort=False).cumcount().sort_values(kind="stable").index[:most]
    table = ordered.loc[sorted(chosen), _COLUMNS].round({"value": 3, "delta": 3, "ci_low": 3, "ci_high": 3})
    table["p_adjusted"] = [f"{p:.2g}" if p == p else "" for p in table["p_adjusted"]]
    rest = [f"{len(ordered) - most} more rows in result.summary"] if len(ordered) > most else []
    order = "in the order of the sweep" if losses is None else "worst loss of each task and metric first"
    return f"Result of {sizes}; {order}", table, rest


def _by_loss(summary: pd.DataFrame, losses: Sequence[float] | None) -> pd.DataFrame:
    """The summary group by group, each with its baseline and then its conditions by falling loss."""
    is_base = summary["condition"] == BASELINE
    table = summary.assign(_place=summary.groupby(GROUP, sort=False).ngroup(), _loss=0.0)
    table.loc[is_base, "_loss"] = math.inf
    if losses is not None:
        table.loc[~is_base, "_loss"] = losses
    ordered = table.sort_values(["_place", "_loss"], ascending=[True, False], kind="stable", ignore_index=True)
    return ordered.drop(columns=["_place", "_loss"])


def truncation_notes(record: Mapping[str, Any], *, several: bool = False) -> Iterator[str]:
    """One line per task whose prompts were cut, of a result's record and of those it was joined from.

    Args:
        record: Of a result.
        several: Whether results of several models were joined, so that the model has to be named.
    """
    parts = record.get("parts", ())
    several = several or len({str(part.get("model")) for part in parts}) > 1
    for part in parts:
        yield from truncation_notes(part, several=several)
    for task, about in () if parts else record.get("tasks", {}).items():
        if n := about.get("n_truncated"):
            of = f" of {record['model']['name']}" if several and "model" in record else ""
            lost = f"lost up to {about['max_tokens_cut']} tokens at their left end"
            yield f"{task}{of}: {n} prompts are longer than the model reads and {lost}"
