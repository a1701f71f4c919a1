"""What a layer costs the open book beyond the closed one; see `depthlens.plots` and `depthlens.analysis.open_book`."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from depthlens.analysis.stats import ALPHA
from depthlens.errors import UserError
from depthlens.plots.theme import DOTTED, GREY, PALETTE, figure, legend, theme


def beyond(versus: pd.DataFrame, *, unit: str = "nats", title: str | None = None) -> Figure:
    """Loss with the book minus loss without it, by layer.

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
    layer, gap, low, high = (rows[c].to_numpy(dtype=float) for c in ("layer", "difference", "ci_low", "ci_high"))
    sure = (rows["p_adjusted"] < ALPHA).to_numpy()
    # one layer may cost many times what all others do: the scale is linear near nothing and logarithmic beyond
    inner = max(0.05, float(np.quantile(np.abs(gap), 0.75)))
    with theme():
        fig = figure(title or f"Loss with the book beyond the loss without it, n = {rows['n'].max()}", height=2.9)
        ax = fig.subplots()
        ax.set_yscale("symlog", linthresh=inner, linscale=1.0)
        ax.axhline(0, color=GREY, lw=0.8, ls=DOTTED)
        for side, (colour, mark) in ((1, (PALETTE[0], "^")), (-1, (PALETTE[1], "v"))):
            here = np.sign(gap) == side
            ax.vlines(layer[here], low[here], high[here], color=colour, lw=1.2, alpha=0.6)
            for filled in (False, True):
                at = here & (sure == filled)
                ax.plot(layer[at], gap[at], mark, color=colour, mfc=colour if filled else "white", ms=5, gid="gap")
        ax.set(xlabel="layer", ylabel=f"open minus closed ({unit})", xlim=(-0.7, layer.max() + 0.7))
        ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=12))
        ticks = [t for t in (0, inner, 1, 10, 100) if t <= max(inner, np.abs([low, high]).max())]
        ticks = [t for i, t in enumerate(ticks) if i == 0 or t >= 2 * ticks[i - 1]]
        ax.set_yticks(sorted({s * t for t in ticks for s in (-1, 1)}))
        ax.yaxis.set_major_formatter(ticker.FuncFormatter(_number))
        ax.yaxis.set_minor_locator(ticker.NullLocator())
        ax.spines[["top", "right"]].set_visible(False)
        legend(
            fig,
            [
                Line2D([], [], color=PALETTE[0], marker="^", ls="", label="costs the finding more"),
                Line2D([], [], color=PALETTE[1], marker="v", ls="", label="costs the knowing more"),
                Line2D([], [], color=GREY, marker="o", mfc="white", ls="", label="open marker: not proven"),
                Patch(facecolor=GREY, alpha=0.4, lw=0, label="95% interval"),
            ],
        )
    return fig


def _number(value: float, _: object = None) -> str:
    return f"{value:+.2g}" if value else "0"
