"""The commands ``depthlens compare`` and ``depthlens gallery``; nothing heavy is imported until one is called."""

from __future__ import annotations

from typing import Annotated

import typer

from depthlens.errors import UserError
from depthlens.progress import say


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Two folders or more that `depthlens sweep` or `depthlens run` wrote, each of one model.",
        ),
    ],
    out: Annotated[
        str, typer.Option(metavar="DIR", help="Folder for index.html, the tables (.parquet) and record.json.")
    ],
    stages: Annotated[
        bool,
        typer.Option(
            "--stages",
            help="The runs are stages of training, in order: compare each with the one before, not the first.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what --out holds.")] = False,
) -> None:
    """Compare runs: scores, profiles over depth, critical parts, and verdicts, with differences tested.

    Only what was measured with equal settings is compared; the page says what was not.

    Example: depthlens compare runs/base runs/distilled --out runs/compared
    """
    from depthlens import arguments

    arguments.check(out=out)
    say(f"reading {', '.join(runs)}", runs=runs)
    from depthlens.analysis.words import plain
    from depthlens.runner.compare_page import write_comparison
    from depthlens.runner.compared_runs import compare as compared

    found = compared(*runs, stages=stages)
    page = write_comparison(found, out, overwrite=overwrite)
    for line in found.sentences:
        typer.echo(plain(line))
    for note in found.notes:
        typer.echo(f"Note: {note}")
    typer.echo(f"\nWrote {page}")


def gallery(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder with executed notebooks.")],
) -> None:
    """Make the web pages of executed notebooks again."""
    if not folder.strip():
        raise UserError(f"folder {folder!r}: the name of a folder is empty; give one that `depthlens run` wrote")
    say(f"reading the notebooks in {folder}", folder=folder)
    from depthlens.runner.index import gallery as build

    typer.echo(f"Wrote {build(folder)}")
