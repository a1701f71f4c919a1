"""Comparisons and verdicts as pages that need no network, with their tables beside them as Parquet files."""

from __future__ import annotations

import html
import re
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from nbconvert.filters import text_base64

from depthlens import __version__
from depthlens.analysis.result.findings import Finding
from depthlens.analysis.result.folder import DOCS_FILE, refuse_other
from depthlens.analysis.runs.comparison import CENTRE, LOSS, SCORE, SHARE, Comparison
from depthlens.claims.verdicts import DECIDES, Verdicts, scorecard
from depthlens.errors import UserError
from depthlens.paths import PAGE, writable_folder
from depthlens.plots.comparison import drawable, loss_difference, profile_comparison
from depthlens.plots.panels import MAX_OVERLAID
from depthlens.runner import pages
from depthlens.runner.notebook_files import write_whole

_FEW = 12  # rows of a table that is not folded
_UNTOLD = ["group", "condition", "critical"]  # what tables of numbers of a whole run do not show


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
        refuse_other(folder, (*Comparison.files(), PAGE), partial(comparison.differs, folder))
    return _write(comparison, folder, "compare.html.j2", **_of_comparison(comparison))


def write_verdicts(verdicts: Verdicts, folder: Path) -> Path:
    """Write verdicts into a folder: ``index.html``, their table and ``record.json``; returns the page's path."""
    columns = ["claim", "row", "part", "what", "at_half", "state", "at_double"]
    sizes = verdicts.parts[verdicts.parts["view"] == DECIDES][columns].to_html(index=False, border=0)
    shown = {"scorecard": scorecard(verdicts), "sizes": sizes}
    return _write(verdicts, folder, "claims.html.j2", verdicts=verdicts, **shown)


def _write(finding: Finding, folder: Path, template: str, **values: Any) -> Path:
    page = pages.render(template, ("base.css", "compare.css"), version=__version__, **values)
    finding.save(folder, overwrite=True)
    write_whole(folder / PAGE, page)
    return folder / PAGE


def _of_comparison(c: Comparison) -> dict[str, Any]:
    """What the page shows, with all figures."""
    drawn: dict[Any, bool] = {profile_comparison: False, loss_difference: True} if len(c.runs) <= MAX_OVERLAID else {}
    figures = [draw(c, parts=parts) for draw, tested in drawn.items() for parts in drawable(c, tested)]
    losses = c.of(LOSS, SHARE, compared=True)
    tables = {
        "scores": c.of(SCORE).drop(columns=_UNTOLD),
        "centres": c.of(CENTRE).drop(columns=_UNTOLD),
        "losses": losses[losses["shown"]].drop(columns=["group", "shown", "why"]),
        "answers": c.answers.drop(columns=["metric", "baseline_value", "value", "loss", "nats"]),
    }
    return {
        "comparison": c,
        "figures": [(f.get_suptitle(), text_base64(f.svg())) for f in figures],
        "tables": {name: _folded(rows) for name, rows in tables.items()},
        "sentence": _text,
    }


def _folded(table: pd.DataFrame) -> tuple[str, bool] | None:
    """A table without columns that say nothing, with numbers of three digits, and whether it is open; None: no rows."""
    empty = [c for c in table if table[c].isna().all() or (table[c].astype(str) == "").all()]
    shown = table.drop(columns=empty).to_html(index=False, border=0, na_rep="", float_format="{:.3g}".format)
    return (shown, len(table) <= _FEW) if len(table) else None


def _text(line: str) -> str:
    """A sentence as HTML: ``**bold**`` is its only markup."""
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(line))
