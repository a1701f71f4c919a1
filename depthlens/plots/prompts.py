"""One prompt: what one head attends to, and which token comes next.

Short prompts are drawn as a map of all queries and keys. Others are shown for one query: the prompt as text, every
token shaded by the attention weight that the query gives it. It is plain HTML, so that it needs neither a network nor
a script.

Attention is causal: no token attends to a later one. A row of weights sums to 1, or to less where the model has a sink
outside the prompt.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex
from numpy.typing import ArrayLike

from depthlens.errors import UserError
from depthlens.look import EMPTY, GREY, PALE, PALETTE
from depthlens.plots import panels, theme
from depthlens.plots.panels import maps
from depthlens.plots.theme import Plot, figure, round_up, themed

MAP_TOKENS = 60  # more do not fit a page in 8 pt
UNIT = "attention weight"
_SLACK = 0.01  # a row of bfloat16 weights sums to 1 within this
_CHARS = 12  # characters of one token that are drawn


@dataclass(frozen=True)
class TokenStrip:
    """A prompt as text, every token shaded by the attention weight that one of them, which is framed, gives it.

    Attributes:
        title: Above the text.
        table: One row a token: token, weight (missing for tokens after the query).
        query: Number of the attending token.
    """

    title: str
    table: pd.DataFrame
    query: int

    @property
    def largest(self) -> str:
        """The four tokens with the largest weights."""
        rows = self.table.nlargest(4, "weight")
        return ", ".join(f"{_short(row.token)} (token {row.Index}) {row.weight:.2f}" for row in rows.itertuples())

    def __repr__(self) -> str:
        return f"{self.title}\nlargest weights: {self.largest}"

    def _repr_html_(self) -> str:
        shades, most = colormaps[theme.SCORES], self.table["weight"].max() or 1.0
        spans = []
        for i, token, weight in self.table[["token", "weight"]].itertuples(name=None):
            fill = shades(weight / most)
            seen = f"background:{to_hex(fill)};color:{theme.ink_on(fill)}" if i <= self.query else f"color:{GREY}"
            frame = ";outline:2px solid currentColor" if i == self.query else ""
            about = f"token {i}: {weight:.3f}" if i <= self.query else f"token {i} comes later"
            text = html.escape(theme.visible(token, space=" ")).replace("⏎", "⏎<wbr>\n")
            spans.append(f'<span style="{seen}{frame}" title="{about}">{text}</span>')
        box = "font:.85rem/1.6 monospace;white-space:pre-wrap;max-height:30rem;overflow:auto"
        head = f"<p><strong>{html.escape(self.title)}</strong><br>largest weights: {html.escape(self.largest)}</p>"
        return f'{head}<div style="{box}">{"".join(spans)}</div>'


def attention(
    tokens: Sequence[str], weights: ArrayLike, head: str, *, query: int | None = None, title: str | None = None
) -> Plot | TokenStrip:
    """Attention of one head on one prompt: all queries and keys, or the prompt shaded by what one query attends to.

    Args:
        tokens: Text of each token of the prompt; white space is made visible.
        weights: Attention weights after the softmax, shape [query, key]; or [key], those of one query.
        head: Name of the head, as in conditions: ``"L9.H6"``.
        query: Position whose weights are drawn over the text (negative counts from the end); without it the map of
            all, for up to 60 tokens. The last position by default where ``weights`` is [key].
        title: Above the figure.

    Returns:
        A figure of the map; or, of one query, text that notebooks and pages show.

    Raises:
        UserError: no tokens, weights of another shape or that are not causal attention weights, a query that does not
            exist, or too many tokens for a map.
    """
    n, weights = len(tokens), np.asarray(weights, dtype=float)
    if query is None and weights.ndim == 1:
        query = -1
    _check(n, weights, query)
    if query is None:
        return _map(tokens, weights, title, f"{head}: attention of every token (row)")
    query %= n
    row = np.where(np.arange(n) <= query, weights if weights.ndim == 1 else weights[query], np.nan)
    default = f"{head}: what token {query} ({theme.visible(tokens[query])}) attends to"
    return TokenStrip(default if title is None else title, pd.DataFrame({"token": tokens, "weight": row}), query)


def _check(n: int, weights: np.ndarray, query: int | None) -> None:
    if not n or weights.shape not in ((n, n), (n,)):
        raise UserError(f"{n} tokens and weights of shape {weights.shape}; give [query, key], or [key] of one query")
    if query is not None and not -n <= query < n:
        raise UserError(f"query {query} does not exist; the prompt has tokens 0..{n - 1}")
    rows, queries = np.atleast_2d(weights), np.arange(n) if weights.ndim == 2 else np.array([query or 0]) % n
    later = rows[np.arange(n) > queries[:, None]]
    if not (np.isfinite(rows).all() and rows.min() >= 0 and rows.sum(axis=1).max() <= 1 + _SLACK) or later.any():
        fault = f"weights run from {rows.min():.3g}, and the largest row sums to {rows.sum(1).max():.3g}"
        fix = "give attention weights after the softmax as [query, key]: 0 for later tokens, with a sum of 1 at most"
        raise UserError(f"{fault}; {fix}")
    if query is None and n > MAP_TOKENS:
        fix = "choose an attending token with query=, e.g. query=-1 for the last"
        raise UserError(f"{n} tokens do not fit a map of up to {MAP_TOKENS}; {fix}")


@themed
def _map(tokens: Sequence[str], weights: np.ndarray, title: str | None, default: str) -> Plot:
    n, names = len(tokens), [_short(token) for token in tokens]
    room = 0.075 * max(map(len, names)) + 0.35  # inches for the names
    size = min(theme.WIDTH - room, max(2.8, 0.25 * n))
    y, x = np.tril_indices(n)  # no token attends to a later one
    table, limits = pd.DataFrame({"x": x, "y": y, "value": weights[y, x]}), (0, round_up(float(weights.max())) or 1.0)
    look: dict[str, Any] = {"rows": names, "columns": names, "empty": "white", "width": size + room}
    look |= {"edgecolors": "white" if n <= 40 else "none", "height": size + room + 0.9}
    look |= {"xlabel": "attended token (key)", "ylabel": "attending token (query)"}
    fig, (ax,) = maps(title, default, table, limits, UNIT, **look)
    ax.set_aspect("equal")
    return fig


def _short(token: str, most: int = _CHARS) -> str:
    text = theme.visible(token, space="·")
    return text if len(text) <= most else text[: most - 1] + "…"


@themed
def prediction(
    tokens: Iterable[str], before: ArrayLike, after: ArrayLike, *, condition: str = "the part", title: str | None = None
) -> Plot:
    """Probability of each next token with and without an ablation.

    Tokens that lose probability stand on top, those that gain below them, each from the likeliest down.

    Args:
        tokens: Their text, which is quoted; spaces and line breaks are made visible.
        before: Probability of each without ablation. Shape [token].
        after: Probability of each under the condition. Shape [token].
        condition: Its text form, for the legend.
        title: Above the figure.

    Raises:
        UserError: no tokens, or different lengths.
    """
    names = [f'"{theme.visible(token)}"' if token else theme.visible(token) for token in tokens]
    before, after = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if not names or before.shape != (len(names),) or after.shape != before.shape:
        shapes = f"probabilities of shape {before.shape} before and {after.shape} after"
        raise UserError(f"{len(names)} tokens, {shapes}; give one of each per token")
    order = np.lexsort((-np.maximum(before, after), after > before))
    names, before, after = [names[i] for i in order], before[order], after[order]
    y, top = np.arange(len(names)), max(before.max(), after.max(), 0.01)
    fig = figure(title, "", height=0.27 * len(names) + 1.2, width=0.7 * theme.WIDTH)
    ax = fig.subplots()
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
def token_grid(found: Any, *, title: str | None = None) -> Plot:
    """What `depthlens.patch` or `depthlens.logit_lens` found, a row a part or depth and a column a token.

    Patching has the effect as colour, and the logit lens the probability, with the likeliest next token in each cell.

    Args:
        found: What they returned.
        title: Above the figure.

    Example:
        >>> depthlens.plots.token_grid(depthlens.logit_lens(lens, "The capital of Denmark is"))  # doctest: +SKIP
    """
    table, says = found.table, "says" in found.table
    row, value = ("depth", "probability") if says else ("part", "effect")
    rows = [str(name) for name in table[row].unique()]
    first = 0 if says else int(table.loc[table[value] != 0, "position"].min())  # patches do nothing before
    most, columns = float(table[value].abs().max()) or 1.0, [_short(token) for token in found.tokens[first:]]
    drawn = table[table["position"] >= first]
    drawn = drawn.assign(x=drawn["position"] - first, y=drawn[row].astype(str).map(rows.index), value=drawn[value])
    look: dict[str, Any] = {"rows": rows, "columns": columns, "height": 0.19 * len(rows) + 1.7, "xlabel": "token"}
    look["width"] = max(4.5, min(theme.WIDTH, 1.2 + (0.75 if says else 0.45) * len(columns)))
    if says:
        drawn = drawn.assign(text=[_short(said, 9) for said in drawn["says"]])
        look["ylabel"], default = "after this many layers", "What each layer would say after each token"
        return maps(title, default, drawn, (0, 1), "probability of the likeliest next token", **look)[0]
    default = f"What a patch of one part does ({found.direction})"
    unit = "share of the difference between the prompts that moves"
    return maps(title, default, drawn, (-most, most), unit, cmap="vlag", **look)[0]
