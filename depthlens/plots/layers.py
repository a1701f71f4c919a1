"""Figures over the layers of one model: what removing each costs, blocks of them, and the geometry of depth.

See `depthlens.plots` for what all figures have in common; the numbers are those of `depthlens.experiments.sweep`,
`depthlens.experiments.block_removal` and `depthlens.experiments.geometry`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import AsinhNorm

from depthlens.analysis.layers.blocks import block_table
from depthlens.analysis.layers.geometry import Geometry
from depthlens.analysis.layers.pairs import PairLosses
from depthlens.analysis.numbers.stats import ALPHA, BASELINE, GROUP, loss_unit
from depthlens.analysis.result.profiles import by_layer
from depthlens.analysis.result.results import Result
from depthlens.analysis.result.tables import DescribedTable
from depthlens.errors import UserError
from depthlens.look import EMPTY, INK
from depthlens.plots.effects import FIELDS, labels, named, sweep_table, sweep_title, varying
from depthlens.plots.panels import CENTRE, MAX_OVERLAID, PROVEN, curves, idle_where, key, maps, tidy
from depthlens.plots.theme import SMALL, WIDTH, counts, round_up, themed

SHARES = "share of the row's summed loss (red: loss)"
CRITICAL_LAYER = f"critical layer (loss, {PROVEN})"
PROVEN_BLOCK = "proven loss (corrected over blocks)"
_LENSES = {"probability": "probability of\nthe final top-1 token", "entropy": "entropy (nats)"}
_WHERE = {"all": "skipped at all positions", "future": "skipped before t, measured from t on"}
_SHARE_TICKS = (-1.0, -0.3, -0.1, -0.03, 0.0, 0.03, 0.1, 0.3, 1.0)
_THIRDS: dict[str, Any] = {"color": INK, "lw": 0.8, "ls": (0, (2, 2))}
_LAYER_SITES, _FIX, _SEVERAL = ("layer", "attn", "mlp"), "sweep layers, attn or mlp", "one layer or part of it"


@themed
def depth_profile(result: Result) -> None:
    """Score by removed layer, with the 95% interval of the difference from baseline as a band.

    Dashed lines are baselines, dotted lines chance, filled markers critical layers. Fewer than six documents have
    a band only where scores are 0 or 1. Up to four series share a panel (models, tasks, metrics, kinds of ablation),
    more are drawn side by side; so are different units, and tasks in nats, whose baselines can be far apart.

    Args:
        result: Of a sweep over layers, their attention or their MLPs; other conditions are left out.

    Raises:
        UserError: no condition is a single layer.

    Example:
        >>> figure = result.plot("depth_profile")
        >>> figure.table.columns.tolist()
        ['panel', 'model', 'task', 'metric', 'condition', 'layer', 'value', 'low', 'high', 'p_adjusted', 'shown']
    """
    table = sweep_table(result, _LAYER_SITES, _FIX)
    default = sweep_title(table, _SEVERAL)
    fields = varying(table)
    ways = [["model", "task"], GROUP, FIELDS]
    if not table["unit"].str.contains("nats").any():
        ways.insert(0, [])
    for across in ways:
        inner = [f for f in fields if f not in across]
        if labels(table, inner).nunique() <= MAX_OVERLAID or across is FIELDS:
            break
    outer = [f for f in fields if f in across]
    several = table.groupby(["unit", *across], sort=False).ngroups > 1
    if several and not outer:  # split by unit alone: the metric names the panels
        outer, inner = ["metric"], [f for f in inner if f != "metric"]
    goes = table["mode"].isin(("removed", "mean")).all()
    table = table.assign(
        series=labels(table, inner) if inner else "",
        panel=labels(table, outer) if several else "",
        x=table["layer"],
        y=table["baseline"] + table["bounded"],
        low=table["baseline"] + table["ci_low"],
        high=table["baseline"] + table["ci_high"],
    )
    axis = "removed layer" if goes else "layer"  # one that is rounded, disturbed or run twice stays
    names = list(table["series"].unique())
    look: dict[str, Any] = {"levels": ("baseline", "chance"), "xlabel": axis, "shown": CRITICAL_LAYER}
    curves(default, table, names, **look)


@themed
def protocol_comparison(result: Result) -> None:
    """One row per task and metric, one column per removed layer: which layers matter under which protocol.

    Colour is the difference from baseline: white none, red worse, blue better. A dot is a critical layer, a
    ring a significant gain. A row at chance shows no differences, because there are none to judge.

    Args:
        result: Of a sweep over layers, their attention or their MLPs; other conditions are left out.

    Raises:
        UserError: no condition that is a single layer, or several units.

    Example:
        >>> figure = both.plot("protocol_comparison")
    """
    table = sweep_table(result, _LAYER_SITES, _FIX)
    if len(units := list(table["unit"].unique())) > 1:
        raise UserError(
            f"one colour scale cannot show {', '.join(units)} together; choose by result.select(metrics=...)"
        )
    judged = table["bounded"].where(table["idle"] == "")
    table = table.assign(x=table["layer"], y=table.groupby(FIELDS, sort=False).ngroup(), value=judged)
    limit = max(0.1, round_up(float(judged.abs().max()))) if judged.notna().any() else 1.0
    firsts = table.drop_duplicates("y")
    names, n_layers = list(labels(firsts, varying(table))), int(table["n_layers"].max())
    label, cmap = f"change of {units[0]} from baseline", "RdBu" if table["worse"].iloc[0] < 0 else "RdBu_r"
    look = _layer_rows(names, n_layers) | {"cmap": cmap, "shown": CRITICAL_LAYER}
    (ax,) = maps(sweep_title(table, _SEVERAL), table, (-limit, limit), label, **look)
    for y, baseline in zip(firsts["y"], firsts["baseline"], strict=True):
        ax.text(n_layers - 0.2, y, f"baseline {baseline:.2f}", va="center", fontsize=SMALL)


@themed
def loss_shares(result: Result) -> None:
    """Where in depth the losses are: one row a task and metric, one column a removed layer; each row adds up to one.

    Colour is the share of the row's summed loss (red; blue where a removal helps), the diamond its centre of mass with
    a 95% interval. Shares make metrics of any unit comparable. They do not show how much is lost in all. Of too few
    questions the shares of the sample are shown, without a centre.

    Args:
        result: A layer sweep.

    Raises:
        UserError: the result has no single-layer conditions.

    Example:
        >>> figure = one.plot("loss_shares")
    """
    rows, centres = by_layer(result), result.centre_of_mass().table
    n_layers, n = rows[0].n_layers, counts(len(p.documents) for p in rows)
    parts = []
    for y, p in enumerate(rows):
        idle = "" if p.unplaced == p.too_few else f"{p.unplaced}: cannot judge"
        share = np.nan if idle else p.loss.mean(0) / p.loss.mean(0).sum()
        about = {"task": p.task, "metric": p.metric, "idle": idle, "y": y}
        parts.append(pd.DataFrame(about | {"layer": p.layers, "x": p.layers, "value": share}))
    table = pd.concat(parts)
    limit = max(float(table["value"].abs().fillna(0).max()), 3 / n_layers)
    default = f"{rows[0].model}: share of each row's losses, n = {n} documents"
    default += next((f" (for a centre of mass {p.too_few})" for p in rows if p.unplaced == p.too_few != ""), "")
    look = _layer_rows([p.label.replace(" ", "\n", 1) for p in rows], n_layers) | {"cmap": "RdBu_r"}
    bar = {"ticks": [tick for tick in _SHARE_TICKS if abs(tick) <= limit], "format": "%g"}
    # even up to an even share and by the logarithm beyond, because one early layer can hold nearly everything
    colours = AsinhNorm(1 / n_layers, -limit, limit)
    (ax,) = maps(default, table, colours, SHARES, bar=bar, **look)
    places = (n_layers - 1) * centres[["centre", "ci_low", "ci_high"]].to_numpy(dtype=float)
    for row, (centre, *interval) in enumerate(places):
        if np.isnan(centre):
            continue
        for width, colour in ((3.5, "white"), (1.5, INK)):  # the line stands out from any cell
            ax.plot(interval, [row, row], color=colour, lw=width, solid_capstyle="butt")
        ax.plot(centre, row, "D", color=INK, mec="white", ms=6, gid="centre")
        key(ax, "line", CENTRE, lw=1.5, marker="D", mec="white", ms=6)
    for third in (1, 2):
        ax.axvline(np.ceil(third * n_layers / 3) - 0.5, **_THIRDS)
    key(ax, "line", "thirds of the depth", **_THIRDS)


@themed
def open_book_losses(versus: DescribedTable) -> None:
    """Loss in the open-book task minus loss in the closed-book one, by layer.

    Bars are 95% intervals; a marker is filled where the difference is proven.

    Args:
        versus: From `depthlens.Result.open_book`, of a layer sweep; of its metrics the last is drawn.

    Example:
        >>> figure = book.open_book("capitals", "capitals_open_book").plot()
    """
    metric = versus.table["metric"].iloc[-1]
    table = versus.table[(versus.table["metric"] == metric) & (versus.table["condition"] != BASELINE)]
    table = tidy(table.sort_values("layer"), "layer", "difference")
    names = [f"costs more in the {book}-book task" for book in ("open", "closed")]
    table = table.assign(series=np.where(table["y"] > 0, *names), shown=table["p_adjusted"] < ALPHA)
    table = table.assign(unit=f"open minus closed\n({loss_unit(metric) or metric})", n_layers=table["layer"].max() + 1)
    look: dict[str, Any] = {"xlabel": "layer", "levels": ("zero",), "bars": True, "ls": "", "ms": 4}
    default = f"Loss in the open-book minus loss in the closed-book task, n = {table['n'].max()}"
    curves(default, table, names, each=1.7, **look)


def _layer_rows(names: Sequence[str], n_layers: int) -> dict[str, Any]:
    """Size and axes of a map with one column a layer, and rows with names."""
    height = 0.37 * len(names) + 1.6
    return {"rows": names, "columns": range(n_layers), "height": height, "xlabel": "removed layer"}


@themed
def angular_map(geometry: Geometry) -> None:
    """Angular distance between the input and the output of every block of layers, by first layer and size.

    The dot in each row is the block of that size whose input and output are nearest in angle: the one that pruning by
    angular distance removes (Gromov et al. 2024).

    Args:
        geometry: From `depthlens.depth_geometry`.

    Example:
        >>> figure = geometry.plot("angular_map")
    """
    n_layers = geometry.n_layers
    table = geometry.distances.assign(x=lambda t: t["layer"], y=lambda t: t["size"], value=lambda t: t["distance"])
    best = table.loc[table.groupby("size")["distance"].idxmin()]
    top, default = round_up(float(table["distance"].max())) or 1.0, _title(geometry, "angular distance of blocks")
    label = "angular distance of the block's input and output (1: opposite)"
    look: dict[str, Any] = {"xlabel": "first layer of the block", "ylabel": "layers in the block", "empty": "white"}
    look |= {"rows": range(1, n_layers + 1), "columns": range(n_layers), "height": 4.4, "width": 0.75 * WIDTH}
    (ax,) = maps(default, table, (0, top), label, **look)
    dot: dict[str, Any] = {"marker": "o", "ms": 5, "mfc": "white", "color": INK, "mew": 0.9}
    ax.plot(best["x"], best["y"], ls="", gid="best", **dot)
    ax.invert_yaxis()
    key(ax, "mark", "smallest of its size", **dot)


@themed
def influence_profile(geometry: Geometry) -> None:
    """Block influence by layer, with its interval, and the angular distance that the layer alone makes.

    Args:
        geometry: From `depthlens.depth_geometry`.

    Example:
        >>> figure = geometry.plot()
    """
    single = geometry.distances[geometry.distances["size"] == 1]
    parts = {
        "block influence\n(1 − mean cosine over tokens)": tidy(geometry.influences, "layer", "influence"),
        "angular distance\n(last token)": tidy(single, "layer", "distance"),
    }
    default = _title(geometry, "how much each layer changes the residual stream")
    _over_texts(default, parts, xlabel="layer")


@themed
def logit_lens(geometry: Geometry) -> None:
    """What the unembedding reads from the residual stream by depth: probability of the final top-1 token, and entropy.

    Args:
        geometry: From `depthlens.depth_geometry`.

    Example:
        >>> figure = geometry.plot("logit_lens")
    """
    lens = geometry.logit_lens
    parts = {label: tidy(lens, "depth", name, f"{name}_low", f"{name}_high") for name, label in _LENSES.items()}
    default = _title(geometry, "logit lens")
    _over_texts(default, parts, xlabel="layers passed (0: the embedding)")


@themed
def effect_map(found: DescribedTable) -> None:
    """How much skipping one layer changes what each later one adds: at all positions, and at future ones only.

    Both panels share one scale. It ends at the largest effect, or at the 95th percentile of all where a few are far
    beyond; the colour bar then ends in a point.

    Args:
        found: From `depthlens.layer_effects`.

    Example:
        >>> figure = dl.layer_effects(lens, limit=2).plot()
    """
    effects = found.table
    layers = range(int(effects["later"].max()) + 1)
    largest, usual = float(effects["effect"].max()), float(effects["effect"].quantile(0.95))
    top = round_up(largest if largest < 2 * usual else usual) or 1.0
    names = {"x": effects["later"], "y": effects["layer"], "value": effects["effect"]}
    table = effects.assign(**names, panel=effects["where"].map(_WHERE)).sort_values("where")
    label = "change of what the later layer adds, relative to its size"
    look: dict[str, Any] = {"rows": layers, "columns": layers, "empty": "white", "height": 4.3, "across": 2}
    look |= {"xlabel": "later layer", "ylabel": "skipped layer"}
    look |= {"bar": {"extend": "max" if largest > top else "neither"}}
    title = f"Effect of a skipped layer on later ones, n = {effects['n'].max()} texts"
    axes = maps(title, table, (0, top), label, **look)
    for ax in axes:
        ax.set(xlim=(0.5, len(layers) - 0.5), ylim=(len(layers) - 1.5, -0.5))


def _title(geometry: Geometry, what: str) -> str:
    return f"{geometry.record['model']['name']}: {what}, n = {geometry.record['texts']['n']} texts"


def _over_texts(default: str, parts: Mapping[str, pd.DataFrame], **look: Any) -> None:
    """A panel for each table, by what it is called: a line with its interval over texts, on an axis from 0."""
    table = pd.concat([rows.assign(unit=unit, least=0, greatest=np.inf) for unit, rows in parts.items()])
    axes = curves(default, table, each=1.8, interval="95% interval over texts", **look)
    for panel, _ in axes:
        panel.set_ylim(bottom=0)


@themed
def block_map(result: Result) -> None:
    """Loss by removing every contiguous block: one panel a task and metric, first layer of the block by its size.

    A dot marks blocks whose loss is significant by step-down maxT. A task at chance is hatched.

    Args:
        result: A block sweep.

    Raises:
        UserError: the result has no blocks.

    Example:
        >>> figure = blocks.plot()
    """
    table = block_table(result)
    bases = result.baselines[["task", "metric", "baseline", "n", "at_chance"]]
    table = table.merge(bases.assign(idle=idle_where(bases["at_chance"])), on=["task", "metric"], suffixes=("", "_all"))
    judged, rows = table["idle"] == "", table.itertuples()
    titles = [f"{row.task}, {row.metric}: {row.baseline:.2f} with every layer, n = {row.n}" for row in rows]
    table = table.assign(
        x=table["start"],
        y=table["size"],
        value=table["loss"].where(judged),
        shown=judged & (table["p_adjusted"] < ALPHA) & (table["loss"] > 0),
        unit=table["metric"].map(partial(named, loss=True)),
        panel=titles,
    )
    sizes, columns = range(1, table["size"].max() + 1), range((table["start"] + table["size"]).max())
    look: dict[str, Any] = {"xlabel": "first layer of the block", "ylabel": "layers", "rows": sizes, "columns": columns}
    look |= {"height": (0.16 * len(sizes) + 1.25) * len(bases) + 0.5, "edgecolors": "none", "mark": 1.25}
    default = "Loss by removing a block of layers"
    axes = maps(default, table, None, "loss of ", shown=PROVEN_BLOCK, **look)
    for ax in axes:
        ax.invert_yaxis()
    key(axes[0], "area", "no such block", facecolor=EMPTY, alpha=1)


@themed
def pair_map(pairs: PairLosses) -> None:
    """What two parts cost together beyond the sum of what each costs: one panel a task, one part by the other.

    Red pairs cost more than the sum, blue ones less; a dot marks those for which that is shown. A task at chance is
    hatched.

    Args:
        pairs: From `depthlens.pair_sweep`.

    Example:
        >>> figure = pairs.plot()
        >>> figure.table.columns.tolist()
        ['panel', 'series', 'task', 'metric', 'condition', 'x', 'value', 'p_adjusted', 'shown']
    """
    parts, table = list(pairs.record["parts"]), pairs.table
    named_alike = parts == [f"L{i}" for i in range(len(parts))]
    table = table.assign(
        x=table["second"].map(parts.index),
        y=table["first"].map(parts.index),
        value=table["interaction"].mask(table["at_chance"]),
        shown=table["more"] | table["less"],
        idle=idle_where(table["at_chance"]),
        panel=[f"{row.task}, {row.metric}, n = {row.n}" for row in table.itertuples()],
    )
    names = range(len(parts)) if named_alike else parts
    limit = round_up(float(np.nanmax(table["value"].abs(), initial=1e-9)))
    look: dict[str, Any] = {"rows": names, "columns": names, "cmap": "RdBu_r", "mark": 2.5, "shown": PROVEN}
    look |= {"height": 3.2 * table["panel"].nunique() + 0.6, "width": 0.75 * WIDTH, "edgecolors": "none"}
    look |= {"ylabel": "layer", "xlabel": "other layer"} if named_alike else {}
    title = f"{pairs.result.record['model']['name']}: loss of two parts beyond the sum of their losses"
    maps(title, table, (-limit, limit), "loss of the pair minus losses of its parts", **look)
