"""The command line: ``sweep``, ``plan``, ``run``, ``models``, and what `runner.commands` and `store.commands` have.

Nothing heavy is imported until a command needs it, so that ``--help`` answers at once and every command prints what it
does in its first second. A mistake of the caller ends as one line on stderr and exit code 2, a failed notebook gives
exit code 1, Ctrl-C gives 130, and standard output that cannot be written to (a full disk, a closed pipe) gives one line
and 74, as in sysexits.h. Commands print when their files are written, so that these are kept.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand

from depthlens import __version__, arguments, provenance
from depthlens.cluster import options as cluster
from depthlens.errors import Interrupted, UserError, stop_on_signals, told_where_output_fails
from depthlens.experiments import commands as experiments
from depthlens.exports import commands as exports
from depthlens.progress import say, text_table
from depthlens.runner import commands as notebooks
from depthlens.store import commands

app = typer.Typer(
    help="Remove parts of a language model and measure what each removal costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(commands.app, name="store")
# Typer's own class or Click's, depending on the version
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__base__)
# `sweep` passes all its other options on to `depthlens.experiments.sweep.run_sweep`, under the same names
_OF_COMMAND = (
    *("model", "tasks", "ablate", "out", "overwrite", "plan", "store", "json", *cluster.NAMES),
    *("margin", "alpha", "max_documents"),  # of `depthlens race`
)
_NUMBERS = ("limit", "num_fewshot", "batch_tokens", "seed")
JsonOption = Annotated[bool, typer.Option("--json", help="Write progress as lines of JSON to standard error.")]


class _Command(TyperCommand):
    """An option that takes one value and is given twice is refused; Click would take the last."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = [text.partition("=")[0] for text in args]
        for option in self.params:
            if not getattr(option, "multiple", True) and (twice := [f for f in option.opts if given.count(f) > 1]):
                raise UserError(f"{twice[0]} is given twice; give it once")
        return super().parse_args(ctx, args)


