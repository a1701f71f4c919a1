"""Tasks under conditions: options of experiments, what sweeps, races and plans run, and how results are made of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from operator import and_
from typing import Any, cast

import pandas as pd

from depthlens import arguments, cluster
from depthlens.ablations import BASELINE, Condition, expand, modes
from depthlens.analysis.result.documents import COMPLETE, DOCS_COLUMNS, MARGIN, PARSED
from depthlens.analysis.result.questions import SUBTASK
from depthlens.analysis.result.results import Result
from depthlens.arguments import EvalOptions
from depthlens.cluster import pool
from depthlens.engine import tree_attention
from depthlens.engine.engine import Engine
from depthlens.engine.references import Reference
from depthlens.engine.work import Work
from depthlens.errors import UserError, unknown
from depthlens.experiments.texts import tokens_of
from depthlens.metrics import ANSWER_LOGPROB, LOGPROBS
from depthlens.models import pairs
from depthlens.models.lens import NO_GENERATION, Lens
from depthlens.store.answer_cache import AnswerCache, AnswerRows, AnswerStore
from depthlens.tasks import harness
from depthlens.tasks.measures import Answers, FreeText, prompts_of_others, reference_of
from depthlens.tasks.prepared_task import Prepared, described, renumbered

OF_TASKS = ("limit", "samples", "num_fewshot", "include_path", "seed")
OF_CHAT = ("apply_chat_template", "system_instruction", "think_end_token", "enable_thinking")
# what experiments do not have that ask no conditions of tasks
OF_CONDITIONS = ("measure", "backend", "gen_kwargs", "donor", "resample_prompts", *OF_CHAT)
AskedTask = Prepared | FreeText
Tasks = str | Sequence[str] | dict[str, Any]
Ablate = str | Iterable[str | Condition]
Run = Callable[[AskedTask, Reference | None], list[list[Any]]]


class ConditionRuns:
    """A model, tasks and conditions, ready to run on any of the tasks' documents.

    Args:
        lens: A loaded model.
        tasks: Names, or tasks from `depthlens.tasks.harness.load_tasks`.
        ablate: See `depthlens.ablations.expand`.
        options: All of `EvalOptions`.

    Attributes:
        conditions: The baseline and all others.
        asked: What is run of each task: the task itself, its reference answers, or one after the other.
        references: What takes the place of parts, by task: one for each prompt of ``@resample``.
        record: What is run and how; `run` adds the work that it was.
        store: Where answers are kept.

    Raises:
        UserError: for anything asked for that does not exist.
    """

    def __init__(self, lens: Lens, tasks: Tasks, ablate: Ablate, options: EvalOptions) -> None:
        self.lens, self.options, resample_prompts = lens, options, options["resample_prompts"]
        self.conditions = expand(ablate, lens.dims)
        if resamples := any(c.uses("prompt") for c in self.conditions):
            lens.needs_weights("@resample")
        self.joined = pairs.join_donor(lens, options["donor"], self.conditions, options["backend"])
        self.store = AnswerStore(options["store"], self.joined)  # its errors come before the tasks are made
        if not isinstance(tasks, dict) or not tasks:
            tasks = load_tasks(cast(Sequence[str], tasks), options)  # which refuses an empty dict
        self.asked = _asked(lens, tasks, options)
        if lens.stream and (writing := [task.name for task in self.asked if task.written]):
            raise UserError(f"task {writing[0]}: {NO_GENERATION}")
        if isinstance(resample_prompts, int):
            first, n = cast(Prepared, self.asked[0]), resample_prompts
            resample_prompts = prompts_of_others(first, n, seed=options["seed"]) if resamples else None
        prompts = prompts_of_resample(lens, self.conditions, resample_prompts or ())
        self.references = _references(self.asked, self.conditions, prompts)
        self._work, self._seconds = Work(), 0.0
        said = ablate if isinstance(ablate, str) else [str(c) for c in self.conditions[1:]]
        self.record: dict[str, Any] = {"ablate": said}
        if keys := modes.keys({name for c in self.conditions for name in c.modes}):
            self.record["modes"] = keys  # of modes of one's own: what stands for their functions
        self.record |= recorded(options) | {"resample_prompts": list(resample_prompts) if resample_prompts else None}

    def cache(self, task: AskedTask, reference: Reference | None) -> AnswerCache:
        """Where answers to a task are kept."""
        keys = reference.keys if reference else None
        return self.store.entry(task.name, backend=self.options["backend"], reference=keys)

    def run(
        self, task: AskedTask, reference: Reference | None, conditions: Sequence[Condition] | None = None
    ) -> list[list[Any]]:
        """Answers to a task, indexed [condition][request].

        Args:
            task: One of `asked`, or a part of its documents.
            reference: What takes the place of parts.
            conditions: Some of the conditions; None: all.
        """
        conditions = self.conditions if conditions is None else conditions
        cache, means, record = self.cache(task, reference), None, self.record
        if reference is not None and AnswerRows(cache, task.requests, conditions).unfinished:
            means = reference.measure(self.joined)
        engine = engine_of(self.joined, self.options, cache, means=means)
        record |= {"budget": dict(vars(engine.budget)), "batch_tokens": engine.budget.batch_tokens}
        start = time.monotonic()
        answers = task.run(engine, conditions)
        self._seconds += time.monotonic() - start
        self._work.add(engine.work)
        record["tree_attention"] = tree_attention.kernel_of(self.lens)
        if engine.work.rows:
            record["whole_passes"] = engine.walked().fault  # why; None: the layers were walked
        if (donor := self.joined.donor) is not None:
            record["donor"] = donor.describe(self.store.identities["donor"].fingerprint)
        if engine.workers:
            record["workers"] = engine.workers.describe()
        record["work"] = vars(self._work) | {"seconds": self._seconds}
        return answers

    def result(self, run: Run | None = None) -> Result:
        """Run everything, in another way than by `run` where one is given; put documents and record together."""
        run = run or self.run
        frames: list[pd.DataFrame] = []
        records: dict[str, dict] = {}
        asked: dict[str, pd.DataFrame] = {}
        for task in self.asked:
            references = self.references[task.name]
            runs = [frame_of(self.lens.name, task, self.conditions, run(task, of)) for of in references]
            frame = runs[0] if len(runs) == 1 else _mean_of(runs)
            frames.append(renumbered(frame, task.member))
            about = task.describe(frame) | ({"reference": references[-1].name} if references[-1] else {})
            if task.name in records:  # the task's own metrics came before
                first = records[task.name]
                cut = {key: max(first[key], about[key]) for key in ("n_truncated", "max_tokens_cut", "n_merged")}
                about = first | cut | {"metrics": first["metrics"] | about["metrics"]}
            records[task.name] = about
            questions = task.asked if task.member is None else task.asked.assign(**{SUBTASK: task.name})
            asked[task.name] = renumbered(questions, task.member)
        about = {"tasks": described(records, {task.name: task.member for task in self.asked})}
        about["conditions"] = [str(c) for c in self.conditions]
        record = self.store.record(**about, **self.record)
        return Result(pd.concat(frames, ignore_index=True), record, pd.concat(asked.values(), ignore_index=True))


def engine_of(lens: Lens, options: EvalOptions, cache: AnswerCache, **about: Any) -> Engine:
    """The engine that options of an experiment ask for, with the workers that they ask for."""
    about |= {name: value for name, value in options.items() if name in ("backend", "batch_tokens", "progress")}
    return Engine(lens, cache=cache, workers=pool.workers_of(options), **about)


def _asked(lens: Lens, tasks: dict[str, Any], options: EvalOptions) -> list[AskedTask]:
    """What is run of each task: the task itself, its reference answers, or one after the other."""
    asked: list[AskedTask] = [task for task in tasks.values() if isinstance(task, FreeText)]  # ready as it is
    loaded = {name: task for name, task in tasks.items() if not isinstance(task, FreeText)}
    for task in prepare(lens, loaded, options):
        measure = options["measure"]
        asked += [task] if measure not in LOGPROBS else []
        if measure != "task":
            asked += [Answers(task, measure if measure in LOGPROBS else ANSWER_LOGPROB)]
    return asked


def _references(
    asked: Sequence[AskedTask], conditions: Sequence[Condition], prompts: Sequence[Sequence[int]]
) -> dict[str, list[Reference | None]]:
    """What takes the place of parts, by task: one for each prompt of ``@resample``; None where nothing does."""
    found: dict[str, list[Reference | None]] = {}
    for task in asked:
        reference = Reference("resample_prompts", []) if prompts else None
        if any(c.uses("means") for c in conditions):
            if isinstance(task, FreeText):
                fault = "free text has no reference answers; remove parts instead"
                raise UserError(f"@mean on {task.name}: {fault}")
            reference = reference_of(task)
        found[task.name] = [*reference.with_prompts(prompts, conditions)] if reference and prompts else [reference]
    return found


def prompts_of_resample(
    lens: Lens, conditions: Sequence[Condition], prompts: Sequence[str], name: str = "resample_prompts"
) -> list[tuple[int, ...]]:
    """Token ids of the prompts of ``@resample``, the argument ``name``, where a condition asks for some.

    Raises:
        UserError: there are prompts and no such condition, or it is the other way round.
    """
    asked = next((c for c in conditions if c.uses("prompt")), None)
    if bool(asked) != bool(prompts):
        fault = f"condition {asked} needs {name}" if asked else f"{name} is used by @resample conditions only"
        raise UserError(f"{fault}: give both, or neither")
    return [tokens_of(lens, prompt) for prompt in prompts]


def _mean_of(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Means over prompts of `frame_of`'s rows.

    A response has every answer that one of the prompts gave; it was read, and had ended, if all of them were.
    """
    given = zip(*(frame["response"] for frame in frames), strict=True)
    flags = {c: reduce(and_, (frame[c].astype("boolean") for frame in frames)) for c in (PARSED, COMPLETE)}
    mean = sum(frame["value"] for frame in frames) / len(frames)
    return frames[0].assign(value=mean, response=[" | ".join(dict.fromkeys(texts)) for texts in given], **flags)


