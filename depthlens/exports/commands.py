"""The command ``depthlens export``, apart from the module that does it, so that nothing heavy is imported before."""

from __future__ import annotations

from typing import Any

import typer

from depthlens.progress import say


def export(model: str, condition: str, *, out: str, result: str | None = None, **loading: Any) -> None:
    """Write the model that a condition leaves as a smaller Hugging Face checkpoint, with a model card.

    Removed layers are left out. Other removed parts get weights of zero.

    Example: depthlens export smollm2-135m L20-22 --out models/smaller

    Args:
        model (MODEL): Short name, hub id, folder or .gguf file.
        condition (CONDITION): What is removed, e.g. L8-11 or L3+L7.H2.
        out (DIR): A new folder for the checkpoint.
        result (DIR): A sweep, whose costs the card shows.
        loading: Options of `depthlens.load`.
    """
    from depthlens.ablations import parse_condition

    parse_condition(condition)
    say(f"loading {model}")
    import depthlens as dl
    from depthlens.exports.checkpoint import empty_folder

    empty_folder(out)
    scored = dl.Result.load(result) if result is not None else None
    found = dl.export(dl.load(model, **loading), condition, out, result=scored)
    typer.echo(f"{found}\nWrote {found.folder}")
