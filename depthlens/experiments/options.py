"""How an experiment asks its tasks: the options that all experiments share, their defaults and their check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from depthlens import arguments, cluster
from depthlens.arguments import EvalOptions as EvalOptions
from depthlens.errors import UserError, unknown
from depthlens.models.lens import Lens
from depthlens.tasks import document_choice, harness
from depthlens.tasks.document_choice import recorded as recorded_samples
from depthlens.tasks.prepared_task import Prepared

_OF_TASKS = ("limit", "samples", "num_fewshot", "include_path", "seed")
_OF_CHAT = ("apply_chat_template", "system_instruction", "think_end_token", "enable_thinking")
# options of experiments that ask no conditions of tasks
WITHOUT_CONDITIONS = ("measure", "backend", "gen_kwargs", *_OF_CHAT)


def settled(given: EvalOptions, *, without: Sequence[str] = (), **own: str) -> EvalOptions:
    """All options, those that were not given at their defaults.

    Args:
        given: What the caller gave.
        without: Options that the experiment does not have.
        own: Defaults of the experiment's own.

    Raises:
        UserError: an option that does not exist, or a value that it cannot have.
    """
    allowed = [name for name in arguments.OPTIONS if name not in without]
    for name in given:
        if name not in allowed:
            raise unknown("option", name, allowed)
    defaults = {name: option.default for name, option in arguments.OPTIONS.items()}
    options = cast(EvalOptions, arguments.check(**{**defaults, **own, **given}))
    document_choice.check(options["limit"], options["samples"])
    cluster.asked(options)  # refuses workers of which only the size is given
    return options


def refuse_workers(options: EvalOptions, what: str, fix: str) -> None:
    """Raise a `UserError` where workers are given to something that runs in one process."""
    for name in cluster.NAMES:
        if (value := dict(options)[name]) is not None:
            raise UserError(f"{name} {value!r}: {what} runs in one process; leave it out{fix}")


def recorded(options: EvalOptions) -> dict[str, Any]:
    """What a record holds of the options."""
    values = dict(options)
    path = options["include_path"]
    written = {"include_path": None if path is None else str(path), "samples": recorded_samples(options["samples"])}
    return {name: values[name] for name in arguments.OPTIONS if name not in arguments.UNRECORDED} | written


def task_options(options: EvalOptions) -> dict[str, Any]:
    """The options that decide what documents and examples a task has."""
    values = dict(options)
    return {name: values[name] for name in _OF_TASKS}


def tasks_record(names: Sequence[str], options: EvalOptions) -> dict[str, Any]:
    """What a record of head scores holds of the tasks."""
    chosen = {name: value for name, value in task_options(options).items() if name != "include_path"}
    return {"tasks": [*names], **chosen, "samples": recorded_samples(options["samples"])}


def load_tasks(names: str | Sequence[str], options: EvalOptions) -> dict[str, Any]:
    """The lm-eval tasks of some names; see `depthlens.tasks.harness.load_tasks`."""
    wanted = arguments.names("tasks", names, "capitals_continuation")
    return harness.load_tasks(wanted, gen_kwargs=options["gen_kwargs"], **task_options(options))


def prepare(lens: Lens, tasks: dict[str, Any], options: EvalOptions) -> list[Prepared]:
    """The requests of tasks for a model; see `depthlens.tasks.harness.prepare`."""
    values: dict[str, Any] = {**options}
    return harness.prepare(lens, tasks, **{name: values[name] for name in ("limit", "samples", "seed", *_OF_CHAT)})
