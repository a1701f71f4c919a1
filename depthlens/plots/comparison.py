"""Figures of two models or more: profiles side by side, transplants, and what training changed.

See `depthlens.plots` for what all figures have in common; the numbers are those of `depthlens.analysis.depth`,
`depthlens.analysis.recovery` and `depthlens.experiments.distillation`.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from depthlens.analysis import depth, recovery
from depthlens.analysis.results import Result
from depthlens.analysis.scores import Scores, labels, layer_scores
from depthlens.analysis.stats import ALPHA
from depthlens.errors import UserError, unknown
from depthlens.look import GREY
from depthlens.plots import panels
from depthlens.plots.effects import limits_of, model_dims, unit_of
from depthlens.plots.layers import CRITICAL_LAYER
from depthlens.plots.panels import MAX_OVERLAID, PROVEN, cells, idle_where, lines, tidy
from depthlens.plots.theme import SMALL, Plot, counts, figure, round_up, themed

_SERIES = {recovery.ONE: "layer x alone", recovery.BOTTOM: "layers 0 to x", recovery.TOP: "layers x to the last"}
DIFFERS = f"differs from the base ({PROVEN})"
_WEIGHTS = {"relative": "size of the change relative to the weights", "cosine": "1 − cosine of old and new weights"}
_ACTIVATIONS = {"relative": "size of the difference\nrelative to the base's", "cosine": "cosine of base and donor"}
_SAME = {"relative": 0, "cosine": 1}  # where nothing has changed
_RANGE = {"relative": (0, math.inf), "cosine": (-1, 1)}


@themed
def profile_comparison(*results: Result, title: str | None = None) -> Plot:
    """What removing each layer costs, one panel a task and one line a model, with the centre of mass of every profile.

    Filled markers are critical layers, bands 95% intervals. The bar at the top of a panel is the centre of mass with
    its interval. Panels share the axis of layers, so that tasks of one model can be compared, too; losses of different
    metrics cannot.

    Args:
        results: Layer sweeps of up to four models, one each; tasks that only some have are drawn for these.
        title: Above the figure; by default the models and the number of documents.

    Raises:
        UserError: no results or more than there are colours, or results that are not layer sweeps of one model.
    """
    if not 1 <= len(results) <= MAX_OVERLAID:
        raise UserError(f"{len(results)} results; give one to {MAX_OVERLAID}, one a model")
    models = [layer_scores(result) for result in results]
    places = [depth.centre_of_mass(result).table.set_index("task") for result in results]
    every = [p for own in models for p in own]
    names = [own[0].model for own in models]
    names = [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, 1)]
    series = names if len(names) > 1 else [""]
    tasks = list(dict.fromkeys(p.label for p in every))
    default = f"{', '.join(names)}: loss by removed layer, n = {_n_documents(every)} documents"
    columns = 1 if len(tasks) <= 4 else 2
    fig, axes = panels.facets(title, default, len(tasks), "removed layer", each=1.75, columns=columns, stacked=True)
    for ax, task in zip(axes, tasks, strict=True):
        own = [(i, p) for i, of_model in enumerate(models) for p in of_model if p.label == task]
        panels.level(ax, 0, "zero")
        lines(
            ax,
            pd.concat([_losses(results[i], p).assign(series=series[i]) for i, p in own]),
            series,
            shown=CRITICAL_LAYER,
        )
        panels.centres(ax, [(i, *_centre(p, places[i].loc[task])) for i, p in own if not p.at_chance])
        panels.panel_title(ax, task)
        i, first = own[0]
        ax.set_ylabel(f"loss of\n{_unit(results[i], first)}")
        panels.layer_axis(ax, max(p.n_layers for p in every))
    return fig


@themed
def recovery_curve(result: Result, donor: Result, *, title: str | None = None) -> Plot:
    """Score of a base model as layers of a donor are put in place: each alone, from the bottom, and from the top.

    One panel a task and site. Reference lines are the base, the donor and chance; markers are filled where a transplant
    is proven to differ from the base, bands are 95% intervals of that difference. The right axis is the share of the
    gap, where there is one.

    Args:
        result: Of the base model, over conditions such as ``bottom@donor``, ``top@donor`` and ``layers@donor``.
        donor: Holds the donor's own baseline.
        title: Above the figure; by default the models and the number of documents.

    Raises:
        UserError: see `depthlens.analysis.transplant_recovery`; or no series of layers.
    """
    table = recovery.transplant_recovery(result, donor).table
    groups = [
        (str(task), str(site), series)
        for (task, site), rows in table.dropna(subset=["first"]).groupby(["task", "site"], sort=False)
        if (series := recovery.series(rows))
    ]
    if not groups:
        raise UserError("no series of transplanted layers to draw; sweep bottom@donor, top@donor or layers@donor")
    names = [str(r.docs["model"].iloc[0]) for r in (result, donor)]
    pairs = {label: pair for pair, label in labels(result).items()}
    default = f"{names[0]} with layers of {names[1]}, n = {counts(table['n'])} documents"
    fig, axes = panels.facets(title, default, len(groups), "layer x", each=2.5, columns=min(len(groups), 2))
    for ax, (label, site, series) in zip(axes, groups, strict=True):
        task, metric = pairs[label]
        rows = pd.concat([_transplants(rows, name) for name, rows in series.items()])
        lines(ax, rows, list(_SERIES.values()), shown=DIFFERS, limits=limits_of(result, names[0], task, metric))
        levels = rows.iloc[0]
        panels.level(ax, levels["base"], "base")
        panels.level(ax, levels["donor"], "donor")
        panels.level(ax, result.metric_info(task, metric)["chance"], "chance")
        panels.panel_title(ax, label if site == "layer" else f"{label}, {site}")
        n_layers = model_dims(result.record, names[0]).get("n_layers")
        panels.layer_axis(ax, n_layers or int(rows["last"].max()) + 1)
        panels.score_axis(ax, unit_of(result, names[0], task, metric))
        _share_axis(ax, levels)
    return fig


@themed
def weight_deltas(deltas: pd.DataFrame, *, value: str = "relative", title: str | None = None) -> Plot:
    """How much training changed each weight matrix: a map of matrices by layer, with those outside the layers beside.

    Args:
        deltas: From `depthlens.experiments.distillation.weight_deltas`: layer (missing outside the layers), matrix,
            relative, cosine.
        value: ``relative``, or ``cosine`` (drawn as 1 - cosine). A value that is missing or infinite is left grey.
        title: Above the figure.

    Raises:
        UserError: an unknown value, a missing column, or no matrix in a layer.
    """
    if value not in _WEIGHTS:
        raise unknown("value", value, _WEIGHTS)
    panels.require(deltas, ("layer", "matrix", value), "give some deltas")
    change = deltas[value].astype(float).replace(np.inf, np.nan)
    table = deltas.assign(
        value=change if value == "relative" else 1 - change, matrix=deltas["matrix"].str.removesuffix(".weight")
    )
    inside, outside = table[table["layer"].notna()], table[table["layer"].isna()]
    if inside.empty:
        raise UserError("the table has no matrix in a layer; give the weight deltas of a pair")
    names, n_layers = list(inside["matrix"].unique()), int(inside["layer"].max()) + 1
    # cosines of equal weights differ from 1 by rounding
    limits = 0, round_up(float(table["value"].max())) if table["value"].max() > 1e-9 else 1.0
    fig = figure(title, "Change of the weights", height=0.24 * max(len(names), len(outside)) + 1.5)
    ratios = [n_layers, max(1.0, n_layers / 30)] if len(outside) else [1]
    axes = fig.subplots(1, len(ratios), squeeze=False, width_ratios=ratios)[0]
    inside = inside.assign(x=inside["layer"].astype(int), y=inside["matrix"].map(names.index))
    mesh = cells(axes[0], inside, limits, rows=names, columns=range(n_layers))
    axes[0].set_xlabel("layer")
    if len(outside):
        ends = outside.assign(x=0, y=range(len(outside)))
        cells(axes[1], ends, limits, rows=list(outside["matrix"]), columns=range(1), empty="none")
        axes[1].yaxis.tick_right()
        axes[1].tick_params(length=0)
        axes[1].set(xticks=[], ylim=(len(names) - 0.5, -0.5))  # cells as high as those of the layers
    panels.colour_bar(mesh, axes, _WEIGHTS[value])
    return fig


@themed
def activation_deltas(deltas: pd.DataFrame, *, title: str | None = None) -> Plot:
    """How far two models' activations are apart by layer: size of the difference and cosine, one line a part.

    Args:
        deltas: From `depthlens.experiments.distillation.activation_deltas`: layer, part, relative and cosine with their
            ``_low`` and ``_high``.
        title: Above the figure; by default with the number of prompts, where the table has it (``n``).

    Raises:
        UserError: a missing column, no rows, or more parts than there are colours.
    """
    ends = [f"{measure}{end}" for measure in _ACTIVATIONS for end in ("", "_low", "_high")]
    panels.require(deltas, ("layer", "part", *ends), "give some deltas")
    parts = list(deltas["part"].unique())
    panels.at_most_four(parts, "parts")
    count = f", n = {deltas['n'].max()} shared prompts" if "n" in deltas else ""
    fig = figure(title, f"Change of the activations{count}", height=3.1)
    for ax, (measure, label) in zip(fig.subplots(1, 2), _ACTIVATIONS.items(), strict=True):
        table = tidy(deltas.sort_values("layer"), "layer", measure, f"{measure}_low", f"{measure}_high")
        lines(ax, table.assign(series=table["part"]), parts, limits=_RANGE[measure])
        panels.level(ax, _SAME[measure], "no change")
        panels.layer_axis(ax, int(deltas["layer"].max()) + 1)
        ax.set(xlabel="layer", ylabel=label)
    return fig


def _unit(result: Result, profile: Scores) -> str:
    return unit_of(result, profile.model, profile.task, profile.metric, loss=True)


def _n_documents(every: list[Scores]) -> str:
    return counts(len(p.documents) for p in every)


def _losses(result: Result, profile: Scores) -> pd.DataFrame:
    """The losses of a profile as a table for drawing."""
    table = result.losses()
    of_profile = (table["task"] == profile.task) & (table["metric"] == profile.metric) & table["layer"].notna()
    rows = table[of_profile].sort_values("layer")
    least, greatest = limits_of(result, profile.model, profile.task, profile.metric)
    ends = rows[["loss_low", "loss_high"]].clip(least - greatest, greatest - least)
    critical = (rows["p_adjusted"] < ALPHA) & (rows["loss"] > rows["min_effect"])
    return tidy(
        rows.assign(**ends),
        "layer",
        "loss",
        "loss_low",
        "loss_high",
        shown=critical,
        idle=idle_where(rows["at_chance"]),
    )


def _centre(profile: Scores, centre: pd.Series) -> tuple[np.ndarray, str]:
    """A centre of mass on the axis of layers, with its interval; or why there is none."""
    at = centre[["centre", "ci_low", "ci_high"]].to_numpy(dtype=float) * (profile.n_layers - 1)
    return at, centre["unplaced"] and f"{centre['unplaced']}: cannot judge"


def _transplants(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """A series of transplants, whose name begins with the site where that is not the whole layer."""
    series = next(label for kind, label in _SERIES.items() if name.endswith(kind))
    changed = "last" if name.endswith(recovery.BOTTOM) else "first"
    shown = rows["p_adjusted"] < ALPHA
    return tidy(rows, changed, "value", "value_low", "value_high", series=series, shown=shown)


def _share_axis(ax: Axes, levels: pd.Series) -> None:
    """The share of the gap on the right, or that there is no gap to share."""
    if levels["no_gap"]:
        panels.note(ax, 1.01, 0.5, "no gap: cannot judge", rotation=90, ha="left", color=GREY)
        return
    base, gap = levels["base"], levels["donor"] - levels["base"]
    right = ax.secondary_yaxis("right", functions=(lambda v: (v - base) / gap, lambda s: base + s * gap))
    right.set_yticks([0, 0.5, 1])
    right.set_ylabel("share of the gap", fontsize=SMALL)
