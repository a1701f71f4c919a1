"""What a layer costs the open book beyond the closed one; see `depthlens.plots` and `depthlens.analysis.open_book`."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.figure import Figure

from depthlens.analysis.stats import ALPHA
from depthlens.errors import UserError
from depthlens.plots import panels
from depthlens.plots.theme import GREY, PALETTE, figure, legend, theme

_SIDES = {1: (PALETTE[0], "^"), -1: (PALETTE[1], "v")}


def beyond(versus: pd.DataFrame, *, unit: str = "nats", title: str | None = None) -> Figure:
    """Loss with the book minus loss without it, by layer.

    The scale is linear near 0 and logarithmic beyond, because one layer may cost many times what all others do.

    Args:
        versus: The table of `depthlens.analysis.open_book_losses`.
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
    with theme():
        fig = figure(title, f"Loss with the book beyond the loss without it, n = {rows['n'].max()}", height=2.9)
        ax = fig.subplots()
        ax.set_yscale("symlog", linthresh=inner, linscale=1.0)
        panels.level(ax, 0, "no change")
        for side, (colour, marker) in _SIDES.items():
            here = np.sign(gap) == side
            ax.vlines(layer[here], low[here], high[here], color=colour, lw=1.2, alpha=0.6)
            for at, fill in ((here & ~proven, "white"), (here & proven, colour)):
                ax.plot(layer[at], gap[at], marker, color=colour, mfc=fill, ms=5, gid="gap")
        panels.layer_axis(ax, int(layer.max()) + 1)
        ax.set(xlabel="layer", ylabel=f"open minus closed ({unit})")
        ticks = [t for t in (0, inner, 1, 10, 100) if t <= max(inner, np.abs([low, high]).max())]
        ticks = [t for i, t in enumerate(ticks) if i == 0 or t >= 2 * ticks[i - 1]]
        ax.set_yticks(sorted({s * t for t in ticks for s in _SIDES}))
        ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:+.2g}" if value else "0"))
        ax.yaxis.set_minor_locator(ticker.NullLocator())
        keys = [
            panels.mark_key(f"costs more {book} the book", color=colour, marker=marker)
            for book, (colour, marker) in zip(("with", "without"), _SIDES.values(), strict=True)
        ]
        keys.append(panels.mark_key("open marker: not proven", color=GREY, mfc="white"))
        legend(fig, [*keys, panels.line_key("95% interval", color=GREY, lw=1.2)])
    return fig
