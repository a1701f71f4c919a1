"""Figures of one prompt: what one head attends to, and which token comes next.

Attention is drawn as a static figure, so that it survives every export and needs no network. Short prompts are drawn as
a map of all queries and keys. Long ones are drawn for one query: the prompt as text, every token shaded by the
attention weight that the query gives it. From a thousand tokens on, stretches without weight are left out, and the
figure says how much weight they have in all.

Attention is causal: no token attends to a later one. A row of weights sums to 1, or to less where the model has a sink
outside the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from depthlens.errors import UserError
from depthlens.look import EMPTY, GREY, INK, PALE, PALETTE
from depthlens.plots import panels, theme
from depthlens.plots.theme import SMALL, Plot, figure, themed, with_legend

MAP_TOKENS = 60  # more do not fit a page in 8 pt
STRIP_TOKENS = 800  # a longer prompt is shown in excerpts
UNIT = "attention weight"
_SLACK = 0.01  # a row of bfloat16 weights sums to 1 within this
_MONO, _CHAR = "DejaVu Sans Mono", 0.602 * SMALL  # points: width of a character
_GUTTER, _PITCH = 30.0, 14.0  # points: room for token numbers, distance of lines
_MAP_CHARS, _STRIP_CHARS = 12, 60  # characters of one token that are drawn
_ATTENDED, _CONTEXT = 0.05, 12  # of an excerpt: share of the largest weight, and tokens drawn on both sides


@themed
def attention(
    tokens: Sequence[str], weights: ArrayLike, head: str, *, query: int | None = None, title: str | None = None
) -> Plot:
    """Attention of one head on one prompt: all queries and keys, or the prompt shaded by what one query attends to.

    Args:
        tokens: Text of each token of the prompt; white space is made visible.
        weights: Attention weights after the softmax, shape [query, key]; or [key], those of one query.
        head: Name of the head, as in conditions: ``"L9.H6"``.
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
        return _map(tokens, weights, title, f"{head}: attention of every token (row)")
    query %= n
    row = weights if weights.ndim == 1 else weights[query]
    return _strip(tokens, row, query, title, f"{head}: what token {query} ({theme.visible(tokens[query])}) attends to")


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
    queries = np.arange(n) if weights.ndim == 2 else np.array([query or 0]) % n
    if (ahead := np.argwhere((rows > 0) & (np.arange(n) > queries[:, None]))).size:
        fault = f"query {queries[ahead[0, 0]]} attends to the later token {ahead[0, 1]}"
        raise UserError(f"{fault}; give causal weights as [query, key]: rows are the attending tokens")
    if query is None and n > MAP_TOKENS:
        fix = "choose an attending token with query=, e.g. query=-1 for the last"
        raise UserError(f"{n} tokens do not fit a map of up to {MAP_TOKENS}; {fix}")


def _map(tokens: Sequence[str], weights: np.ndarray, title: str | None, default: str) -> Plot:
    n, names = len(tokens), [_short(theme.visible(t, space="·"), _MAP_CHARS) for t in tokens]
    room = 0.075 * max(map(len, names)) + 0.35  # inches for the names
    size = min(theme.WIDTH - room, max(2.8, 0.25 * n))
    fig = figure(title, default, height=size + room + 0.35, width=size + room)
    ax = fig.subplots()
    seen = np.where(np.tri(n) > 0, weights, np.nan)
    limits = 0, theme.round_up(float(weights.max())) or 1.0
    mesh = panels.cells(ax, seen, limits, empty="white", edgecolors="white" if n <= 40 else "none")
    steps = np.repeat(np.arange(n + 1), 2) - 0.5
    ax.plot(steps[2:], steps[1:-1], color=GREY, lw=0.6, clip_on=False)
    panels.name_rows(ax, names)
    turned: dict[str, Any] = {"rotation": 90, "ha": "right", "va": "center_baseline", "rotation_mode": "anchor"}
    ax.set_xticks(range(n), names, parse_math=False, **turned)
    ax.set(xlabel="attended token (key)", ylabel="attending token (query)", aspect="equal")
    ax.tick_params(pad=2)
    ax.spines[["left", "bottom"]].set_visible(True)
    # the half above the diagonal is empty: no token attends to a later one
    bar = fig.colorbar(mesh, cax=ax.inset_axes((0.55, 0.93, 0.4, 0.03)), orientation="horizontal", label=UNIT)
    bar.outline.set_visible(False)
    bar.ax.locator_params(nbins=3)
    return fig


def _strip(tokens: Sequence[str], row: np.ndarray, query: int, title: str | None, default: str) -> Plot:
    pieces = list(_flow(tokens, row, query, 72 * (theme.WIDTH - 0.1)))
    scale = ScalarMappable(Normalize(0, theme.round_up(float(row.max())) or 1.0), colormaps[theme.SCORES])
    fig = figure(title, default, height=((pieces[-1].line + 1) * _PITCH) / 72 + 1.5)
    ax = fig.subplots()
    ax.set_axis_off()
    top = [i for i in np.argsort(-row, kind="stable")[:4] if row[i] > 0]
    largest = ", ".join(f"{_short(theme.visible(tokens[i]), _MAP_CHARS)} (token {i}) {row[i]:.2f}" for i in top)
    panels.panel_title(ax, f"largest weights: {largest}", fontsize=SMALL)
    panels.colour_bar(scale, ax, UNIT, fraction=0.1, shrink=0.6)
    keys = [panels.mark_key("attending token (query)", marker="s", ms=8, mfc="none", mew=1.2)]
    if query + 1 < len(tokens):
        keys.append(panels.mark_key("grey text: later tokens, which the query does not see", marker=""))
    with_legend(fig, keys)
    fig.draw_without_rendering()  # lays the figure out; from here on a unit of the axes is a point of the page
    place = ax.get_window_extent()
    ax.set(xlim=(0, 72 * place.width / fig.dpi), ylim=(72 * place.height / fig.dpi, 0))
    _draw_tokens(ax, pieces, row, query, scale)
    return fig


