"""``depthlens store``: list, show and prune what is kept."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from depthlens import arguments
from depthlens.errors import UserError, unknown
from depthlens.progress import say, text_table

if TYPE_CHECKING:
    import pandas as pd

    from depthlens.store.parts import Store

app = typer.Typer(help="See and clear the answers that are kept.", no_args_is_help=True, rich_markup_mode=None)
MOST_DAYS = 365_000  # the calendar has no earlier date
Where = Annotated[str, typer.Option("--store", metavar="DIR|URL", help="The store; DEPTHLENS_STORE or the default.")]


def _read(where: str) -> tuple[Store, pd.DataFrame]:
    """The store of a command, which needs one, and its parts."""
    from depthlens.store.parts import open_store

    store = open_store(where, make=where == "auto")  # a name that is given may be misspelt
    if store is None:
        raise UserError("there is no store (DEPTHLENS_STORE or --store says none); name one with --store")
    say(f"reading the store {store.location}", store=store.location)
    return store, store.table()


@app.command(name="list")
def list_(store: Where = "auto") -> None:
    """What is kept: a line a model and task."""
    opened, table = _read(store)
    rows = []
    for (key, label), of in table.groupby([table["part"].str.split("/").str[0], "label"]):
        about = {name: of[name].iloc[-1] for name in ("model", "dtype", "device", "backend", "method")}
        sizes = {
            "parts": len(of),
            "rows": of["rows"].sum(),
            "bytes": size(of["bytes"].sum()),
            "written": of["time"].max(),
        }
        rows.append({"key": key, "task": label, **about, **sizes})
    typer.echo(text_table(rows) if rows else "nothing is kept yet")
    typer.echo(f"\n{len(rows)} entries, {size(table['bytes'].sum())} in {opened.location}")


@app.command()
def show(
    which: Annotated[str, typer.Argument(metavar="KEY[/TASK[/PART]]", help="As list and records name it.")],
    store: Where = "auto",
) -> None:
    """What made a part: versions, machine, time, conditions; one JSON object a part."""
    _, table = _read(store)
    chosen = table[[part.startswith(which) for part in table["part"]]]
    if not len(chosen):
        raise UserError(f"no part begins with {which!r}; 'depthlens store list' lists the keys")
    for row in chosen.to_dict("records"):
        typer.echo(json.dumps(row, indent=2, ensure_ascii=False, default=str))


@app.command()
def prune(
    store: Where = "auto",
    model: Annotated[str | None, typer.Option(help="Parts of this model: its name or fingerprint.")] = None,
    task: Annotated[str | None, typer.Option(help="Parts of this task.")] = None,
    older_than: Annotated[float | None, typer.Option(metavar="DAYS", help="Parts made so long ago.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All parts.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
) -> None:
    """Delete parts that fit every criterion given."""
    if model is None and task is None and older_than is None and not everything:
        raise UserError("nothing to prune is named; give --model, --task, --older-than or --all")
    if older_than is not None:
        older_than = min(arguments.number("older_than", older_than, 0, fix=" of days"), MOST_DAYS)
    opened, table = _read(store)
    for kind, columns, value in (("model", ["model", "fingerprint"], model), ("task", ["label"], task)):
        if value is not None:
            if value not in (known := {*table[columns].to_numpy().ravel()}):
                raise unknown(kind, value, sorted(known))
            table = table[(table[columns] == value).any(axis=1)]
    if older_than is not None:
        table = table[table["time"] < (datetime.now(UTC) - timedelta(days=older_than)).isoformat()]
    parts = table["part"].tolist()
    if not dry_run:
        opened.remove(parts)
    typer.echo("".join(f"{part}\n" for part in parts), nl=False)
    typer.echo(f"{'would delete' if dry_run else 'deleted'} {len(parts)} parts ({size(table['bytes'].sum())})")


def size(n: float) -> str:
    """Bytes for people."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while n >= 1000 and len(units) > 1:
        n, units = n / 1000, units[1:]
    return f"{n:.0f} {units[0]}" if units[0] == "B" else f"{n:.1f} {units[0]}"
