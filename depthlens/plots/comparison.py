"""Figures that compare depth: profiles with their centres of mass, two models' losses, transplants of layers.

See `depthlens.plots` for what all figures have in common; the numbers are those of `depthlens.analysis.depth`,
`depthlens.analysis.model_comparison` and `depthlens.analysis.recovery`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from depthlens.analysis import depth, model_comparison, recovery
from depthlens.analysis.layer_profiles import Profile, labels, profiles
from depthlens.analysis.results import Result
from depthlens.analysis.stats import ALPHA
from depthlens.errors import UserError
from depthlens.plots.heads import unit_of
from depthlens.plots.theme import (
    CANNOT_JUDGE,
    DASHED,
    DOTTED,
    GREY,
    INK,
    MARKERS,
    PALETTE,
    WIDTH,
    counts,
    figure,
    legend,
    theme,
)

PROVEN = f"proven (Holm-adjusted p < {ALPHA})"
DASH_DOTTED = (0, (6, 2, 1, 2))
_FAR = 3.0  # times the third largest: from here on a loss without bounds would flatten all others
_SERIES = {recovery.ONE: "layer x alone", recovery.BOTTOM: "layers 0 to x", recovery.TOP: "layers x to the last"}


def profile_comparison(*results: Result, title: str | None = None, seed: int = 0) -> Figure:
    """What removing each layer costs, one panel a task and one line a model, with the centre of mass of every profile.

    Filled markers are critical layers, bands 95% intervals. The bar at the top of a panel is the centre of mass with
    its interval. Panels share the axis of layers, so that tasks of one model can be compared, too; losses of different
    metrics cannot. Where a layer costs far more than all others, in a metric without bounds, the axis ends before it
    and its loss is written above.

    Args:
        results: Layer sweeps of up to four models, one each; tasks that only some have are drawn for these.
        title: Above the figure; by default the models and the number of documents.
        seed: Of the bootstrap of the centres.

    Raises:
        UserError: no results or more than can be told apart, or results that are not layer sweeps of one model.
    """
    if not 1 <= len(results) <= len(PALETTE):
        raise UserError(f"{len(results)} results; give one to {len(PALETTE)}, one a model")
    found = [profiles(result) for result in results]
    tables = [depth.centre_of_mass(result, seed=seed).table.set_index("task") for result in results]
    tasks = list(dict.fromkeys(p.label for each in found for p in each))
    columns = 1 if len(tasks) <= 4 else 2
    rows = math.ceil(len(tasks) / columns)
    with theme():
        fig = figure(_title(found) if title is None else title, height=1.75 * rows + 1.3)
        axes = fig.subplots(rows, columns, sharex=True, squeeze=False)
        for ax in axes.flat[len(tasks) :]:
            ax.set_visible(False)
        for i, (ax, task) in enumerate(zip(axes.flat, tasks, strict=False)):
            shown = [
                (style, p, _losses(results[style], p), tables[style].loc[task])
                for style, each in enumerate(found)
                for p in each
                if p.label == task
            ]
            for style, profile, losses, _ in shown:
                _draw_losses(ax, profile, losses, style)
            _limit(ax, pd.concat([losses for _, _, losses, _ in shown]), shown[0][1].binary, len(shown))
            for place, (style, profile, _, centre) in enumerate(shown):
                _draw_centre(ax, profile, centre, style, place)
            _name(ax, task)
            ax.set_ylabel(f"loss of\n{unit_of(results[shown[0][0]], *_key(shown[0][1]))}")
            _layer_axis(ax, max(p.n_layers for _, p, _, _ in shown))
            if i + columns >= len(tasks):
                ax.set_xlabel("removed layer")
                ax.tick_params(labelbottom=True)
        models = [each[0].model for each in found]
        handles: list[Any] = [
            Line2D([], [], color=PALETTE[i], marker=MARKERS[i], ms=5, label=m) for i, m in enumerate(models)
        ]
        handles = handles if len(models) > 1 else []
        handles += [
            Line2D(
                [], [], ls="", marker="o", ms=6, color=INK, label=f"critical layer (loss, Holm-adjusted p < {ALPHA})"
            ),
            Line2D([], [], color=INK, lw=1.5, marker="|", ms=9, mew=2, label="centre of mass, 95% interval"),
            Patch(facecolor=INK, alpha=0.2, lw=0, label="95% interval"),
        ]
        legend(fig, handles, ncols=3)
        _despine(fig)
    return fig


def loss_difference(base: Result, distilled: Result, *, title: str | None = None) -> Figure:
    """Loss of base minus loss of distilled by removed layer, one panel a task: above 0 the base needs the layer more.

    Bars are 95% intervals; markers are filled where the difference is proven after Holm's correction.

    Args:
        base: A layer sweep of one model.
        distilled: The same sweep of the other.
        title: Above the figure; by default the models and the number of documents.

    Raises:
        UserError: see `depthlens.analysis.compare_models`.
    """
    table = model_comparison.layer_differences(base, distilled)
    found = profiles(base)
    names = found[0].model, profiles(distilled)[0].model
    with theme():
        n = counts(len(p.documents) for p in found)
        said = f"{names[0]} minus {names[1]}: difference of the losses by removed layer, n = {n} documents"
        fig = figure(said if title is None else title, height=1.75 * len(found) + 1.1)
        axes = fig.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
        for ax, profile in zip(axes, found, strict=True):
            rows = table[table["task"] == profile.label]
            idle = bool(rows["at_chance"].iloc[0])
            x, y, low, high = (rows[c].to_numpy(dtype=float) for c in ("layer", "difference", "ci_low", "ci_high"))
            colour = GREY if idle else INK
            ax.axhline(0, color=INK, lw=0.8, zorder=1)
            ax.vlines(x, low, high, color=colour, lw=1, gid="interval")
            ax.plot(x, y, "o", ms=4, color=colour, mfc="white", mew=0.9, ls="", gid="difference")
            for sign, style in ((1, 0), (-1, 1)):
                sure = rows["proven"].to_numpy() & (sign * y > 0)
                dots = {"ms": 6.5, "color": PALETTE[style], "mec": "white", "mew": 0.5, "ls": ""}
                ax.plot(x[sure], y[sure], MARKERS[style], gid="proven", **dots)
            if not profile.binary:
                _far(ax, x, y, low, high)
            if idle:
                ax.text(1, 0.98, CANNOT_JUDGE, ha="right", va="top", fontsize=8, color=GREY, transform=ax.transAxes)
            _name(ax, profile.label)
            ax.set_ylabel(f"difference of losses\n{unit_of(base, *_key(profile))}")
            _layer_axis(ax, profile.n_layers)
        axes[-1].set_xlabel("removed layer")
        solid = {"ls": "", "ms": 6.5}
        handles = [
            Line2D([], [], color=PALETTE[0], marker=MARKERS[0], label=f"{names[0]} loses more, {PROVEN}", **solid),
            Line2D([], [], color=PALETTE[1], marker=MARKERS[1], label=f"{names[1]} loses more, {PROVEN}", **solid),
            Line2D([], [], color=INK, marker="o", mfc="white", ms=4, lw=1, label="not proven; 95% interval"),
        ]
        legend(fig, handles, ncols=2)
        _despine(fig)
    return fig


def recovery_curve(result: Result, donor: Result, *, title: str | None = None, seed: int = 0) -> Figure:
    """Score of a base model as layers of a donor are put in place: each alone, from the bottom, and from the top.

    One panel a task and site. Reference lines are the base, the donor and chance; markers are filled where a transplant
    is proven to differ from the base, bands are 95% intervals of that difference. The right axis is the share of the
    gap, where there is one.

    Args:
        result: Of the base model, over conditions such as ``bottom@donor``, ``top@donor`` and ``layers@donor``.
        donor: Holds the donor's own baseline.
        title: Above the figure; by default the models and the number of documents.
        seed: Of the bootstrap.

    Raises:
        UserError: see `depthlens.analysis.transplant_recovery`; or no series of layers.
    """
    table = recovery.transplant_recovery(result, donor, seed=seed).table
    panels = [
        (task, site, shown)
        for task, rows in table.groupby("task", sort=False)
        for site, part in rows.dropna(subset=["first"]).groupby("site", sort=False)
        if (shown := list(recovery.series(part).values()))
    ]
    if not panels:
        raise UserError("no series of transplanted layers to draw; sweep bottom@donor, top@donor or layers@donor")
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    names = [str(r.docs["model"].iloc[0]) for r in (result, donor)]
    said = f"{names[0]} with layers of {names[1]}, n = {'-'.join(map(str, sorted(set(table['n']))))} documents"
    with theme():
        fig = figure(said if title is None else title, height=2.5 * rows + 1.0, width=WIDTH)
        told: set[str] = set()
        for i, (task, site, shown) in enumerate(panels):
            ax = fig.add_subplot(rows, columns, i + 1)
            metric = shown[0]["metric"].iloc[0]
            name = next(t for (t, m), label in labels(result).items() if label == task and m == metric)
            kinds = recovery.series(pd.concat(shown).drop_duplicates("condition"))
            told |= {name for name in _SERIES for kind in kinds if kind.endswith(name)}
            unit = unit_of(result, names[0], name, metric)
            for kind, part in kinds.items():
                _draw_transplants(ax, part, kind, (0.0, 1.0) if unit == "accuracy" else (-np.inf, np.inf))
            _draw_references(ax, shown[0].iloc[0], result.metric_info(name, metric)["chance"])
            _name(ax, task if site == "layer" else f"{task}, {site}")
            n_layers = result.record.get("model", {}).get("dims", {}).get("n_layers")
            _layer_axis(ax, n_layers or int(max(part["last"].max() for part in shown)) + 1)
            if unit != "accuracy" or i % columns == 0:
                ax.set_ylabel(unit)
            if unit == "accuracy":
                ax.set_ylim(-0.02, 1.02)
                ax.yaxis.set_major_locator(ticker.MultipleLocator(0.2))
            if i + columns >= len(panels):
                ax.set_xlabel("layer x")
            _share_axis(ax, shown[0].iloc[0])
        legend(fig, _recovery_handles(told), ncols=3)
        for ax in fig.axes:
            ax.spines["top"].set_visible(False)
            ax.spines["right"].set_visible(False)
    return fig


def _name(ax: Axes, text: str) -> None:
    """The title of a panel, smaller where it is long: two panels share the width."""
    ax.set_title(text, loc="left", fontsize=None if len(text) <= 30 else 9).set_parse_math(False)


def _beside(ax: Axes, text: str, color: str = INK) -> None:
    """A remark up the right side of a panel, where it meets neither title nor data."""
    ax.text(1.01, 0.5, text, rotation=90, ha="left", va="center", fontsize=8, color=color, transform=ax.transAxes)


def _key(profile: Profile) -> tuple[str, str, str]:
    return profile.model, profile.task, profile.metric


def _title(found: Sequence[Sequence[Profile]]) -> str:
    models = ", ".join(each[0].model for each in found)
    n = counts(len(p.documents) for each in found for p in each)
    return f"{models}: loss by removed layer, n = {n} documents"


def _losses(result: Result, profile: Profile) -> pd.DataFrame:
    """Loss, its interval and whether it is critical, by removed layer."""
    table = result.summary
    keep = (table["task"] == profile.task) & (table["metric"] == profile.metric) & table["layer"].notna()
    table = table[keep].sort_values("layer")
    ends = np.sort(-profile.sign * table[["ci_low", "ci_high"]].to_numpy(), axis=1)
    loss = -profile.sign * table["delta"].to_numpy()
    least = result.metric_info(profile.task, profile.metric)["min_effect"]
    critical = (table["p_adjusted"] < ALPHA).to_numpy() & (loss > least) & (not profile.at_chance)
    layer = table["layer"].to_numpy(dtype=int)
    return pd.DataFrame({"layer": layer, "loss": loss, "low": ends[:, 0], "high": ends[:, 1], "critical": critical})


def _draw_losses(ax: Axes, profile: Profile, losses: pd.DataFrame, style: int) -> None:
    colour, marker = GREY if profile.at_chance else PALETTE[style], MARKERS[style]
    x, y = losses["layer"].to_numpy(), losses["loss"].to_numpy()
    hatch = {"hatch": "////", "facecolor": "none", "edgecolor": colour, "alpha": 0.5}
    band = hatch if profile.at_chance else {"color": colour, "alpha": 0.16}
    ax.fill_between(x, losses["low"], losses["high"], lw=0, **band)
    ax.axhline(0, color=INK, lw=0.8, zorder=1)
    ax.plot(x, y, color=colour, lw=1.2, marker=marker, ms=3, mfc="white", mew=0.8, gid="series")
    dots = {"marker": marker, "ms": 6, "color": colour, "mec": "white", "mew": 0.5, "ls": ""}
    ax.plot(x[losses["critical"]], y[losses["critical"]], gid="critical", **dots)


def _limit(ax: Axes, losses: pd.DataFrame, binary: bool, n_centres: int) -> None:
    """Choose the range of the axis, with room for the centres above."""
    if not binary:
        _far(ax, *(losses[c].to_numpy(dtype=float) for c in ("layer", "loss", "low", "high")))
    bottom, top = ax.get_ylim()
    ax.set_ylim(bottom, top + (top - bottom) * 0.13 * n_centres)


def _far(ax: Axes, x: np.ndarray, y: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Where up to two values are far beyond all others, end the axis before them and write what they are."""
    ranked = np.sort(np.abs(y))
    far = np.abs(y) > (_FAR * ranked[-3] if len(y) > 3 else np.inf)
    near = ~far
    if not far.any():
        return
    bottom, top = min(0.0, low[near].min()), max(0.0, high[near].max())
    margin = 0.08 * (top - bottom)
    ax.set_ylim(bottom - margin, top + margin)
    for layer, value in zip(x[far], y[far], strict=True):
        edge, marker = (1, "^") if value > 0 else (0, "v")
        ax.plot([layer], [edge], marker, color=INK, ms=5, clip_on=False, transform=ax.get_xaxis_transform(), gid="far")
    said = ", ".join(f"L{layer:.0f} {value:.3g}" for layer, value in zip(x[far], y[far], strict=True))
    _beside(ax, f"beyond the axis: {said}")


