"""Figures of depth: its geometry, what predicts losses, how much of it a task needs, and when each part was decided.

See `depthlens.plots` for what all figures have in common; the numbers are those of `depthlens.experiments.geometry`,
`depthlens.experiments.sweep` and `depthlens.experiments.race`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import ticker

from depthlens.analysis import races, stats
from depthlens.analysis.block_losses import block_table
from depthlens.analysis.block_removal import Greedy
from depthlens.analysis.geometry import Geometry, aligned, geometry_agreement
from depthlens.analysis.races import Race
from depthlens.analysis.results import Result
from depthlens.analysis.scores import layer_scores
from depthlens.errors import UserError
from depthlens.look import EMPTY, GREY, INK, PALE, PALETTE
from depthlens.plots import panels
from depthlens.plots.effects import named, unit_of
from depthlens.plots.panels import cells, lines, tidy
from depthlens.plots.theme import CANNOT_JUDGE, SMALL, WIDTH, Plot, counts, figure, round_up, themed

PROVEN = "proven loss (corrected over blocks)"
MOST_ROWS = 40  # conditions in a panel; of more, those that took longest are shown
_COLOURS = {races.CRITICAL: PALETTE[1], races.SPARED: PALETTE[0], races.UNDECIDED: PALE, races.AT_CHANCE: EMPTY}
_LENSES = {"probability": "probability of\nthe final top-1 token", "entropy": "entropy (nats)"}
_PREDICTORS = {
    "block_influence": "block influence",
    "angular_distance": "angular distance",
    "entropy_drop": "drop of entropy (nats)",
}
_WHERE = {"all": "skipped at all positions", "future": "skipped before t, measured from t on"}
_NAMED = 2  # layers with the largest losses, named in a scatter


@themed
def angular_map(geometry: Geometry, *, title: str | None = None) -> Plot:
    """Angular distance between the input and the output of every block of layers, by first layer and size.

    The dot in each row is the block of that size whose input and output are nearest in angle: the one that pruning by
    angular distance removes (Gromov et al. 2024).

    Args:
        geometry: From `depthlens.depth_geometry`.
        title: Above the figure.
    """
    n_layers = geometry.n_layers
    table = geometry.distances.assign(x=lambda t: t["layer"], y=lambda t: t["size"], value=lambda t: t["distance"])
    best = table.loc[table.groupby("size")["distance"].idxmin()]
    fig = figure(title, _title(geometry, "angular distance of blocks"), height=4.4, width=0.75 * WIDTH)
    ax = fig.subplots()
    limits = 0, round_up(float(table["distance"].max())) or 1.0
    mesh = cells(ax, table, limits, rows=range(1, n_layers + 1), columns=range(n_layers), empty="white")
    dot: dict[str, Any] = {"marker": "o", "ms": 5, "mfc": "white", "color": INK, "mew": 0.9}
    ax.plot(best["x"], best["y"], ls="", gid="best", **dot)
    ax.set(xlabel="first layer of the block", ylabel="layers in the block", ylim=(0.5, n_layers + 0.5))
    panels.colour_bar(mesh, ax, "angular distance of the block's input and output (1: opposite)")
    panels.key(ax, "mark", "smallest of its size", **dot)
    return fig


@themed
def influence_profile(geometry: Geometry, *, title: str | None = None) -> Plot:
    """Block influence by layer, with its interval, and the angular distance that the layer alone makes.

    Args:
        geometry: From `depthlens.depth_geometry`.
        title: Above the figure.
    """
    single = geometry.distances[geometry.distances["size"] == 1]
    parts = [
        (tidy(geometry.influences, "layer", "influence"), "block influence\n(1 − mean cosine over tokens)"),
        (tidy(single, "layer", "distance"), "angular distance\n(last token)"),
    ]
    return _curves(title, _title(geometry, "how much each layer changes the residual stream"), parts, "layer")


@themed
def logit_lens(geometry: Geometry, *, title: str | None = None) -> Plot:
    """What the unembedding reads from the residual stream by depth: probability of the final top-1 token, and entropy.

    Args:
        geometry: From `depthlens.depth_geometry`.
        title: Above the figure.
    """
    lens = geometry.logit_lens
    parts = [(tidy(lens, "depth", name, f"{name}_low", f"{name}_high"), label) for name, label in _LENSES.items()]
    return _curves(title, _title(geometry, "logit lens"), parts, "layers passed (0: the embedding)")


@themed
def effect_map(effects: pd.DataFrame, *, title: str | None = None) -> Plot:
    """How much skipping one layer changes what each later one adds: at all positions, and at future ones only.

    Both panels share one scale. It ends at the largest effect, or at the 95th percentile of all where a few are far
    beyond; the colour bar then ends in a point.

    Args:
        effects: From `depthlens.layer_effects`.
        title: Above the figure.

    Raises:
        UserError: a missing column, or no rows.
    """
    fix = "give the effects of a model of at least two layers"
    panels.require(effects, ("layer", "later", "where", "effect"), fix)
    layers = range(int(effects["later"].max()) + 1)
    largest, usual = float(effects["effect"].max()), float(effects["effect"].quantile(0.95))
    top = round_up(largest if largest < 2 * usual else usual) or 1.0
    count = f", n = {effects['n'].max()} texts" if "n" in effects else ""
    fig = figure(title, f"Effect of a skipped layer on later ones{count}", height=4.3)
    axes = fig.subplots(1, 2, sharey=True)
    for ax, (where, name) in zip(axes, _WHERE.items(), strict=True):
        rows = effects[effects["where"] == where]
        table = rows.assign(x=rows["later"], y=rows["layer"], value=rows["effect"])
        mesh = cells(ax, table, (0, top), rows=layers, columns=layers, empty="white")
        ax.set(xlabel="later layer", xlim=(0.5, len(layers) - 0.5), ylim=(len(layers) - 1.5, -0.5))
        panels.panel_title(ax, name)
    axes[0].set_ylabel("skipped layer")
    label = "change of what the later layer adds, relative to its size"
    panels.colour_bar(mesh, axes, label, extend="max" if largest > top else "neither")
    return fig


@themed
def predictor_scatter(predictors: pd.DataFrame, result: Result, *, title: str | None = None, seed: int = 0) -> Plot:
    """Loss of removing each layer against its cheap numbers: one row a task, one column a predictor, one dot a layer.

    Above each panel are Spearman's correlation of the measured means, what noise allows, and p against shifts of depth
    (`depthlens.analysis.rank_correlations`); the layers that cost most are named. Tasks at chance are grey.

    Args:
        predictors: From `depthlens.analysis.geometry_predictors`.
        result: A layer sweep of the same model.
        title: Above the figure.
        seed: Of the halves.

    Raises:
        UserError: see `depthlens.analysis.geometry_agreement`.
    """
    rows = layer_scores(result)
    rho = geometry_agreement(predictors, result, seed=seed).table.set_index(["task", "predictor"])
    names = [c for c in predictors.columns if c != "layer"]
    if not names:
        raise UserError("the table has no predictors beside column layer; give at least one")
    n = counts(len(p.documents) for p in rows)
    default = f"{rows[0].model}: loss of each layer against cheap numbers, n = {n} documents"
    fig = figure(title, default, height=2.0 * len(rows) + 0.6)
    axes = fig.subplots(len(rows), len(names), squeeze=False, sharex="col", sharey="row")
    for row, profile in zip(axes, rows, strict=True):
        table = aligned(predictors, profile).reset_index().assign(task=profile.label, y=profile.loss.mean(0))
        for ax, name in zip(row, names, strict=True):
            panels.level(ax, 0, "no change")
            dots = table.assign(x=table[name], series=name)
            panels.keep(ax, dots)
            colour = GREY if profile.at_chance else PALETTE[0]
            ax.plot(dots["x"], dots["y"], "o", ms=4, color=colour, mfc="white", mew=0.9, gid="dots")
            for dot in dots.nlargest(0 if profile.at_chance else _NAMED, "y").itertuples():
                panels.beside(ax, dot.x, dot.y, f"L{dot.layer}")
            verdict = CANNOT_JUDGE if profile.at_chance else _rho(rho.loc[(profile.label, name)])
            panels.panel_title(ax, verdict, fontsize=SMALL)
            ax.margins(0.12)
        unit = unit_of(result, profile.model, profile.task, profile.metric, loss=True)
        row[0].set_ylabel(f"{profile.label}\nloss ({unit})").set_parse_math(False)
    for ax, name in zip(axes[-1], names, strict=True):
        ax.set_xlabel(_PREDICTORS.get(name, str(name)))
        ax.xaxis.set_major_locator(ticker.MaxNLocator(nbins=4))
    return fig


def _rho(row: pd.Series) -> str:
    if np.isnan(row["spearman"]):
        return "ρ: no spread, cannot judge"
    p = f", p = {row['p_value']:.2g}" if np.isfinite(row["p_value"]) else ""
    ceiling = f"\n(noise allows {row['ceiling']:.2f})" if np.isfinite(row["ceiling"]) else ""
    return f"ρ = {row['spearman']:.2f}{p}{ceiling}"


def _title(geometry: Geometry, what: str) -> str:
    return f"{geometry.record['model']['name']}: {what}, n = {geometry.record['texts']['n']} texts"


def _curves(title: str | None, default: str, parts: Sequence[tuple[pd.DataFrame, str]], xlabel: str) -> Plot:
    """A panel for each table and what it is called: a line with its interval, on an axis from 0."""
    fig = figure(title, default, height=2.9)
    for ax, (table, label) in zip(fig.subplots(1, len(parts)), parts, strict=True):
        lines(ax, table, limits=(0, np.inf), interval="95% interval over texts")
        ax.set_ylim(0, 1.05 * float(table[["y", "low", "high"]].max(axis=None)))
        panels.whole_numbers(ax.xaxis, 7)
        ax.set(xlabel=xlabel, ylabel=label)
    return fig


@themed
def block_map(result: Result, *, title: str | None = None) -> Plot:
    """Loss by removing every contiguous block: one panel a task and metric, first layer of the block by its size.

    A dot marks blocks whose loss is significant by step-down maxT. A task at chance is hatched.

    Args:
        result: A block sweep.
        title: Above the figure.

    Raises:
        UserError: the result has no blocks.
    """
    table = block_table(result)
    bases = result.baselines.to_dict("records")
    largest, n_layers = int(table["size"].max()), int((table["start"] + table["size"]).max())
    sizes = range(1, largest + 1)
    height = (0.16 * largest + 1.25) * len(bases) + 0.5
    fig = figure(title, "Loss by removing a block of layers", height=height)
    for ax, base in zip(fig.subplots(len(bases), 1, squeeze=False)[:, 0], bases, strict=True):
        idle = CANNOT_JUDGE if base["at_chance"] else ""
        rows = table[(table["task"] == base["task"]) & (table["metric"] == base["metric"])]
        rows = rows.assign(x=rows["start"], y=rows["size"], value=np.nan if idle else rows["loss"], idle=idle)
        rows["shown"] = (rows["p_adjusted"] < stats.ALPHA) & (rows["loss"] > 0) & (not idle)
        top = max(1e-9, float(np.nanmax(rows["value"], initial=0)))
        mesh = cells(
            ax, rows, (0, top), rows=sizes, columns=range(n_layers), edgecolors="none", mark=1.25, shown=PROVEN
        )
        if not idle:
            place = {"orientation": "vertical", "fraction": 0.15, "pad": 0.01, "aspect": 12}
            panels.colour_bar(mesh, ax, f"loss of {named(base['metric'], loss=True)}", **place)
        name = f"{base['task']}, {base['metric']}: {base['baseline']:.2f} with every layer, n = {base['n']}"
        panels.panel_title(ax, textwrap.shorten(name, 100), fontsize=9)
        ax.set(xlabel="first layer of the block", ylabel="layers", ylim=(0.5, largest + 0.5))
        panels.key(ax, "area", "no such block", facecolor=EMPTY, alpha=1)
    return fig


@themed
def greedy_curve(greedy: Greedy, *, title: str | None = None) -> Plot:
    """Change of the score as layers are removed one after another.

    One line is the half of the documents that judges, with its interval, the other the half that chose the layers.

    Args:
        greedy: From `depthlens.greedy_removal`.
        title: Above the figure.
    """
    steps, record = greedy.steps, greedy.record
    default = f"Layers removed one after another: {record['task']}, judged on {steps['n'].iloc[0]} documents"
    table = tidy(steps, "step", "delta")
    table.loc[table["step"] == 0, ["low", "high"]] = 0.0  # with nothing removed nothing changes
    halves = ["judging half of the documents", "choosing half"]
    chosen = table.assign(y=table["chosen_by"], low=np.nan, high=np.nan, series=halves[1])
    better = greedy.result.metric_info(record["task"], record["metric"])["higher_is_better"]
    fig = figure(title, default, height=3.2)
    ax = fig.subplots()
    lines(ax, pd.concat([table.assign(series=halves[0]), chosen]), halves, ms=4.5)
    panels.level(ax, 0, "zero")
    tolerance = -record["tolerance"] if better else record["tolerance"]
    panels.level(ax, tolerance, "tolerance", f"tolerance {record['tolerance']:g}")
    names = ["none", *(f"L{layer}" for layer in steps["layer"].iloc[1:])]
    ax.set_xticks(steps["step"], names, rotation=90 if len(names) > 14 else 0)
    ylabel = f"change of {named(record['metric'], loss=True)} from the whole model"
    ax.set(xlabel="layer that was removed, in this order", ylabel=ylabel)
    ax.yaxis.set_major_locator(ticker.MaxNLocator(nbins=6))
    return fig


@themed
def race_course(race: Race, *, title: str | None = None) -> Plot:
    """Documents until each condition was decided, and how: one panel a task.

    Conditions stand in the order of the race. Of more than 40 in a task, those that took longest are shown.

    Args:
        race: From `depthlens.race`.
        title: Above the figure.
    """
    groups = list(race.decisions.groupby(["task", "metric"], sort=False))
    shown = [rows.nlargest(MOST_ROWS, "n").sort_index() for _, rows in groups]
    seen = counts(race.decisions["n"])
    fig = figure(
        title, f"Documents until each part was decided: {seen}", height=sum(0.16 * len(t) + 1.1 for t in shown)
    )
    ratios = [len(table) + 4 for table in shown]
    axes = fig.subplots(len(groups), 1, squeeze=False, sharex=True, height_ratios=ratios)[:, 0]
    for ax, ((task, metric), rows), table in zip(axes, groups, shown, strict=True):
        places = range(len(table))
        panels.keep(ax, table.assign(series=table["decision"]), "n")
        ax.barh(places, table["n"], color=[_COLOURS[decision] for decision in table["decision"]], height=0.8)
        ax.set_yticks(places, table["condition"])
        ax.set(ylim=(len(table) - 0.4, -0.6), xlabel="documents" if ax is axes[-1] else "")
        cut = f", the {len(table)} of {len(rows)} that took longest" if len(table) < len(rows) else ""
        panels.panel_title(ax, f"{task} ({metric}): {race.record['n_documents'][task]} documents{cut}", fontsize=9)
    names = {
        races.CRITICAL: "costs something",
        races.SPARED: f"costs less than {race.record['margin']:g}",
        races.AT_CHANCE: CANNOT_JUDGE,
    }
    for name in race.decisions["decision"].unique():
        panels.key(axes[0], "area", names.get(name, name), facecolor=_COLOURS[name], alpha=1)
    return fig
