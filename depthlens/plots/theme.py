"""What all figures share: paper size, markers, fonts, and how text is made to fit.

The theme is seaborn's and holds while a figure is drawn: global settings stay as they are. Figures do not belong to
pyplot. Colours are those of `depthlens.look`, as are those of pages and of the site.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import cache, wraps
from typing import Any, ParamSpec

import numpy as np
import seaborn as sns
from matplotlib import font_manager, ft2font
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression

from depthlens.plots import figure_data

P = ParamSpec("P")
MARKERS = ("o", "s", "^", "D")
SCORES = "mako_r"  # numbers from 0 up: perceptually uniform, light to dark, so that it also prints in grey
WIDTH = 7.0  # inches: both columns of a page
SMALL = 8  # points: no text is smaller
DASHED, DOTTED, DASH_DOTTED = (0, (5, 3)), (0, (1, 2)), (0, (6, 2, 1, 2))
CANNOT_JUDGE = "at chance: cannot judge"


class Plot(Figure):
    """A matplotlib `Figure` that any notebook can display, whatever the active backend.

    Attributes:
        points: What to say of a point of a panel: panel, x, y and text.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.points: list[tuple[Axes, float, float, str]] = []

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {figure_data.MIME: figure_data.payload(self, self.points)}

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        width, height = self.get_size_inches() * 100  # half the pixels there are: sharp on any screen
        return buffer.getvalue(), {"width": round(width), "height": round(height)}


def themed(draw: Callable[P, Plot]) -> Callable[P, Plot]:
    """Draw a figure in seaborn's ticks theme with text of 8 to 9 pt and two spines."""
    look = {"font.family": "DejaVu Sans", "axes.linewidth": 0.8, "hatch.linewidth": 0.5, "text.usetex": False}
    look |= {"axes.spines.top": False, "axes.spines.right": False}
    sizes = {f"{part}size": SMALL for part in ("xtick.label", "ytick.label", "legend.font")}
    sizes |= {"font.size": 9, "axes.labelsize": 9, "axes.titlesize": 9}

    @wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> Plot:
        with sns.axes_style("ticks", rc=look), sns.plotting_context("paper", rc=sizes):
            return draw(*args, **kwargs)

    return inner


def figure(title: str | None, default: str, *, height: float, width: float = WIDTH) -> Plot:
    """An empty figure (sizes in inches) with a title, or the default one for None, that is wrapped to its width."""
    fig = Plot(figsize=(round(width, 2), round(height, 2)), dpi=200, layout="constrained")
    # "n = 50" is one word
    text = (default if title is None else title).replace(" = ", "\xa0=\xa0")
    if text := textwrap.fill(text, round(90 * width / WIDTH)).replace("\xa0", " "):
        fig.suptitle(text, fontsize=10, x=0.01, ha="left").set_parse_math(False)
    return fig


def with_legend(fig: Plot, keys: Sequence[Artist], ncols: int | None = None) -> Plot:
    """The figure with one legend below everything, of 3 or 4 columns unless ``ncols`` says otherwise.

    There are fewer columns where so many are wider than the figure.
    """
    ncols = ncols or (4 if len(keys) <= 4 else 3)
    for n in range(ncols, 0, -1):
        legend = fig.legend(handles=keys, loc="outside lower center", frameon=False, ncols=n, columnspacing=1.4)
        if n == 1 or legend.get_window_extent().width <= fig.bbox.width:
            break
        legend.remove()
    return fig


def counts(sizes: Iterable[int]) -> str:
    """Numbers of documents in words: ``16``, or ``4 to 16`` where they differ."""
    sizes = list(sizes)
    return " to ".join(map(str, sorted({min(sizes), max(sizes)})))


def spread(places: ArrayLike, sizes: ArrayLike, low: float = -np.inf, high: float = np.inf) -> np.ndarray:
    """Move labels along a line as little as possible (least squares) so that they do not overlap.

    With the room that labels need subtracted from their places, "in order and apart" becomes "not falling", which
    isotonic regression solves exactly.

    Args:
        places: Where each label would like its middle to be, in rising order. Shape [label].
        sizes: Length of each label along the line. Shape [label].
        low: No label begins before.
        high: No label ends after, as far as they fit.

    Returns:
        The middle of each label. Shape [label].
    """
    places, sizes = np.asarray(places, dtype=float), np.asarray(sizes, dtype=float)
    if not len(places):
        return places
    room = np.cumsum(sizes) - sizes / 2 - sizes[0] / 2  # from the middle of the first label to that of each
    level = isotonic_regression(places - room).x
    return np.maximum(np.minimum(level, high - sizes[-1] / 2 - room[-1]), low + sizes[0] / 2) + room


def round_up(value: float) -> float:
    """The next number of two digits, e.g. 0.43 for 0.4217: where a colour scale ends."""
    if value <= 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(round(value / step, 6)) * step:.2g}")


def ink_on(colour: Iterable[float]) -> str:
    """Black or white, whichever stands out from a filled area (relative luminance, WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in list(colour)[:3]]
    return "black" if float(np.dot(linear, [0.2126, 0.7152, 0.0722])) > 0.18 else "white"


def visible(token: str, *, space: str = "␣", font: str = "DejaVu Sans") -> str:
    """Text with its white space shown, and characters that the font lacks as their code points."""
    marked = token.replace(" ", space).replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if ord(c) in _characters(font) else f"\\u{ord(c):04x}" for c in marked) or "(empty)"


@cache
def _characters(font: str) -> frozenset[int]:
    return frozenset(ft2font.FT2Font(font_manager.findfont(font)).get_charmap())
