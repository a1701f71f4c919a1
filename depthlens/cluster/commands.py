"""Options of the command line that ask for workers."""

from __future__ import annotations

from typing import Annotated

import typer

WorkersOption = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Compute in N processes through Ray (pip install 'depthlens[ray]'), each with the model. "
        "[default: in this process, or with --ray as many as fit]",
    ),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS|local",
        help="A Ray cluster (HOST:PORT, as 'ray start --head' prints it), or a Ray on this machine. "
        "[default: local with --workers]",
    ),
]
CpusOption = Annotated[
    str | None,
    typer.Option(metavar="N", help="CPU threads of each worker. [default: its share of this machine, else 1]"),
]
GpusOption = Annotated[
    str | None,
    typer.Option(metavar="N", help="GPUs of each worker; 0.5 shares one. [default: as many as the model has here]"),
]
