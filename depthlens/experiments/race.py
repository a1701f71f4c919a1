"""Sweeps that stop as soon as they know: documents in random order, and conditions that leave when they are decided.

See `depthlens.analysis.races` for what is tested. Documents come in waves. A wave is computed as a sweep is, with all
conditions that are still open, so that the store, other backends, offloaded models and workers do what they do there.
A race that is started again with the same seed computes nothing twice and decides the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd

from depthlens import arguments, progress, provenance
from depthlens.ablations import Condition
from depthlens.analysis import questions, races
from depthlens.analysis.races import Evidence, Race
from depthlens.analysis.stats import ALPHA, BASELINE
from depthlens.analysis.written_answers import headline
from depthlens.errors import UserError
from depthlens.experiments.condition_runs import ConditionRuns, frame_of
from depthlens.experiments.options import EvalOptions, settled
from depthlens.experiments.views import View, references_of
from depthlens.metrics import LOGPROBS
from depthlens.models.lens import Lens, one_thread
from depthlens.store.answer_cache import AnswerCache, cache_usage
from depthlens.tasks.measures import FreeText
from depthlens.tasks.prepared_task import renumbered

FIRST_WAVE = 16  # documents
GROWTH = 8  # a later wave has one document for so many that came before
MARGIN = 0.1
_MEASURES = ("task", *LOGPROBS)
_HASHED = ["doc_id", questions.HASH]


@dataclass
class _Course:
    """The documents of one task, or of the tasks of a group, in the order in which they come.

    Attributes:
        views: By name, those of its tasks.
        documents: Name of a view and number of a document of it; each question once.
        n_seen: How many have come.
        metric: By which the task is judged, once it is known.
        above_chance: Gains of bets that the whole model is above chance; None where there is no chance level.
        losses: Tables of losses, wave by wave.
    """

    views: dict[str, View] = field(default_factory=dict)
    documents: list[tuple[str, int]] = field(default_factory=list)
    n_seen: int = 0
    metric: str = ""
    above_chance: np.ndarray | None = None
    losses: list[pd.DataFrame] = field(default_factory=list)

    def next_wave(self) -> dict[str, list[int]]:
        """Numbers of the documents that come now, by view."""
        coming = self.documents[self.n_seen : wave_end(self.n_seen)]
        self.n_seen += len(coming)
        found: dict[str, list[int]] = {}
        for name, doc_id in coming:
            found.setdefault(name, []).append(doc_id)
        return found

    @property
    def ended(self) -> bool:
        """Whether all documents have come."""
        return self.n_seen >= len(self.documents)

    def at_chance(self, alpha: float) -> bool:
        """Whether the documents so far do not show that the whole model is above chance."""
        gains = self.above_chance
        return gains is not None and bool(races.log_capital(gains) < np.log(1 / alpha))


def wave_end(n_seen: int) -> int:
    """Documents that have come after the next wave, where so many came before."""
    return n_seen + max(FIRST_WAVE, n_seen // GROWTH)


@one_thread
def race(
    lens: Lens,
    tasks: str | Sequence[str] | dict[str, Any],
    ablate: str | Iterable[str | Condition],
    *,
    margin: int | float = MARGIN,
    alpha: int | float = ALPHA,
    max_documents: int | None = None,
    resample_prompts: Sequence[str] | None = None,
    donor: str | Path | Lens | None = None,
    **options: Unpack[EvalOptions],
) -> Race:
    """Decide which conditions cost something and which cost less than a margin, on as few documents as that takes.

    Args:
        lens: A loaded model.
        tasks: See `depthlens.condition_sweep`.
        ablate: See `depthlens.condition_sweep`.
        margin: Loss that a spared condition stays below, in the unit of the task's metric; between 0 and 1.
        alpha: Probability that any decision is wrong.
        max_documents: Documents of each task after which the race ends; None: all that are chosen. Documents that ask
            the same question count once.
        resample_prompts: See `depthlens.condition_sweep`.
        donor: See `depthlens.condition_sweep`.
        options: `EvalOptions`. ``seed`` also is that of the order of documents. ``measure`` is ``task`` (the metric
            that stands for the task), ``answer_logprob`` or ``token_logprob``.

    Returns:
        The decisions, and the losses that led to them.

    Raises:
        UserError: for anything asked for that does not exist.
    """
    chosen = settled(options)
    margin, alpha = arguments.plain([margin, alpha])
    for name, value, usual in (("margin", margin, MARGIN), ("alpha", alpha, ALPHA)):
        if not isinstance(value, int | float) or not 0 < value < 1:
            raise UserError(f"{name} {value!r}: give a number between 0 and 1, such as {usual}")
    if max_documents is not None:
        all_of_them = ", or leave it out for all"
        max_documents = arguments.whole("max_documents", max_documents, 1, of=" of documents", fix=all_of_them)
    if chosen["measure"] not in _MEASURES:
        raise UserError(f"measure {chosen['measure']!r}: a race judges one score; use one of {', '.join(_MEASURES)}")
    runs = ConditionRuns(lens, tasks, ablate, resample_prompts=resample_prompts, donor=donor, options=chosen)
    if runs.prompts:
        raise UserError("a race has no @resample conditions, whose scores are means over prompts; use condition_sweep")
    courses = _courses(runs.views, chosen["seed"], max_documents)
    names = [str(condition) for condition in runs.conditions[1:]]
    evidence = Evidence(len(courses) * len(names), margin, alpha)
    references = references_of(runs.views, runs.conditions)
    n_waves, caches = 0, list[AnswerCache]()
    decided = [races.UNDECIDED] * (len(courses) * len(names))
    total = len(decided)
    with progress.Bar(total=total, desc="race", unit="decision", disable=not chosen["progress"]) as bar:
        chosen["progress"] = False  # of the waves
        while open_now := _open(courses, names, decided, alpha):
            n_waves += 1
            for task, at in open_now.items():
                course = courses[task]
                conditions = [runs.conditions[0], *(runs.conditions[1 + i] for i in at)]
                losses = _run_wave(runs, course, conditions, references, caches)
                if not at:
                    continue
                course.losses.append(losses.assign(task=task, wave=n_waves))
                first = list(courses).index(task) * len(names)
                table = losses.pivot(index="doc_id", columns="condition", values="loss")
                evidence.add([first + i for i in at], table[[names[i] for i in at]].to_numpy())
            before = decided
            decided = [
                old if old != races.UNDECIDED else new for old, new in zip(before, evidence.decisions(), strict=True)
            ]
            bar.update(before.count(races.UNDECIDED) - decided.count(races.UNDECIDED))
    record = {
        "model": lens.describe(runs.store.fingerprint),
        "tasks": {task: {"metric": course.metric} for task, course in courses.items()},
        "conditions": names,
        "margin": margin,
        "alpha": alpha,
        "max_documents": max_documents,
        "n_documents": {task: len(course.documents) for task, course in courses.items()},
        "n_baseline": {task: course.n_seen for task, course in courses.items()},
        **runs.record,
        "store": cache_usage(caches),
        **provenance.environment(),
        **provenance.where_and_when(),
    }
    losses = pd.concat([table for course in courses.values() for table in course.losses], ignore_index=True)
    return Race(_decisions(courses, runs.conditions[1:], decided, losses, alpha), losses, record)


def _courses(views: Sequence[View], seed: int, max_documents: int | None) -> dict[str, _Course]:
    """The documents of every task in random order, of those that ask the same question the first."""
    courses: dict[str, _Course] = {}
    for view in views:
        course = courses.setdefault(view.name if view.member is None else view.member.group, _Course())
        course.views[view.name] = view
        course.documents += [(view.name, int(doc_id)) for doc_id in view.asked["doc_id"]]
    for course in courses.values():
        hashes = {(name, i): h for name, view in course.views.items() for i, h in view.asked[_HASHED].to_numpy()}
        drawn = [course.documents[i] for i in np.random.default_rng(seed).permutation(len(course.documents))]
        first = {hashes[document]: document for document in reversed(drawn)}
        course.documents = [document for document in drawn if first[hashes[document]] == document][:max_documents]
    return courses


def _open(courses: dict[str, _Course], names: list[str], decided: list[str], alpha: float) -> dict[str, list[int]]:
    """Conditions by number that are undecided, by task that has documents left.

    None of a task whose conditions are decided, but whose whole model is yet to be shown above chance: it goes on
    alone, because the decisions would not count.
    """
    found = {}
    for i, (task, course) in enumerate(courses.items()):
        of_task = decided[i * len(names) : (i + 1) * len(names)]
        at = [j for j, decision in enumerate(of_task) if decision == races.UNDECIDED]
        if not course.ended and (at or course.at_chance(alpha)):
            found[task] = at
    return found


def _run_wave(
    runs: ConditionRuns,
    course: _Course,
    conditions: Sequence[Condition],
    references: dict[str, Any],
    caches: list[AnswerCache],
) -> pd.DataFrame:
    """Losses of the next documents of a task: condition, doc_id, loss."""
    found = []
    for name, documents in course.next_wave().items():
        view = course.views[name]
        assert not isinstance(view, FreeText), "no task of lm-eval"
        part = view.part(documents)
        answers, cache = runs.run(part, references.get(name), conditions)
        caches.append(cache)
        frame = frame_of(part.name, part, conditions, answers)
        course.metric = course.metric or headline(part.name, list(frame["metric"].unique()))
        info = part.describe(frame)["metrics"][course.metric]
        frame = renumbered(frame[frame["metric"] == course.metric], part.member)
        scores = frame.pivot(index="doc_id", columns="condition", values="value")
        if info["chance"] is not None:
            room = np.clip(scores[BASELINE].to_numpy() - info["chance"], -1, 1)
            gains = races.log_gains(room)
            course.above_chance = gains if course.above_chance is None else course.above_chance + gains
        losses = scores.drop(columns=BASELINE).rsub(scores[BASELINE], axis=0) * (1 if info["higher_is_better"] else -1)
        found.append(losses.clip(-1, 1).melt(ignore_index=False, value_name="loss").reset_index())
    return pd.concat(found, ignore_index=True)[["condition", "doc_id", "loss"]]


def _decisions(
    courses: dict[str, _Course],
    conditions: Sequence[Condition],
    decided: list[str],
    losses: pd.DataFrame,
    alpha: float,
) -> pd.DataFrame:
    """`Race.decisions`."""
    values = {key: group["loss"].to_numpy() for key, group in losses.groupby(["task", "condition"])}
    rows = []
    remaining = iter(decided)
    for task, course in courses.items():
        at_chance = course.at_chance(alpha)
        for condition in conditions:
            of_condition = values[task, str(condition)]
            decision = next(remaining)
            rows.append(
                {
                    "task": task,
                    "metric": course.metric,
                    "condition": str(condition),
                    "layer": condition.layer,
                    "head": condition.head,
                    "decision": races.AT_CHANCE if at_chance else decision,
                    "n": len(of_condition),
                    "loss": of_condition.mean(),
                    **dict(zip(("ci_low", "ci_high"), races.anytime_interval(of_condition, alpha), strict=True)),
                }
            )
    return pd.DataFrame(rows).astype({"layer": "Int64", "head": "Int64"})
