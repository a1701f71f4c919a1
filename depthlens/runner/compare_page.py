"""A comparison of runs as one page that needs no network, with its tables beside it as Parquet files."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from depthlens import __version__, plots
from depthlens.analysis import result_folder
from depthlens.analysis.result_folder import DOCS_FILE
from depthlens.analysis.run_comparison import CENTRE, LOSS, SCORE, SHARE, Comparison
from depthlens.errors import UserError
from depthlens.paths import writable_folder
from depthlens.plots.comparison import drawable
from depthlens.plots.panels import MAX_OVERLAID
from depthlens.plots.theme import Plot
from depthlens.runner import pages
from depthlens.runner.notebook_files import write_whole

PAGE = "index.html"
_FEW = 12  # rows of a table that is not folded
_UNTOLD = ["group", "condition", "critical"]  # what tables of numbers of a whole run do not show
_SETTINGS = "Only a setting that decides a score keeps runs from being compared; a circumstance changes it by rounding."
_HOW = (
    "A difference is always the run minus its reference, and it is tested as a difference: that something is critical, "
    "or shown, in one run alone is none. Runs are compared on the documents that both have, document by document. "
    "p-values are corrected for all conditions of a kind and all pairs of runs. "
    "docs/methods.md (Runs side by side) has every test, and says when it misleads."
)


def write_comparison(comparison: Comparison, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write a comparison into a folder: ``index.html``, its tables and ``record.json``; returns the page's path.

    Args:
        comparison: Of `depthlens.compare`.
        out: A folder. It is made where there is none.
        overwrite: Replace what the folder holds. Without it only a comparison of the same runs is replaced.

    Raises:
        UserError: the folder cannot be written, or holds results of a sweep or something else.

    Example:
        >>> dl.runner.write_comparison(comparison, "runs/compared").name
        'index.html'
    """
    folder = writable_folder(out)
    if (folder / DOCS_FILE).exists():
        raise UserError(f"{str(out)!r} holds results of a sweep, which are never replaced; name another folder")
    if not overwrite:
        result_folder.refuse_other(folder, (*Comparison.files(), PAGE), partial(comparison.differs, folder))
    page = comparison_page(comparison)
    comparison.save(folder, overwrite=True)
    write_whole(folder / PAGE, page)
    return folder / PAGE


def comparison_page(comparison: Comparison) -> str:
    """The page as HTML, with all figures inside."""
    return pages.render(
        "compare.html.j2",
        ("base.css", "compare.css"),
        title=f"Comparison: {', '.join(comparison.runs)}",
        about=f"compared with the {'stage before' if comparison.record['stages'] else 'first run'}",
        sections=_sections(comparison),
        footer=f"depthlens {__version__}",
    )


def _sections(c: Comparison) -> Iterator[dict[str, Any]]:
    """What the page shows: title, text, lines, lines that are folded, figures, and tables."""
    shown = [line for line in c.sentences if "**" in line]
    rest = [line for line in c.sentences if line not in shown]
    yield _section("What is shown", lines=shown or ["No difference between the runs is shown."], rest=rest)
    yield _section("What was not compared, or only in part", lines=c.notes)
    differs = c.settings[~c.settings["equal"].astype(bool)]
    settings = {kind: _by_run(c, rows, ["place", "task", "setting"], "value") for kind, rows in differs.groupby("kind")}
    yield _section("Settings that differ", _SETTINGS, tables=settings)
    yield _section("Whole models", tables={"Scores with nothing removed": c.of(SCORE).drop(columns=_UNTOLD)})
    drawn: list[Any] = [(plots.profile_comparison, False), (plots.loss_difference, True), (plots.run_centres, False)]
    if len(c.runs) > MAX_OVERLAID:
        drawn = drawn[-1:]
    figures = [draw(c, place=place, parts=parts) for draw, tested in drawn for place, parts in drawable(c, tested)]
    losses = c.of(LOSS, SHARE, compared=True)
    shown = losses[losses["shown"]].drop(columns=["group", "shown", "why"])
    tables = {"Differences of losses that are shown": shown, "Centres of mass": c.of(CENTRE).drop(columns=_UNTOLD)}
    yield _section("Losses", figures=figures, tables=tables)
    answers = c.answers.drop(columns=["metric", "baseline_value", "value", "loss", "nats"])
    yield _section("Answers of the whole models that differ", tables={"Documents": answers})
    states = _by_run(c, c.verdicts, ["place", "claim"], "claim_state")
    estimates = c.verdicts.drop(columns=["why", "sentence"])
    yield _section("Scorecards", tables={"Verdicts": states, "Estimates": estimates})
    yield _section("How to read this", _HOW)


def _section(
    title: str,
    text: str = "",
    lines: Sequence[str] = (),
    rest: Sequence[str] = (),
    figures: Sequence[Plot] = (),
    tables: Mapping[str, pd.DataFrame] | None = None,
) -> dict[str, Any]:
    """The values of a section for the template."""
    pictures = [(f.get_suptitle(), base64.b64encode(f._repr_png_()[0]).decode()) for f in figures]
    shown = [(name, _html(table), len(table) <= _FEW) for name, table in (tables or {}).items() if len(table)]
    texts = {"title": title, "text": text, "lines": [*map(_text, lines)], "rest": [*map(_text, rest)]}
    return {**texts, "figures": pictures, "tables": shown}


def _by_run(c: Comparison, table: pd.DataFrame, index: list[str], values: str) -> pd.DataFrame:
    """One row for each of ``index``, and one column a run."""
    wide = table.pivot_table(index=index, columns="run", values=values, aggfunc="first", sort=False)
    return wide[[run for run in c.runs if run in wide]]


def _html(table: pd.DataFrame) -> str:
    """A table without columns that say nothing, with numbers of three digits."""
    empty = [c for c in table if table[c].isna().all() or (table[c].astype(str) == "").all()]
    named = isinstance(table.index, pd.MultiIndex)
    return table.drop(columns=empty).to_html(index=named, border=0, na_rep="", float_format="{:.3g}".format)


def _text(line: str) -> str:
    """A sentence as HTML: ``**bold**`` is its only markup."""
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(line))
