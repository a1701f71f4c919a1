"""Figures that compare depth: profiles with their centres of mass, two models' losses, the open book, transplants.

See `depthlens.plots` for what all figures have in common; the numbers are those of `depthlens.analysis.depth`,
`depthlens.analysis.differences` and `depthlens.analysis.recovery`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes

from depthlens.analysis import depth, differences, recovery
from depthlens.analysis.results import Result
from depthlens.analysis.scores import Scores, labels, layer_scores
from depthlens.analysis.stats import ALPHA, loss_unit
from depthlens.errors import UserError
from depthlens.look import GREY, INK, PALETTE
from depthlens.metrics import ANSWER_LOGPROB
from depthlens.plots import panels
from depthlens.plots.effects import PROVEN, model_dims, unit_of
from depthlens.plots.layers import CRITICAL_LAYER
from depthlens.plots.panels import numbers
from depthlens.plots.theme import CANNOT_JUDGE, SMALL, Plot, counts, figure, themed, with_legend

_FAR = 3.0  # times the third largest: from here on a loss without bounds would flatten all others
_BOOK = {1: (PALETTE[0], "^"), -1: (PALETTE[1], "v")}  # colour and marker by the sign of open minus closed
_SERIES = {recovery.ONE: "layer x alone", recovery.BOTTOM: "layers 0 to x", recovery.TOP: "layers x to the last"}


@themed
def profile_comparison(*results: Result, title: str | None = None) -> Plot:
    """What removing each layer costs, one panel a task and one line a model, with the centre of mass of every profile.

    Filled markers are critical layers, bands 95% intervals. The bar at the top of a panel is the centre of mass with
    its interval. Panels share the axis of layers, so that tasks of one model can be compared, too; losses of different
    metrics cannot. Where a layer costs far more than all others, in a metric without bounds, the axis ends before it
    and its loss is written above.

    Args:
        results: Layer sweeps of up to four models, one each; tasks that only some have are drawn for these.
        title: Above the figure; by default the models and the number of documents.

    Raises:
        UserError: no results or more than there are colours, or results that are not layer sweeps of one model.
    """
    if not 1 <= len(results) <= len(PALETTE):
        raise UserError(f"{len(results)} results; give one to {len(PALETTE)}, one a model")
    models = [layer_scores(result) for result in results]
    centres = [depth.centre_of_mass(result).table.set_index("task") for result in results]
    tasks = list(dict.fromkeys(p.label for model in models for p in model))
    columns = 1 if len(tasks) <= 4 else 2
    n_layers = max(p.n_layers for model in models for p in model)
    names = [model[0].model for model in models]
    default = f"{', '.join(names)}: loss by removed layer, n = {_n_documents(*models)} documents"
    fig = figure(title, default, height=1.75 * math.ceil(len(tasks) / columns) + 1.3)
    for ax, task in zip(panels.grid(fig, len(tasks), columns, "removed layer", stacked=True), tasks, strict=True):
        lines = [(style, p) for style, model in enumerate(models) for p in model if p.label == task]
        losses = [_losses(results[style], p) for style, p in lines]
        panels.level(ax, 0, "zero")
        for (style, p), (x, loss, low, high, critical) in zip(lines, losses, strict=True):
            panels.curve(ax, x, [loss, low, high], style, idle=p.at_chance)
            panels.marks(ax, x, loss, critical.astype(bool), style, "critical")
        first_style, first = lines[0]
        if not first.binary:
            _end_before_far(ax, *np.hstack(losses)[:4])
        bottom, top = ax.get_ylim()
        ax.set_ylim(bottom, top + (top - bottom) * 0.13 * len(lines))  # room for the centres of mass
        for row, (style, p) in enumerate(lines):
            _draw_centre(ax, p, centres[style].loc[task], style, 0.95 - 0.11 * row)
        panels.panel_title(ax, task)
        ax.set_ylabel(f"loss of\n{_unit(results[first_style], first)}")
        panels.layer_axis(ax, n_layers)
    keys = panels.series_keys(names, mfc=None) if len(names) > 1 else []
    centre = panels.line_key("centre of mass, 95% interval", lw=1.5, marker="|", ms=9, mew=2)
    return with_legend(fig, [*keys, panels.mark_key(CRITICAL_LAYER), centre, panels.band_key()], 3)


@themed
def loss_difference(base: Result, distilled: Result, *, title: str | None = None) -> Plot:
    """Loss of base minus loss of distilled by removed layer, one panel a task: above 0 the base needs the layer more.

    Bars are 95% intervals; markers are filled where the difference is proven by step-down maxT over layers.

    Args:
        base: A layer sweep of one model.
        distilled: The same sweep of the other.
        title: Above the figure; by default the models and the number of documents.

    Raises:
        UserError: see `depthlens.analysis.compare_models`.
    """
    table = differences.layer_differences(base, distilled)
    tasks = layer_scores(base)
    names = tasks[0].model, layer_scores(distilled)[0].model
    default = f"{' minus '.join(names)}: difference of the losses by removed layer, n = {_n_documents(tasks)} documents"
    fig = figure(title, default, height=1.75 * len(tasks) + 1.1)
    for ax, profile in zip(panels.grid(fig, len(tasks), 1, "removed layer", stacked=True), tasks, strict=True):
        rows = table[table["task"] == profile.label]
        x, y, low, high = numbers(rows, "layer", "difference", "ci_low", "ci_high")
        idle, proven = bool(rows["at_chance"].iloc[0]), rows["proven"].to_numpy(dtype=bool)
        colour = GREY if idle else INK
        panels.level(ax, 0, "zero")
        ax.vlines(x, low, high, color=colour, lw=1, gid="interval")
        ax.plot(x, y, "o", ms=4, color=colour, mfc="white", mew=0.9, gid="difference")
        for style, more in enumerate((y > 0, y < 0)):
            panels.marks(ax, x, y, proven & more, style, "proven")
        if not profile.binary:
            _end_before_far(ax, x, y, low, high)
        if idle:
            panels.note(ax, 1, 0.98, CANNOT_JUDGE, ha="right", va="top", color=GREY)
        panels.panel_title(ax, profile.label)
        ax.set_ylabel(f"difference of losses\n{_unit(base, profile)}")
        panels.layer_axis(ax, profile.n_layers)
    more_labels = [f"{name} loses more (proven, {PROVEN})" for name in names]
    keys = panels.series_keys(more_labels, ls="", ms=6, mfc=None)
    keys.append(panels.line_key("not proven; 95% interval", marker="o", mfc="white", ms=4))
    return with_legend(fig, keys, 2)


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
    columns = min(len(groups), 2)
    names = [str(r.docs["model"].iloc[0]) for r in (result, donor)]
    pairs = {label: pair for pair, label in labels(result).items()}
    default = f"{names[0]} with layers of {names[1]}, n = {counts(table['n'])} documents"
    fig = figure(title, default, height=2.5 * math.ceil(len(groups) / columns) + 1.0)
    for ax, (label, site, series) in zip(panels.grid(fig, len(groups), columns, "layer x"), groups, strict=True):
        task, metric = pairs[label]
        unit = unit_of(result, names[0], task, metric)
        for name, rows in series.items():
            _draw_transplants(ax, rows, name)
        rows = pd.concat(series.values())
        levels = rows.iloc[0]
        panels.level(ax, levels["base"], "base")
        panels.level(ax, levels["donor"], "donor")
        panels.level(ax, result.metric_info(task, metric)["chance"], "chance")
        panels.panel_title(ax, label if site == "layer" else f"{label}, {site}")
        n_layers = model_dims(result.record, names[0]).get("n_layers")
        panels.layer_axis(ax, n_layers or int(rows["last"].max()) + 1)
        panels.score_axis(ax, unit)
        _share_axis(ax, levels)
    drawn = {_style(name) for _, _, series in groups for name in series}
    keys = panels.series_keys(f"{label} transplanted" for label in _SERIES.values())
    keys = [key for style, key in enumerate(keys) if style in drawn]
    differs = panels.mark_key(f"differs from the base ({PROVEN})")
    return with_legend(fig, [*keys, *panels.level_keys(fig), differs, panels.band_key()], 3)


@themed
def open_book_losses(versus: pd.DataFrame, *, unit: str = loss_unit(ANSWER_LOGPROB), title: str | None = None) -> Plot:
    """Loss in the open-book task minus loss in the closed-book one, by layer.

    The scale is linear near 0 and logarithmic beyond, because one layer may cost many times what all others do.

    Args:
        versus: From `depthlens.analysis.open_book_losses`.
        unit: Of the losses.
        title: Above the figure.

    Raises:
        UserError: no rows, or rows that are of no single layer.
    """
    if versus.empty or versus["layer"].isna().any():
        raise UserError("the table has rows that are of no single layer, or none; give that of a layer sweep")
    rows = versus.sort_values("layer")
    layer, gap, low, high = panels.numbers(rows, "layer", "difference", "ci_low", "ci_high")
    proven = (rows["p_adjusted"] < ALPHA).to_numpy()
    inner = max(0.05, float(np.quantile(np.abs(gap), 0.75)))
    fig = figure(title, f"Loss in the open-book minus loss in the closed-book task, n = {rows['n'].max()}", height=2.9)
    ax = fig.subplots()
    ax.set_yscale("symlog", linthresh=inner, linscale=1.0)
    panels.level(ax, 0, "no change")
    for side, (colour, marker) in _BOOK.items():
        here = np.sign(gap) == side
        ax.vlines(layer[here], low[here], high[here], color=colour, lw=1.2, alpha=0.6)
        for at, fill in ((here & ~proven, "white"), (here & proven, colour)):
            ax.plot(layer[at], gap[at], marker, color=colour, mfc=fill, ms=5, gid="gap")
    panels.layer_axis(ax, int(layer.max()) + 1)
    ax.set(xlabel="layer", ylabel=f"open minus closed\n({unit})")
    ticks = [t for t in (0, inner, 1, 10, 100) if t <= max(inner, np.nanmax(np.abs([gap, low, high])))]
    ticks = [t for i, t in enumerate(ticks) if i == 0 or t >= 2 * ticks[i - 1]]
    ax.set_yticks(sorted({s * t for t in ticks for s in _BOOK}))
    ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{float(f'{value:.2g}'):+g}" if value else "0"))
    ax.yaxis.set_minor_locator(ticker.NullLocator())
    keys = [
        panels.mark_key(f"costs more in the {book}-book task", color=colour, marker=marker)
        for book, (colour, marker) in zip(("open", "closed"), _BOOK.values(), strict=True)
    ]
    keys.append(panels.mark_key("open marker: not proven", color=GREY, mfc="white"))
    return with_legend(fig, [*keys, panels.line_key("95% interval", color=GREY, lw=1.2)])


def _unit(result: Result, profile: Scores) -> str:
    return unit_of(result, profile.model, profile.task, profile.metric, loss=True)


def _n_documents(*models: Sequence[Scores]) -> str:
    return counts(len(p.documents) for model in models for p in model)


def _beside(ax: Axes, text: str, color: str = INK) -> None:
    """A remark up the right side of a panel, where it meets neither title nor data."""
    panels.note(ax, 1.01, 0.5, text, rotation=90, ha="left", color=color)


def _losses(result: Result, profile: Scores) -> np.ndarray:
    """Removed layers, their losses, both ends of the intervals, and whether each is critical. Shape [5, layer]."""
    table = result.summary
    chosen = (table["task"] == profile.task) & (table["metric"] == profile.metric) & table["layer"].notna()
    rows = table[chosen].sort_values("layer")
    layer, *changes, p = numbers(rows, "layer", "bounded", "ci_low", "ci_high", "p_adjusted")
    loss, *ends = (-profile.sign * change for change in changes)
    min_loss = result.metric_info(profile.task, profile.metric)["min_effect"]
    critical = (p < ALPHA) & (loss > min_loss) & (not profile.at_chance)
    return np.array([layer, loss, *np.sort(ends, axis=0), critical])


def _end_before_far(ax: Axes, x: np.ndarray, y: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Where up to two values are far beyond all others, end the axis before them and write what they are."""
    ranked = np.sort(np.abs(y))
    far = np.abs(y) > (_FAR * ranked[-3] if len(y) > 3 else np.inf)
    if not far.any():
        return
    bottom, top = panels.reach(y[~far], low[~far], high[~far])
    margin = 0.08 * (top - bottom)
    ax.set_ylim(bottom - margin, top + margin)
    for layer, value in zip(x[far], y[far], strict=True):
        edge, marker = (1, "^") if value > 0 else (0, "v")
        ax.plot([layer], [edge], marker, color=INK, ms=5, clip_on=False, transform=ax.get_xaxis_transform(), gid="far")
    values = ", ".join(f"L{layer:.0f} {value:.3g}" for layer, value in zip(x[far], y[far], strict=True))
    _beside(ax, f"beyond the axis: {values}")


