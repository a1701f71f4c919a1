"""What removing contiguous blocks of layers costs, by place and size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from depthlens import arguments
from depthlens.analysis.stats import ALPHA, SUMMARY_COLUMNS
from depthlens.errors import UserError

if TYPE_CHECKING:
    from depthlens.analysis.results import Result


def block_table(result: Result) -> pd.DataFrame:
    """The summary of a block sweep by place and size.

    Returns:
        Rows of ``result.summary`` that are contiguous blocks, with ``start``, ``size`` and ``loss`` (positive = worse).

    Raises:
        UserError: the result has no block.
    """
    arguments.result(result)
    rows = result.losses()[[*SUMMARY_COLUMNS, "loss"]]
    layers = rows["condition"].str.extract(r"^L(?P<start>\d+)(?:-(?P<last>\d+))?$").astype("Int64")
    rows.insert(len(SUMMARY_COLUMNS), "start", layers["start"])
    rows.insert(len(SUMMARY_COLUMNS) + 1, "size", layers["last"].fillna(layers["start"]) - layers["start"] + 1)
    rows = rows[rows["start"].notna()].reset_index(drop=True)
    if rows.empty:
        raise UserError("the result has no blocks of layers; make it with block_sweep or ablate='blocks:N'")
    return rows.astype({"start": "int64", "size": "int64"})


def describe_blocks(result: Result) -> list[str]:
    """One sentence a task and metric: the largest block whose removal shows no proven loss, and where it is.

    Where no block at all shows a loss, there are too few documents, or the blocks are too small, to say which can go.
    """
    lines = []
    table = block_table(result)
    for row in result.baselines.itertuples():
        name = f"{row.task} ({row.metric})"
        if row.at_chance:
            lines.append(f"{name}: at chance, cannot judge (n = {row.n}).")
            continue
        rows = table[(table["task"] == row.task) & (table["metric"] == row.metric)]
        proven = (rows["p_adjusted"] < ALPHA) & (rows["loss"] > 0)
        spared, largest = rows[~proven], int(rows["size"].max())
        if spared.empty:
            lines.append(f"{name}: no block can go without a proven loss, not even one layer.")
            continue
        if not proven.any():
            tried = f"none of {len(rows)} blocks of up to {largest} layers shows a proven loss"
            lines.append(f"{name}: {tried}, so it cannot be said which of them can go (n = {row.n}).")
            continue
        best = spared.sort_values(["size", "loss"], ascending=[False, True]).iloc[0]
        size = f"{best['size']} layers; up to {largest} were tried"
        lines.append(
            f"{name}: the largest block without a proven loss is **{best.condition}** ({size}): "
            f"{best.delta:+.2g} [{best.ci_low:+.2g}, {best.ci_high:+.2g}], n = {best.n}."
        )
    return lines
