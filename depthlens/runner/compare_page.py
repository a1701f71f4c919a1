"""A comparison of runs as one page that needs no network, with its tables beside it as Parquet files."""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from depthlens import __version__, arguments, plots
from depthlens.analysis import result_folder, run_settings
from depthlens.analysis.result_folder import DOCS_FILE
from depthlens.analysis.run_comparison import Comparison
from depthlens.analysis.run_differences import ABOVE_FLOOR, SCORE
from depthlens.errors import UserError
from depthlens.paths import writable_folder
from depthlens.plots.layers import MAX_OVERLAID
from depthlens.plots.run_comparison import families_over_depth
from depthlens.runner import pages
from depthlens.runner.notebook_files import write_whole

PAGE = "index.html"
_OFTEN = 12  # rows of a table that is not folded
_FOUND = re.compile(r"\*\*(differ|deeper|less deep|below|\d+ of)")
_HOW = (
    "A difference is always the run minus its reference, and it is tested as a difference: that something is critical, "
    "or shown, in one run alone is none. Runs are compared on the documents that both have, document by document. "
    "p-values are corrected for all conditions of a family and all pairs of runs. "
    "docs/methods.md (Runs side by side) has every test, and says when it misleads."
)


@dataclass
class Table:
    """A table of a section: shown or folded under its title."""

    title: str
    html: str
    open: bool


@dataclass
class Picture:
    """A figure of a section, a PNG as base64."""

    alt: str
    png: str


@dataclass
class Section:
    """A part of the page."""

    title: str
    texts: Sequence[str] = ()
    lines: Sequence[str] = ()
    more: Sequence[str] = ()
    figures: Sequence[Picture] = ()
    tables: Sequence[Table] = field(default_factory=list)


def check_out(out: str | Path, *, overwrite: bool = False) -> None:
    """Refuse a folder that holds something else than a comparison, before anything is read or computed.

    Raises:
        UserError: naming what it holds.
    """
    if (Path(out) / DOCS_FILE).exists():
        raise UserError(f"{str(out)!r} holds results of a sweep, which are never replaced; name another folder")
    if not overwrite:
        result_folder.refuse_other(Path(out), (*Comparison.files(), PAGE), lambda record: _kind(record["kind"]))


def _kind(kind: str) -> str:
    if kind != Comparison.__name__:
        raise KeyError("kind")
    return ""