class _RunCommand(_Command):
    """``-p NAME VALUE``, repeated: Typer cannot declare a repeated pair, so each pair is joined to ``NAME=VALUE``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        joined, rest = [], list(args)
        while rest:
            joined.append(rest.pop(0))
            if joined[-1] in ("-p", "--parameter"):
                if len(rest) < 2:
                    raise typer.BadParameter(f"{joined[-1]} takes a name and a value: {joined[-1]} NAME VALUE")
                joined.append(f"{rest.pop(0)}={rest.pop(0)}")
        return super().parse_args(ctx, joined)


def main(given: Sequence[str] | None = None) -> None:
    """Entry point of the ``depthlens`` script."""
    stop_on_signals()
    typed = [str(a) for a in (sys.argv[1:] if given is None else given)]
    try:
        provenance.COMMAND.set(["depthlens", *typed])
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


@app.command(cls=_Command)
@experiments.with_options(*(name for name in arguments.OPTIONS if name != "progress"), *arguments.LOADING)
def sweep(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Short name (see `depthlens models`), Hugging Face id, folder or .gguf file."
        ),
    ],
    tasks: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK...", help="Tasks of depthlens, of lm-eval, or of your own files (--include-path)."
        ),
    ],
    ablate: Annotated[
        str,
        typer.Option(
            metavar="WHAT",
            help="What to remove, one at a time: layers, attn, mlp, heads, kv, blocks:N, layers:N (evenly "
            "spread), bottom[:N], top[:N], or conditions such as L3,L5.H2,L8@mean. @mean puts the mean of what a part "
            "adds, over texts of the task that are not evaluated, in its place; @noise adds noise of the norm of what "
            "the part writes; layers[1:] spares the first token.",
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the results: docs, questions and summary (.parquet) and record.json. [required, but for "
            "--plan]",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the results of another sweep in --out.")] = (
        False
    ),
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what the sweep would cost, and compute nothing of it.")
    ] = False,
    resample_prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--resample-prompt",
            metavar="TEXT",
            help="Prompt on which @resample conditions look up what a part does; may be repeated.",
        ),
    ] = None,
    donor: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Model whose weights @donor conditions put in place, e.g. layers@donor."),
    ] = None,
    json: JsonOption = False,
    **given: Any,
) -> None:
    """Remove parts of a model one at a time and score tasks each time.

    Example: depthlens sweep smollm2-135m capitals_continuation --ablate layers --limit 20 --out runs/first
    """
    of_command = {name: value for name, value in locals().items() if name != "given"}
    options = _settle(of_command | given)
    from depthlens.analysis.result_folder import FILES, claimed
    from depthlens.models import names

    models = [names.find(name) for name in (model, donor) if name is not None]
    if plan:
        say(f"loading {models[0].name} for {', '.join(tasks)}", model=model, tasks=tasks)
        from depthlens.experiments.planning import run_plan

        typer.echo(str(run_plan(model, tasks, ablate, **options)))
        return
    assert out is not None
    try:
        asked = {"model": model, "tasks": tasks, "ablate": ablate, **options}
        with claimed(out, asked, overwrite=overwrite) as folder:
            on = ", here and on workers of Ray" if cluster.asked({}) else ""
            loaded = " and ".join(source.name for source in models)
            say(f"loading {loaded} for {', '.join(tasks)}{on}", model=model, tasks=tasks)
            for source in models if not options["remote"] else ():
                names.configuration(source)
            from depthlens.analysis.summary_text import summary_text
            from depthlens.experiments.sweep import run_sweep

            result = run_sweep(model, tasks, ablate, **options)
            result.record["command"] = provenance.COMMAND.get()
            result.save(folder, overwrite=overwrite)
    except KeyboardInterrupt as stop:
        typer.echo(f"Interrupted: {stop if isinstance(stop, Interrupted) else 'nothing was computed yet'}", err=True)
        raise typer.Exit(130) from None
    typer.echo(summary_text(result))
    typer.echo("\nWrote " + ", ".join(str(folder / name) for name in FILES))


def _settle(given: dict[str, Any]) -> dict[str, Any]:
    """The options that experiments take, of all that a command has; the store and workers are set up."""
    from depthlens.models import names

    options = {name: value for name, value in given.items() if name not in _OF_COMMAND}
    options |= {name: arguments.whole_or_text(options[name]) for name in _NUMBERS}
    options["gen_kwargs"] = arguments.settings_of(options["gen_kwargs"])
    rules = {name: value for name, value in options.items() if name in arguments.RULES}
    arguments.check(tasks=given["tasks"], **rules)
    if options["limit"] is not None and options["samples"] is not None:
        fault = f"limit {options['limit']} and samples {options['samples']!r} both choose documents"
        raise UserError(f"{fault}; give one of them")
    if given["out"] is None and not given["plan"]:
        raise UserError("no --out; name a folder for the results, or add --plan to see what it would cost")
    for name in (given["model"], given["donor"]):
        if name is not None:
            names.find(name)
    _configure(given["store"], given["json"], given, given["plan"])
    return options


app.command("plan", cls=_Command)(experiments.plan_like(sweep))
app.command("race", cls=_Command)(experiments.race_like(sweep, _settle))


@app.command(cls=_RunCommand)
@experiments.with_options(*cluster.NAMES, "store")
def run(
    names: Annotated[list[str], typer.Argument(metavar="all|NAME...", help="Notebooks, such as 00_tour; or all.")],
    out: Annotated[
        str, typer.Option(metavar="DIR", help="Folder for executed notebooks, their pages, index.html and record.json.")
    ],
    parameters: Annotated[
        list[str] | None,
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
    json: JsonOption = False,
    **given: Any,
) -> None:
    """Execute notebooks and make web pages of them.

    DIR/index.html is there from the start and shows each finding as soon as its notebook has ended.

    Example: depthlens run 00_tour -p limit 20 --out runs/tour
    """
    values: dict[str, object] = {}
    for name, _, value in (text.partition("=") for text in parameters or []):
        if name in values:
            raise UserError(f"parameter {name!r} is given twice; give -p {name} once")
        values[name] = value
    _configure(given["store"], json, given, plan=False)
    say(f"reading {'all notebooks' if names == ['all'] else ', '.join(names)}", notebooks=names)
    from depthlens.runner import execute, several
    from depthlens.runner import report as reports

    report: reports.RunReport | several.SeveralReports
    if models is None:
        report = execute.run(names, out=out, profile=profile, parameters=values)
    else:
        report = several.run_models(names, models.split(","), out=out, profile=profile, parameters=values)
    for line in report.errors:
        typer.echo(f"Error: {line}", err=True)
    if report.exit_code == 130:
        typer.echo("Interrupted: kept what was done; run the same again to go on", err=True)
    typer.echo(f"Wrote {Path(out) / 'index.html'}")
    raise typer.Exit(report.exit_code)


app.command()(notebooks.compare)
app.command()(notebooks.gallery)
app.command()(experiments.with_options("dtype")(exports.export))


@app.command()
def models() -> None:
    """List the models that have a short name."""
    from depthlens.models import names

    typer.echo(text_table([row._asdict() for row in names.NAMED]))


def _configure(store: str, json: bool, given: dict[str, Any], plan: bool) -> None:
    """Set the store, workers and the form of progress for this process and for the kernels that it starts."""
    from depthlens import progress
    from depthlens.store import parts as storage

    if not store.strip():
        storage.open_store(store)  # refuses it with what to give
    if store != storage.DEFAULT:
        local = "://" not in store and not storage.without(store)
        os.environ[storage.ENVIRONMENT] = str(Path(store).expanduser().resolve()) if local else store
    storage.open_store()  # a store that cannot be used is refused before anything else is done
    workers = {name: given.get(name) for name in cluster.NAMES}
    if plan and (asked := [name for name, value in workers.items() if value is not None]):
        raise UserError(f"--{asked[0].replace('_', '-')}: a plan is of one process; leave it out")
    cluster.configure(**workers)
    if json:
        os.environ[progress.ENVIRONMENT] = "-"
