"""The command line: ``depthlens sweep``, ``run``, ``gallery``, ``models`` and ``store`` (`store_cli`).

Nothing heavy is imported until a command needs it, so that ``--help`` answers at once and every command says in its
first second what it does. A mistake of the caller ends as one line on stderr and exit code 2; a notebook that fails
gives exit code 1, Ctrl-C 130.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextvars import ContextVar
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from depthlens.errors import Interrupted, UserError, stop_on_sigterm
from depthlens.progress import say, text_table
from depthlens.store import commands

if TYPE_CHECKING:
    import pandas as pd

    from depthlens.analysis.results import Result

app = typer.Typer(
    help="Remove parts of a language model and measure what each removal costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(commands.app, name="store")
_WORST = 5
_COMMAND: ContextVar[list[str]] = ContextVar("command")  # as it was given, for the record
_UsageError = typer.BadParameter.__base__  # Typer has its own or Click's, by version
OutOption = Annotated[str, typer.Option(metavar="DIR", help="Folder for docs.parquet, summary.parquet, record.json.")]
StoreOption = Annotated[
    str,
    typer.Option(
        metavar="DIR|URL",
        help="Where answers are found and kept as they come; none: nowhere. DEPTHLENS_STORE or the user's data folder.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Progress as lines of JSON on standard error.")]


class _RunCommand(TyperCommand):
    """``-p NAME VALUE``, repeated: Typer cannot declare a repeated pair, so the two are joined first."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        joined, rest = [], list(args)
        while rest:
            joined.append(rest.pop(0))
            if joined[-1] in ("-p", "--parameter"):
                if len(rest) < 2:
                    raise typer.BadParameter(f"{joined[-1]} takes a name and a value: {joined[-1]} NAME VALUE")
                joined.append(f"{rest.pop(0)}={rest.pop(0)}")
        return super().parse_args(ctx, joined)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the ``depthlens`` script."""
    stop_on_sigterm()
    given = [str(a) for a in (sys.argv[1:] if arguments is None else arguments)]
    try:
        _COMMAND.set(["depthlens", *given])
        code = app(args=given, prog_name="depthlens", standalone_mode=False)
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


def _print_version(wanted: bool | None) -> None:
    if wanted:
        typer.echo(f"depthlens {metadata.version('depthlens')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool | None,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop."),
    ] = None,
) -> None:
    pass


@app.command()
def sweep(
    model: Annotated[str, typer.Argument(help="Alias, hub id, directory or .gguf file; see `depthlens models`.")],
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", help="Tasks of lm-eval or of depthlens.")],
    ablate: Annotated[
        str,
        typer.Option(
            metavar="WHAT",
            help="layers, attn, mlp, heads, kv, blocks:N, bottom[:N], top[:N] or conditions such as L3,L5.H2,L8@mean "
            "(@mean: a part adds the mean of what it adds, over reference prompts).",
        ),
    ],
    out: OutOption,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what --out holds, if that is not the same sweep.")
    ] = False,
    limit: Annotated[str | None, typer.Option(metavar="N", help="Documents per task; all without it.")] = None,
    num_fewshot: Annotated[
        str | None, typer.Option(metavar="N", help="Examples in the prompt; the task's own without.")
    ] = None,
    include_path: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder with further lm-eval task files.")
    ] = None,
    backend: Annotated[str, typer.Option(help="torch, transformer_lens or nnsight applies the ablations.")] = "torch",
    batch_tokens: Annotated[str | None, typer.Option(metavar="N", help="Tokens per batch; chosen without it.")] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Wrap prompts in the tokenizer's chat template.")
    ] = False,
    system_instruction: Annotated[str | None, typer.Option(help="Instruction before everything else.")] = None,
    measure: Annotated[
        str, typer.Option(help="task: its own metrics; answer_logprob: log-likelihood of the reference answer; both.")
    ] = "task",
    resample_prompt: Annotated[
        list[str] | None, typer.Option(help="Prompt whose z @resample conditions put in place; may be repeated.")
    ] = None,
    donor: Annotated[
        str | None, typer.Option(help="Model whose weights @donor conditions put in place, e.g. layers@donor.")
    ] = None,
    seed: Annotated[str, typer.Option(metavar="N", help="Seed for few-shot examples and sampling.")] = "0",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    offload: Annotated[
        str | None, typer.Option(help="disk: read layers as the sweep needs them; for models larger than memory.")
    ] = None,
    remote: Annotated[
        bool, typer.Option("--remote", help="Leave the weights on NDIF and sweep there; needs NDIF_API_KEY.")
    ] = False,
    store: StoreOption = "auto",
    json: JsonOption = False,
) -> None:
    """Ablate parts of a model one condition at a time and score every task under each."""
    from depthlens import arguments
    from depthlens.analysis.result_folder import FILES, claimed
    from depthlens.models import sources

    settings: dict[str, Any] = {
        "limit": _whole(limit),
        "num_fewshot": _whole(num_fewshot),
        "include_path": include_path,
        "backend": backend,
        "batch_tokens": _whole(batch_tokens),
        "apply_chat_template": apply_chat_template,
        "system_instruction": system_instruction,
        "measure": measure,
        "resample_prompts": resample_prompt,
        "seed": _whole(seed),
        "dtype": dtype,
        "device": device,
        "offload": offload,
    }
    arguments.check(**settings, tasks=tasks)
    settings |= {"donor": donor, "remote": remote}
    named = [sources.find(name, weights=not remote) for name in (model, donor) if name is not None]
    _settle(store, json)
    try:
        with claimed(
            out, {"model": model, "tasks": tasks, "ablate": ablate, **settings}, overwrite=overwrite
        ) as folder:
            say(
                f"loading {' and '.join(source.name for source in named)} for {', '.join(tasks)}",
                model=model,
                tasks=tasks,
            )
            for source in named if not remote else ():
                sources.probe(source)
            from depthlens.experiments.sweep import run_sweep

            result = run_sweep(model, tasks, ablate, **settings)
            result.record["command"] = _COMMAND.get()
            result.save(folder, overwrite=overwrite)
    except Interrupted as stop:
        typer.echo(f"Interrupted: {stop}", err=True)
        raise typer.Exit(130) from None
    except KeyboardInterrupt:
        typer.echo("Interrupted: nothing was computed yet", err=True)
        raise typer.Exit(130) from None
    typer.echo(summary_text(result))
    typer.echo("\nWrote " + ", ".join(str(folder / name) for name in FILES))


@app.command(cls=_RunCommand)
def run(
    names: Annotated[list[str], typer.Argument(metavar="all|NAME...", help="Notebooks, e.g. 00_tour; or all.")],
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder for notebooks, pages, index.html, record.json.")],
    parameters: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", metavar="NAME VALUE", help="Set a notebook parameter; may be repeated."),
    ] = None,
    profile: Annotated[str, typer.Option(help="Named parameter values: smoke, demo or paper.")] = "demo",
    store: StoreOption = "auto",
    json: JsonOption = False,
) -> None:
    """Execute notebooks headlessly and build web pages with an index over them."""
    given: dict[str, object] = {}
    for name, _, value in (text.partition("=") for text in parameters or []):
        if name in given:
            raise UserError(f"parameter {name!r} is given twice; give -p {name} once")
        given[name] = value
    _settle(store, json)
    say(f"reading {'all notebooks' if names == ['all'] else ', '.join(names)}", notebooks=names)
    from depthlens.runner import execute

    report = execute.run(names, out=out, profile=profile, parameters=given)
    for line in report.errors:
        typer.echo(f"Error: {line}", err=True)
    if report.exit_code == 130:
        typer.echo("Interrupted: kept what was done; run the same again to go on", err=True)
    typer.echo(f"Wrote {Path(out) / 'index.html'}")
    raise typer.Exit(report.exit_code)


@app.command()
def gallery(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder with executed notebooks.")],
) -> None:
    """Rebuild the pages and the index of a folder of executed notebooks."""
    if not folder.strip():
        raise UserError(f"folder {folder!r}: the name of a folder is empty; give one that `depthlens run` wrote")
    say(f"reading the notebooks in {folder}", folder=folder)
    from depthlens.runner.index import gallery as build

    typer.echo(f"Wrote {build(folder)}")


@app.command()
def models() -> None:
    """List the models that have a short name."""
    from depthlens.models import registry

    typer.echo(text_table(registry.table()))


def _whole(text: str | None) -> int | str | None:
    """A whole number where the text is one, else the text, which the rule of its name refuses."""
    try:
        return None if text is None else int(text)
    except ValueError:
        return text


def _settle(store: str, json: bool) -> None:
    """Tell this process, and the kernels that it starts, which store to use and how to show progress."""
    import os

    from depthlens import progress
    from depthlens.store import parts as storage

    if not store.strip():
        storage.open_store(store)  # which says what to give
    if store != storage.DEFAULT:
        local = "://" not in store and not storage.without(store)
        os.environ[storage.ENVIRONMENT] = str(Path(store).expanduser().resolve()) if local else store
    storage.open_store()  # what is wrong with it is told now
    if json:
        os.environ[progress.ENVIRONMENT] = "-"


def summary_text(result: Result) -> str:
    """A sweep's findings for a person: baselines, what cannot be judged, the worst conditions per metric."""
    lines = []
    for base in result.baselines.itertuples():
        rows = result.summary.query("task == @base.task and metric == @base.metric and condition != 'baseline'")
        unit = f"{base.task} {base.metric}"
        interval = f"[{base.ci_low:.3f}, {base.ci_high:.3f}]"
        lines.append(f"\n{unit}, {base.n} documents: baseline {base.baseline:.3f} {interval}")
        if base.at_chance:
            lines.append(f"Warning: {unit} is at chance ({base.chance:.3f}) without any ablation: cannot judge")
            continue
        worst = _worst(rows, _higher_is_better(result, base.task, base.metric))
        if not len(worst):
            lines.append("  no condition made it worse")
        width = max((len(row.condition) for row in worst.itertuples()), default=0)
        for row in worst.itertuples():
            change = f"{row.delta:+.3f} [{row.ci_low:+.3f}, {row.ci_high:+.3f}]"
            lines.append(f"  {row.condition:<{width}}  {row.value:.3f}  {change}  adjusted p = {row.p_adjusted:.2g}")
    notes = [note for note in result.notes if "cannot judge" not in note]  # those are told above
    for task, about in result.record["tasks"].items():
        skipped = about.get("skipped_metrics", {})
        notes += [f"{task}: metric {metric} {why} and is left out" for metric, why in skipped.items()]
    lines += ["", *(f"Note: {note}" for note in notes)] if notes else []
    return "\n".join(lines).lstrip("\n")


def _worst(rows: pd.DataFrame, higher_is_better: bool) -> pd.DataFrame:
    harm = -rows["delta"] if higher_is_better else rows["delta"]
    return rows.loc[harm[harm > 0].sort_values(ascending=False, kind="stable").index[:_WORST]]


def _higher_is_better(result: Result, task: str, metric: str) -> bool:
    return result.record["tasks"][task]["metrics"][metric]["higher_is_better"]