class Piece(NamedTuple):
    """A piece of text on the page."""

    x: float  # points
    line: int
    text: str
    token: int  # its number; -1 where tokens are left out


def _flow(tokens: Sequence[str], row: np.ndarray, query: int, width: float) -> Iterator[Piece]:
    """Set the tokens as lines of text; a line break in the prompt breaks the line."""
    x, line = _GUTTER, 0
    drawn = _drawn(row, query)
    for i, token in enumerate(tokens):
        if drawn[i]:
            text = _short(theme.visible(token, space=" ", font=_MONO), _STRIP_CHARS)
        elif i and not drawn[i - 1]:
            continue
        else:
            end = i + int(np.argmax(np.append(drawn[i:], True)))
            weight = f": {row[i:end].sum():.2f}" if i <= query else ""
            text = f" [{end - i} tokens{weight}] "
        span = len(text) * _CHAR + 1
        if x + span > width and x > _GUTTER:
            x, line = _GUTTER, line + 1
        yield Piece(x, line, text, i if drawn[i] else -1)
        x += span
        if drawn[i] and "\n" in token:
            x, line = _GUTTER, line + 1


def _drawn(row: np.ndarray, query: int) -> np.ndarray:
    """Which tokens are drawn: all of a prompt that fits, else those around the query and what it attends to."""
    n = len(row)
    drawn = np.full(n, n <= STRIP_TOKENS)
    attended = [i for i in np.argsort(-row, kind="stable") if row[i] >= _ATTENDED * row.max()]
    for i in (0, query, *attended):
        if drawn.sum() >= STRIP_TOKENS:
            break
        drawn[max(0, i - _CONTEXT) : i + _CONTEXT + 1] = True
    return drawn


def _draw_tokens(ax: Axes, pieces: Sequence[Piece], row: np.ndarray, query: int, scale: ScalarMappable) -> None:
    boxes, fills, numbered = [], [], -1
    for x, line, text, i in pieces:
        y, width = line * _PITCH, len(text) * _CHAR
        colour = GREY
        if 0 <= i <= query:
            boxes.append(Rectangle((x, y + 1), width, _PITCH - 2))
            fills.append(scale.to_rgba(row[i]))
            colour = theme.ink_on(fills[-1])
        look: dict[str, Any] = {"fontsize": SMALL, "va": "center", "parse_math": False}
        gid = "token" if i >= 0 else "left out"
        ax.text(x, y + _PITCH / 2, text, family=_MONO, color=colour, gid=gid, **look)
        if i == query:
            ax.add_patch(Rectangle((x, y + 1), width, _PITCH - 2, fc="none", ec=INK, lw=1.2, zorder=2))
        if line > numbered and i >= 0:
            ax.text(_GUTTER - 6, y + _PITCH / 2, str(i), color=GREY, ha="right", **look)
            numbered = line
    ax.add_collection(PatchCollection(boxes, facecolors=fills, linewidths=0, gid="weights"))


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


@themed
def prediction(
    tokens: Iterable[str],
    before: ArrayLike,
    after: ArrayLike,
    *,
    condition: str = "the part",
    title: str | None = None,
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
        UserError: no tokens, different lengths, or numbers that are not probabilities.
    """
    names = [f'"{theme.visible(token)}"' if token else theme.visible(token) for token in tokens]
    before, after = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if not names or before.shape != (len(names),) or after.shape != before.shape:
        shapes = f"probabilities of shape {before.shape} before and {after.shape} after"
        raise UserError(f"{len(names)} tokens, {shapes}; give one of each per token")
    pairs = np.stack([before, after])
    if not ((pairs >= 0) & (pairs <= 1 + 1e-6)).all():
        raise UserError(f"probabilities run from {pairs.min():.3g} to {pairs.max():.3g}; allowed: 0 to 1")
    order = np.lexsort((-pairs.max(axis=0), after > before))
    names, before, after = [names[i] for i in order], before[order], after[order]
    y, top = np.arange(len(names)), max(float(pairs.max()), 0.01)
    fig = figure(title, "", height=0.27 * len(names) + 1.2, width=0.7 * theme.WIDTH)
    ax = fig.subplots()
    ax.hlines(y, before, after, color=PALE, lw=2, zorder=1)
    ax.plot(after, y, "s", color=PALETTE[1], ms=6, label=f"{condition} removed")
    ax.plot(before, y, "o", mfc="none", mec=PALETTE[0], mew=1.5, ms=8.5, label="nothing removed")
    panels.name_rows(ax, names)
    ax.set(ylim=(len(names) - 0.5, -0.5), xlim=(-0.025 * top, 1.04 * top))
    ax.set_xlabel("probability of the next token")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", color=EMPTY, lw=0.6, zorder=0)
    ax.spines["left"].set_visible(False)
    return with_legend(fig, ax.get_lines()[::-1])
