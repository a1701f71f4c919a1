"""How an experiment asks its tasks: the options that all experiments share, their defaults and their check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from depthlens import arguments, cluster
from depthlens.errors import UserError, unknown
from depthlens.models.lens import Lens
from depthlens.store.answer_cache import Where
from depthlens.tasks import document_choice, harness
from depthlens.tasks.document_choice import Samples
from depthlens.tasks.document_choice import recorded as recorded_samples
from depthlens.tasks.prepared_task import Prepared


class EvalOptions(TypedDict, total=False):
    """Options of every experiment that asks tasks; each may be left out.

    Attributes:
        limit: Number of documents of each task, from the first on; None (default): all.
        samples: Which documents, instead of ``limit``: numbers (``range(0, 100, 2)``), a slice as text as in Python
            (``"1::2"``: every other one), or a dictionary of either by task.
        num_fewshot: Worked examples before each question; None (default): what the task says.
        include_path: Folder with more lm-eval YAML files.
        seed: Seed of the choice of examples, and of tokens that are drawn; 0 by default.
        apply_chat_template: Wrap prompts in the model's chat template.
        system_instruction: Text before everything else.
        gen_kwargs: How answers are written, over what the tasks say, with lm-eval's names: ``max_gen_toks``, ``until``,
            ``do_sample``, ``temperature``, ``top_p``, ``top_k``, ``min_p``. Tokens that are drawn depend on ``seed``,
            the condition and the document alone (`depthlens.engine.writer`).
        think_end_token: Text that ends what a reasoning model thinks, such as ``</think>``; only what follows is the
            answer.
        enable_thinking: Argument of chat templates that have it; None (default): the template's own way.
        measure: ``task`` (default): the task's own metrics; ``answer_logprob``: log-likelihood of the reference answer
            in nats; ``token_logprob``: the same per token of the answer (`depthlens.tasks.answer_logprob`); ``both``:
            the task's own metrics and ``answer_logprob``.
        backend: What applies the conditions: ``torch`` (default), ``transformer_lens`` or ``nnsight``.
        batch_tokens: Token budget of one batch; None (default): chosen by device and free memory.
        store: Folder or URL where answers are read and kept, so that nothing is computed twice; ``auto`` (default):
            what DEPTHLENS_STORE names, else the user's data folder; None: nowhere.
        progress: Show progress bars; True by default.
        workers: Number of processes that compute, each with the model, through Ray (`depthlens.cluster`); None
            (default): this process computes, or with ``ray`` as many as fit. DEPTHLENS_WORKERS and so on stand for
            these four where they are not given.
        ray: ``local``: a Ray that is started on this machine (default with ``workers``); or the address of a cluster.
        worker_cpus: CPU threads of each worker; None (default): its share of a local machine's cores, else 1.
        worker_gpus: GPUs of each worker, below 1 a share of one; None (default): as many as the model has here.
    """

    limit: int | None
    samples: Samples | None
    num_fewshot: int | None
    include_path: str | Path | None
    seed: int
    apply_chat_template: bool
    system_instruction: str | None
    gen_kwargs: Mapping[str, Any] | None
    think_end_token: str | None
    enable_thinking: bool | None
    measure: str
    backend: str
    batch_tokens: int | None
    store: Where
    progress: bool
    workers: int | None
    ray: str | None
    worker_cpus: int | None
    worker_gpus: float | None


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