def _draw_centre(ax: Axes, profile: Profile, centre: pd.Series, style: int, place: int) -> None:
    """The centre of mass on the axis of layers, at the top of the panel; or why there is none."""
    height = 0.95 - 0.11 * place
    if centre["unplaced"]:
        said = CANNOT_JUDGE if profile.at_chance else f"{centre['unplaced']}: cannot judge"
        ax.text(0.995, height, said, ha="right", va="center", fontsize=8, color=GREY, transform=ax.transAxes)
        return
    at = centre[["centre", "ci_low", "ci_high"]].to_numpy(dtype=float) * (profile.n_layers - 1)
    line = {"color": PALETTE[style], "transform": ax.get_xaxis_transform()}
    ax.plot(at[1:], [height] * 2, lw=1.5, solid_capstyle="butt", **line)
    ax.plot(at[:1], [height], marker="|", ms=9, mew=2, gid="centre", **line)


def _draw_transplants(ax: Axes, rows: pd.DataFrame, kind: str, bounds: tuple[float, float]) -> None:
    style = next(i for i, name in enumerate(_SERIES) if kind.endswith(name))
    x = rows["last" if kind.endswith(recovery.BOTTOM) else "first"].to_numpy(dtype=float)
    y, low, high = (rows[c].to_numpy(dtype=float) for c in ("value", "value_low", "value_high"))
    colour, marker = PALETTE[style], MARKERS[style]
    ax.fill_between(x, np.clip(low, *bounds), np.clip(high, *bounds), color=colour, alpha=0.13, lw=0)
    ax.plot(x, y, color=colour, lw=1.2, marker=marker, ms=3, mfc="white", mew=0.8, gid=kind)
    sure = (rows["p_adjusted"] < ALPHA).to_numpy()
    ax.plot(x[sure], y[sure], marker, color=colour, ms=5.5, mec="white", mew=0.5, ls="", gid="proven")


