"""The command line: ``run`` and ``models``, and what the modules `commands` of `depthlens.experiments` and others have.

Nothing heavy is imported until a command needs it, so that ``--help`` answers at once and every command prints what it
does in its first second. A mistake of the caller ends as one line on stderr and exit code 2, a failed notebook gives
exit code 1, Ctrl-C or SIGTERM one line and 130. Commands print when their files are written.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand

from depthlens import __version__, cluster, paths, provenance
from depthlens.errors import UserError
from depthlens.experiments import commands as experiments
from depthlens.exports import commands as exports
from depthlens.progress import say
from depthlens.runner import commands as notebooks
from depthlens.store import commands as answers

# Typer's own class or Click's, depending on the version
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__base__)


class _RunCommand(TyperCommand):
    """``-p NAME VALUE``, repeated: a pair, which Typer cannot declare."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        pairs = next(p for p in self.params if p.name == "parameter")
        pairs.nargs, pairs.opts = 2, ["-p", "--parameter"]


app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)
kept = typer.Typer(help="See and clear the answers that are kept.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(kept, name="store")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the ``depthlens`` script."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # which ends work as Ctrl-C does
    typed = [str(a) for a in (sys.argv[1:] if arguments is None else arguments)]
    provenance.COMMAND.set(["depthlens", *typed])
    command, code = typer.main.get_command(app), 2
    try:
        with command.make_context("depthlens", typed) as context:
            command.invoke(context)
        code = 0
    except typer.Exit as end:
        code = end.exit_code
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
    except _UsageError as error:
        text = error.format_message()
        if "\n" not in text:  # else it is the help, for a command without arguments
            about = error.ctx.command_path if error.ctx else "depthlens"
            text = f"Error: {text.rstrip('.')}; '{about} --help' lists what it takes"
        print(text, file=sys.stderr)
    except KeyboardInterrupt as stop:
        print(f"Interrupted: {str(stop) or 'run the same again to go on'}", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of standard output, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 74
    raise SystemExit(code)


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    """Remove parts of a language model and measure what each removal costs."""
    if version:
        typer.echo(f"depthlens {__version__}")
        raise typer.Exit


app.command()(experiments.sweep)


@app.command(cls=_RunCommand)
@experiments.with_options(*cluster.NAMES, "store")
def run(
    names: list[str],
    *,
    out: str,
    parameter: list[Any] | None = None,
    profile: str | None = None,
    no_answers: bool = False,
    **options: Any,
) -> None:
    """Execute notebooks and make web pages of them.

    DIR/index.html shows each finding as soon as its notebook has ended.

    Example: depthlens run 00_tour -p limit 20 --out runs/tour

    Args:
        names (all|NAME...): Notebooks, such as 00_tour, or files of your own (.ipynb); or all.
        out (DIR): Folder for executed notebooks, their pages, index.html and record.json.
        parameter (NAME VALUE): Set a parameter of every notebook that has it; may be repeated.
        profile (NAME): Parameter values in place of the notebooks' own: smoke (seconds: every cell runs, on the first
            layers of each model and too few documents for findings), demo (minutes), scorecard (hours) or paper (the
            study's models, on a GPU). Without it the notebooks' own values hold.
        no_answers: Leave the texts of questions and answers out of the views of what breaks.
        options: Where answers are kept, and workers.
    """
    from depthlens.store import parts

    store = parts.open_store(options["store"])  # one that cannot be used is refused before anything else is done
    if options["store"] != parts.DEFAULT:  # kernels work in other folders
        os.environ[parts.ENVIRONMENT] = options["store"] if store is None or "://" in store.location else store.root
    if no_answers:  # kernels read it
        os.environ[paths.NO_ANSWERS] = "yes"
    cluster.configure(options)
    say(f"reading {'all notebooks' if names == ['all'] else ', '.join(names)}")
    from depthlens.runner import execute

    report = execute.run(names, out=out, profile=profile, parameters=dict(parameter or []))
    for line in report.errors:
        typer.echo(f"Error: {line}", err=True)
    if report.exit_code == 130:
        typer.echo("Interrupted: kept what was done; run the same again to go on", err=True)
    typer.echo(f"Wrote {Path(out) / 'index.html'}")
    raise typer.Exit(report.exit_code)


for command in (notebooks.claims, notebooks.compare, notebooks.answers, notebooks.gallery):
    app.command()(experiments.with_options()(command))
app.command()(experiments.with_options("dtype")(exports.export))
for of_store in (answers.list, answers.show, answers.prune):
    kept.command()(experiments.with_options("store")(of_store))


@app.command()
def models() -> None:
    """List the models that have a short name."""
    from depthlens.models import names

    rows = [names.Named._fields, *names.NAMED]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(text.ljust(n) for text, n in zip(row, widths, strict=True)).rstrip())
