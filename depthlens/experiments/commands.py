"""The commands ``depthlens sweep``, ``plan`` and ``race``, and how any command gets options of `depthlens.arguments`.

Nothing heavy is imported until one of them is called.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, cast

import typer

from depthlens import arguments, cluster, progress, provenance
from depthlens.errors import UserError

Command = Callable[..., None]
Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Short name (see `depthlens models`), Hugging Face id, folder or .gguf file."),
]
Tasks = Annotated[
    list[str],
    typer.Argument(metavar="TASK...", help="Tasks of depthlens, of lm-eval, or of your own files (--include-path)."),
]
Ablate = Annotated[
    str,
    typer.Option(
        metavar="WHAT",
        help="What to remove, one at a time: layers, attn, mlp, heads, kv, blocks:N, layers:N (evenly spread), "
        "bottom[:N], top[:N], or conditions such as L3,L5.H2,L8@mean. @mean puts the mean of what a part adds, over "
        "texts of the task that are not evaluated, in its place; @noise adds noise of the norm of what the part "
        "writes; layers[1:] spares the first token.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the results of another sweep in --out.")]
Json = Annotated[bool, typer.Option("--json", help="Write progress as lines of JSON to standard error.")]
IN_ONE_PROCESS = [name for name in arguments.COMMANDS if name not in ("progress", *cluster.NAMES)]
ANYWHERE = [*IN_ONE_PROCESS, *cluster.NAMES]


def with_options(*names: str) -> Callable[[Command], Command]:
    """Give a command options by their names, beside its own; it gets their values read and checked.

    Its own arguments are those of its signature: those by position are arguments, the others options. The help says
    of each what the docstring says, where that is not part of its type: ``name (METAVAR): words``.
    """

    def decorate(command: Command) -> Command:
        said = arguments.described(command)

        def declared(own: inspect.Parameter) -> inspect.Parameter:
            if own.name not in said or hasattr(own.annotation, "__metadata__"):
                return own
            declare: Any = typer.Argument if own.kind is own.POSITIONAL_OR_KEYWORD else typer.Option
            flags = [f"--{own.name.replace('_', '-')}"] if declare is typer.Option else []
            metavar, words = said[own.name]
            annotation = Annotated[own.annotation, declare(*flags, metavar=metavar or None, help=words)]
            return own.replace(annotation=annotation)

        @functools.wraps(command)
        def called(**given: Any) -> None:
            command(**given | arguments.read({name: given[name] for name in names}))

        given = inspect.signature(command, eval_str=True).parameters.values()
        own = [p for p in given if p.kind is not p.VAR_KEYWORD and p.name not in names]
        taken = [p.replace(kind=p.KEYWORD_ONLY) for p in [*map(declared, own), *map(_declared, names)]]
        called.__doc__ = (inspect.getdoc(command) or "").partition("\n\nArgs:")[0]
        called.__annotations__ = {p.name: p.annotation for p in taken}
        vars(called)["__signature__"] = inspect.Signature(taken)
        return called

    return decorate


def _declared(name: str) -> inspect.Parameter:
    """An option as a parameter of a command, whose value is a flag or a text."""
    option, flag = arguments.COMMANDS[name], f"--{name.replace('_', '-')}"
    kind: Any = list[str] if option.many else str if option.rule.metavar else bool
    declared = typer.Option(option.flag or flag, metavar=option.rule.metavar or None, help=option.help)
    annotation = Annotated[kind | None, declared]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=annotation)


def _plan(model: Model, tasks: Tasks, ablate: Ablate, json: Json = False, **options: Any) -> None:
    """Say what a sweep would cost before anything is computed: tokens, time and memory.

    Example: depthlens plan smollm2-135m capitals_continuation --ablate layers --limit 20
    """
    _begin(model, tasks, options, json=json)
    from depthlens.experiments.planning import run_plan

    typer.echo(str(run_plan(model, tasks, ablate, **options)))


plan = with_options(*IN_ONE_PROCESS)(_plan)


@with_options(*ANYWHERE)
def sweep(
    model: Model,
    tasks: Tasks,
    ablate: Ablate,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the results: docs, questions and summary (.parquet) and record.json. [required, but for "
            "--plan]",
        ),
    ] = None,
    overwrite: Overwrite = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what the sweep would cost, and compute nothing of it.")
    ] = False,
    json: Json = False,
    **options: Any,
) -> None:
    """Remove parts of a model one at a time and score tasks each time.

    Example: depthlens sweep smollm2-135m capitals_continuation --ablate layers --limit 20 --out runs/first
    """
    if plan:
        return _plan(model, tasks, ablate, json, **options)
    if out is None:
        raise UserError("no --out; name a folder for the results, or add --plan to see what it would cost")
    _begin(model, tasks, options, json=json)
    from depthlens.analysis.result_folder import FILES, claimed

    with claimed(out, {"model": model, "tasks": tasks, "ablate": ablate, **options}, overwrite=overwrite) as folder:
        from depthlens.analysis.result_words import summary_text
        from depthlens.experiments.sweep import run_sweep

        result = run_sweep(model, tasks, ablate, **options)
        result.record["command"] = provenance.COMMAND.get()
        result.save(folder, overwrite=overwrite)
    typer.echo(summary_text(result))
    typer.echo("\nWrote " + ", ".join(str(folder / name) for name in FILES))


@with_options(*ANYWHERE)
def race(
    model: Model,
    tasks: Tasks,
    ablate: Ablate,
    out: Annotated[
        str,
        typer.Option(metavar="DIR", help="Folder for the results: decisions, losses (.parquet) and record.json."),
    ],
    overwrite: Overwrite = False,
    margin: Annotated[
        float, typer.Option(metavar="X", help="Loss that a spared condition stays below, in the metric's unit.")
    ] = 0.1,
    alpha: Annotated[
        float, typer.Option(metavar="X", help="Probability that any decision of the race is wrong.")
    ] = 0.05,
    max_documents: Annotated[
        int | None, typer.Option(metavar="N", help="Documents of each task after which it ends. [default: all]")
    ] = None,
    json: Json = False,
    **options: Any,
) -> None:
    """Decide which parts cost something, and which less than a margin, on few documents.

    Example: depthlens race smollm2-135m capitals_continuation --ablate layers --out runs/race
    """
    own: dict[str, Any] = {"margin": margin, "alpha": alpha, "max_documents": max_documents}
    _begin(model, tasks, options, json=json)
    asked = {"model": model, "tasks": tasks, "ablate": ablate, **own, **options}
    told = {name: repr(value) for name, value in asked.items() if name not in ("store", *cluster.NAMES)}
    from depthlens.analysis.result_folder import RECORD_FILE, first_difference, refuse_other
    from depthlens.analysis.words import plain
    from depthlens.paths import locked

    def differs(record: Any) -> str:
        return first_difference(record["record"]["asked"], told)

    with locked(out) as folder:
        if not overwrite:
            refuse_other(folder, (RECORD_FILE,), differs)
        from depthlens.experiments import race as races
        from depthlens.experiments.condition_runs import model_and_tasks
        from depthlens.experiments.options import EvalOptions, settled

        own |= {name: options.pop(name) for name in arguments.SOURCES}
        how = {name: options.pop(name) for name in arguments.LOADING}
        chosen = cast(EvalOptions, options)
        lens, loaded = model_and_tasks(model, tasks, settled(chosen), donor=own["donor"], **how)
        result = races.race(lens, loaded, ablate, **own, **chosen)
        result.record.update(asked=told, command=provenance.COMMAND.get())
        result.save(folder, overwrite=True)
    columns = ["task", "condition", "decision", "n", "loss", "ci_low", "ci_high"]
    typer.echo(result.decisions[columns].to_string(index=False, float_format="{:.3g}".format))
    typer.echo("\n" + "\n".join(map(plain, result.describe())))
    typer.echo(f"\nWrote {', '.join(str(folder / name) for name in result.files())}")


def _begin(model: str, tasks: Sequence[str], options: dict[str, Any], *, json: bool) -> None:
    """Refuse what is wrong without a model, set the form of progress and say what begins."""
    from depthlens.models import names
    from depthlens.store.parts import open_store

    arguments.check(tasks=tasks)
    models = [name for name in (model, options["donor"]) if name is not None]
    for name in models:
        names.find(name)
    open_store(options["store"])
    on = ", here and on workers of Ray" if cluster.asked(options) else ""
    progress.write_json(json)
    progress.say(f"loading {' and '.join(models)} for {', '.join(tasks)}{on}", model=model, tasks=tasks)