def frame_of(
    model: str, task: AskedTask, conditions: Sequence[Condition], answers: Sequence[Sequence[Any]]
) -> pd.DataFrame:
    """Tidy rows of one task: one a condition, metric and document."""
    rows = [
        (model, task.name, one.metric, str(condition), condition.layer, condition.head, *one[1:])
        for condition, given in zip(conditions, answers, strict=True)
        for one in task.score(given)
    ]
    if not rows:
        skipped = ", ".join(task.skipped) or "none"
        raise UserError(f"task {task.name}: no metric has a value per document ({skipped})")
    frame = pd.DataFrame(rows, columns=[*DOCS_COLUMNS, PARSED, COMPLETE, MARGIN])
    frame.loc[frame["condition"] != str(BASELINE), MARGIN] = None  # few bytes: those of the whole model alone
    return frame.astype({"layer": "Int64", "head": "Int64", "doc_id": "int64", "value": "float64", MARGIN: "float32"})


def settled(given: EvalOptions, *, without: Sequence[str] = ()) -> EvalOptions:
    """All options, those that were not given at their defaults.

    Args:
        given: What the caller gave.
        without: Options that the experiment does not have, and that may be given at their defaults alone.

    Raises:
        UserError: an option that does not exist, or a value that it cannot have.
    """
    defaults = {name: option.default for name, option in arguments.OPTIONS.items()}
    for name, value in given.items():
        if name not in defaults or (name in without and value != defaults[name]):
            raise unknown("option", name, [name for name in defaults if name not in without])
    options = cast(EvalOptions, arguments.check(**{**defaults, **given}))
    cluster.asked(options)  # refuses workers of which only the size is given
    return options


