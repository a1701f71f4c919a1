"""Figures over the layers of one model: what each costs, blocks, the geometry of depth, and the tokens of a prompt.

See `depthlens.plots` for what all figures have in common; the numbers are those of `depthlens.experiments.sweep`,
`depthlens.experiments.block_removal` and `depthlens.experiments.geometry`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from depthlens.analysis.layers.blocks import block_table
from depthlens.analysis.layers.geometry import Geometry
from depthlens.analysis.layers.pairs import PairLosses
from depthlens.analysis.numbers.stats import ALPHA, GROUP
from depthlens.analysis.result.results import Result
from depthlens.errors import UserError
from depthlens.look import EMPTY
from depthlens.plots.effects import FIELDS, labels, named, sweep_table, sweep_title, varying
from depthlens.plots.panels import MAX_OVERLAID, PROVEN, curves, idle_where, key, maps, tidy
from depthlens.plots.theme import SMALL, WIDTH, round_up, themed, visible

CRITICAL_LAYER = f"critical layer (loss, {PROVEN})"
PROVEN_BLOCK = "proven loss (corrected over blocks)"
_LENSES = {"probability": "probability of\nthe final top-1 token", "entropy": "entropy (nats)"}
_CHARS = 12  # characters of one token that are drawn
_LAYER_SITES, _FIX, _SEVERAL = ("layer", "attn", "mlp"), "sweep layers, attn or mlp", "one layer or part of it"


@themed
def depth_profile(result: Result) -> None:
    """Score by removed layer, with the 95% interval of the difference from baseline as a band.

    Dashed lines are baselines, dotted lines chance, filled markers critical layers. Fewer than six documents have
    a band only where scores are 0 or 1. Up to four series share a panel (tasks, metrics, kinds of ablation),
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
    ways = [["task"], GROUP[1:], FIELDS]
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
    look: dict[str, Any] = {"rows": names, "columns": range(n_layers), "height": 0.37 * len(names) + 1.6, "cmap": cmap}
    look |= {"xlabel": "removed layer", "shown": CRITICAL_LAYER}
    (ax,) = maps(sweep_title(table, _SEVERAL), table, (-limit, limit), label, **look)
    for y, baseline in zip(firsts["y"], firsts["baseline"], strict=True):
        ax.text(n_layers - 0.2, y, f"baseline {baseline:.2f}", va="center", fontsize=SMALL)


@themed
def geometry_profile(geometry: Geometry) -> None:
    """How much each layer turns the residual stream, and what the unembedding reads from it by depth: a panel each.

    The first two are block influence and the angular distance that one layer makes; the others, of the logit lens, are
    the probability of the final top-1 token and the entropy. Bands are 95% intervals over texts.

    Args:
        geometry: From `depthlens.depth_geometry`.

    Example:
        >>> figure = geometry.plot()
    """
    single, lens = geometry.distances[geometry.distances["size"] == 1], geometry.logit_lens
    parts = {
        "block influence\n(1 − mean cosine over tokens)": tidy(geometry.influences, "layer", "influence"),
        "angular distance\n(last token)": tidy(single, "layer", "distance"),
        **{of: tidy(lens, "depth", name, f"{name}_low", f"{name}_high") for name, of in _LENSES.items()},
    }
    table = pd.concat([rows.assign(unit=unit, least=0, greatest=np.inf) for unit, rows in parts.items()])
    default = f"{geometry.record['model']['name']}: geometry of depth, n = {geometry.record['texts']['n']} texts"
    for panel, _ in curves(default, table, each=1.8, xlabel="layer (logit lens: layers passed)"):
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


def _short(token: str, most: int = _CHARS) -> str:
    text = visible(token, space="·")
    return text if len(text) <= most else text[: most - 1] + "…"


@themed
def token_grid(found: Any) -> None:
    """What `depthlens.patch` or `depthlens.logit_lens` found, a row a part or depth and a column a token.

    Patching has the effect as colour, and the logit lens the probability, with the likeliest next token in each cell.

    Args:
        found: What they returned.

    Example:
        >>> figure = dl.logit_lens(lens, "Ada Ben SEP Cleo Dora SEP QA Cleo").plot()
        >>> figure.table.columns.tolist()
        ['panel', 'series', 'x', 'value']
    """
    table, says = found.table, "says" in found.table
    row, value = ("depth", "probability") if says else ("part", "effect")
    rows = [str(name) for name in table[row].unique()]
    places = range(len(found.tokens)) if says else found.places
    table = table.assign(x=np.tile(range(len(places)), len(rows)))
    first = 0 if says else int(table.loc[table[value] != 0, "x"].min())  # patches do nothing before
    most = float(table[value].abs().max()) or 1.0
    # under a patch each token stands with the one that the patch comes from, where they differ
    pairs = zip(found.tokens, found.tokens if says else found.sources, strict=True)
    texts = [_short(a) if a == b else f"{_short(a, 7)}←{_short(b, 7)}" for a, b in pairs]
    columns = [f"{place} {text}" for place, text in zip(places, texts, strict=True)][first:]
    drawn = table[table["x"] >= first]
    drawn = drawn.assign(x=drawn["x"] - first, y=drawn[row].astype(str).map(rows.index), value=drawn[value])
    height = 0.19 * max(len(rows), 9) + 1.2 + 0.07 * max(map(len, columns))
    look: dict[str, Any] = {"rows": rows, "columns": columns, "height": height, "xlabel": "token"}
    look["width"] = max(4.5, min(WIDTH, 1.2 + (0.75 if says else 0.45) * len(columns)))
    if says:
        drawn = drawn.assign(text=[_short(said, 9) for said in drawn["says"]])
        look["ylabel"], default = "after this many layers", "What each layer would say after each token"
        maps(default, drawn, (0, 1), "probability of the likeliest next token", **look)
        return
    default = f"What a patch of one part moves ({found.direction}) of the {visible(found.compared, space=' ')}"
    maps(default, drawn, (-most, most), "share of this difference that moves", cmap="vlag", **look)
