"""Verdicts on claims as one page that needs no network, with their table beside it."""

from __future__ import annotations

from pathlib import Path

from nbconvert.filters import text_base64

from depthlens import __version__
from depthlens.claims.scorecard_html import scorecard
from depthlens.claims.verdicts import DECIDES, Verdicts
from depthlens.paths import PAGE
from depthlens.runner import pages
from depthlens.runner.notebook_files import write_whole


def write_verdicts(verdicts: Verdicts, folder: Path) -> Path:
    """Write verdicts into a folder: ``index.html``, their table and ``record.json``; returns the page's path."""
    figure = verdicts.plot()
    columns = ["claim", "row", "part", "what", "at_half", "state", "at_double"]
    decides = verdicts.parts[verdicts.parts["view"] == DECIDES][columns]
    page = pages.render(
        "claims.html.j2",
        ("base.css", "compare.css"),
        verdicts=verdicts,
        scorecard=scorecard(verdicts),
        alt=figure.get_suptitle(),
        svg=text_base64(figure.svg()),
        sizes=decides.to_html(index=False, border=0),
        version=__version__,
    )
    verdicts.save(folder, overwrite=True)
    write_whole(folder / PAGE, page)
    return folder / PAGE
