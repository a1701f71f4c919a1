"""Sweeps that stop as soon as they know: documents in random order, and conditions that leave when they are decided.

See `depthlens.analysis.numbers.betting` for what is tested. Documents come in waves. A wave is computed as a sweep is,
with all conditions that are still open, so that the store, other backends, offloaded models and workers do what they do
there. A race that is started again with the same seed computes nothing twice and decides the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Unpack

import numpy as np
import pandas as pd

from depthlens import arguments, progress
from depthlens.ablations import Condition
from depthlens.analysis.numbers import betting
from depthlens.analysis.numbers.stats import ALPHA, BASELINE
from depthlens.analysis.result import questions
from depthlens.analysis.result.documents import headline
from depthlens.analysis.result.races import Race
from depthlens.arguments import EvalOptions
from depthlens.errors import UserError
from depthlens.experiments.condition_runs import Ablate, AskedTask, ConditionRuns, Tasks, frame_of, settled
from depthlens.metrics import LOGPROBS
from depthlens.models.lens import Lens, one_thread
from depthlens.tasks.measures import FreeText
from depthlens.tasks.prepared_task import renumbered

FIRST_WAVE = 16  # documents
GROWTH = 8  # a later wave has one document for so many that came before
MARGIN = 0.1
SMALLEST = 1e-6  # margin or alpha
_MEASURES = ("task", *LOGPROBS)


@one_thread
def race(
    lens: Lens,
    tasks: Tasks,
    ablate: Ablate,
    *,
    margin: int | float = MARGIN,
    alpha: int | float = ALPHA,
    max_documents: int | None = None,
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
        options: `EvalOptions`. ``seed`` also is that of the order of documents. ``measure`` is ``task`` (the metric
            that stands for the task), ``answer_logprob`` or ``token_logprob``.

    Returns:
        The decisions, and the losses that led to them.

    Raises:
        UserError: for anything asked for that does not exist.

    Example:
        >>> race = dl.race(lens, "organism_one_hop", ["L0", "L2"], max_documents=40)
        >>> race.of("critical")
        ['L2']
    """
    chosen = settled(options)
    margin, alpha = (arguments.number(n, x, SMALLEST, 1 - SMALLEST) for n, x in (("margin", margin), ("alpha", alpha)))
    if max_documents is not None:
        max_documents = arguments.whole("max_documents", max_documents, 1, fix=", or leave it out for all")
    if chosen["measure"] not in _MEASURES:
        raise UserError(f"measure {chosen['measure']!r}: a race judges one score; use one of {', '.join(_MEASURES)}")
    runs = ConditionRuns(lens, tasks, ablate, chosen)
    if any(c.uses("prompt") for c in runs.conditions):
        raise UserError("a race has no @resample conditions, whose scores are means over prompts; use condition_sweep")
    courses = _courses(runs.asked, chosen["seed"], max_documents)
    baseline, *conditions = runs.conditions
    evidence = betting.Evidence(len(courses) * len(conditions), margin, alpha)
    decided = np.full((len(courses), len(conditions)), betting.UNDECIDED, dtype=object)
    n_waves = 0
    with progress.Bar(total=decided.size, desc="race", unit="decision", disable=not chosen["progress"]) as bar:
        chosen["progress"] = False  # of the waves
        while going := [i for i, c in enumerate(courses) if c.goes_on(decided[i], alpha)]:
            n_waves += 1
            for i in going:
                at = np.flatnonzero(decided[i] == betting.UNDECIDED)
                losses = courses[i].run_wave(runs, [baseline, *(conditions[j] for j in at)])
                if len(at):
                    courses[i].losses.append(losses.assign(task=courses[i].task, wave=n_waves))
                    table = losses.pivot(index="doc_id", columns="condition", values="loss")
                    evidence.add(i * len(conditions) + at, table[[str(conditions[j]) for j in at]].to_numpy())
            still = decided == betting.UNDECIDED  # what is decided stays so
            decided[still] = np.reshape(evidence.decisions(), decided.shape)[still]
            bar.update(int(still.sum() - (decided == betting.UNDECIDED).sum()))
    asked = {"conditions": [*map(str, conditions)], "margin": margin, "alpha": alpha, "max_documents": max_documents}
    record = runs.store.record(
        tasks={c.task: {"metric": c.metric} for c in courses},
        n_documents={c.task: len(c.documents) for c in courses},
        n_baseline={c.task: c.n_seen for c in courses},
        **asked,
        **runs.record,
    )
    losses = pd.concat([table for course in courses for table in course.losses], ignore_index=True)
    keys = ["task", "condition"]
    found = losses.groupby(keys, sort=False)["loss"].agg(n="size", loss="mean", values=list)
    rows = [(c.task, c.metric, str(of), of.layer, of.head) for c in courses for of in conditions]
    found = pd.DataFrame(rows, columns=["task", "metric", "condition", "layer", "head"]).join(found, on=keys)
    at_chance = [[course.at_chance(alpha)] for course in courses]
    found.insert(5, "decision", np.where(at_chance, betting.AT_CHANCE, decided).ravel())
    found[["ci_low", "ci_high"]] = [betting.anytime_interval(np.array(of), alpha) for of in found.pop("values")]
    return Race(found.astype({"layer": "Int64", "head": "Int64"}), losses, record)


