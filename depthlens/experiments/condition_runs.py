"""Tasks under conditions, computed and put together: what every sweep and every race does with its documents."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any, cast

import pandas as pd

from depthlens import arguments, provenance
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
from depthlens.experiments.options import EvalOptions, load_tasks, recorded
from depthlens.experiments.views import View, references_of, tokens_of_prompts, views_of
from depthlens.models import loading, names, pairs
from depthlens.models.lens import NO_GENERATION, Lens
from depthlens.store.answer_cache import AnswerCache, AnswerRows, AnswerStore, cache_usage
from depthlens.tasks.prepared_task import described, renumbered


class ConditionRuns:
    """A model, tasks and conditions, ready to run on any of the tasks' documents.

    Args:
        lens: A loaded model.
        tasks: Names, or tasks from `depthlens.tasks.harness.load_tasks`.
        ablate: See `depthlens.ablations.expand`.
        resample_prompts: Prompts of ``@resample``.
        donor: Model of ``@donor``.
        options: All of `EvalOptions`.

    Attributes:
        conditions: The baseline and all others.
        views: What is run of each task.
        record: What is run and how; `run` adds the work that it was.
        store: Where answers are kept.
        prompts: Token ids of the prompts of ``@resample``.

    Raises:
        UserError: for anything asked for that does not exist.
    """

    def __init__(
        self,
        lens: Lens,
        tasks: str | Sequence[str] | dict[str, Any],
        ablate: str | Iterable[str | Condition],
        *,
        resample_prompts: Sequence[str] | None,
        donor: str | Path | Lens | None,
        options: EvalOptions,
    ) -> None:
        arguments.loaded(lens)
        resample_prompts = arguments.check(resample_prompts=resample_prompts)["resample_prompts"]
        self.options = options
        self.conditions = expand(ablate, lens.dims)
        if any(c.uses("resample") for c in self.conditions):
            lens.needs_weights("@resample")
        self._lens = lens
        self._joined = pairs.join_donor(lens, donor, self.conditions, options["backend"])
        self.store = AnswerStore(options["store"], self._joined)  # its errors come before the tasks are made
        self._workers = pool.workers_of(options)
        if not isinstance(tasks, dict) or not tasks:
            tasks = load_tasks(cast(Sequence[str], tasks), options)  # which refuses an empty dict
        self.views = views_of(lens, tasks, options)
        if lens.stream and (writing := [view.name for view in self.views if view.written]):
            raise UserError(f"task {writing[0]}: {NO_GENERATION}")
        self.prompts = tokens_of_prompts(lens, self.conditions, resample_prompts)
        self._work, self._seconds = Work(), 0.0
        names = [str(c) for c in self.conditions[1:]]
        self.record = {"ablate": ablate if isinstance(ablate, str) else names} | recorded(options)
        self.record["resample_prompts"] = list(resample_prompts) if resample_prompts else None
        self.record["batch_tokens"] = work.choose(lens, options["batch_tokens"]).batch_tokens
        self.record["tree_attention"] = tree_attention.kernel_of(lens)
        if (given := self._joined.donor) is not None:
            self.record["donor"] = given.describe(self.store.identities["donor"].fingerprint)

    def run(
        self, view: View, reference: Reference | None, conditions: Sequence[Condition] | None = None
    ) -> tuple[list[list[Any]], AnswerCache]:
        """Answers of a view, indexed [condition][request], and where they are kept.

        Args:
            view: One of `views`, or a part of its documents.
            reference: What takes the place of parts.
            conditions: Some of the conditions; None: all.
        """
        conditions = self.conditions if conditions is None else conditions
        backend, workers = self.options["backend"], self._workers
        cache = self.store.entry(view.name, backend=backend, reference=reference.keys if reference else None)
        means = None
        if reference is not None and AnswerRows(cache, view.requests, conditions).unfinished:
            means = reference.measure(self._joined)
        about: dict[str, Any] = {"means": means, "progress": self.options["progress"], "cache": cache}
        about |= {"batch_tokens": self.options["batch_tokens"], "workers": workers}
        engine = Engine(self._joined, backend=backend, **about)
        start = time.monotonic()
        answers = view.run(engine, conditions)
        self._seconds += time.monotonic() - start
        if workers:
            self.record["workers"] = workers.describe()
        self._work.add(engine.work)
        self.record["work"] = vars(self._work) | {"seconds": self._seconds}
        return answers, cache


def model_and_tasks(
    model: str, tasks: Sequence[str], options: EvalOptions, *, donor: str | None, **how: Any
) -> tuple[Lens, dict[str, Any]]:
    """A model by name, and tasks; what needs no weights is checked before they are read.

    Args:
        model: What `depthlens.load` takes.
        tasks: Names.
        options: All of `EvalOptions`.
        donor: Name of the model that `@donor` conditions take weights of; it is not loaded.
        how: Options of `depthlens.load`.

    Raises:
        UserError: for anything asked for that does not exist.
    """
    arguments.check(dtype=how["dtype"], device=how["device"], quantize=how["quantize"], tasks=tasks)
    for name in (model, donor):
        if name is not None and not how["remote"]:
            names.configuration(names.find(name))
    loaded = load_tasks(tasks, options)
    pool.workers_of(options)  # their errors come before the model is loaded
    return loading.load(model, **how), loaded


def result_of(
    lens: Lens,
    store: AnswerStore,
    views: Sequence[View],
    conditions: Sequence[Condition],
    run: Callable[[View, Reference | None], tuple[Sequence[Sequence[Any]], AnswerCache]],
    record: dict[str, Any],
    prompts: Sequence[Sequence[int]] = (),
) -> Result:
    """Run every view of the tasks and put the documents and the record together.

    Args:
        lens: The model.
        store: Its answers.
        views: Of the tasks.
        conditions: The baseline and others.
        run: Answers of a view, indexed [condition][request], and where they are kept.
        record: What the caller knows of it; read after everything was run.
        prompts: Token ids of the prompts of ``@resample``.
    """
    frames: list[pd.DataFrame] = []
    records: dict[str, dict] = {}
    asked: dict[str, pd.DataFrame] = {}
    caches: list[AnswerCache] = []
    references = references_of(views, conditions, with_prompts=bool(prompts))
    for view in views:
        reference = references.get(view.name)
        runs = []
        for reference_prompt in reference.with_prompts(prompts, conditions) if reference and prompts else [reference]:
            answers, cache = run(view, reference_prompt)
            runs.append(frame_of(lens.name, view, conditions, answers))
            caches.append(cache)
        frame = runs[0] if len(runs) == 1 else _mean_of(runs)
        frames.append(renumbered(frame, view.member))
        about = view.describe(frame) | ({"reference": reference.name} if reference else {})
        if view.name in records:  # the task's own metrics came before
            first = records[view.name]
            cut = {key: max(first[key], about[key]) for key in ("n_truncated", "max_tokens_cut")}
            about = first | cut | {"metrics": first["metrics"] | about["metrics"]}
        records[view.name] = about
        questions = view.asked if view.member is None else view.asked.assign(**{SUBTASK: view.name})
        asked[view.name] = renumbered(questions, view.member)
    record = {
        "model": lens.describe(store.fingerprint),
        "tasks": described(records, {view.name: view.member for view in views}),
        "conditions": [str(c) for c in conditions],
        **record,
        "store": cache_usage(caches),
        **provenance.environment(),
        **provenance.where_and_when(),
    }
    return Result(pd.concat(frames, ignore_index=True), record, pd.concat(asked.values(), ignore_index=True))


def _mean_of(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Means over prompts of `frame_of`'s rows.

    A response has every answer that one of the prompts gave; it was read, and had ended, if all of them were.
    """
    given = zip(*(frame["response"] for frame in frames), strict=True)
    flags = {c: reduce(and_, (frame[c].astype("boolean") for frame in frames)) for c in (PARSED, COMPLETE)}
    mean = sum(frame["value"] for frame in frames) / len(frames)
    return frames[0].assign(value=mean, response=[" | ".join(dict.fromkeys(texts)) for texts in given], **flags)


def frame_of(model: str, task: View, conditions: Sequence[Condition], answers: Sequence[Sequence[Any]]) -> pd.DataFrame:
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
