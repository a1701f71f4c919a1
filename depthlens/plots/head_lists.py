"""Figures of lists of heads: what removing or keeping their first k does, and what lists and detectors share.

See `depthlens.plots` for what all figures have in common; the numbers are those of
`depthlens.experiments.head_curves`, `depthlens.analysis.head_lists` and `depthlens.analysis.agreement`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes

from depthlens.ablations import Head
from depthlens.analysis import head_lists
from depthlens.analysis.findings import DescribedTable
from depthlens.analysis.head_curves import CANNOT_JUDGE, RemovalCurve, SufficiencyCurve
from depthlens.analysis.head_scores import HeadScores
from depthlens.analysis.scores import labels
from depthlens.analysis.stats import ALPHA
from depthlens.errors import UserError
from depthlens.look import GREY, INK, PALE, PALETTE
from depthlens.plots import panels, theme
from depthlens.plots.effects import limits_of, unit_of
from depthlens.plots.panels import PROVEN, cells, idle_where, lines, tidy
from depthlens.plots.theme import SMALL, Plot, figure, themed

OUTSIDE = "worse than every random draw"
AGREES = f"agreement within layers ({PROVEN})"
MAX_NAMED = 10  # heads of each list


@themed
def removal_curve(curve: RemovalCurve, *, title: str | None = None) -> Plot:
    """Score by number of removed heads: one panel a task, one line a list, against random heads of the same layers.

    The shaded range holds all random draws of a list, the thin line is their mean. Markers are filled where the list is
    worse than every draw; the p-values above a panel are those of the rank test over the whole curve. Bars are 95%
    intervals of the score itself.

    Args:
        curve: From `depthlens.removal_curve`.
        title: Above the figure; by default the model and the numbers of draws and documents.

    Raises:
        UserError: more lists than there are colours.
    """
    lists = list(curve.points["list"].unique())
    panels.at_most_four(lists, "lists")
    of_list = ["list", "task", "metric"]
    points = curve.points.merge(curve.band[[*of_list, "k", "low", "high"]], "left", on=[*of_list, "k"])
    points = points.merge(curve.tests[[*of_list, "at_chance", "higher_is_better"]], on=of_list)
    worse = points["value"] < points["low"], points["value"] > points["high"]
    outside = np.where(points["higher_is_better"], *worse) & ~points["at_chance"]
    table = tidy(points, "k", "value", series=points["list"], shown=outside, idle=idle_where(points["at_chance"]))
    bases, names = curve.result.baselines.to_dict("records"), labels(curve.result)
    models, n = ", ".join(curve.result.docs["model"].unique()), theme.counts(curve.result.baselines["n"])
    default = f"{models}: first k heads of a list removed, {curve.band['n_draws'].min()} random draws"
    fig, axes = panels.facets(title, f"{default}, n = {n} documents", len(bases), "heads removed together", each=2.6)
    for ax, base in zip(axes, bases, strict=True):
        key = base["model"], base["task"], base["metric"]
        own, random, tests = (
            t[(t["task"] == base["task"]) & (t["metric"] == base["metric"])] for t in (table, curve.band, curve.tests)
        )
        _random(ax, random, lists, own, "random heads of the same layers: all draws")
        lines(ax, own, lists, bars=True, shown=OUTSIDE, aside=0.08, limits=limits_of(curve.result, *key))
        panels.level(ax, base["baseline"], "baseline")
        panels.level(ax, base["chance"], "chance")
        panels.score_axis(ax, unit_of(curve.result, *key))
        panels.whole_numbers(ax.xaxis, 9)
        p_values = ", ".join(f"{test.list} p = {test.p_value:.2g}" for test in tests.itertuples())
        verdict = theme.CANNOT_JUDGE if tests["at_chance"].all() else f"against random: {p_values}"
        panels.panel_title(ax, f"{names[base['task'], base['metric']]}\n{verdict}", fontsize=SMALL)
    return fig


@themed
def sufficiency(curve: SufficiencyCurve, *, title: str | None = None) -> Plot:
    """Faithfulness by number of heads kept: one panel a task, one line a list, with random lists beside it.

    The x axis is logarithmic, so that the few heads with which a curve rises can be told apart; the areas CPR
    and CMD, above a panel, are over a linear share of heads. Faithfulness is 0 where no head is kept and 1 (dashed) in
    the whole model. The shaded range holds all random lists, the thin line is their mean, and bars are 95% intervals.

    Args:
        curve: From `depthlens.sufficiency_curve`.
        title: Above the figure; by default the model and the numbers of draws and documents.

    Raises:
        UserError: more lists than there are colours.
    """
    lists = list(curve.points["list"].unique())
    panels.at_most_four(lists, "lists")
    points = curve.points[curve.points["k"] > 0].merge(curve.areas[["list", "task", "judged"]], on=["list", "task"])
    table = tidy(points, "k", "faithfulness", series=points["list"], idle=np.where(points["judged"], "", CANNOT_JUDGE))
    tasks = list(curve.areas["task"].unique())
    models, n = ", ".join(curve.result.docs["model"].unique()), theme.counts(curve.result.baselines["n"])
    default = f"{models}: only the first k heads of a list kept, {curve.record['n_draws']} random lists"
    fig, axes = panels.facets(title, f"{default}, n = {n} documents", len(tasks), "heads kept", each=2.8)
    for ax, task in zip(axes, tasks, strict=True):
        own, random, areas = (t[t["task"] == task] for t in (table, curve.band, curve.areas))
        _random(ax, random[random["k"] > 0], lists, own, "random lists of the same layers")
        lines(ax, own, lists, bars=True)
        panels.level(ax, 1.0, "baseline", "whole model")
        panels.level(ax, 0.0, "no change", "no head kept")
        kept = [*curve.record["k"], curve.record["n_heads"]]
        ax.set(xscale="log", xlim=(0.8 * kept[0], 1.25 * kept[-1]))
        ax.xaxis.set_major_locator(ticker.FixedLocator(kept))
        ax.xaxis.set_major_formatter(ticker.ScalarFormatter())
        ax.xaxis.set_minor_locator(ticker.NullLocator())
        said = [f"{a.list}: CPR {a.cpr:.2f}, CMD {a.cmd:.2f}, p = {a.p_value:.2g}" for a in areas.itertuples()]
        verdict = "\n".join(said) if areas["judged"].any() else f"heads add nothing proven: {CANNOT_JUDGE}"
        panels.panel_title(ax, f"{task}\n{verdict}", fontsize=SMALL)
    axes[0].set_ylabel("faithfulness")
    return fig


def _random(ax: Axes, random: pd.DataFrame, lists: Sequence[str], table: pd.DataFrame, label: str) -> None:
    """The random lists beside each list: all of them as a band, and their mean as a thin line."""
    panels.keep(ax, random.assign(series=random["list"] + ": random heads", x=random["k"]), "mean")
    for style, name in enumerate(lists):
        rows, idle = random[random["list"] == name], (table.loc[table["series"] == name, "idle"] != "").any()
        panels.band(ax, rows["k"], rows["low"], rows["high"], style, idle, gid="random band")
        colour = GREY if idle else PALETTE[style]
        ax.plot(rows["k"], rows["mean"], color=colour, lw=0.7, alpha=0.8, gid="random")
    panels.key(ax, "area", label)
    panels.key(ax, "line", "their mean", lw=0.7)


@themed
def head_overlap(a: HeadScores, b: HeadScores, k: int = 10, *, title: str | None = None) -> Plot:
    """Two scores against each other, one dot a head: the top k of each, and which heads are on both lists.

    Heads on both lists are named in the panel, the first ten others of each list below it. Dashed lines separate the
    heads on a list from the others. The p-value is the probability that random lists with as many heads in each layer
    share at least as many (`depthlens.analysis.head_overlap`).

    Args:
        a: Scores for the x axis.
        b: Scores for the y axis, of the same heads.
        k: Length of both lists.
        title: Above the figure; by default the model and the overlap in numbers.

    Raises:
        UserError: scores of models of different sizes, no heads in common, or a ``k`` that does not fit.
    """
    *tops, scored = head_lists.both_tops(a, b, k)
    shared = set(tops[0]) & set(tops[1])
    layer, head = np.nonzero(scored)
    table = pd.DataFrame({"layer": layer, "head": head, "x": a.values[scored], "y": b.values[scored]})
    at = list(zip(layer, head, strict=True))
    only = [f"{s.name}: {_named(top, shared)}" for s, top in zip((a, b), tops, strict=True)]
    groups: dict[str, tuple[set[Any], str, str]] = {
        "other heads": ({*at} - {*tops[0], *tops[1]}, "o", PALE),
        f"top {k} of {only[0]}": ({*tops[0]} - shared, "o", PALETTE[0]),
        f"top {k} of {only[1]}": ({*tops[1]} - shared, "s", PALETTE[1]),
        "on both lists": (shared, "D", INK),
    }
    fig = figure(title, _overlap_title(a, b, k, int(scored.sum())), height=5.2)
    ax = fig.subplots()
    for series, (heads, marker, colour) in groups.items():
        rows = table[[h in heads for h in at]].assign(series=series)
        panels.keep(ax, rows)
        size = 3 if colour == PALE else 6
        ax.plot(rows["x"], rows["y"], marker, color=colour, ms=size, mec="white", mew=0.5, gid="dots")
        panels.key(ax, "mark", series, color=colour, marker=marker, ms=size)
    for s, line in ((a, ax.axvline), (b, ax.axhline)):
        ranked = np.sort(s.values[scored])[::-1]
        line(ranked[k - 1 : k + 1].mean(), color=GREY, lw=0.8, ls=theme.DASHED, zorder=1, gid="cut")
    for h in shared:
        panels.beside(ax, a.values[h], b.values[h], f"L{h[0]}.H{h[1]}")
    ax.margins(0.08)
    ax.set(**{f"{axis}label": s.name + (f" ({s.unit})" if s.unit else "") for axis, s in (("x", a), ("y", b))})
    return fig


def _named(top: Sequence[Head], shared: set[Head]) -> str:
    """The heads of a list that are not on both, the highest first."""
    names = [f"L{layer}.H{head}" for layer, head in top if (layer, head) not in shared]
    return ", ".join([*names[:MAX_NAMED], *(["..."] if len(names) > MAX_NAMED else [])]) or "all on both lists"


def _overlap_title(a: HeadScores, b: HeadScores, k: int, n: int) -> str:
    common = head_lists.head_overlap(a, b, k=k)
    model = a.record.get("model", {}).get("name", "")
    are = "is" if common.n == 1 else "are"
    counted = f"{common.n} of the top {k} heads {are} on both lists; {common.expected:.2g} expected"
    chance = f"of lists with as many heads in each layer, p = {common.p_value:.2g} ({n} heads)"
    return f"{model}: {counted} {chance}".removeprefix(": ")


@themed
def detector_agreement(agreement: DescribedTable, *, title: str | None = None) -> Plot:
    """Spearman's correlation of every two detectors (below the diagonal) and the heads their top k share (above it).

    A star is agreement within layers, significant after Bonferroni's correction: a number without one may come from
    layers that both detectors prefer.

    Args:
        agreement: From `depthlens.detector_agreement`.
        title: Above the figure; by default the model and the number of heads.

    Raises:
        UserError: another table.
    """
    table, record = agreement.table, agreement.record
    if record.get("made_by") != "detector_agreement":
        raise UserError("agreement is a table of something else; give what depthlens.detector_agreement returned")
    names = list(dict.fromkeys([*table["a"], *table["b"]]))
    below, above = (
        pd.DataFrame(
            {"x": table[x].map(names.index), "y": table[y].map(names.index), "value": value, "text": text, "p": p}
        )
        for x, y, value, text, p in (
            ("a", "b", table["spearman"], table["spearman"].map("{:.2f}".format), table["p_spearman_adjusted"]),
            ("b", "a", table["n_shared"] / record["k"], table["n_shared"].astype(str), table["p_shared_adjusted"]),
        )
    )
    what = f"agreement of {len(names)} detectors over {theme.counts(table['n_heads'])} heads"
    default = f"{record['model'].get('name', '')}: {what}".removeprefix(": ")
    fig = figure(title, default, height=1.9 + 0.45 * len(names))
    ax = fig.subplots()
    pairs = pd.concat([below, above])
    mesh = cells(ax, pairs, (-1, 1), rows=names, columns=range(len(names)), cmap="vlag_r")
    for cell in pairs.itertuples():
        text = cell.text.replace("-", "−") + (" ★" if cell.p < ALPHA else "")
        ax.text(
            cell.x, cell.y, text, ha="center", va="center", color=theme.ink_on(mesh.to_rgba(cell.value)), gid="number"
        )
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    label = f"Spearman's correlation (below the diagonal), share of the first {record['k']} heads (above it)"
    panels.colour_bar(mesh, ax, label)
    panels.key(ax, "mark", AGREES, marker="*")
    return fig
