"""Results of removing blocks of layers, and of removing layers one after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from depthlens import arguments
from depthlens.analysis import stats
from depthlens.analysis.results import Result
from depthlens.analysis.stats import BASELINE
from depthlens.errors import UserError


def block_table(result: Result) -> pd.DataFrame:
    """The summary of a block sweep by place and size.

    Returns:
        Rows of ``result.summary`` that are contiguous blocks, with ``start``, ``size`` and ``loss`` (positive = worse).

    Raises:
        UserError: the result has no block.
    """
    arguments.result(result)
    rows = result.summary[result.summary["condition"] != BASELINE]
    start = rows["condition"].str.extract(r"^L(?P<start>\d+)(?:-(?P<end>\d+))?$").astype("Int64")
    rows = rows.assign(start=start["start"], size=start["end"].fillna(start["start"]) - start["start"] + 1)
    rows = rows[rows["start"].notna()].reset_index(drop=True)
    if rows.empty:
        raise UserError("the result has no blocks of layers; make it with block_sweep or ablate='blocks:N'")
    better = [result.metric_info(r.task, r.metric)["higher_is_better"] for r in rows.itertuples()]
    return rows.assign(loss=np.where(better, -rows["delta"], rows["delta"])).astype({"start": "int64", "size": "int64"})


def block_findings(result: Result) -> list[str]:
    """One sentence a task and metric: the largest block whose removal shows no proven loss, and where it is.

    Where no block at all shows one, documents are too few, or the blocks too small, to tell which can go.
    """
    lines = []
    table = block_table(result)
    for row in result.baselines.itertuples():
        name = f"{row.task} ({row.metric})"
        if row.at_chance:
            lines.append(f"{name}: at chance, cannot judge (n = {row.n}).")
            continue
        rows = table[(table["task"] == row.task) & (table["metric"] == row.metric)]
        proven = (rows["p_adjusted"] < stats.ALPHA) & (rows["loss"] > 0)
        spared, largest = rows[~proven], int(rows["size"].max())
        if spared.empty:
            lines.append(f"{name}: no block can go without a proven loss, not even one layer.")
            continue
        if not proven.any():
            tried = f"none of {len(rows)} blocks of up to {largest} layers shows a proven loss"
            lines.append(f"{name}: {tried}: which of them can go cannot be told (n = {row.n}).")
            continue
        best = spared.sort_values(["size", "loss"], ascending=[False, True]).iloc[0]
        size = f"{best['size']} layers; up to {largest} were tried"
        lines.append(
            f"{name}: the largest block without a proven loss is **{best.condition}** ({size}): "
            f"{best.delta:+.2g} [{best.ci_low:+.2g}, {best.ci_high:+.2g}], n = {best.n}."
        )
    return lines


@dataclass(frozen=True, repr=False)
class Greedy:
    """Layers that went, one after another.

    Attributes:
        steps: One row a step: step (0: nothing removed), layer (the one that went), removed (the condition); of the
            judging half of the documents value, delta (against the whole model), ci_low, ci_high, p_value, n; then
            ``chosen_by``, the same delta on the half that chose the layer, which the choice flatters, and ``within``.
        result: All conditions tried, on all documents.
        stopped: Why it ended.
        record: task, metric, tolerance.
    """

    steps: pd.DataFrame
    result: Result
    stopped: str
    record: dict[str, Any]

    @property
    def removed(self) -> list[int]:
        """Layers that can go: those of the steps whose loss stayed within the tolerance, in order."""
        return [int(layer) for layer in self.steps.loc[self.steps["within"], "layer"].dropna()]

    def __repr__(self) -> str:
        return f"{self.finding()}\n{self.steps.to_string(index=False)}"

    def finding(self) -> str:
        """What was found, in a sentence."""
        last = self.steps[self.steps["within"]].iloc[-1]
        n, of, task = len(self.removed), self.record["n_layers"], self.record["task"]
        what = f"{task} ({self.record['metric']}) stays within {self.record['tolerance']:g} of the whole model"
        if not n:
            return f"{task}: no layer can go within {self.record['tolerance']:g} ({self.stopped})."
        interval = f"{last.delta:+.2g} [{last.ci_low:+.2g}, {last.ci_high:+.2g}], n = {last.n}"
        return f"{what} with **{n} of {of}** layers gone ({last.removed}): {interval}; {self.stopped}."