def write_comparison(comparison: Comparison, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write a comparison into a folder: ``index.html``, its tables and ``record.json``; returns the page's path.

    Args:
        comparison: Of `depthlens.compare`.
        out: A folder. It is made where there is none.
        overwrite: Replace what the folder holds. Without it only a comparison of the same runs is replaced.

    Raises:
        UserError: the folder cannot be written, or holds something else.
    """
    arguments.made_by(comparison, "sentences", "what depthlens.compare returned", "comparison")
    folder = writable_folder(out)
    check_out(folder, overwrite=overwrite)
    page = comparison_page(comparison)
    comparison.save(folder, overwrite=overwrite)
    write_whole(folder / PAGE, page)
    return folder / PAGE


def comparison_page(comparison: Comparison) -> str:
    """The page as HTML, with all figures inside."""
    title = f"Comparison: {', '.join(comparison.runs)}"
    each = "each stage is compared with the one before" if comparison.stages else f"reference: {comparison.runs[0]}"
    sections = [s for s in _sections(comparison) if s.texts or s.lines or s.figures or s.tables]
    about = f"{len(comparison.runs)} runs · {each}"
    footer = f"depthlens {__version__}"
    return pages.render(
        "compare.html.j2", ("base.css", "compare.css"), title=title, about=about, sections=sections, footer=footer
    )


def _sections(c: Comparison) -> Iterator[Section]:
    settings, *lines = c.sentences
    found = [line for line in lines if _FOUND.search(line)]
    rest = [line for line in lines if line not in found]
    if len(rest) <= _OFTEN:
        found, rest = lines, []
    found = [settings, *(found or ["No difference between the runs is shown."] * bool(rest))]
    yield Section("What was found", lines=[_text(line) for line in found], more=[_text(line) for line in rest])
    yield Section("What was not compared, or only in part", lines=[_text(line) for line in c.notes])
    if tables := list(_settings(c)):
        yield Section("Settings that differ", texts=[_KINDS], tables=tables)
    whole = _beside(c.baselines, "baseline", "ci_low", "ci_high")
    whole = _beside(whole, "difference", "difference_low", "difference_high").drop(columns=["group", "model"])
    yield Section("Whole models", tables=_tables(("Scores with nothing removed", whole)))
    families = families_over_depth(c)
    over_depth = [plots.run_profiles] if len(c.runs) <= MAX_OVERLAID else []
    figures = [f for place, parts in families for draw in over_depth for f in _figure(draw, c, place, parts)]
    yield Section("Profiles over relative depth", figures=figures)
    yield Section("Losses that differ", figures=list(_differences(c, families)), tables=_shown(c))
    figures = [f for place, parts in families for f in _figure(plots.run_map, c, place, parts)]
    order = ["place", "task", "metric", "parts", "measure"]
    centres = _beside(c.centres.sort_values(order, kind="stable"), "value", "ci_low", "ci_high")
    centres = _beside(centres, "difference", "difference_low", "difference_high").drop(columns="group")
    yield Section("Centres of mass", figures=figures, tables=_tables(("Centre of mass and thirds", centres)))
    if c.stages:
        yield Section(
            "From stage to stage", figures=[f for p, k in families for f in _figure(plots.run_stages, c, p, k)]
        )
    verdicts = _beside(c.verdicts, "effect", "ci_low", "ci_high").drop(columns=["why", "sentence"])
    cards = _by_run(c, c.verdicts, ["place", "claim"], "claim_state")
    tables = _tables(("Verdicts", cards), ("Estimates", verdicts))
    yield Section("Scorecards", figures=list(_scorecards(c)), tables=tables)
    yield Section("How to read this", texts=[html.escape(_HOW)])


_KINDS = (
    "Runs are compared only where all settings that <em>decide</em> a score are equal. A <em>circumstance</em> cannot "
    "change a score by more than rounding. <em>Model</em> is what is compared."
)


def _settings(c: Comparison) -> Iterator[Table]:
    """Settings that differ, one column a run: those that decide or are of the model, then circumstances, folded."""
    differs = c.settings[~c.settings["equal"].astype(bool)]
    index = ["place", "task", "setting", "kind"]
    for title, rows in (
        ("Settings that decide, and models", differs[differs["kind"] != run_settings.CIRCUMSTANCE]),
        ("Circumstances", differs[differs["kind"] == run_settings.CIRCUMSTANCE]),
    ):
        if len(rows):
            yield Table(title, _html(_by_run(c, rows, index, "value")), title != "Circumstances")


def _by_run(c: Comparison, table: pd.DataFrame, index: list[str], values: str) -> pd.DataFrame:
    """One row for each of ``index``, and one column a run, ``in RUN``, which no other column can be called."""
    wide = table.pivot_table(index=index, columns="run", values=values, aggfunc="first", sort=False)
    wide = wide[[run for run in c.runs if run in wide]].rename(columns=lambda run: f"in {run}")
    return wide.reset_index().rename_axis(columns=None)


def _beside(table: pd.DataFrame, name: str, low: str, high: str) -> pd.DataFrame:
    """A column with its interval in brackets, in place of three columns."""
    values = table[[name, low, high]].astype(float).itertuples(index=False, name=None)
    texts = ["" if math.isnan(v) else f"{v:.3g} [{a:.3g}, {b:.3g}]" for v, a, b in values]
    return table.assign(**{name: texts}).drop(columns=[low, high])


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) < 1e7 and value == round(value) else f"{value:.3g}"


def _differences(c: Comparison, families: Sequence[tuple[str, str]]) -> Iterator[Picture]:
    if len(c.runs) > MAX_OVERLAID:
        return
    for place, parts in families:
        for scale in (SCORE, ABOVE_FLOOR):
            rows = c.differences
            here = (rows["place"] == place) & (rows["parts"] == parts) & (rows["scale"] == scale)
            if here.any():
                yield from _figure(plots.run_differences, c, place, parts, scale=scale)


def _shown(c: Comparison) -> list[Table]:
    """Differences that are shown; those of heads and other conditions are in the tables alone."""
    shown = c.differences[c.differences["shown"].astype(bool)]
    if not len(shown):
        return []
    shown = _beside(shown, "difference", "ci_low", "ci_high")
    return _tables(
        (f"The {len(shown)} differences that are shown, of {len(c.differences)}", shown.drop(columns="shown"))
    )


def _scorecards(c: Comparison) -> Iterator[Picture]:
    if len(c.runs) > MAX_OVERLAID:
        return
    for place in c.verdicts["place"].unique():
        figure = plots.scorecards(c, place=place)
        yield Picture(f"Scorecards of {', '.join(c.runs)}", _png(figure))


def _figure(
    draw: Callable[..., plots.Plot], c: Comparison, place: str, parts: str, **options: Any
) -> Iterator[Picture]:
    figure = draw(c, place=place, parts=parts, **options)
    yield Picture(f"{draw.__name__.replace('_', ' ')}: {parts}" + (f" in {place}" if place else ""), _png(figure))


def _png(figure: plots.Plot) -> str:
    return base64.b64encode(figure._repr_png_()[0]).decode()


def _tables(*named: tuple[str, pd.DataFrame]) -> list[Table]:
    return [Table(title, _html(table), len(table) <= _OFTEN) for title, table in named if len(table)]


def _html(table: pd.DataFrame) -> str:
    """A table without columns that say nothing, with numbers of three digits."""
    empty = [c for c in table if table[c].isna().all() or table[c].astype(str).isin(["", "False"]).all()]
    if "reference" not in empty:
        empty = [c for c in empty if c != "shown"]  # that no difference is shown says something
    shown = table.drop(columns=empty)
    shown = shown.rename(columns=lambda c: c if c.startswith("in ") else c.replace("_", " "))
    text = shown.to_html(index=False, border=0, na_rep="", float_format=_number)
    return text.replace("<td>True</td>", "<td>yes</td>").replace("<td>False</td>", "<td>no</td>")


def _text(line: str) -> str:
    """A sentence as HTML: ``**bold**`` is its only markup."""
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(line))
