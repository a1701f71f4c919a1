"""Figures of several models or runs: profiles side by side, differences, transplants, and what training changed.

See `depthlens.plots` for what all figures have in common; the numbers are those of `depthlens.analysis.layers.depth`,
`depthlens.analysis.layers.recovery` and `depthlens.analysis.runs.comparison`.

Figures of runs are of a `depthlens.analysis.runs.comparison.Comparison`. One is of one kind of part, and has a panel
for each task, metric and group of runs with equal settings. Of the metrics of a task, the one that stands for it is
drawn, and log-likelihoods; the tables have all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from depthlens.analysis.layers import recovery
from depthlens.analysis.numbers.stats import ALPHA
from depthlens.analysis.result import documents
from depthlens.analysis.result.results import Result
from depthlens.analysis.runs.comparison import CENTRE, KEY, LOSS, SHARE, Comparison
from depthlens.errors import UserError
from depthlens.metrics import LOGPROBS
from depthlens.plots.effects import axis_of, named
from depthlens.plots.layers import CRITICAL_LAYER
from depthlens.plots.panels import PROVEN, curves, idle_where, tidy
from depthlens.plots.theme import counts, themed

_SERIES = {recovery.ONE: "layer x alone", recovery.BOTTOM: "layers 0 to x", recovery.TOP: "layers x to the last"}
SHARES, DEPTH = "share of score\nabove floor", "depth (layer / last layer)"
DIFFERS = f"differs from the base ({PROVEN})"


@themed
def profile_comparison(comparison: Comparison, *, parts: str = "layers") -> None:
    """What removing each layer costs: one panel a task and one line a model or run.

    Losses are shares of the score above the floor where the metric has one, else in its unit. Filled markers are
    critical layers, bands 95% intervals. Models with other numbers of layers are drawn over relative depth.

    Args:
        comparison: Of `depthlens.compare`, of two to four runs.
        parts: Kind of part, such as ``layers`` or ``attn@mean``.

    Raises:
        UserError: more runs than there are colours, or nothing to draw.

    Example:
        >>> figure = dl.compare(one, other).plot()
    """
    table = comparison.of(LOSS, SHARE)
    of_share = table["measure"] == SHARE
    relative = table["value"].where(of_share).groupby([table[c] for c in (*KEY, "group")]).transform("count") > 0
    table = table[of_share == relative]
    unit, idle = table["measure"].map({LOSS: "", SHARE: SHARES}), idle_where(table["why"] != "")
    table = tidy(table, "depth", "value", series=table["run"], shown=table["critical"], unit=unit, idle=idle)
    table, xlabel = table[table["parts"] == parts], DEPTH
    if (table.groupby("layer")["depth"].nunique() <= 1).all():  # as many layers
        last = (table["layer"] / table["depth"]).fillna(1).max().round()
        table, xlabel = table.assign(x=table["layer"], n_layers=last + 1), "removed layer"
    look: dict[str, Any] = {"levels": ("zero",), "shown": CRITICAL_LAYER, "xlabel": xlabel}
    _figure(comparison, table, parts, "loss by removed part", **look)


@themed
def loss_difference(comparison: Comparison, *, parts: str = "layers") -> None:
    """Loss of each run minus that of the run that it is compared with, by removed layer: one panel a task and scale.

    Bands are 95% intervals, and markers are filled where the difference is shown.

    Args:
        comparison: Of `depthlens.compare`, of two to four runs.
        parts: Kind of part over depth.

    Raises:
        UserError: more pairs than there are colours, or no differences, as of models with other numbers of layers.

    Example:
        >>> figure = dl.compare(one, other).plot("loss_difference")
    """
    table = _pairs(comparison)
    series, unit = table["run"] + " minus " + table["reference"], table["scale"].map({LOSS: "", SHARE: SHARES})
    table = tidy(table, "layer", "difference", "difference_low", "difference_high", series=series, unit=unit)
    _figure(comparison, table, parts, "difference of losses", levels=("zero",), xlabel="removed layer")


@themed
def recovery_curve(result: Result, donor: Result) -> None:
    """Score of a base model as layers of a donor are put in place: each alone, from the bottom, and from the top.

    One panel a task and site. Reference lines are the base, the donor and chance; markers are filled where a transplant
    is proven to differ from the base, bands are 95% intervals of that difference. Grey: no gap is proven.

    Args:
        result: Of the base model, over conditions such as ``bottom@donor``, ``top@donor`` and ``layers@donor``.
        donor: Holds the donor's own baseline.

    Raises:
        UserError: see `depthlens.Result.recovery`; or no series of layers.

    Example:
        >>> figure = moved.plot("recovery_curve", donor=whole)
    """
    table = result.recovery(donor).table
    names = [result.model, donor.model]
    losses = {of.label: of for of in result.every_losses.values()}
    parts = [
        _transplants(rows, kind).assign(
            **axis_of(result, losses[str(task)]),
            panel=str(task) if site == "layer" else f"{task}, {site}",
            chance=losses[str(task)].whole.chance,
        )
        for (task, site), of_site in table.dropna(subset=["first"]).groupby(["task", "site"], sort=False)
        for kind, rows in recovery.series(of_site).items()
    ]
    if not parts:
        raise UserError("no series of transplanted layers to draw; sweep bottom@donor, top@donor or layers@donor")
    default = f"{names[0]} with layers of {names[1]}, n = {counts(table['n'])} documents"
    table = pd.concat(parts, ignore_index=True)
    columns = min(table["panel"].nunique(), 2)
    look: dict[str, Any] = {"xlabel": "layer x", "each": 2.5, "shown": DIFFERS, "levels": ("base", "donor", "chance")}
    curves(default, table, list(_SERIES.values()), columns=columns, **look)


def _transplants(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """A series of transplants, whose name begins with the site where that is not the whole layer."""
    series = next(label for kind, label in _SERIES.items() if name.endswith(kind))
    changed = "last" if name.endswith(recovery.BOTTOM) else "first"
    about = {"series": series, "shown": rows["p_adjusted"] < ALPHA}
    about["idle"] = np.where(rows["no_gap"] != "", "no gap: cannot judge", "")
    return tidy(rows, changed, "value", "value_low", "value_high", **about)


def drawable(comparison: Comparison, tested: bool = False) -> list[str]:
    """Kinds of part over depth of two runs with equal settings; of those whose losses are tested."""
    table = _pairs(comparison) if tested else comparison.of(LOSS)
    return [parts for parts in comparison.of(CENTRE)["parts"].unique() if _panels(table, parts)]


def _pairs(comparison: Comparison) -> pd.DataFrame:
    """Differences of losses."""
    rows = comparison.of(LOSS, SHARE, compared=True)
    return rows.drop(columns="n").rename(columns={"measure": "scale", "n_paired": "n"})


def _panels(table: pd.DataFrame, parts: str) -> list[tuple[str, str, pd.DataFrame]]:
    """Task, metric and rows of each panel: of pairs, or of two runs or more with equal settings."""
    rows = table[table["parts"] == parts]
    metrics = rows.groupby("task")["metric"].unique()
    by = ["task", "metric", *(column for column in ("group", "unit") if column in rows)]
    return [
        (task, metric, of_panel)
        for (task, metric, *_), of_panel in rows.groupby(by, sort=False)
        if (of_panel["run"].nunique() > 1 or "scale" in rows)
        and (metric in LOGPROBS or metric == documents.headline(task, list(metrics[task])))
    ]


def _figure(comparison: Comparison, table: pd.DataFrame, parts: str, what: str, **look: Any) -> None:
    """A panel for each task, metric and unit, with a line for each series."""
    shown = _panels(table, parts)
    if not shown:
        known = ", ".join(drawable(comparison)) or "none"
        raise UserError(f"no two runs with equal settings have {parts!r} to be drawn; profiles there are: {known}")
    table = pd.concat(rows.assign(panel=f"{task} {metric.removesuffix(',none')}") for task, metric, rows in shown)
    units = table["metric"].map(lambda metric: named(metric, loss=True).replace(", ", ",\n"))
    table = table.assign(unit=table["unit"].where(table["unit"] != "", units))
    default = f"{', '.join(comparison.runs)}: {what}, {parts}, n = {counts(table['n'])} documents"
    names, columns = list(table["series"].unique()), 1 if len(shown) <= 3 else 2
    curves(default, table, names, each=1.9, columns=columns, **look)