def recorded(options: EvalOptions) -> dict[str, Any]:
    """What a record holds of the options."""
    path = options["include_path"]
    written = {"include_path": None if path is None else str(path), "samples": harness.recorded(options["samples"])}
    return {name: value for name, value in options.items() if name not in arguments.UNRECORDED} | written


def task_options(options: EvalOptions) -> dict[str, Any]:
    """The options that decide what documents and examples a task has."""
    return {name: value for name, value in options.items() if name in OF_TASKS}


def tasks_record(names: Sequence[str], options: EvalOptions) -> dict[str, Any]:
    """What a record of head scores holds of the tasks."""
    chosen = {name: value for name, value in task_options(options).items() if name != "include_path"}
    return {"tasks": [*names], **chosen, "samples": harness.recorded(options["samples"])}


def load_tasks(names: str | Sequence[str], options: EvalOptions) -> dict[str, Any]:
    """The lm-eval tasks of some names; see `depthlens.tasks.harness.load_tasks`."""
    wanted = arguments.names("tasks", names, "capitals_continuation")
    return harness.load_tasks(wanted, gen_kwargs=options["gen_kwargs"], **task_options(options))


def prepare(lens: Lens, tasks: dict[str, Any], options: EvalOptions) -> list[Prepared]:
    """The requests of tasks for a model; see `depthlens.tasks.harness.prepare`."""
    chosen: Any = {name: value for name, value in options.items() if name in ("limit", "samples", "seed", *OF_CHAT)}
    return harness.prepare(lens, tasks, **chosen)
