"""The figure of a sufficiency curve: what is left of a score as only the first heads of a list are kept.

See `depthlens.plots` for what all figures have in common, `depthlens.experiments.head_curves` for the numbers.
"""

from __future__ import annotations

import math

import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes

from depthlens import arguments
from depthlens.analysis.sufficiency import CANNOT_JUDGE, SufficiencyCurve
from depthlens.errors import UserError
from depthlens.look import PALETTE
from depthlens.plots import panels, theme
from depthlens.plots.panels import numbers
from depthlens.plots.theme import Plot, figure, themed, with_legend


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
    arguments.made_by(curve, "areas", "what depthlens.sufficiency_curve returned", "curve")
    lists = list(dict.fromkeys(curve.points["list"]))
    if len(lists) > len(PALETTE):
        raise UserError(f"{len(lists)} lists; a panel shows up to {len(PALETTE)}, draw fewer: {', '.join(lists)}")
    tasks = list(dict.fromkeys(curve.areas["task"]))
    columns = min(len(tasks), 3) if len(tasks) != 4 else 2
    width = theme.WIDTH if columns > 1 else 0.75 * theme.WIDTH
    models, n = ", ".join(curve.result.docs["model"].unique()), theme.counts(curve.result.baselines["n"])
    drawn = f"{models}: only the first k heads of a list kept, {curve.record['n_draws']} random lists"
    fig = figure(title, f"{drawn}, n = {n} documents", height=2.8 * math.ceil(len(tasks) / columns) + 1.1, width=width)
    for ax, task in zip(panels.grid(fig, len(tasks), columns, "heads kept"), tasks, strict=True):
        points, bands, areas = (t[t["task"] == task] for t in (curve.points, curve.band, curve.areas))
        for style, name in enumerate(lists):
            own, band, area = (t[t["list"] == name] for t in (points, bands, areas))
            _draw_list(ax, own[own["k"] > 0], band[band["k"] > 0], not area["judged"].all(), style)
        panels.level(ax, 1.0, "baseline")
        panels.level(ax, 0.0, "no change")
        kept = [*curve.record["k"], curve.record["n_heads"]]
        ax.set(xscale="log", xlim=(0.8 * kept[0], 1.25 * kept[-1]))
        ax.xaxis.set_major_locator(ticker.FixedLocator(kept))
        ax.xaxis.set_major_formatter(ticker.ScalarFormatter())
        ax.xaxis.set_minor_locator(ticker.NullLocator())
        spec = ax.get_subplotspec()
        if spec is None or spec.is_first_col():
            ax.set_ylabel("faithfulness")
        verdict = _verdict(areas)
        panels.note(ax, 0, 1.02, verdict, va="bottom")
        panels.panel_title(ax, task, pad=11 * (verdict.count("\n") + 1) + 5)
    keys = [
        *panels.series_keys(f"{name}, with 95% interval" for name in lists),
        panels.band_key("random lists of the same layers"),
        panels.line_key("mean of these lists", lw=0.7),
        *panels.level_keys(fig, baseline="whole model", **{"no change": "no head kept"}),
    ]
    return with_legend(fig, keys, 3 if width == theme.WIDTH else 2)


def _draw_list(ax: Axes, points: pd.DataFrame, bands: pd.DataFrame, idle: bool, style: int) -> None:
    """One list and its random lists."""
    colour = panels.colour_of(style, idle)
    k, value, low, high = numbers(points, "k", "faithfulness", "ci_low", "ci_high")
    drawn, lowest, highest, mean = numbers(bands, "k", "low", "high", "mean")
    panels.band(ax, drawn, lowest, highest, style, idle, gid="band")
    ax.plot(drawn, mean, color=colour, lw=0.7, alpha=0.8, gid="random")
    ax.vlines(k, low, high, color=colour, lw=0.8)
    ax.plot(k, value, color=colour, marker=panels.MARKERS[style], gid="list", **panels.LINE)


def _verdict(areas: pd.DataFrame) -> str:
    """CPR, CMD and the rank test of each list, one a line."""
    if not areas["judged"].any():
        return f"heads add nothing proven: {CANNOT_JUDGE}"
    rows = areas[["list", "cpr", "cmd", "p_value"]].to_numpy()
    return "\n".join(f"{name}: CPR {cpr:.2f}, CMD {cmd:.2f}, p = {p:.2g}" for name, cpr, cmd, p in rows)
