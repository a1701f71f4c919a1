"""``depthlens store``: list, show and prune what is kept."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from depthlens.errors import UserError, blaming
from depthlens.progress import say

if TYPE_CHECKING:
    import pandas as pd

    from depthlens.store.parts import Store


def _read(where: str) -> tuple[Store, pd.DataFrame]:
    """The store of a command, which needs one, and its parts."""
    from depthlens.store.parts import open_store

    store = open_store(where, make=False)
    if store is None:
        raise UserError("there is no store (DEPTHLENS_STORE or --store says none); name one with --store")
    say(f"reading the store {store.location}")
    return store, store.table().rename(columns={"label": "task"})


def list(*, store: str) -> None:  # noqa: A001 - the name of the command
    """What is kept: a line a model and task."""
    opened, table = _read(store)
    same = dict.fromkeys(("model", "dtype", "device", "backend", "method"), "last")
    entries = table.assign(key=table["part"].str.split("/").str[0]).groupby(["key", "task"])
    rows = entries.agg({**same, "part": "size", "rows": "sum", "bytes": "sum", "time": "max"}).reset_index()
    rows = rows.rename(columns={"part": "parts", "time": "written"})
    nothing = "nothing is kept yet" if opened.fs.isdir("") else "there is no store yet"
    typer.echo(rows.to_string(index=False) if len(rows) else nothing)
    typer.echo(f"\n{len(rows)} entries, {megabytes(table)} in {opened.location}")


def show(which: str, *, store: str) -> None:
    """What made a part: versions, machine, time, conditions; one JSON object a part.

    Args:
        which (KEY[/TASK[/PART]]): As list names it.
        store: The store.
    """
    _, table = _read(store)
    chosen = table[table["part"].str.startswith(which)]
    if not len(chosen):
        raise UserError(f"no part begins with {which!r}; 'depthlens store list' lists the keys")
    for row in chosen.to_dict("records"):
        typer.echo(json.dumps(row, indent=2, ensure_ascii=False, default=str))


def prune(*, where: str, store: str, dry_run: bool = False) -> None:
    """Delete parts.

    Args:
        where (QUERY): Which parts: a query of pandas on model, task, rows, time, backend and the other entries that
            show prints, such as "task == 'gsm8k' and time < '2026-03-01'". "rows > 0" means all.
        store: The store.
        dry_run: Only say what would be deleted.
    """
    opened, table = _read(store)
    with blaming(f"--where {where!r} cannot be asked", f"compare some of {', '.join(table.columns)}"):
        chosen = table.eval(where, engine="python")
        if str(getattr(chosen, "dtype", "")) != "bool":
            raise TypeError(f"{where} is no condition")
    table = table[chosen]
    for part in table["part"]:
        typer.echo(part)
        if not dry_run:
            opened.fs.rm_file(part)
    typer.echo(f"{'would delete' if dry_run else 'deleted'} {len(table)} parts ({megabytes(table)})")


def megabytes(table: pd.DataFrame) -> str:
    """What parts take on the disk."""
    return f"{table['bytes'].sum() / 1e6:.1f} MB"
