"""Options of commands that load a model; nothing heavy is imported."""

from __future__ import annotations

from typing import Annotated

import typer

DtypeOption = Annotated[
    str, typer.Option(metavar="TYPE", help="Type of the weights: auto, float32, float64, bfloat16 or float16.")
]
DeviceOption = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, mps, cuda:N or cuda:0,cuda:1.")]
QuantizeOption = Annotated[
    str | None, typer.Option(metavar="SCHEME", help="int8, int4 or nf4: keep the weights of layers in so many bits.")
]
OffloadOption = Annotated[
    str | None,
    typer.Option(metavar="disk", help="disk: read layers when they are needed, for models larger than memory."),
]
