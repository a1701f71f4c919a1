"""The card of an exported model: what was removed, what that cost, and how mergekit makes the same checkpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from depthlens import __version__
from depthlens.ablations import ROUNDED, Condition
from depthlens.analysis.interval_text import bounds
from depthlens.analysis.results import Result
from depthlens.errors import UserError
from depthlens.models.lens import Lens

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def cost(lens: Lens, condition: Condition, result: Result | None) -> pd.DataFrame | None:
    """Rows of a sweep's summary that say what a condition cost; None without a sweep.

    Raises:
        UserError: the sweep is of another model, or did not score the condition.
    """
    if result is None:
        return None
    if not isinstance(result, Result):
        raise UserError(f"result {result!r}: give a depthlens.Result")
    models = [part["model"] for part in result.record.get("parts", [result.record])]
    if lens.fingerprint not in [model["fingerprint"] for model in models]:
        names = ", ".join(model["name"] for model in models)
        raise UserError(f"the result is of {names}, and not of {lens.name!r} as it is now; sweep this model")
    rows = result.summary.query("condition == @condition", local_dict={"condition": str(condition)})
    if rows.empty:
        known = ", ".join(map(str, result.summary["condition"].unique()[:8]))
        raise UserError(f"condition {condition} is not in the result, which has {known} ...; sweep it first")
    return rows


def write(
    folder: Path, lens: Lens, condition: Condition, size: str, kept: Sequence[int], cost: pd.DataFrame | None
) -> None:
    """Write README.md and, for a condition of whole layers, mergekit.yml.

    Args:
        folder: Of the checkpoint.
        lens: The whole model.
        condition: What was removed.
        size: Of the checkpoint, in words.
        kept: Numbers of the layers that it has.
        cost: See `cost`.
    """
    front: dict[str, Any] = {"library_name": "transformers", "tags": ["depthlens", "pruned"]}
    if _HUB_ID.fullmatch(lens.name):
        front["base_model"] = lens.name
    name = Path(lens.name).name
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
        f"# {name} {_said(condition)}\n",
        f"Made from `{lens.name}` (fingerprint `{lens.fingerprint}`) by depthlens {__version__}, which "
        f"applied `{condition}`. No weight was trained after that.\n",
        f"- Size: {size}.",
        f"- Layers of the whole model that are left: {_ranges(kept)}.\n",
        "## What that cost\n",
        _table(cost) if cost is not None else "It was not measured. `depthlens sweep` measures it.",
    ]
    (folder / "README.md").write_text("\n".join(parts) + "\n", encoding="utf-8")
    if all(a.mode in ("skip", "twice") for a in condition.ablations):
        slices = [{"sources": [{"model": lens.name, "layer_range": [first, last + 1]}]} for first, last in _runs(kept)]
        dtype = str(lens.dtype).removeprefix("torch.")
        recipe = {"slices": slices, "merge_method": "passthrough", "dtype": dtype}
        (folder / "mergekit.yml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


def _said(condition: Condition) -> str:
    stays = any(a.mode in (*ROUNDED, "twice") for a in condition.ablations)
    return f"under {condition}" if stays else f"without {condition}"


def _runs(layers: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each run of consecutive layers."""
    runs = [[layer for _, layer in group] for _, group in groupby(enumerate(layers), lambda x: x[1] - x[0])]
    return [(run[0], run[-1]) for run in runs]


def _ranges(layers: Sequence[int]) -> str:
    return ", ".join(f"{first}-{last}" if first < last else str(first) for first, last in _runs(layers))


def _table(rows: pd.DataFrame) -> str:
    columns = ["task", "metric", "documents", "whole model", "this model", "change, 95% interval"]
    lines = [columns, ["---"] * len(columns)]
    for row in rows.itertuples():
        scores = f"{row.value - row.delta:.3f}", f"{row.value:.3f}"
        change = f"{row.delta:+.3f} {bounds(row.ci_low, row.ci_high, '+.3f')}"
        lines.append([row.task, row.metric, str(row.n), *scores, change])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
