"""What a result says: its sentences and notes, and what notebooks and the command line show of it.

The damage comes first, and every metric has a fair share of the rows that are shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from depthlens.analysis.heads import effects
from depthlens.analysis.layers import blocks, depth
from depthlens.analysis.numbers.stats import ALPHA, BASELINE, GROUP
from depthlens.analysis.numbers.words import estimate, not_above_chance
from depthlens.analysis.result import profiles
from depthlens.analysis.result.results import Result
from depthlens.analysis.show import written_answers
from depthlens.errors import UserError

ROWS = 12
_ROUNDED = 0.005
_COLUMNS = ["condition", *GROUP, "n", "value", "delta", "bounded", "ci_low", "ci_high", "p_adjusted"]


def describe(result: Result) -> list[str]:
    """Sentences on heads, on blocks or on critical conditions, and on unreadable answers."""
    rows = result.docs.loc[result.docs["condition"] != BASELINE, ["condition", "head"]].drop_duplicates()
    if len(rows) and rows["head"].notna().all():
        lines = effects.describe_heads(result)
    elif rows["condition"].str.fullmatch(r"L\d+-\d+").any():
        lines = blocks.describe_blocks(result)
    else:
        lines = depth.describe_critical(result)
    return lines + written_answers.describe(result)


def sentence(row: Any) -> str:
    """What one condition costs, in plain words.

    Args:
        row: Of `depthlens.Result.loss_table`.
    """
    if row.at_chance:
        return f"{row.condition}: {cannot_judge(row)}."
    where = f"{row.metric} of {row.task}"
    if row.p_adjusted < ALPHA:
        fall = row.bounded < 0
        ends = (-row.ci_high, -row.ci_low) if fall else (row.ci_low, row.ci_high)
        text = f"{where} {'falls' if fall else 'rises'} by {estimate(abs(row.bounded), *ends, '.2g')}"
    else:
        text = f"no change of {where} is shown: {estimate(row.bounded, row.ci_low, row.ci_high, '.2g')}"
    text = f"{row.condition}: {text} (p_adjusted = {row.p_adjusted:.2g})."
    if abs(row.delta - row.bounded) > _ROUNDED:
        text += f" Without the limit of 1 nat a document the change is {row.delta:+.2g}."
    return text


def notes(result: Result) -> list[str]:
    """What limits the conclusions: tasks at chance, few subjects, cut prompts, selections."""
    lines = [cannot_judge(row) for row in result.baselines.itertuples() if row.at_chance]
    lines += [*dict.fromkeys(_prompts(result.record)), *profiles.subjects_note(result)]
    if count := result.record.get("selected_conditions"):
        lines.append(f"{count} conditions were selected, and p_adjusted corrects for these alone")
    for task, about in result.record.get("tasks", {}).items():
        skipped = about.get("skipped_metrics", {})
        lines += [f"{task}: metric {metric} {why} and is left out" for metric, why in skipped.items()]
    return lines


def cannot_judge(row: Any) -> str:
    """Why nothing can be concluded from a task on which the whole model is not shown to be above chance.

    Args:
        row: Of `depthlens.Result.baselines`.
    """
    why = "nothing to lose" if math.isnan(row.chance) else f"chance {row.chance:.2g}, p = {row.p_chance:.2g}"
    return f"{row.task} {row.metric} is {not_above_chance(row.n)}: cannot judge (baseline {row.baseline:.2g}, {why})"


def displayed(result: Result) -> tuple[str, pd.DataFrame, list[str]]:
    """What to show of a result: see `depthlens.analysis.result.findings.Finding.display`.

    The table has, group by group (task and metric), the baseline and the worst losses; the lines say how much is
    left out, and what limits the conclusions.
    """
    summary = result.summary
    try:
        costs, limits = result.loss_table[[*GROUP, "condition", "loss"]], result.notes
    except UserError as error:  # an incomplete record must not hide the table
        return str(error), summary[_COLUMNS].head(ROWS), []
    table = summary.merge(costs, how="left").fillna({"loss": np.inf}).assign(size=summary["delta"].abs())
    table = table.sort_values(["loss", "size"], ascending=False, kind="stable")  # the baselines are the first
    groups = table.groupby(GROUP, sort=False)
    table = table.iloc[np.argsort(groups.ngroup(), kind="stable")]
    table = table.groupby(GROUP, sort=False)[_COLUMNS].head(max(2, ROWS // groups.ngroups))[: 2 * ROWS]
    left = len(summary) - len(table)
    if table["bounded"].round(3).equals(table["delta"].round(3)):
        table = table.drop(columns="bounded")
    table["p_adjusted"] = [f"{p:.2g}" if p == p else "" for p in table["p_adjusted"]]
    lines = [f"{left} more rows in result.summary"] if left > 0 else []
    lines += [*limits[:ROWS], *([f"{len(limits) - ROWS} more notes in result.notes"] if len(limits) > ROWS else [])]
    counts = {c: summary[c].nunique() for c in ("model", "task", "metric", "condition")}
    sizes = ", ".join(f"{n} {name}{'' if n == 1 else 's'}" for name, n in counts.items())
    return f"Result of {sizes}; worst loss of each task and metric first", table, lines


def _prompts(record: Mapping[str, Any]) -> Iterator[str]:
    """Lines on prompts that are not read as they are written, of a result's record and of those it was joined from."""
    for part in record.get("parts", ()):
        yield from _prompts(part)
    for task, entry in record.get("tasks", {}).items():
        if n := entry.get("n_truncated"):
            lost = f"lost up to {entry['max_tokens_cut']} tokens at their left end"
            yield f"{task}: {n} prompts are longer than the model reads and {lost}"
        if n := entry.get("n_merged"):
            why = "lm-eval cuts inside a token that goes across the end of the prompt (of a line break, say)"
            fix = "end doc_to_text with a word and begin the answer with a space"
            yield f"{task}: {n} prompts are read as other tokens than their text has, as {why}; {fix}"
