"""One prompt: which token comes next, and what was found for each of its tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from depthlens.look import EMPTY, PALE, PALETTE
from depthlens.plots import panels, theme
from depthlens.plots.panels import maps
from depthlens.plots.theme import Plot, figure, themed

_CHARS = 12  # characters of one token that are drawn


def _short(token: str, most: int = _CHARS) -> str:
    text = theme.visible(token, space="·")
    return text if len(text) <= most else text[: most - 1] + "…"


@themed
def prediction(table: pd.DataFrame, condition: str, *, title: str | None = None, ax: Axes | None = None) -> Plot:
    """Probability of each next token with and without an ablation.

    Tokens that lose probability stand on top, those that gain below them, each from the likeliest down.

    Args:
        table: Of `depthlens.next_token`. The text of a token is quoted; spaces and line breaks are made visible.
        condition: A column of it.
        title: Above the figure.
        ax: Axes into which it is drawn, if it has one panel.

    Example:
        >>> figure = dl.plots.prediction(dl.next_token(lens, "Ada Ben SEP Cleo Dora SEP QA Cleo", ["L2"]), "L2")
    """
    names = [f'"{theme.visible(token)}"' if token else theme.visible(token) for token in table.index]
    before, after = (table[column].to_numpy(dtype=float) for column in ("baseline", condition))
    order = np.lexsort((-np.maximum(before, after), after > before))
    names, before, after = [names[i] for i in order], before[order], after[order]
    y, top = np.arange(len(names)), max(before.max(), after.max(), 0.01)
    fig = figure(title, "", height=0.27 * len(names) + 1.2, width=0.7 * theme.WIDTH, ax=ax)
    (ax,) = panels.grid(fig, 1, 1, "")
    for series, values in (("nothing removed", before), (f"{condition} removed", after)):
        panels.keep(ax, pd.DataFrame({"x": names, "series": series, "value": values}), "value")
    ax.hlines(y, before, after, color=PALE, lw=2, zorder=1)
    ax.plot(after, y, "s", color=PALETTE[1], ms=6, gid="after")
    ax.plot(before, y, "o", mfc="none", mec=PALETTE[0], mew=1.5, ms=8.5, gid="before")
    panels.key(ax, "mark", "nothing removed", mfc="none", mec=PALETTE[0], mew=1.5)
    panels.key(ax, "mark", f"{condition} removed", marker="s", color=PALETTE[1])
    ax.set_yticks(y, names, parse_math=False)
    ax.set(ylim=(len(names) - 0.5, -0.5), xlim=(-0.025 * top, 1.04 * top))
    ax.set_xlabel("probability of the next token")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", color=EMPTY, lw=0.6, zorder=0)
    ax.spines["left"].set_visible(False)
    return fig


@themed
def token_grid(found: Any, *, title: str | None = None, ax: Axes | None = None) -> Plot:
    """What `depthlens.patch` or `depthlens.logit_lens` found, a row a part or depth and a column a token.

    Patching has the effect as colour, and the logit lens the probability, with the likeliest next token in each cell.

    Args:
        found: What they returned.
        title: Above the figure.
        ax: Axes into which it is drawn, if it has one panel.

    Example:
        >>> figure = dl.logit_lens(lens, "Ada Ben SEP Cleo Dora SEP QA Cleo").plot()
        >>> figure.table.columns.tolist()
        ['panel', 'series', 'x', 'value']
    """
    table, says = found.table, "says" in found.table
    row, value = ("depth", "probability") if says else ("part", "effect")
    rows = [str(name) for name in table[row].unique()]
    first = 0 if says else int(table.loc[table[value] != 0, "position"].min())  # patches do nothing before
    most = float(table[value].abs().max()) or 1.0
    # under a patch each token stands with the one that the patch comes from, where they differ
    pairs = zip(found.tokens, found.tokens if says else found.sources, strict=True)
    texts = [_short(a) if a == b else f"{_short(a, 7)}←{_short(b, 7)}" for a, b in pairs]
    columns = [f"{position} {text}" for position, text in enumerate(texts)][first:]
    drawn = table[table["position"] >= first]
    drawn = drawn.assign(x=drawn["position"] - first, y=drawn[row].astype(str).map(rows.index), value=drawn[value])
    height = 0.19 * max(len(rows), 9) + 1.2 + 0.07 * max(map(len, columns))
    look: dict[str, Any] = {"rows": rows, "columns": columns, "height": height, "xlabel": "token", "ax": ax}
    look["width"] = max(4.5, min(theme.WIDTH, 1.2 + (0.75 if says else 0.45) * len(columns)))
    if says:
        drawn = drawn.assign(text=[_short(said, 9) for said in drawn["says"]])
        look["ylabel"], default = "after this many layers", "What each layer would say after each token"
        return maps(title, default, drawn, (0, 1), "probability of the likeliest next token", **look)[0]
    default = f"What a patch of one part moves ({found.direction}) of the {theme.visible(found.compared, space=' ')}"
    return maps(title, default, drawn, (-most, most), "share of this difference that moves", cmap="vlag", **look)[0]
