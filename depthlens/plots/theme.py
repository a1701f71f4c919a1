"""What all figures share: paper size, markers, fonts, and how text is made to fit.

The theme is seaborn's and holds while a figure is drawn: global settings stay as they are. What was set in
``matplotlib.rcParams`` of the family and size of fonts and of the resolution wins over it. Figures do not belong to
pyplot. Colours are those of `depthlens.look`.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterable
from contextvars import ContextVar, copy_context
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib import font_manager, ft2font, rc_context, rcParams, rcParamsDefault
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from depthlens.analysis.numbers.words import NOT_ABOVE_CHANCE
from depthlens.errors import UserError
from depthlens.look import MIME
from depthlens.paths import writable_folder, write_files

MARKERS = ("o", "s", "^", "D")
SCORES = "mako_r"  # numbers from 0 up: perceptually uniform, light to dark, so that it also prints in grey
WIDTH = 7.0  # inches: both columns of a page
SMALL = "small"  # 8 points, or in proportion where a user set another size: no text is smaller
CANNOT_JUDGE = NOT_ABOVE_CHANCE
DASHED, DOTTED, DASH_DOTTED = (0, (5, 3)), (0, (1, 2)), (0, (6, 2, 1, 2))
SUFFIXES = (".png", ".pdf", ".svg", ".csv")
EMBEDDED: Any = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none"}  # text stays text, which can be edited
_FAMILY = {"font.family": "DejaVu Sans", "font.sans-serif": ["DejaVu Sans"]}
_SIZES = {"font.size": 9.61, "axes.labelsize": 9, "axes.titlesize": 9, "figure.titlesize": 10}  # points
_SIZES |= {"xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8}
COLUMNS: tuple[str, ...] = ("panel", "series", "model", "task", "metric", "condition", "layer", "head")
COLUMNS += ("x", "y", "value", "low", "high", "p_adjusted", "shown")


class Plot(Figure):
    """A matplotlib `Figure` that any notebook can display, whatever the active backend, with its numbers as a table.

    Attributes:
        drawn: The panels with the rows that they show.
        keys: What the legend explains, by label: its place in the order, and how it looks.
        asked: The title that was asked for; None for the default one.
        into: The Axes of a user into which it is drawn; it is then saved with all of their figure.

    Example:
        >>> figure = result.plot()
        >>> figure.save("profile.pdf")
        >>> len(figure.table)
        6
    """

    def __init__(self, asked: str | None = None, into: Axes | None = None) -> None:
        super().__init__(dpi=rcParams["figure.dpi"] if _set("figure.dpi") else 200, layout="constrained")
        self.drawn: list[tuple[Axes, pd.DataFrame]] = []
        self.keys: dict[str, tuple[int, Artist]] = {}
        self.asked, self.into = asked, into

    @property
    def table(self) -> pd.DataFrame:
        """What the figure shows, one row a point or cell, with those of the columns `COLUMNS` that it has.

        ``x`` and ``y`` are places on the axes where no other column has them; ``low`` and ``high`` are the ends of the
        95% interval.
        """
        tables = []
        for ax, rows in self.drawn:
            places = {"x": "layer", "y": "head"}
            double = [c for c, name in places.items() if {c, name} <= {*rows} and rows[c].equals(rows[name])]
            tables.append(
                rows.drop(columns=double).assign(panel=(ax.get_title("left") or ax.get_ylabel()).split("\n")[0])
            )
        table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
        return table[[c for c in COLUMNS if c in table and (table[c].notna() & (table[c] != "")).any()]]

    def save(self, path: str | Path) -> None:
        """Write the figure into one file, whole or not at all; its suffix says as what.

        ``.pdf`` (with fonts as Type 42, so that text can be searched and edited), ``.svg`` (with text as text),
        ``.png``, or ``.csv``: the numbers that it shows.

        Args:
            path: Of the file. Its folder is made where there is none.

        Raises:
            UserError: another suffix, or a folder that cannot be written.
        """
        path = Path(path)
        if (suffix := path.suffix.lower()) not in SUFFIXES:
            raise UserError(f"no figure is saved as {path.name!r}; end its name with {', '.join(SUFFIXES)}")
        csv, drawing = partial(self.table.to_csv, index=False), partial(self.savefig, format=suffix[1:])
        write_files(writable_folder(path.parent), {path.name: csv if suffix == ".csv" else drawing})

    def savefig(self, *args: Any, **options: Any) -> None:
        """As that of matplotlib, with fonts as text."""
        with rc_context(EMBEDDED):
            whole: Any = self.into.figure.figure if self.into else super()
            whole.savefig(*args, **options)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        if self.into:
            return {}  # the figure of a user is shown by them
        title = " ".join(self.get_suptitle().split())
        csv = self.table.to_csv(index=False, float_format="%.6g")
        return {MIME: {"title": title, "csv": csv, "svg": self.svg()}}

    def svg(self) -> str:
        """The figure as a text of SVG, sharp at any size, with text as shapes: a page need not have the font."""
        buffer = io.StringIO()
        super().savefig(buffer, format="svg")
        return buffer.getvalue()

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        width, height = self.get_size_inches() * 100  # half the pixels there are: sharp on any screen
        return buffer.getvalue(), {"width": round(width), "height": round(height)}


DRAWN: ContextVar[Plot] = ContextVar("DRAWN")  # the figure that is being drawn


def themed(draw: Callable[..., None]) -> Callable[..., Plot]:
    """Draw a figure in seaborn's ticks theme with text of 8 to 9 pt and two spines, and its legend.

    What it makes of a function that draws takes two more options: ``title``, which stands above the figure in place of
    the default one, and ``ax``, the Axes of a user into which it is drawn, if it has one panel. It returns the figure.

    Raises:
        UserError: ``ax`` is anything else.
    """

    @wraps(draw)
    def inner(*args: Any, title: str | None = None, ax: Axes | None = None, **options: Any) -> Plot:
        if not isinstance(ax, Axes | None):
            raise UserError(f"ax is a {type(ax).__name__}; give one matplotlib Axes")
        with rc_context(_look()):
            fig, context = Plot(title, ax), copy_context()
            context.run(DRAWN.set, fig)
            context.run(draw, *args, **options)
            _legend(fig)
        return fig

    return inner


def _look() -> Any:
    """The theme, but for what a user set of fonts."""
    look = {"axes.linewidth": 0.8, "hatch.linewidth": 0.5, "text.usetex": False}
    look |= {"axes.spines.top": False, "axes.spines.right": False}
    scale = rcParams["font.size"] / _SIZES["font.size"] if _set("font.size") else 1
    fonts: dict[str, Any] = {name: size * scale for name, size in _SIZES.items()}
    whole = {**sns.plotting_context("paper"), **sns.axes_style("ticks"), **look, **_FAMILY, **fonts}
    own = {name for name in fonts if _set(name)} | ({*_FAMILY} if any(map(_set, _FAMILY)) else set())
    return {name: value for name, value in whole.items() if name not in own}


def _set(name: Any) -> bool:
    """Whether a user set a parameter of matplotlib."""
    return bool(rcParams[name] != rcParamsDefault[name])


def figure(default: str, *, height: float, width: float = WIDTH) -> Plot:
    """The figure that is drawn: its size in inches and its title, wrapped to its width.

    Args:
        default: The title where none was asked for; a figure that is drawn into Axes of a user has none then.
        height: Of the figure.
        width: Of the figure.
    """
    fig = DRAWN.get()
    fig.set_size_inches(round(width, 2), round(height, 2))
    # "n = 50" is one word
    text = (default if fig.asked is None else fig.asked).replace(" = ", "\xa0=\xa0")
    if text := fill(text, width).replace("\xa0", " "):
        fig.suptitle(text, x=0.01, ha="left").set_parse_math(False)
    if fig.into and fig.asked:
        fig.into.set_title(fig.asked, loc="left").set_parse_math(False)
    return fig


def fill(text: str, inches: float) -> str:
    """Text in lines that are as long as a width holds."""
    return textwrap.fill(text, max(9, round(90 * inches / WIDTH * _SIZES["font.size"] / rcParams["font.size"])))


def _legend(fig: Plot) -> None:
    """One legend below everything, of up to 4 columns: fewer where so many are wider than the figure."""
    keys = [artist for _, artist in sorted(fig.keys.values(), key=lambda entry: entry[0])]
    ax: Any = fig.into
    wide = ax.bbox.width / ax.figure.dpi - 0.5 if ax else fig.get_figwidth()
    for key in keys:
        key.set_label(fill(str(key.get_label()), wide))
    if ax and keys:  # one column, which is not wider than the panel
        below = (ax.xaxis.get_tightbbox().y0 - ax.bbox.y0) / ax.figure.dpi
        place = {"bbox_transform": ax.transAxes + ScaledTranslation(0, below, ax.figure.dpi_scale_trans)}
        ax.legend(handles=keys, frameon=False, loc="upper left", bbox_to_anchor=(0, 0), **place)
        return
    for n in range(4 if len(keys) <= 4 else 3, 0, -1) if keys else ():
        legend = fig.legend(handles=keys, loc="outside lower center", frameon=False, ncols=n, columnspacing=1.4)
        if n == 1 or legend.get_window_extent().width <= 0.96 * fig.bbox.width:
            break
        legend.remove()


def counts(sizes: Iterable[int]) -> str:
    """Numbers of documents in words: ``16``, or ``4 to 16`` where they differ."""
    sizes = list(sizes)
    return " to ".join(map(str, sorted({min(sizes), max(sizes)})))


def round_up(value: float) -> float:
    """The next number of two digits, e.g. 0.43 for 0.4217: where a colour scale ends."""
    if value <= 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(round(value / step, 6)) * step:.2g}")


def ink_on(colour: Iterable[float]) -> str:
    """Black or white, whichever stands out from a filled area (relative luminance, WCAG 2.2)."""
    return "black" if sns.utils.relative_luminance(colour) > 0.18 else "white"


def visible(token: str, *, space: str = "␣") -> str:
    """Text with its white space shown, and characters that the font lacks as their code points."""
    marked = token.replace(" ", space).replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥")
    known = _characters(font_manager.findfont(font_manager.FontProperties()))
    return "".join(c if ord(c) in known else f"\\u{ord(c):04x}" for c in marked) or "(empty)"


@cache
def _characters(file: str) -> frozenset[int]:
    return frozenset(ft2font.FT2Font(file).get_charmap())
