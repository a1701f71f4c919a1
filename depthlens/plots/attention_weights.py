"""Where one head looks on one prompt: a static figure, so that it survives every export and needs no network.

Short prompts are drawn as a map of all queries and keys. Long ones are drawn for one query: the prompt as text, every
token shaded by the attention weight that the query gives it. For a thousand tokens and more, stretches without weight
are left out, and what they hold in all is said.

Attention is causal: no token looks at a later one. A row of weights sums to 1, or to less where the model has a sink
outside the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from depthlens.errors import UserError
from depthlens.plots.theme import GREY, INK, SCORES, WIDTH, figure, ink_on, legend, round_up, theme, visible

MAP_TOKENS = 60  # more do not fit a page in 8 pt
STRIP_TOKENS = 800  # a longer prompt is shown in excerpts
UNIT = "attention weight"
_SLACK = 0.01  # a row of bfloat16 weights sums to 1 within this
_MONO, _CHAR = "DejaVu Sans Mono", 0.602 * 8  # points: width of a character at 8 pt
_GUTTER, _PITCH = 30.0, 14.0  # points: room for token numbers, distance of lines
_LONGEST = {"map": 12, "strip": 60}  # characters of one token that are shown
_ATTENDED, _CONTEXT = 0.05, 12  # of an excerpt: share of the largest weight, and tokens shown on both sides


def attention(
    tokens: Sequence[str],
    weights: ArrayLike,
    head: str,
    *,
    query: int | None = None,
    title: str | None = None,
) -> Figure:
    """Attention of one head on one prompt: all queries and keys, or the prompt shaded by what one query looks at.

    Args:
        tokens: Text of each token of the prompt; white space is made visible.
        weights: Attention weights after the softmax, shape [query, key]; or [key], those of one query.
        head: Name of the head, e.g. ``"L9H6"``.
        query: Position whose weights are drawn over the text (negative counts from the end); without it the map of
            all, for up to 60 tokens. The last position by default where ``weights`` is [key].
        title: Above the figure.

    Raises:
        UserError: no tokens, weights of another shape or that are not causal attention weights, a query that does not
            exist, or too many tokens for a map.
    """
    n, weights = len(tokens), np.asarray(weights, dtype=float)
    if query is None and weights.ndim == 1:
        query = -1
    _check(n, weights, query)
    if query is None:
        return _map(tokens, weights, title if title is not None else f"{head}: attention of every token (row)")
    query %= n
    row = weights if weights.ndim == 1 else weights[query]
    named = f"{head}: what token {query} ({visible(tokens[query])}) attends to"
    return _strip(tokens, row, query, title if title is not None else named)


def _check(n: int, weights: np.ndarray, query: int | None) -> None:
    if not n or weights.shape not in ((n, n), (n,)):
        raise UserError(f"{n} tokens and weights of shape {weights.shape}; give [query, key], or [key] of one query")
    if query is not None and not -n <= query < n:
        raise UserError(f"query {query} does not exist; the prompt has tokens 0..{n - 1}")
    rows = weights if weights.ndim == 2 else weights[None]
    if not (np.isfinite(rows).all() and rows.min() >= 0 and rows.sum(axis=1).max() <= 1 + _SLACK):
        fault = (
            f"weights run from {rows.min():.3g} to {rows.max():.3g}, the largest row sums to {rows.sum(1).max():.3g}"
        )
        raise UserError(f"{fault}; give attention weights after the softmax, which sum to 1 at most")
    last = np.arange(n) if weights.ndim == 2 else np.array([query]) % n
    if (ahead := np.argwhere((rows > 0) & (np.arange(n) > last[:, None]))).size:
        q, k = int(last[ahead[0, 0]]), int(ahead[0, 1])
        fault = f"query {q} attends to the later token {k}"
        raise UserError(f"{fault}; give causal weights as [query, key]: rows are the tokens that look")
    if query is None and n > MAP_TOKENS:
        fix = "choose a token that looks with query=, e.g. query=-1 for the last"
        raise UserError(f"{n} tokens do not fit a map of up to {MAP_TOKENS}; {fix}")


def _scale(largest: float) -> tuple[Colormap, Normalize]:
    return colormaps[SCORES], Normalize(0, round_up(largest) or 1.0)


def _map(tokens: Sequence[str], weights: np.ndarray, title: str) -> Figure:
    n, names = len(tokens), [_short(visible(t, space="·"), "map") for t in tokens]
    room = 0.075 * max(map(len, names)) + 0.35  # inches for the names
    size = min(WIDTH - room, max(2.8, 0.25 * n))
    cmap, norm = _scale(float(weights.max()))
    with theme():
        fig = figure(title, height=size + room + 0.35, width=size + room)
        ax = fig.subplots()
        later = np.arange(n) > np.arange(n)[:, None]
        edges = {"edgecolors": "white", "linewidth": 0.5} if n <= 40 else {}
        mesh = ax.pcolormesh(np.ma.masked_array(weights, later), cmap=cmap, norm=norm, **edges)
        steps = np.repeat(np.arange(n + 1), 2)
        ax.plot(steps[2:], steps[1:-1], color=GREY, lw=0.6, clip_on=False)
        middles = np.arange(n) + 0.5
        ax.set_xticks(middles, names, rotation=90, ha="right", va="center_baseline", rotation_mode="anchor")
        ax.set_yticks(middles, names)
        for text in (*ax.get_xticklabels(), *ax.get_yticklabels()):
            text.set_parse_math(False)  # a token may hold dollar signs
        ax.set(
            xlim=(0, n), ylim=(n, 0), xlabel="attended token (key)", ylabel="token that looks (query)", aspect="equal"
        )
        ax.tick_params(length=0, pad=2)
        # the half above the diagonal is empty: no token looks ahead
        bar = fig.colorbar(mesh, cax=ax.inset_axes((0.55, 0.93, 0.4, 0.03)), orientation="horizontal", label=UNIT)
        bar.outline.set_visible(False)
        bar.ax.locator_params(nbins=3)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    return fig


def _strip(tokens: Sequence[str], row: np.ndarray, query: int, title: str) -> Figure:
    width = 72 * (WIDTH - 0.1)
    pieces = list(_flow(tokens, row, query, width))
    n_lines = pieces[-1][1] + 1
    cmap, norm = _scale(float(row.max()))
    with theme():
        fig = figure(title, height=(n_lines * _PITCH) / 72 + 1.5)
        ax = fig.subplots()
        ax.set_axis_off()
        top = [i for i in np.argsort(-row, kind="stable")[:4] if row[i] > 0]
        most = ", ".join(f"{_short(visible(tokens[i]), 'map')} (token {i}) {row[i]:.2f}" for i in top)
        ax.set_title(f"largest weights: {most}", loc="left", fontsize=8).set_parse_math(False)
        place = {"orientation": "horizontal", "aspect": 45, "fraction": 0.1, "pad": 0.02, "shrink": 0.6}
        bar = fig.colorbar(ScalarMappable(norm, cmap), ax=ax, label=UNIT, **place)
        bar.outline.set_visible(False)
        looks = {"marker": "s", "ms": 8, "mfc": "none", "mec": INK, "mew": 1.2}
        handles = [Line2D([], [], ls="", label="token that looks (query)", **looks)]
        if query + 1 < len(tokens):
            handles.append(Line2D([], [], ls="", label="in grey: later tokens, out of sight"))
        legend(fig, handles)
        fig.draw_without_rendering()  # lays the figure out; from here on a unit of the axes is a point of the page
        place = ax.get_window_extent()
        ax.set(xlim=(0, 72 * place.width / fig.dpi), ylim=(72 * place.height / fig.dpi, 0))
        _draw_tokens(ax, pieces, row, query, cmap, norm)
    return fig


Piece = tuple[float, int, str, int]  # x in points, line, text, token number (-1: tokens left out)


def _flow(tokens: Sequence[str], row: np.ndarray, query: int, width: float) -> Iterator[Piece]:
    """Set the tokens as lines of text; a line break in the prompt breaks the line."""
    x, line = _GUTTER, 0
    shown = _shown(row, query)
    for i, start in enumerate(tokens):
        if shown[i]:
            text = _short(visible(start, space=" ", font=_MONO), "strip")
        elif i and not shown[i - 1]:
            continue
        else:
            end = i + int(np.argmax(np.append(shown[i:], True)))
            held = f": {row[i:end].sum():.2f}" if i <= query else ""
            text = f" [{end - i} tokens{held}] "
        span = len(text) * _CHAR + 1
        if x + span > width and x > _GUTTER:
            x, line = _GUTTER, line + 1
        yield x, line, text, i if shown[i] else -1
        x += span
        if shown[i] and "\n" in start:
            x, line = _GUTTER, line + 1


def _shown(row: np.ndarray, query: int) -> np.ndarray:
    """Which tokens are drawn: all of a prompt that fits, else those around the query and what it attends to."""
    n = len(row)
    shown = np.full(n, n <= STRIP_TOKENS)
    attended = [i for i in np.argsort(-row, kind="stable") if row[i] >= _ATTENDED * row.max()]
    for i in (0, query, *attended):
        if shown.sum() >= STRIP_TOKENS:
            break
        shown[max(0, i - _CONTEXT) : i + _CONTEXT + 1] = True
    return shown


def _draw_tokens(
    ax: Axes, pieces: Sequence[Piece], row: np.ndarray, query: int, cmap: Colormap, norm: Normalize
) -> None:
    boxes, fills, first = [], [], -1
    for x, line, text, i in pieces:
        y = line * _PITCH
        fill = cmap(norm(row[i]))
        seen = 0 <= i <= query
        if seen:
            boxes.append(Rectangle((x, y + 1), len(text) * _CHAR, _PITCH - 2))
            fills.append(fill)
        colour = ink_on(fill) if seen else GREY
        style = {"family": _MONO, "fontsize": 8, "va": "center", "parse_math": False}
        ax.text(x, y + _PITCH / 2, text, color=colour, gid="token" if i >= 0 else "left out", **style)
        if i == query:
            ax.add_patch(Rectangle((x, y + 1), len(text) * _CHAR, _PITCH - 2, fc="none", ec=INK, lw=1.2, zorder=2))
        if line > first and i >= 0:
            ax.text(_GUTTER - 6, y + _PITCH / 2, str(i), color=GREY, fontsize=8, va="center", ha="right")
            first = line
    ax.add_collection(PatchCollection(boxes, facecolors=fills, linewidths=0, gid="weights"))


def _short(text: str, where: str) -> str:
    return text if len(text) <= _LONGEST[where] else text[: _LONGEST[where] - 1] + "…"