@dataclass
class _Course:
    """The documents of one task, or of the tasks of a group, in the order in which they come.

    Attributes:
        task: Its name.
        members: What is run, by name: the task, or those of the group.
        documents: Name of a member and number of a document of it; each question once.
        n_seen: How many have come.
        metric: By which the task is judged, once it is known.
        above_chance: Gains of bets that the whole model is above chance; None where there is no chance level.
        losses: Tables of losses, wave by wave.
    """

    task: str
    members: dict[str, AskedTask] = field(default_factory=dict)
    documents: list[tuple[str, int]] = field(default_factory=list)
    n_seen: int = 0
    metric: str = ""
    above_chance: np.ndarray | None = None
    losses: list[pd.DataFrame] = field(default_factory=list)

    def at_chance(self, alpha: float) -> bool:
        """Whether the documents so far do not show that the whole model is above chance."""
        gains = self.above_chance
        return gains is not None and bool(betting.log_capital(gains) < np.log(1 / alpha))

    def goes_on(self, decided: np.ndarray, alpha: float) -> bool:
        """Whether another wave comes.

        Where all conditions are decided, but the whole model is yet to be shown above chance, it goes on alone, because
        the decisions would not count.
        """
        left = self.n_seen < len(self.documents)
        return left and (bool((decided == betting.UNDECIDED).any()) or self.at_chance(alpha))

    def run_wave(self, runs: ConditionRuns, conditions: Sequence[Condition]) -> pd.DataFrame:
        """Losses of the next documents: condition, doc_id, loss."""
        coming = self.documents[self.n_seen : self.n_seen + max(FIRST_WAVE, self.n_seen // GROWTH)]
        self.n_seen += len(coming)
        found = []
        for name in dict.fromkeys(name for name, _ in coming):
            member = self.members[name]
            assert not isinstance(member, FreeText), "no task of lm-eval"
            part = member.part([doc_id for of, doc_id in coming if of == name])
            (reference,) = runs.references[name]
            frame = frame_of(name, part, conditions, runs.run(part, reference, conditions))
            self.metric = self.metric or headline(name, list(frame["metric"].unique()))
            info = part.describe(frame)["metrics"][self.metric]
            frame = renumbered(frame[frame["metric"] == self.metric], part.member)
            scores = frame.pivot(index="doc_id", columns="condition", values="value")
            if info["chance"] is not None:
                gains = betting.log_gains(np.clip(scores[BASELINE].to_numpy() - info["chance"], -1, 1))
                self.above_chance = gains if self.above_chance is None else self.above_chance + gains
            losses = scores.drop(columns=BASELINE).rsub(scores[BASELINE], axis=0)
            losses = losses.clip(-1, 1) * (1 if info["higher_is_better"] else -1)
            found.append(losses.melt(ignore_index=False, value_name="loss").reset_index())
        return pd.concat(found, ignore_index=True)[["condition", "doc_id", "loss"]]


def _courses(asked: Sequence[AskedTask], seed: int, max_documents: int | None) -> list[_Course]:
    """The documents of every task in random order, of those that ask the same question the first."""
    courses: dict[str, _Course] = {}
    for task in asked:
        name = task.name if task.member is None else task.member.group
        courses.setdefault(name, _Course(name)).members[task.name] = task
    for course in courses.values():
        tables = [task.asked.assign(member=name) for name, task in course.members.items()]
        drawn = pd.concat(tables)[["member", "doc_id", questions.HASH]]
        drawn = drawn.iloc[np.random.default_rng(seed).permutation(len(drawn))].drop_duplicates(questions.HASH)
        course.documents = list(drawn[["member", "doc_id"]].itertuples(index=False, name=None))[:max_documents]
    return list(courses.values())