def _draw_references(ax: Axes, row: pd.Series, chance: float | None) -> None:
    ax.axhline(row["base"], color=INK, lw=1, ls=DASHED, zorder=1.5, gid="base")
    ax.axhline(row["donor"], color=INK, lw=1, ls=DASH_DOTTED, zorder=1.5, gid="donor")
    if chance is not None:
        ax.axhline(chance, color=GREY, lw=1, ls=DOTTED, zorder=1.5, gid="chance")


def _share_axis(ax: Axes, row: pd.Series) -> None:
    """The share of the gap on the right, or that there is no gap to share."""
    if row["no_gap"]:
        _beside(ax, "no gap: cannot judge", color=GREY)
        return
    base, gap = row["base"], row["donor"] - row["base"]
    right = ax.secondary_yaxis("right", functions=(lambda v: (v - base) / gap, lambda s: base + s * gap))
    right.set_yticks([0, 0.5, 1])
    right.set_ylabel("share of the gap", fontsize=8)


def _recovery_handles(told: set[str]) -> list[Any]:
    handles: list[Any] = [
        Line2D([], [], color=PALETTE[i], marker=MARKERS[i], ms=5, mfc="white", label=f"{label} transplanted")
        for i, (kind, label) in enumerate(_SERIES.items())
        if kind in told
    ]
    handles.append(Line2D([], [], color=INK, ls=DASHED, lw=1, label="base"))
    handles.append(Line2D([], [], color=INK, ls=DASH_DOTTED, lw=1, label="donor"))
    handles.append(Line2D([], [], color=GREY, ls=DOTTED, lw=1, label="chance"))
    handles.append(Line2D([], [], ls="", marker="o", ms=5.5, color=INK, label=f"not the base: {PROVEN}"))
    handles.append(Patch(facecolor=INK, alpha=0.2, lw=0, label="95% interval"))
    return handles


def _layer_axis(ax: Axes, n_layers: int) -> None:
    ax.set_xlim(-0.7, n_layers - 0.3)
    ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=12 if ax.get_gridspec().ncols == 1 else 7))


def _despine(fig: Figure) -> None:
    for ax in fig.axes:
        ax.spines[["top", "right"]].set_visible(False)
