"""The command ``depthlens sweep``, and how any command gets options of `depthlens.arguments`.

Nothing heavy is imported until it is called.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any

import typer

from depthlens import arguments, cluster, paths, progress, provenance
from depthlens.errors import UserError

Command = Callable[..., None]
_ANYWHERE = ("batch_tokens", "store", *cluster.NAMES)  # these decide no number


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


_MARGIN, _ALPHA = 0.1, 0.05  # of a race


@with_options(*(name for name in arguments.COMMANDS if name != "progress"))
def sweep(
    model: str,
    tasks: list[str],
    *,
    ablate: str,
    out: str | None = None,
    overwrite: bool = False,
    plan: bool = False,
    machine: str | None = None,
    race: bool = False,
    margin: float = _MARGIN,
    alpha: float = _ALPHA,
    max_documents: int | None = None,
    no_answers: bool = False,
    **options: Any,
) -> None:
    """Remove parts of a model one at a time and score tasks each time.

    Example: depthlens sweep smollm2-135m capitals_continuation --ablate layers --limit 20 --out runs/first

    Args:
        model (MODEL): Short name (see `depthlens models`), Hugging Face id, folder or .gguf file.
        tasks (TASK...): Tasks of depthlens, of lm-eval, or of your own files (--include-path).
        ablate (WHAT): What to remove, one at a time: layers, attn, mlp, heads, kv, blocks:N, layers:N (evenly spread),
            pairs[:N], repeats[:N], bottom[:N], top[:N], or conditions such as L3,L5.H2,L8@mean. @mean puts the mean of
            what a part adds, over texts of the task that are not evaluated, in its place; @noise adds noise of the norm
            of what the part writes; L3*0.9 multiplies what it writes; L8-14x2 runs each of these layers twice in a row
            (and not the block twice, which (L8-14)x2 does); layers[1:] spares the first token.
        out (DIR): Folder for the results: tables (.parquet) and record.json. [required, but for --plan]
        overwrite: Replace the results of another sweep in --out.
        plan: Say what the sweep would cost in tokens and time, and compute nothing of it.
        machine (NAME): With --plan: a machine that is not here (a100, h100, h200, rtx4090), and the least time on it.
        race: Run each part only until it is decided whether it costs something, or less than a margin.
        margin (X): Loss that a spared part of a race stays below, in the metric's unit.
        alpha (X): Probability that any decision of a race is wrong.
        max_documents (N): Documents of each task after which a race ends. [default: all]
        no_answers: Leave the texts of questions and answers out of index.html.
        options: Options of the model, of tasks, and of what is put in the place of parts.
    """
    if out is None and not plan:
        raise UserError("no --out; name a folder for the results, or add --plan to see what it would cost")
    if machine is not None and not plan:
        raise UserError("--machine is of a plan; add --plan, or leave it out")
    if not race and (margin, alpha, max_documents) != (_MARGIN, _ALPHA, None):
        raise UserError("--margin, --alpha and --max-documents are of a race; add --race, or leave them out")
    if race and plan:
        raise UserError("--race and --plan: how long a race takes is not known before; give one of them")
    from depthlens.models import names
    from depthlens.store.parts import open_store

    arguments.check(tasks=tasks)
    models = [name for name in (model, options["donor"]) if name is not None]
    for name in models:
        names.find(name)
    open_store(options["store"])
    on = ", here and on workers of Ray" if cluster.asked(options) else ""
    progress.say(f"loading {' and '.join(models)} for {', '.join(tasks)}{on}")
    if plan or out is None:
        from depthlens.experiments.planning import plan as planned
        from depthlens.experiments.sweep import run_by_name

        experiment = functools.partial(planned, machine=machine)
        return typer.echo(str(run_by_name(model, tasks, ablate, experiment=experiment, **options)))
    own: dict[str, Any] = {"margin": margin, "alpha": alpha, "max_documents": max_documents} if race else {}
    said = {"model": model, "tasks": sorted(tasks), "ablate": sorted(ablate.split(",")), **own}
    said |= {name: value for name, value in options.items() if name not in _ANYWHERE}
    from depthlens.analysis.numbers.words import plain
    from depthlens.analysis.result.folder import claimed

    with claimed(out, said, overwrite=overwrite) as folder:
        from depthlens.cluster import pool
        from depthlens.experiments.sweep import run_by_name

        pool.workers_of(options)  # its errors come before the model is loaded
        if race:
            from depthlens.experiments.race import race as racing

            options["experiment"] = functools.partial(racing, **own)
        result = run_by_name(model, tasks, ablate, **options)
        result.record.update(asked=said, command=provenance.COMMAND.get())
        result.save(folder, overwrite=overwrite or race)
        if page := not race and not result.loss_table.empty:
            if no_answers:
                os.environ[paths.NO_ANSWERS] = "yes"
            result.explore().save(folder / "index.html")
    typer.echo("\n".join(map(plain, result.describe())) if race else str(result))
    written = [name for name, content in result.contents().items() if content is not None]
    files = ", ".join(str(folder / name) for name in (["index.html"] * page + written))
    typer.echo(f"\nWrote {files}; in Python result = dl.{type(result).__name__}.load({str(folder)!r}) reads them")
