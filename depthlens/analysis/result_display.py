"""What a result says when it is printed: its worst losses, sentences on single conditions, and notes.

The damage comes first, and every metric has a fair share of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from depthlens.analysis import written_answers
from depthlens.analysis.interval_text import bounds
from depthlens.analysis.stats import ALPHA, BASELINE, GROUP, LOSS_THAT_MATTERS, POWER
from depthlens.errors import UserError

if TYPE_CHECKING:
    from depthlens.analysis.results import Result

ROWS = 12
_ROUNDED = 0.005
_COLUMNS = ["condition", *GROUP, "n", "value", "delta", "bounded", "ci_low", "ci_high", "p_adjusted"]


def displayed(result: Result) -> tuple[str, pd.DataFrame, list[str]]:
    """What to print of a result.

    Returns:
        A headline; a table, group by group (model, task and metric), each with its baseline and its worst losses; and
        lines on how much is left out, on what limits the conclusions, and on what to do next.
    """
    summary = result.summary
    try:
        notes, losses = result.notes, result.losses()["loss"].tolist()
    except UserError as error:  # an incomplete record must not hide the table, though it does not say what is worse
        notes, losses = [str(error)], None
    counts = {c: summary[c].nunique() for c in ("model", "task", "metric", "condition")}
    sizes = ", ".join(f"{n} {name}{'' if n == 1 else 's'}" for name, n in counts.items())
    ordered = _by_loss(summary, losses)
    n_groups = len(ordered[GROUP].drop_duplicates())
    n_rows = max(ROWS, min(2 * n_groups, 2 * ROWS))
    # a fair share: the first row of every group, then the second of every group, and so on
    chosen = ordered.groupby(GROUP, sort=False).cumcount().sort_values(kind="stable").index[:n_rows]
    table = ordered.loc[sorted(chosen), _COLUMNS].round(dict.fromkeys(_COLUMNS[5:-1], 3))
    if table["bounded"].equals(table["delta"]):
        table = table.drop(columns="bounded")
    table["p_adjusted"] = [f"{p:.2g}" if p == p else "" for p in table["p_adjusted"]]
    rest = [f"{len(ordered) - n_rows} more rows in result.summary"] if len(ordered) > n_rows else []
    order = "in the order of the sweep" if losses is None else "worst loss of each task and metric first"
    if len(notes) > ROWS:
        notes = [*notes[:ROWS], f"{len(notes) - ROWS} more notes in result.notes"]
    return f"Result of {sizes}; {order}", table, [*rest, *notes, _next(summary)]


def _next(summary: pd.DataFrame) -> str:
    """What to do with a result of these conditions, in one line."""
    removed = summary[summary["condition"] != BASELINE]
    if len(removed) and removed["head"].notna().all():
        plot = "head_map"
    elif removed["condition"].str.fullmatch(r"L\d+-\d+").any():
        plot = "block_map"
    else:
        plot = "depth_profile" if removed["condition"].str.fullmatch(r"L\d+").any() else ""
    drawn = f", dl.plots.{plot}(result) draws it" if plot else ""
    return f"next: result.describe() says it in words, result.critical() lists what is shown to cost something{drawn}"


def _by_loss(summary: pd.DataFrame, losses: Sequence[float] | None) -> pd.DataFrame:
    """The summary group by group, each with its baseline and then its conditions by falling loss."""
    is_base = summary["condition"] == BASELINE
    table = summary.assign(_place=summary.groupby(GROUP, sort=False).ngroup(), _loss=0.0, _size=summary["delta"].abs())
    table.loc[is_base, "_loss"] = math.inf
    if losses is not None:
        table.loc[~is_base, "_loss"] = losses
    ordered = table.sort_values(
        ["_place", "_loss", "_size"], ascending=[True, False, False], kind="stable", ignore_index=True
    )
    return ordered.drop(columns=["_place", "_loss", "_size"])


def notes(result: Result) -> list[str]:
    """What limits the conclusions: tasks at chance, too few documents, cut prompts, selections."""
    several = result.docs["model"].nunique() > 1
    lines = [cannot_judge(row, several=several) for row in result.baselines.itertuples() if row.at_chance]
    for row in result.baselines.itertuples():
        if not row.at_chance and (needed := result.needed_documents[row.model, row.task, row.metric]):
            lines.append(
                f"{_name(row, several)}: about {needed} documents would show a loss of {LOSS_THAT_MATTERS} in "
                f"{POWER:.0%} of samples, and here are {row.n}"
            )
    lines += written_answers.notes(result)
    lines += dict.fromkeys(_truncation_notes(result.record))
    if count := result.record.get("selected_conditions"):
        lines.append(f"{count} conditions were selected, and p_adjusted corrects for these alone")
    return lines


def cannot_judge(row: Any, *, several: bool) -> str:
    """Why nothing can be concluded from a task at chance.

    Args:
        row: Of `depthlens.Result.baselines`.
        several: Whether there are several models, so that the model has to be named.
    """
    has_chance = not math.isnan(row.chance)  # else the task has no chance level, and its baseline is 0
    why = f"chance {row.chance:.2g}, p = {row.p_chance:.2g}" if has_chance else "nothing to lose"
    return f"{_name(row, several)} is at chance: cannot judge (baseline {row.baseline:.2g}, {why}, n = {row.n})"


def sentence(result: Result, row: Any) -> str:
    """What one condition costs, in plain words.

    Args:
        result: The result.
        row: Of its `depthlens.Result.losses`.
    """
    several = result.docs["model"].nunique() > 1
    if row.at_chance:
        return f"{row.condition}: {cannot_judge(row, several=several)}."
    where = f"{row.metric} of {row.task}{f' ({row.model})' if several else ''}"
    more = _unreadable(result, row)
    if abs(row.delta - row.bounded) > _ROUNDED:
        more = f" Without the limit of 1 nat a document the change is {row.delta:+.2g}.{more}"
    if not row.p_adjusted < ALPHA:
        needed = result.needed_documents[row.model, row.task, row.metric]
        few = f"; about {needed} documents would show a loss of {LOSS_THAT_MATTERS}" if needed else ""
        return (
            f"{row.condition} shows no proven change of {where}: {row.bounded:+.2g} "
            f"{bounds(row.ci_low, row.ci_high, '.2g')} (p_adjusted = {row.p_adjusted:.2g}{few}).{more}"
        )
    low, high = (row.ci_low, row.ci_high) if row.bounded > 0 else (-row.ci_high, -row.ci_low)
    amount = f"{abs(row.bounded):.2g} {bounds(low, high, '.2g')}"
    if (row.loss > 0) == (row.bounded < 0):  # higher is better
        text = f"{'costs' if row.loss > 0 else 'adds'} {amount} {where}"
    else:
        text = f"{'worsens' if row.loss > 0 else 'improves'} {where} by {amount}"
    return f"{row.condition} {text} (p_adjusted = {row.p_adjusted:.2g}).{more}"


def _unreadable(result: Result, row: Any) -> str:
    """How many answers cannot be read under a condition, as a sentence; "" where there are none or it is not known."""
    rows = result.docs[(result.docs[GROUP] == [row.model, row.task, row.metric]).all(axis=1)]
    if rows["parsed"].isna().any() or rows["parsed"].all():
        return ""
    share = 1 - rows.groupby("condition")["parsed"].mean()
    return f" Answers that cannot be read: {share[BASELINE]:.0%} with nothing removed, {share[row.condition]:.0%} then."


def _name(row: Any, several: bool) -> str:
    return f"{row.task} {row.metric}" + (f" of {row.model}" if several else "")


def _truncation_notes(record: Mapping[str, Any], *, several: bool = False) -> Iterator[str]:
    """One line per task whose prompts were cut, of a result's record and of those it was joined from."""
    parts = record.get("parts", ())
    several = several or len({str(part.get("model")) for part in parts}) > 1
    for part in parts:
        yield from _truncation_notes(part, several=several)
    for task, entry in () if parts else record.get("tasks", {}).items():
        if n := entry.get("n_truncated"):
            of = f" of {record['model']['name']}" if several and "model" in record else ""
            lost = f"lost up to {entry['max_tokens_cut']} tokens at their left end"
            yield f"{task}{of}: {n} prompts are longer than the model reads and {lost}"
