"""``depthlens store``: list, show, verify and prune what is kept."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated

import typer

from depthlens.errors import UserError
from depthlens.progress import say, text_table

if TYPE_CHECKING:
    from depthlens.store.parts import Store

app = typer.Typer(help="See, check and clear the results that are kept.", no_args_is_help=True, rich_markup_mode=None)
Where = Annotated[str, typer.Option("--store", metavar="DIR|URL", help="The store; DEPTHLENS_STORE or the default.")]


def opened(where: str) -> Store:
    """The store of a command, which needs one."""
    from depthlens.store.parts import open_store

    store = open_store(where, make=where == "auto")  # a name that is given may be misspelt
    if store is None:
        raise UserError("there is no store (DEPTHLENS_STORE or --store says none); name one with --store")
    say(f"reading the store {store.location}", store=store.location)
    return store


@app.command(name="list")
def list_(store: Where = "auto") -> None:
    """What is kept: a line a model and task."""
    from depthlens.store.inspection import contents

    opened_store = opened(store)
    entries = contents(opened_store)
    rows = [row | {"bytes": size(row["bytes"])} for row in entries.to_dict("records")]
    typer.echo(text_table(rows) if rows else "nothing is kept yet")
    typer.echo(f"\n{len(rows)} entries, {size(int(entries['bytes'].sum()))} in {opened_store.location}")


@app.command()
def show(
    which: Annotated[str, typer.Argument(metavar="KEY[/TASK[/PART]]", help="As list and records name it.")],
    store: Where = "auto",
) -> None:
    """What made a part: versions, machine, time, conditions; one JSON object a part."""
    from depthlens.store.inspection import details

    for part in details(opened(store), which):
        typer.echo(json.dumps(part, indent=2, ensure_ascii=False))


@app.command()
def verify(store: Where = "auto") -> None:
    """Check every part against its checksum; damaged ones are set aside, and the exit code is 1."""
    from depthlens.store.inspection import verify as check

    result = check(opened(store))
    for line in result.damaged:
        typer.echo(f"Damaged: {line}", err=True)
    if result.outdated:
        reason = "were made by a version that left out some of what decides answers"
        fix = "'depthlens store prune --outdated' deletes them"
        typer.echo(f"{result.outdated} of {result.n_parts} parts {reason}, and are not read; {fix}")
    typer.echo(f"{result.n_parts} parts, {len(result.damaged)} damaged")
    raise typer.Exit(1 if result.damaged else 0)


@app.command()
def prune(
    store: Where = "auto",
    model: Annotated[str | None, typer.Option(help="Parts of this model: its name or fingerprint.")] = None,
    task: Annotated[str | None, typer.Option(help="Parts of this task.")] = None,
    older_than: Annotated[str | None, typer.Option(metavar="DAYS", help="Parts made so long ago.")] = None,
    outdated: Annotated[bool, typer.Option("--outdated", help="Parts of an older version; they are not read.")] = False,
    leftovers: Annotated[
        bool, typer.Option("--leftovers", help="Temporary files of killed processes, an hour old, and damaged parts.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="All parts.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
) -> None:
    """Delete parts that fit every criterion given."""
    from depthlens.store.inspection import prune as remove

    parts, leftover_files = remove(
        opened(store),
        model=model,
        label=task,
        older_than=_days(older_than),
        outdated=outdated,
        leftovers=leftovers,
        everything=everything,
        dry_run=dry_run,
    )
    for path in [*(part.path for part in parts), *leftover_files]:
        typer.echo(path)
    summary = f"{len(parts)} parts ({size(sum(part.size for part in parts))})"
    summary += f" and {len(leftover_files)} leftovers" if leftovers else ""
    typer.echo(f"{'would delete' if dry_run else 'deleted'} {summary}")


def _days(text: str | None) -> float | None:
    """Days as a number."""
    try:
        days = None if text is None else float(text)
    except ValueError:
        days = math.nan
    if days is not None and not 0 <= days < math.inf:
        raise UserError(f"--older-than {text!r}: give a number of days, from 0")
    return days


def size(n: int) -> str:
    """Bytes for people."""
    value, units = float(n), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"
