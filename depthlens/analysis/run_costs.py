"""What each run computed: size of the model, forward passes, operations, and how long it took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from depthlens.analysis.run_families import Run

COLUMNS = [
    "run", "place", "model", "n_parameters", "n_layers", "n_conditions", "rows", "rows_computed", "operations",
    "seconds",
]  # fmt: skip


def table(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run and folder of results.

    Returns:
        ``COLUMNS``. ``rows`` are pairs of a request and a condition, ``rows_computed`` those that the store did not
        have, ``operations`` floating-point operations of all rows as planned, ``seconds`` those of the notebook that
        wrote the folder, else those in which its sweeps asked the model or the store. NaN where the record does not say
        it.
    """
    rows = [_row(run, place) for run in runs for place in run.results]
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(run: Run, place: str) -> dict[str, Any]:
    result = run.results[place]
    record = result.record
    parts = record.get("parts") or [record]  # of results that were joined
    model: dict[str, Any] = next((p["model"] for p in (record, *parts) if p.get("model")), {})
    return {
        "run": run.name,
        "place": place,
        "model": result.docs["model"].iloc[0],
        "n_parameters": model.get("n_parameters", math.nan),
        "n_layers": result.n_layers,
        "n_conditions": result.docs["condition"].nunique(),
        "rows": _total(parts, "work", "rows"),
        "rows_computed": _total(parts, "store", "rows_computed"),
        "operations": _total(parts, "work", "flops"),
        "seconds": run.seconds.get(place.partition("/")[0], _total(parts, "work", "seconds")),
    }


def _total(records: Sequence[dict[str, Any]], entry: str, name: str) -> float:
    values = [(record.get(entry) or {}).get(name) for record in records]
    known = [float(value) for value in values if value is not None]
    return sum(known) if len(known) == len(values) else math.nan
