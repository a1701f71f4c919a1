"""Figures of depth geometry: angular distances, block influence, logit lens, effects, and what predicts losses.

See `depthlens.plots` for what all figures have in common, `depthlens.experiments.geometry` for the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import ticker

from depthlens.analysis.geometry import Geometry, aligned, geometry_agreement
from depthlens.analysis.results import Result
from depthlens.analysis.scores import layer_scores
from depthlens.errors import UserError
from depthlens.look import GREY, INK, PALETTE
from depthlens.plots import panels
from depthlens.plots.effects import unit_of
from depthlens.plots.panels import cells, lines, tidy
from depthlens.plots.theme import CANNOT_JUDGE, SMALL, WIDTH, Plot, counts, figure, round_up, themed

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
