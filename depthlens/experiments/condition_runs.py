"""Tasks under conditions: what every sweep, race and plan runs of its tasks, and how results are put together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, reduce
from operator import and_
from pathlib import Path
from typing import Any, Unpack, cast

import pandas as pd

from depthlens import arguments
from depthlens.ablations import Condition, expand
from depthlens.analysis.documents import COMPLETE, DOCS_COLUMNS, PARSED
from depthlens.analysis.questions import SUBTASK
from depthlens.analysis.results import Result
from depthlens.cluster import pool
from depthlens.engine import tree_attention, work
from depthlens.engine.engine import Engine
from depthlens.engine.references import Reference
from depthlens.engine.work import Work
from depthlens.errors import UserError
from depthlens.experiments.measured import made_record
from depthlens.experiments.options import EvalOptions, load_tasks, prepare, recorded, settled
from depthlens.metrics import ANSWER_LOGPROB, LOGPROBS
from depthlens.models import pairs
from depthlens.models.lens import NO_GENERATION, Lens, one_thread
from depthlens.store.answer_cache import AnswerCache, AnswerRows, AnswerStore
from depthlens.tasks.measures import Answers, FreeText, prompts_of_others, reference_of
from depthlens.tasks.prepared_task import Prepared, described, renumbered

AskedTask = Prepared | FreeText
Tasks = str | Sequence[str] | dict[str, Any]
Ablate = str | Iterable[str | Condition]
Run = Callable[[AskedTask, Reference | None], tuple[list[list[Any]], AnswerCache]]


class ConditionRuns:
    """A model, tasks and conditions, ready to run on any of the tasks' documents.

    Args:
        lens: A loaded model.
        tasks: Names, or tasks from `depthlens.tasks.harness.load_tasks`.
        ablate: See `depthlens.ablations.expand`.
        options: All of `EvalOptions`.
        resample_prompts: Prompts of ``@resample``.
        donor: Model of ``@donor``.

    Attributes:
        conditions: The baseline and all others.
        asked: What is run of each task: the task itself, its reference answers, or one after the other.
        references: What takes the place of parts, by task: one for each prompt of ``@resample``.
        record: What is run and how; `run` adds the work that it was.
        store: Where answers are kept.

    Raises:
        UserError: for anything asked for that does not exist.
    """

    def __init__(
        self,
        lens: Lens,
        tasks: Tasks,
        ablate: Ablate,
        options: EvalOptions,
        *,
        resample_prompts: Sequence[str] | None = None,
        donor: str | Path | Lens | None = None,
    ) -> None:
        arguments.loaded(lens)
        resample_prompts = arguments.check(resample_prompts=resample_prompts)["resample_prompts"]
        self.lens, self.options = lens, options
        self.conditions = expand(ablate, lens.dims)
        if any(c.uses("resample") for c in self.conditions):
            lens.needs_weights("@resample")
        self.joined = pairs.join_donor(lens, donor, self.conditions, options["backend"])
        self.store = AnswerStore(options["store"], self.joined)  # its errors come before the tasks are made
        if not isinstance(tasks, dict) or not tasks:
            tasks = load_tasks(cast(Sequence[str], tasks), options)  # which refuses an empty dict
        self.asked = _asked(lens, tasks, options)
        if lens.stream and (writing := [task.name for task in self.asked if task.written]):
            raise UserError(f"task {writing[0]}: {NO_GENERATION}")
        prompts = _tokens(lens, self.conditions, resample_prompts)
        self.references = _references(self.asked, self.conditions, prompts)
        self._work, self._seconds = Work(), 0.0
        said = ablate if isinstance(ablate, str) else [str(c) for c in self.conditions[1:]]
        self.record: dict[str, Any] = {"ablate": said}
        self.record |= recorded(options) | {"resample_prompts": list(resample_prompts) if resample_prompts else None}

    @cached_property
    def _workers(self) -> pool.Workers | None:
        return pool.workers_of(self.options)

    def cache(self, task: AskedTask, reference: Reference | None) -> AnswerCache:
        """Where answers to a task are kept."""
        keys = reference.keys if reference else None
        return self.store.entry(task.name, backend=self.options["backend"], reference=keys)

    def engine(self, cache: AnswerCache, **about: Any) -> Engine:
        """What computes answers."""
        options = self.options
        about = {"backend": options["backend"], "batch_tokens": options["batch_tokens"], "cache": cache} | about
        return Engine(self.joined, **about)

    def run(
        self, task: AskedTask, reference: Reference | None, conditions: Sequence[Condition] | None = None
    ) -> tuple[list[list[Any]], AnswerCache]:
        """Answers to a task, indexed [condition][request], and where they are kept.

        Args:
            task: One of `asked`, or a part of its documents.
            reference: What takes the place of parts.
            conditions: Some of the conditions; None: all.
        """
        conditions = self.conditions if conditions is None else conditions
        cache, means, record = self.cache(task, reference), None, self.record
        if reference is not None and AnswerRows(cache, task.requests, conditions).unfinished:
            means = reference.measure(self.joined)
        engine = self.engine(cache, means=means, progress=self.options["progress"], workers=self._workers)
        start = time.monotonic()
        answers = task.run(engine, conditions)
        self._seconds += time.monotonic() - start
        self._work.add(engine.work)
        record["batch_tokens"] = work.choose(self.lens, self.options["batch_tokens"]).batch_tokens
        record["tree_attention"] = tree_attention.kernel_of(self.lens)
        if (donor := self.joined.donor) is not None:
            record["donor"] = donor.describe(self.store.identities["donor"].fingerprint)
        if self._workers:
            record["workers"] = self._workers.describe()
        record["work"] = vars(self._work) | {"seconds": self._seconds}
        return answers, cache

    def result(self, run: Run | None = None) -> Result:
        """Run everything, in another way than by `run` where one is given; put documents and record together."""
        run = run or self.run
        frames: list[pd.DataFrame] = []
        records: dict[str, dict] = {}
        asked: dict[str, pd.DataFrame] = {}
        caches: list[AnswerCache] = []
        for task in self.asked:
            runs = []
            for reference in self.references[task.name]:
                answers, cache = run(task, reference)
                runs.append(frame_of(self.lens.name, task, self.conditions, answers))
                caches.append(cache)
            frame = runs[0] if len(runs) == 1 else _mean_of(runs)
            frames.append(renumbered(frame, task.member))
            about = task.describe(frame) | ({"reference": reference.name} if reference else {})
            if task.name in records:  # the task's own metrics came before
                first = records[task.name]
                cut = {key: max(first[key], about[key]) for key in ("n_truncated", "max_tokens_cut")}
                about = first | cut | {"metrics": first["metrics"] | about["metrics"]}
            records[task.name] = about
            questions = task.asked if task.member is None else task.asked.assign(**{SUBTASK: task.name})
            asked[task.name] = renumbered(questions, task.member)
        about = {"tasks": described(records, {task.name: task.member for task in self.asked})}
        about["conditions"] = [str(c) for c in self.conditions]
        record = made_record(self.lens, self.store, caches, **about, **self.record)
        return Result(pd.concat(frames, ignore_index=True), record, pd.concat(asked.values(), ignore_index=True))


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
    asked: Sequence[AskedTask], conditions: Sequence[Condition], prompts: Sequence[Sequence[int]] = ()
) -> dict[str, list[Reference | None]]:
    """What takes the place of parts, by task: one for each prompt of ``@resample``; None where nothing does."""
    found: dict[str, list[Reference | None]] = {}
    for task in asked:
        reference = Reference("resample_prompts", []) if prompts else None
        if any(c.uses("mean") for c in conditions):
            if isinstance(task, FreeText):
                fault = "free text has no reference answers; remove parts instead"
                raise UserError(f"@mean on {task.name}: {fault}")
            reference = reference_of(task)
        found[task.name] = [*reference.with_prompts(prompts, conditions)] if reference and prompts else [reference]
    return found


def _tokens(lens: Lens, conditions: Sequence[Condition], prompts: Sequence[str] | None) -> list[list[int]]:
    """Token ids of the prompts of ``@resample``, where a condition asks for some."""
    asked = next((c for c in conditions if c.uses("resample")), None)
    if bool(asked) != bool(prompts):
        need = f"condition {asked} needs resample_prompts"
        fault = need if asked else "resample_prompts are used by @resample conditions only"
        raise UserError(f"{fault}: give both, or neither")
    return [lens.tokenizer(prompt).input_ids for prompt in prompts or ()]


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
    frame = pd.DataFrame(rows, columns=[*DOCS_COLUMNS, PARSED, COMPLETE])
    return frame.astype({"layer": "Int64", "head": "Int64", "doc_id": "int64", "value": "float64"})


@one_thread
def resample_prompts(
    lens: Lens,
    task: str,
    ablate: Ablate,
    *,
    n: int = 2,
    **options: Unpack[EvalOptions],
) -> list[str] | None:
    """Prompts for the ``@resample`` conditions of a sweep: those of documents of its task that it does not evaluate.

    They have the form of the prompts that are scored, with as many examples, and end with their reference answers
    (`depthlens.tasks.measures`). Whether enough documents are left for ``@mean`` is checked, too, so that a
    notebook says so before its first sweep.

    Args:
        lens: A loaded model.
        task: One lm-eval task; of a group its first one gives the prompts.
        ablate: See `depthlens.ablations.expand`.
        n: How many. A sweep runs its ``@resample`` conditions once with each, and scores are means over them.
        options: `EvalOptions`, as the sweep has them.

    Returns:
        What ``resample_prompts`` of `depthlens.condition_sweep` takes: None where no condition resamples.

    Raises:
        UserError: fewer documents are left, or anything asked for that does not exist.
    """
    arguments.loaded(lens)
    n = arguments.whole("n", n, 1, of=" of prompts")
    chosen = settled(options)
    conditions = expand(ablate, lens.dims)
    if not any(c.uses("resample") or c.uses("mean") for c in conditions):
        return None
    asked = _asked(lens, load_tasks(task, chosen), chosen)
    _references(asked, conditions)
    resamples = any(c.uses("resample") for c in conditions)
    return prompts_of_others(cast(Prepared, asked[0]), n, seed=chosen["seed"]) if resamples else None
