"""What removing contiguous blocks of layers costs, by place and size."""

from __future__ import annotations

import numpy as np
import pandas as pd

from depthlens.analysis.numbers import betting
from depthlens.analysis.numbers.stats import ALPHA, SUMMARY_COLUMNS
from depthlens.analysis.numbers.words import estimate, not_above_chance
from depthlens.analysis.result.losses import Losses
from depthlens.analysis.result.results import Result
from depthlens.errors import UserError
from depthlens.metrics import metric_unit

MARGIN = 0.05  # in the unit of the metric


def block_table(result: Result) -> pd.DataFrame:
    """The summary of a block sweep by place and size.

    Returns:
        Rows of ``result.summary`` that are contiguous blocks, with ``start``, ``size``, ``loss`` (positive = worse) and
        ``critical``.

    Raises:
        UserError: the result has no block.
    """
    rows = result.loss_table
    layers = rows["condition"].str.extract(r"^L(\d+)(?:-(\d+))?$").astype("Int64")
    rows = rows.assign(start=layers[0], size=layers[1].fillna(layers[0]) - layers[0] + 1)[layers[0].notna()]
    if rows.empty:
        raise UserError("the result has no blocks of layers; make it with block_sweep or ablate='blocks:N'")
    rows = rows.reset_index(drop=True).astype({"start": "int64", "size": "int64"})
    return rows[[*SUMMARY_COLUMNS, "start", "size", "loss", "critical"]]


def spared(losses: Losses, margin: float) -> list[str]:
    """Conditions whose loss is *shown to be under* a margin, as a race decides it.

    That a loss is not significant does not show that it is small: with few documents no loss is. Each is tested by
    betting (`depthlens.analysis.numbers.betting`), because sign flips and Student's t would call a loss small that a
    few documents happen not to show. Any wrong decision on all conditions together has a probability of at most
    `ALPHA`.

    Args:
        losses: Of the conditions; those in other units than shares count up to 1 a document.
        margin: In the unit of the metric, between 0 and 1. State it before looking.
    """
    of_units = pd.DataFrame(np.clip(losses.loss, -1, 1)).groupby(np.array(losses.units)).mean()
    evidence = betting.Evidence(len(losses.conditions), margin, ALPHA)
    evidence.add(range(len(losses.conditions)), of_units.to_numpy())
    decided = zip(losses.conditions, evidence.decisions(), strict=True)
    return [condition for condition, decision in decided if decision == betting.SPARED]


def describe_blocks(result: Result, *, margin: float = MARGIN) -> list[str]:
    """One sentence a task and metric: the largest block that is `spared`, of equal sizes the one that costs least."""
    table, lines = block_table(result), []
    for losses in result.every_losses.values():
        about, n = f"{losses.task} ({losses.metric})", len(losses.base)
        if losses.at_chance:
            lines.append(f"{about}: {not_above_chance(n)}, cannot judge.")
            continue
        rows = table[(table["task"] == losses.task) & (table["metric"] == losses.metric)]
        less = rows[rows["condition"].isin(spared(losses.select(list(rows["condition"])), margin))]
        most = f"{margin:g} {metric_unit(losses.metric) or f'of {losses.metric}'}"
        found = f"none of {len(rows)} blocks of up to {rows['size'].max()} layers is shown to cost less than {most}"
        found += f", and {rows['critical'].sum() or 'none'} of them to cost anything"
        if len(less):
            best = less.sort_values(["size", "loss"], ascending=[False, True], kind="stable").iloc[0]
            found = f"the largest block that is shown to cost less than {most} is **{best.condition}** ({best['size']} "
            found += f"layers; up to {rows['size'].max()} were tried): "
            found += estimate(best.bounded, best.ci_low, best.ci_high, "+.2g")
        lines.append(f"{about}: {found} (n = {n}).")
    return lines
