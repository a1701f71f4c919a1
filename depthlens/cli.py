"""The command line: ``run`` and ``models``, and what the modules `commands` of `depthlens.experiments` and others have.

Nothing heavy is imported until a command needs it, so that ``--help`` answers at once and every command prints what it
does in its first second. A mistake of the caller ends as one line on stderr and exit code 2, a failed notebook gives
exit code 1, Ctrl-C gives 130, and standard output that cannot be written to (a full disk, a closed pipe) gives one line
and 74, as in sysexits.h. Commands print when their files are written, so that these are kept.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from depthlens import __version__, cluster, progress, provenance
from depthlens.errors import Interrupted, UserError, stop_on_signals, told_where_output_fails
from depthlens.experiments import commands as experiments
from depthlens.exports import commands as exports
from depthlens.progress import say, text_table
from depthlens.runner import commands as notebooks
from depthlens.store import commands

# Typer's own class or Click's, depending on the version
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__base__)
REPEATED = ("--parameter", "--resample-prompt")  # options that may be given several times


class _Commands(TyperGroup):
    """Ctrl-C ends each command in one line and 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            told = stop if isinstance(stop, Interrupted) else "nothing was computed yet"
            typer.echo(f"Interrupted: {told}", err=True)
            raise typer.Exit(130) from None


class _RunCommand(TyperCommand):
    """``-p NAME VALUE``, repeated: a pair, which Typer cannot declare."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        next(p for p in self.params if p.name == "parameters").nargs = 2


app = typer.Typer(
    help="Remove parts of a language model and measure what each removal costs.",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(commands.app, name="store")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the ``depthlens`` script."""
    stop_on_signals()
    typed = [str(a) for a in (sys.argv[1:] if arguments is None else arguments)]
    try:
        provenance.COMMAND.set(["depthlens", *typed])
        given = Counter(text.partition("=")[0] for text in typed if text.startswith("--"))
        if twice := [flag for flag, n in given.items() if n > 1 and flag not in REPEATED]:
            raise UserError(f"{twice[0]} is given twice; give it once")
        with told_where_output_fails():
            code = app(args=typed, prog_name="depthlens", standalone_mode=False)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except _UsageError as error:
        text = error.format_message()
        if "\n" not in text:  # else it is the help, for a command without arguments
            command = error.ctx.command_path if error.ctx else "depthlens"
            text = f"Error: {text.rstrip('.')}; '{command} --help' lists what it takes"
        print(text, file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(code or 0)


def _print_version(value: bool | None) -> None:
    if value:
        typer.echo(f"depthlens {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool | None,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop."),
    ] = None,
) -> None:
    pass


app.command()(experiments.sweep)
app.command("plan")(experiments.plan)
app.command()(experiments.race)


@app.command(cls=_RunCommand)
@experiments.with_options(*cluster.NAMES, "store")
def run(
    names: Annotated[list[str], typer.Argument(metavar="all|NAME...", help="Notebooks, such as 00_tour; or all.")],
    out: Annotated[
        str, typer.Option(metavar="DIR", help="Folder for executed notebooks, their pages, index.html and record.json.")
    ],
    parameters: Annotated[
        list[Any] | None,
        typer.Option(
            "-p",
            "--parameter",
            metavar="NAME VALUE",
            help="Set a parameter of every notebook that has it; may be repeated.",
        ),
    ] = None,
    profile: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Parameter values: smoke (seconds: every cell runs, on the first layers of each model and too few "
            "documents for findings), demo (minutes), scorecard (hours) or paper (the study's models, on a GPU).",
        ),
    ] = "demo",
    models: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Models to run on, one after another: a folder each, and one index."),
    ] = None,
    json: experiments.Json = False,
    **options: Any,
) -> None:
    """Execute notebooks and make web pages of them.

    DIR/index.html is there from the start and shows each finding as soon as its notebook has ended.

    Example: depthlens run 00_tour -p limit 20 --out runs/tour
    """
    values = dict(parameters or [])
    if twice := [name for name, n in Counter(name for name, _ in parameters or []).items() if n > 1]:
        raise UserError(f"parameter {twice[0]!r} is given twice; give -p {twice[0]} once")
    _use_store(options["store"])
    cluster.configure(options)
    progress.write_json(json)
    say(f"reading {'all notebooks' if names == ['all'] else ', '.join(names)}", notebooks=names)
    from depthlens.runner import execute, several

    how: dict[str, Any] = {"out": out, "profile": profile, "parameters": values}
    report: Any = execute.run(names, **how) if models is None else several.run_models(names, models.split(","), **how)
    for line in report.errors:
        typer.echo(f"Error: {line}", err=True)
    if report.exit_code == 130:
        typer.echo("Interrupted: kept what was done; run the same again to go on", err=True)
    typer.echo(f"Wrote {Path(out) / 'index.html'}")
    raise typer.Exit(report.exit_code)


for command in (notebooks.compare, notebooks.gallery, experiments.with_options("dtype")(exports.export)):
    app.command()(command)


@app.command()
def models() -> None:
    """List the models that have a short name."""
    from depthlens.models import names

    typer.echo(text_table([row._asdict() for row in names.NAMED]))


def _use_store(where: str) -> None:
    """Set the store of this process and of the kernels that it starts."""
    from depthlens.store import parts

    store = parts.open_store(where)  # one that cannot be used is refused before anything else is done
    if where != parts.DEFAULT:  # kernels work in other folders
        os.environ[parts.ENVIRONMENT] = where if store is None or "://" in where else store.root
