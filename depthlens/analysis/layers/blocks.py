"""What removing contiguous blocks of layers costs, by place and size."""

from __future__ import annotations

import numpy as np
import pandas as pd

from depthlens import arguments
from depthlens.analysis.numbers.betting import log_capital, log_gains
from depthlens.analysis.numbers.stats import ALPHA, GROUP, SUMMARY_COLUMNS
from depthlens.analysis.numbers.words import NOT_ABOVE_CHANCE
from depthlens.analysis.result.losses import Losses
from depthlens.analysis.result.results import Result
from depthlens.errors import UserError
from depthlens.metrics import metric_unit

COLUMNS = [
    *GROUP, "n", "n_blocks", "largest", "condition", "size", "loss", "delta", "ci_low", "ci_high", "p_adjusted",
    "margin", "unit", "proven", "at_chance",
]  # fmt: skip
AT_CHANCE = "{task} ({metric}): " + NOT_ABOVE_CHANCE + " ({n} questions), cannot judge."
NONE = (
    "{task} ({metric}): none of {n_blocks} blocks of up to {largest} layers is shown to cost less than {margin:g} "
    "{unit}, and {proven} of them to cost anything (n = {n})."
)
LARGEST = (
    "{task} ({metric}): the largest block that is shown to cost less than {margin:g} {unit} is **{condition}** ({size} "
    "layers; up to {largest} were tried): {delta:+.2g} [{ci_low:+.2g}, {ci_high:+.2g}], n = {n}."
)
MARGIN = 0.05  # of the score above chance, or of the metric's unit


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


def largest_sparable(result: Result, *, margin: float = MARGIN) -> pd.DataFrame:
    """The largest block whose loss is *shown to be under* a margin, for each task and metric.

    That a loss is not significant does not show that it is small: with few documents no loss is. Each block is tested
    against the margin instead, by betting on margin minus loss (`depthlens.analysis.numbers.betting`; p-values times
    the number of blocks). Sign flips and Student's t would call a loss small that a few documents happen not to show.
    Losses in nats are at most 1 a document.

    Args:
        result: A block sweep.
        margin: State it before looking. A share of the score above chance where the metric has a chance level, else in
            the unit of the metric.

    Returns:
        One row a task and metric: model, task, metric, n, n_blocks, largest (layers of the largest block tried),
        condition (missing where no block is shown to be under the margin, or the task is at chance), size, loss,
        delta (bounded, as the loss), ci_low, ci_high (its 95% interval), p_adjusted (that the loss is not under the
        margin), margin, unit, proven (blocks that are shown to cost something), at_chance. Of equal sizes, the block of
        the least loss.

    Raises:
        UserError: the result has no block, or the margin is below 0.
    """
    table = block_table(result)
    margin, found = arguments.number("margin", margin, 0), []
    for base in result.baselines.itertuples():
        rows = table[(table[GROUP] == [base.model, base.task, base.metric]).all(axis=1)]
        profile = result.every_losses[base.model, base.task, base.metric].select(list(rows["condition"]))
        room, unit = np.ones(len(profile.base)), metric_unit(base.metric) or f"of {base.metric}"
        if profile.chance is not None:
            room, unit = profile.base - profile.chance, "of the score above chance"
        p = _not_under(profile, margin * room) if room.mean() > 0 and not base.at_chance else np.ones(len(rows))
        shown = rows.assign(p_adjusted=p, delta=rows["bounded"])[p < ALPHA]
        best = shown.sort_values(["size", "loss"], ascending=[False, True], kind="stable").head(1).to_dict("records")
        of_all = {"n": base.n, "n_blocks": len(rows), "largest": rows["size"].max(), "proven": rows["critical"].sum()}
        of_all |= {"margin": margin, "unit": unit, "at_chance": base.at_chance}
        found.append({"model": base.model, "task": base.task, "metric": base.metric} | (best or [{}])[0] | of_all)
    return pd.DataFrame(found, columns=COLUMNS).astype({"size": "Int64"})


def _not_under(profile: Losses, margin: np.ndarray) -> np.ndarray:
    """P-value of each condition, corrected for their number, that its loss is not under the margin.

    Args:
        profile: Losses of the conditions.
        margin: What each document may lose on average. Shape [document].
    """
    left = profile.over(margin[:, None] - profile.loss)
    sizes = np.unique(profile.units, return_counts=True)[1]
    worst = profile.loss_limits[1] - margin.min()
    of_units = left.added * left.n / (worst * sizes.max() / sizes.mean())  # at least -1; their mean is the margin left
    return np.minimum(1.0, len(left.value) * np.exp(-log_capital(log_gains(of_units))))


def describe_blocks(result: Result, *, margin: float = MARGIN) -> list[str]:
    """One sentence a task and metric: the largest block whose loss is shown to be under ``margin``."""
    lines = []
    for row in largest_sparable(result, margin=margin).to_dict("records"):
        said = AT_CHANCE if row["at_chance"] else NONE if pd.isna(row["size"]) else LARGEST
        lines.append(said.format_map(row | {"proven": row["proven"] or "none"}))
    return lines
