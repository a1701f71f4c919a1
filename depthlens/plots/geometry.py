"""Figures of depth geometry: angular distances, block influence, logit lens, effects, and what foretells losses.

See `depthlens.plots` for what all figures have in common, `depthlens.experiments.geometry` for the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from depthlens.analysis.geometry import aligned, geometry_agreement
from depthlens.analysis.layer_profiles import profiles
from depthlens.analysis.results import Result
from depthlens.errors import UserError
from depthlens.plots.heads import unit_of
from depthlens.plots.theme import (
    CANNOT_JUDGE,
    DOTTED,
    GREY,
    INK,
    MARKERS,
    PALETTE,
    SCORES,
    WIDTH,
    counts,
    figure,
    legend,
    round_up,
    theme,
)

_BAND = Patch(facecolor=INK, alpha=0.2, lw=0, label="95% interval over texts")
_LENSES = {"probability": "probability of\nthe final top-1 token", "entropy": "entropy (nats)"}
_PREDICTORS = {
    "block_influence": "block influence",
    "angular_distance": "angular distance",
    "entropy_drop": "drop of entropy (nats)",
}
_PANELS = {
    "all": "skipped at all positions",
    "future": "skipped before t, measured from t on",
}
_NAMED = 2  # layers with the largest losses, named in a scatter


def angular_map(geometry: Any, *, title: str | None = None) -> Figure:
    """Angular distance between the input and the output of every block of layers, by first layer and size.

    The dot in each row is the block of that size whose removal turns the stream least: the one that pruning by angular
    distance takes out (Gromov et al. 2024).

    Args:
        geometry: From `depthlens.experiments.geometry.depth_geometry`.
        title: Above the figure.
    """
    table, n_layers = geometry.distances, geometry.n_layers
    grid = table.pivot(index="size", columns="layer", values="distance")
    grid = grid.reindex(index=range(1, n_layers + 1), columns=range(n_layers)).to_numpy(dtype=float)
    best = table.loc[table.groupby("size")["distance"].idxmin()]
    with theme():
        fig = figure(title or _named(geometry, "angular distance of blocks"), height=4.4, width=0.75 * WIDTH)
        ax = fig.subplots()
        mesh = _mesh(ax, grid, (-0.5, 0.5), round_up(float(np.nanmax(grid))), "distances")
        ax.plot(best["layer"], best["size"], "o", ms=5, mfc="white", mec=INK, mew=0.9, gid="best")
        ax.set(xlabel="first layer of the block", ylabel="layers in the block")
        _colourbar(fig, mesh, "angular distance of the block's input and output (1: opposite)")
        legend(fig, [Line2D([], [], ls="", marker="o", ms=5, mfc="white", mec=INK, label="smallest of its size")])
    return fig


def influence_profile(geometry: Any, *, title: str | None = None) -> Figure:
    """Block influence by layer, with its interval, and the angular distance that the layer alone makes.

    Args:
        geometry: From `depthlens.experiments.geometry.depth_geometry`.
        title: Above the figure.
    """
    single = geometry.distances[geometry.distances["size"] == 1]
    panels = [
        (geometry.influences, "influence", "block influence\n(1 − mean cosine over tokens)"),
        (single, "distance", "angular distance\n(last token)"),
    ]
    with theme():
        fig = figure(title or _named(geometry, "how far each layer turns the stream"), height=2.9)
        for style, (ax, (table, name, label)) in enumerate(zip(fig.subplots(1, 2), panels, strict=True)):
            _line(ax, table["layer"], table[name], table["ci_low"], table["ci_high"], style, name)
            ax.set(xlabel="layer", ylabel=label)
        legend(fig, [_BAND])
    return fig


def logit_lens(geometry: Any, *, title: str | None = None) -> Figure:
    """What the unembedding reads from the stream by depth: probability of the final top-1 token, and entropy.

    Args:
        geometry: From `depthlens.experiments.geometry.depth_geometry`.
        title: Above the figure.
    """
    table = geometry.logit_lens
    with theme():
        fig = figure(title or _named(geometry, "logit lens"), height=2.9)
        for style, (ax, (name, label)) in enumerate(zip(fig.subplots(1, 2), _LENSES.items(), strict=True)):
            _line(ax, table["depth"], table[name], table[f"{name}_low"], table[f"{name}_high"], style, name)
            ax.set(xlabel="layers passed (0: the embedding)", ylabel=label)
        legend(fig, [_BAND])
    return fig


def effect_map(effects: pd.DataFrame, *, title: str | None = None) -> Figure:
    """How much skipping one layer changes what each later one adds: at all positions, and at future ones only.

    Both panels share one scale. It ends at the largest effect, or at the 95th percentile of all where a few lie far
    beyond; the colour bar then ends in a point.

    Args:
        effects: From `depthlens.experiments.geometry.layer_effects`.
        title: Above the figure.

    Raises:
        UserError: a missing column, or no rows.
    """
    _check(effects, ("layer", "later", "where", "effect"))
    n_layers = int(effects["later"].max()) + 1
    largest, usual = float(effects["effect"].max()), float(effects["effect"].quantile(0.95))
    top = round_up(largest if largest < 2 * usual else usual) or 1.0
    count = f", n = {effects['n'].max()} texts" if "n" in effects else ""
    with theme():
        fig = figure(title or f"Effect of a skipped layer on later ones{count}", height=4.3)
        axes = fig.subplots(1, 2, sharey=True)
        for ax, where in zip(axes, _PANELS, strict=True):
            rows = effects[effects["where"] == where]
            grid = rows.pivot(index="layer", columns="later", values="effect")
            grid = grid.reindex(index=range(n_layers), columns=range(n_layers)).to_numpy(dtype=float)
            mesh = _mesh(ax, grid, (-0.5, -0.5), top, where)
            ax.set(xlabel="later layer", xlim=(0.5, n_layers - 0.5), ylim=(n_layers - 1.5, -0.5))
            ax.set_title(_PANELS[where], loc="left")
        axes[0].set_ylabel("skipped layer")
        label = "change of what the later layer adds, relative to its size"
        _colourbar(fig, mesh, label, extend="max" if largest > top else "neither")
    return fig


def predictor_scatter(
    predictors: pd.DataFrame, result: Result, *, title: str | None = None, seed: int = 0, n_boot: int = 2000
) -> Figure:
    """Loss of removing each layer against its cheap numbers: one row a task, one column a predictor, one dot a layer.

    Above each panel Spearman's correlation with its bootstrap interval over documents; the layers that cost most are
    named. Tasks at chance are grey.

    Args:
        predictors: From `depthlens.analysis.geometry_predictors`.
        result: A layer sweep of the same model.
        title: Above the figure.
        seed: Of the bootstrap.
        n_boot: Number of draws.

    Raises:
        UserError: see `depthlens.analysis.geometry_agreement`.
    """
    found = profiles(result)
    rho = geometry_agreement(predictors, result, seed=seed, n_boot=n_boot).table.set_index(["task", "predictor"])
    names = [c for c in predictors.columns if c != "layer"]
    if not names:
        raise UserError("the table has no predictors beside column layer; give at least one")
    n = counts(len(p.documents) for p in found)
    with theme():
        named = f"{found[0].model}: loss of each layer against cheap numbers, n = {n} documents"
        fig = figure(title or named, height=2.0 * len(found) + 0.6)
        axes = fig.subplots(len(found), len(names), squeeze=False, sharex="col", sharey="row")
        for row, profile in enumerate(found):
            table, loss = aligned(predictors, profile), profile.loss.mean(0)
            colour = GREY if profile.at_chance else PALETTE[0]
            for ax, name in zip(axes[row], names, strict=True):
                ax.axhline(0, color=GREY, lw=0.8, ls=DOTTED, zorder=1)
                ax.plot(table[name], loss, "o", ms=4, color=colour, mfc="white", mew=0.9, gid="layers")
                if profile.at_chance:
                    said = CANNOT_JUDGE
                else:
                    _name_layers(ax, table[name].to_numpy(), loss, profile.layers)
                    said = _rho(rho.loc[(profile.label, name)])
                ax.set_title(said, loc="left", fontsize=8)
                ax.margins(0.12)
            unit = unit_of(result, profile.model, profile.task, profile.metric)
            axes[row, 0].set_ylabel(f"{profile.label}\nloss ({unit})").set_parse_math(False)
        for ax, name in zip(axes[-1], names, strict=True):
            ax.set_xlabel(_PREDICTORS.get(name, str(name)))
            ax.xaxis.set_major_locator(ticker.MaxNLocator(nbins=4))
        _despine(list(axes.flat))
    return fig


def _rho(row: pd.Series) -> str:
    if np.isnan(row["spearman"]):
        return "ρ: no spread, cannot judge"
    return f"ρ = {row['spearman']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]"


def _name_layers(ax: Axes, x: np.ndarray, loss: np.ndarray, layers: np.ndarray) -> None:
    """Name the layers that cost most, on the side of the dot where there is room."""
    middle = (x.min() + x.max()) / 2
    for i in np.argsort(-loss, kind="stable")[:_NAMED]:
        side, align = (-6, "right") if x[i] > middle else (6, "left")
        place = {"xytext": (side, 0), "textcoords": "offset points", "ha": align, "va": "center", "fontsize": 8}
        ax.annotate(f"L{layers[i]}", (x[i], loss[i]), gid="name", **place)


def _named(geometry: Any, what: str) -> str:
    return f"{geometry.record['model']['name']}: {what}, n = {geometry.record['texts']['n']} texts"


def _mesh(ax: Axes, grid: np.ndarray, corner: tuple[float, float], top: float, gid: str) -> QuadMesh:
    """A map of numbers from 0 to ``top``; ``corner`` is where its first column and row begin."""
    x, y = (np.arange(n + 1) + start for n, start in zip(grid.shape[::-1], corner, strict=True))
    look = {"cmap": SCORES, "vmin": 0, "vmax": top or 1.0, "edgecolors": "white", "linewidth": 0.3}
    mesh = ax.pcolormesh(x, y, np.ma.masked_invalid(grid), gid=gid, **look)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=9))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return mesh


def _colourbar(fig: Figure, mesh: QuadMesh, label: str, extend: str = "neither") -> None:
    place = {"orientation": "horizontal", "aspect": 45, "fraction": 0.06, "pad": 0.02, "extend": extend}
    bar: Any = fig.colorbar(mesh, ax=fig.axes, label=label, **place)
    bar.outline.set_visible(False)


def _line(ax: Axes, x: pd.Series, y: pd.Series, low: pd.Series, high: pd.Series, style: int, gid: str) -> None:
    """A line with its interval as a band, on an axis from 0."""
    ax.fill_between(x, low, high, color=PALETTE[style], alpha=0.16, lw=0, gid=f"{gid} band")
    look = {"lw": 1.2, "marker": MARKERS[style], "ms": 3.5, "mfc": "white", "mew": 0.8}
    ax.plot(x, y, color=PALETTE[style], gid=gid, **look)
    ax.set_ylim(0, 1.05 * np.nanmax([y, high]))
    ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=7))
    _despine([ax])


def _despine(axes: Sequence[Axes]) -> None:
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)


def _check(table: pd.DataFrame, wanted: Sequence[str]) -> None:
    if missing := [c for c in wanted if c not in table.columns]:
        raise UserError(f"the table lacks column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}")
    if table.empty:
        raise UserError("the table has no rows; give the effects of a model of at least two layers")
