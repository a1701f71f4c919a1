"""What a sweep found, as text for a terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd

from depthlens.analysis.interval_text import bounds

if TYPE_CHECKING:
    from depthlens.analysis.results import Result

_N_WORST = 5  # conditions that are printed for each metric


def summary_text(result: Result) -> str:
    """A sweep's findings for a person: baselines, what cannot be judged, the worst conditions of each metric."""
    lines = []
    for base in result.baselines.itertuples():
        name = f"{base.task} {base.metric}"
        interval = bounds(base.ci_low, base.ci_high, ".3f")
        lines.append(f"\n{name}, {base.n} documents: baseline {base.baseline:.3f} {interval}")
        if base.at_chance:
            # a baseline of 0 is at chance also where the metric has no chance level
            level = "" if base.chance is None or math.isnan(base.chance) else f" ({base.chance:.3f})"
            lines.append(f"Warning: {name} is at chance{level} without any ablation: cannot judge")
            continue
        rows = result.summary.query("task == @base.task and metric == @base.metric and condition != 'baseline'")
        higher_is_better = result.record["tasks"][base.task]["metrics"][base.metric]["higher_is_better"]
        worst = _worst(rows, higher_is_better)
        if not len(worst):
            lines.append("  no condition made it worse")
        width = max(map(len, worst["condition"]), default=0)
        for row in worst.itertuples():
            change = f"{row.bounded:+.3f} {bounds(row.ci_low, row.ci_high, '+.3f')}"
            lines.append(f"  {row.condition:<{width}}  {row.value:.3f}  {change}  adjusted p = {row.p_adjusted:.2g}")
    notes = [note for note in result.notes if "cannot judge" not in note]  # those are warnings above
    for task, about in result.record["tasks"].items():
        skipped = about.get("skipped_metrics", {})
        notes += [f"{task}: metric {metric} {why} and is left out" for metric, why in skipped.items()]
    if notes:
        lines += ["", *(f"Note: {note}" for note in notes)]
    return "\n".join(lines).lstrip("\n")


def _worst(rows: pd.DataFrame, higher_is_better: bool) -> pd.DataFrame:
    """The conditions that harm a metric most, the worst first."""
    harm = -rows["bounded"] if higher_is_better else rows["bounded"]
    return rows.loc[harm[harm > 0].sort_values(ascending=False, kind="stable").index[:_N_WORST]]
