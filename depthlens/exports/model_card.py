"""The card of an exported model: what was removed, what that cost, and how mergekit makes the same checkpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import pandas as pd
import yaml
from huggingface_hub import ModelCard, ModelCardData

from depthlens import __version__, arguments
from depthlens.ablations import ROUNDED, Condition
from depthlens.analysis.interval_text import bounds
from depthlens.analysis.results import Result
from depthlens.errors import UserError
from depthlens.models.lens import Lens


def cost(lens: Lens, condition: Condition, result: Result | None) -> pd.DataFrame | None:
    """Rows of a sweep's summary that say what a condition cost; None without a sweep.

    Raises:
        UserError: the sweep is of another model, or did not score the condition.
    """
    if result is None:
        return None
    arguments.result(result)
    models = [part["model"] for part in result.record.get("parts", [result.record])]
    if lens.fingerprint not in [model["fingerprint"] for model in models]:
        names = ", ".join(model["name"] for model in models)
        raise UserError(f"the result is of {names}, and not of {lens.name!r} as it is now; sweep this model")
    rows = result.summary.query("condition == @condition", local_dict={"condition": str(condition)})
    if rows.empty:
        raise UserError(f"condition {condition} is not in the result; sweep it first")
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
    base = lens.name if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", lens.name) else None  # an id of the hub
    front = ModelCardData(library_name="transformers", tags=["depthlens", "pruned"], base_model=base)
    stays = any(a.mode in (*ROUNDED, "twice") for a in condition.ablations)
    consecutive = (list(run) for _, run in groupby(enumerate(kept), lambda pair: pair[1] - pair[0]))
    runs = [(run[0][1], run[-1][1]) for run in consecutive]
    left = ", ".join(f"{first}-{last}" if first < last else str(first) for first, last in runs)
    text = f"""---
{front.to_yaml()}
---

# {Path(lens.name).name} {"under" if stays else "without"} {condition}

Made from `{lens.name}` (fingerprint `{lens.fingerprint}`) by depthlens {__version__}, which applied `{condition}`.
No weight was trained after that.

- Size: {size}.
- Layers of the whole model that are left: {left}.

## What that cost

{"It was not measured. `depthlens sweep` measures it." if cost is None else _table(cost)}
"""
    ModelCard(text).save(folder / "README.md")
    if all(a.mode in ("skip", "twice") for a in condition.ablations):
        slices = [{"sources": [{"model": lens.name, "layer_range": [first, last + 1]}]} for first, last in runs]
        dtype = str(lens.dtype).removeprefix("torch.")
        recipe = {"slices": slices, "merge_method": "passthrough", "dtype": dtype}
        (folder / "mergekit.yml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


def _table(rows: pd.DataFrame) -> str:
    lines = ["| task | metric | documents | whole model | this model | change, 95% interval |", "|---" * 6 + "|"]
    for row in rows.itertuples():
        change = f"{row.delta:+.3f} {bounds(row.ci_low, row.ci_high, '+.3f')}"
        scores = f"{row.value - row.delta:.3f} | {row.value:.3f} | {change}"
        lines.append(f"| {row.task} | {row.metric} | {row.n} | {scores} |")
    return "\n".join(lines)