def _draw_centre(ax: Axes, profile: Scores, centre: pd.Series, style: int, height: float) -> None:
    """The centre of mass on the axis of layers, at the top of the panel; or why there is none."""
    if centre["unplaced"]:
        reason = CANNOT_JUDGE if profile.at_chance else f"{centre['unplaced']}: cannot judge"
        panels.note(ax, 0.995, height, reason, ha="right", color=GREY)
        return
    at = centre[["centre", "ci_low", "ci_high"]].to_numpy(dtype=float) * (profile.n_layers - 1)
    look: dict[str, Any] = {"color": PALETTE[style], "transform": ax.get_xaxis_transform()}
    ax.plot(at[1:], [height] * 2, lw=1.5, solid_capstyle="butt", **look)
    ax.plot(at[:1], [height], marker="|", ms=9, mew=2, gid="centre", **look)


def _style(name: str) -> int:
    """The number of a series of transplants, whose name begins with the site where that is not the whole layer."""
    return next(style for style, kind in enumerate(_SERIES) if name.endswith(kind))


def _draw_transplants(ax: Axes, rows: pd.DataFrame, name: str) -> None:
    changed = "last" if name.endswith(recovery.BOTTOM) else "first"
    x, y, low, high, p = numbers(rows, changed, "value", "value_low", "value_high", "p_adjusted")
    panels.curve(ax, x, [y, low, high], _style(name), gid=name)
    panels.marks(ax, x, y, p < ALPHA, _style(name), "proven")


def _share_axis(ax: Axes, levels: pd.Series) -> None:
    """The share of the gap on the right, or that there is no gap to share."""
    if levels["no_gap"]:
        _beside(ax, "no gap: cannot judge", color=GREY)
        return
    base, gap = levels["base"], levels["donor"] - levels["base"]
    right = ax.secondary_yaxis("right", functions=(lambda v: (v - base) / gap, lambda s: base + s * gap))
    right.set_yticks([0, 0.5, 1])
    right.set_ylabel("share of the gap", fontsize=SMALL)
