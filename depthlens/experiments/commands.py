"""The commands ``depthlens plan`` and ``depthlens race``, made of ``depthlens sweep``.

Nothing heavy is imported until one of them is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from depthlens import arguments, provenance
from depthlens.cluster import options as cluster
from depthlens.errors import Interrupted, UserError
from depthlens.progress import say

_OWN = ("margin", "alpha", "max_documents")
Command = Callable[..., None]


def with_options(*names: str) -> Callable[[Command], Command]:
    """Give a command options by their names, beside its own (`depthlens.arguments.OPTIONS`)."""

    def decorate(command: Command) -> Command:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
        return _takes(command, [*own, *map(_declared, names)])

    return decorate


def _takes(command: Command, parameters: Sequence[inspect.Parameter]) -> Command:
    """Tell Typer what a command takes."""
    by_keyword = [p.replace(kind=p.KEYWORD_ONLY) for p in parameters]
    vars(command).update(__signature__=inspect.Signature(by_keyword))
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _declared(name: str) -> inspect.Parameter:
    """An option as a parameter of a command; values are texts, which its rule reads later."""
    option = (arguments.OPTIONS | arguments.LOADING)[name]
    flag, default = not option.metavar, option.default
    kind: Any = bool if flag else str
    declared = typer.Option(
        option.flag or f"--{name.replace('_', '-')}", metavar=option.metavar or None, help=option.help
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default if flag or default is None else str(default),
        annotation=Annotated[kind | None if default is None else kind, declared],
    )


def plan_like(sweep: Command) -> Command:
    """The command of a sweep without an ``--out``, which only plans."""

    def plan(**options: Any) -> None:
        sweep(**options, plan=True)

    plan.__doc__ = """Say what a sweep would cost before anything is computed: tokens, time and memory.

    Example: depthlens plan smollm2-135m capitals_continuation --ablate layers --limit 20
    """
    own, without = inspect.signature(sweep).parameters, ("out", "overwrite", "plan", *cluster.NAMES)
    return _takes(plan, [p for name, p in own.items() if name not in without])


def race_like(sweep: Command, settle: Callable[[dict[str, Any]], dict[str, Any]]) -> Command:
    """The command of a race, which has the options of a sweep and its own.

    Args:
        sweep: The command of a sweep.
        settle: Checks the options of a command and sets up the store and workers; returns those that experiments take.
    """

    def command(
        margin: Annotated[
            float, typer.Option(metavar="X", help="Loss that a spared condition stays below, in the metric's unit.")
        ] = 0.1,
        alpha: Annotated[
            float, typer.Option(metavar="X", help="Probability that any decision of the race is wrong.")
        ] = 0.05,
        max_documents: Annotated[
            int | None, typer.Option(metavar="N", help="Documents of each task after which it ends. [default: all]")
        ] = None,
        **given: Any,
    ) -> None:
        of_race: dict[str, Any] = {"margin": margin, "alpha": alpha, "max_documents": max_documents}
        out, overwrite = given["out"], given["overwrite"]
        what = {name: given[name] for name in ("model", "tasks", "ablate")}
        options = settle(given | of_race | {"plan": False})
        say(f"loading {what['model']} for {', '.join(what['tasks'])}", model=what["model"], tasks=what["tasks"])
        from depthlens.paths import locked

        with locked(out):
            _run(what, of_race, options, out, overwrite=overwrite)

    command.__doc__ = """Decide which parts cost something, and which less than a margin, on few documents.

    Example: depthlens race smollm2-135m capitals_continuation --ablate layers --out runs/race
    """
    own = inspect.signature(command, eval_str=True).parameters
    of_sweep = [p for name, p in inspect.signature(sweep).parameters.items() if name != "plan"]
    return _takes(command, [*of_sweep, *(own[name] for name in _OWN)])


def _run(what: dict[str, Any], of_race: dict[str, Any], options: dict[str, Any], out: str, *, overwrite: bool) -> None:
    """Race, print and write.

    Args:
        what: Model, tasks and conditions.
        of_race: Options of the race.
        options: All others.
        out: Folder for the results.
        overwrite: Replace what it holds.
    """
    asked = {**what, **of_race, **options}
    _refuse_other(out, asked, overwrite=overwrite)
    from depthlens.analysis.displays import plain
    from depthlens.experiments.condition_runs import model_and_tasks
    from depthlens.experiments.options import EvalOptions, settled
    from depthlens.experiments.race import race

    how = {name: options.pop(name) for name in ("dtype", "device", "quantize", "offload", "remote")}
    of_race |= {name: options.pop(name) for name in ("donor", "resample_prompts")}
    lens, tasks = model_and_tasks(
        what["model"], what["tasks"], settled(cast(EvalOptions, options)), donor=of_race["donor"], **how
    )
    try:
        result = race(lens, tasks, what["ablate"], **of_race, **cast(EvalOptions, options))
    except KeyboardInterrupt as stop:
        told = stop if isinstance(stop, Interrupted) else "nothing was computed yet"
        typer.echo(f"Interrupted: {told}", err=True)
        raise typer.Exit(130) from None
    result.record.update(asked=_comparable(asked), command=provenance.COMMAND.get())
    result.save(out, overwrite=True)
    columns = ["task", "condition", "decision", "n", "loss", "ci_low", "ci_high"]
    typer.echo(result.decisions[columns].to_string(index=False, float_format="{:.3g}".format))
    typer.echo("\n" + "\n".join(map(plain, result.describe())))
    typer.echo(f"\nWrote {', '.join(str(Path(out) / name) for name in result.files())}")


def _comparable(asked: dict[str, Any]) -> dict[str, str]:
    return {name: repr(value) for name, value in asked.items()}


def _refuse_other(out: str, asked: dict[str, Any], *, overwrite: bool) -> None:
    """Refuse a folder that holds something else than the same race, before anything is computed."""
    from depthlens.analysis.races import Race
    from depthlens.analysis.result_folder import RECORD_FILE, first_difference

    folder = Path(out)
    if overwrite or not (folder / RECORD_FILE).exists():
        return
    before = Race.load(folder).record.get("asked", {})
    if why := first_difference((name, before.get(name), value) for name, value in _comparable(asked).items()):
        raise UserError(f"{str(folder)!r} holds another race ({why}); name another folder, or replace it (--overwrite)")
