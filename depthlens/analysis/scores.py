"""One task's scores by removed layer, document by document.

`profiles` makes them from a layer sweep. What they say is a `depthlens.analysis.means.Mean`: the loss of each layer,
its share of the score above the floor, its share of all losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from depthlens import arguments
from depthlens.analysis import means, questions, stats
from depthlens.analysis.means import Mean
from depthlens.analysis.stats import BASELINE
from depthlens.errors import UserError
from depthlens.metrics import in_nats

if TYPE_CHECKING:
    from depthlens.analysis.results import Result

_OF_TASK = ("version", "num_fewshot", "output_type")
_OF_RUN = ("seed", "apply_chat_template", "system_instruction")
THIRDS = ("first third", "middle third", "last third")
AT_CHANCE, NO_LOSS = "at chance", "losses and gains of all layers may cancel"
# before a share, a centre or a claim is judged: of fewer, intervals cover too seldom
FEWEST_QUESTIONS, FEWEST_SUBJECTS = 100, 10


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of one model on one task under a layer sweep. Higher is better: other scores have their sign turned.

    Attributes:
        model: Name of the model.
        task: Name of the task.
        metric: Name of the metric.
        label: The task, with the metric where the result has several of it.
        values: Score with each layer removed. Shape [document, layer].
        base: Score of the whole model. Shape [document].
        layers: Numbers of the removed layers, rising. Shape [layer].
        documents: What the documents are, by rising id (`depthlens.analysis.questions.identities`).
        n_layers: Of the model.
        floor: What a broken model scores: chance among options, 0 for written answers and for scores that are never
            below; None if there is no such score.
        binary: Whether all scores are 0 or 1.
        at_chance: See `depthlens.analysis.results`.
        sign: -1 where the sign was turned, else 1.
        units: What is independent of one another, by document: questions, or the subjects of a group
            (`depthlens.analysis.questions.units`).
        broken: Score of a broken model, which lacks the first half of its layers (`broken_condition`): the measured
            floor. Shape [document]; None where it was not swept.
    """

    model: str
    task: str
    metric: str
    label: str
    values: np.ndarray
    base: np.ndarray
    layers: np.ndarray
    documents: tuple[str, ...]
    n_layers: int
    floor: float | None
    binary: bool
    at_chance: bool
    sign: float
    units: tuple[str, ...]
    broken: np.ndarray | None = None

    def beyond(self, n: int) -> Scores:
        """The profile without the first ``n`` layers of the model.

        Raises:
            UserError: no other layer was removed.
        """
        if not (kept := self.layers >= n).any():
            raise UserError(f"task {self.task}: only layers below {n} were removed; sweep all layers")
        if kept.all():
            return self  # with what it has already computed
        return replace(self, values=self.values[:, kept], layers=self.layers[kept])

    def of_documents(self, at: Sequence[int]) -> Scores:
        """The profile of some of its documents, by their places."""
        documents, units = (tuple(names[i] for i in at) for names in (self.documents, self.units))
        broken = None if self.broken is None else self.broken[list(at)]
        return replace(
            self,
            values=self.values[list(at)],
            base=self.base[list(at)],
            documents=documents,
            units=units,
            broken=broken,
        )

    @property
    def loss(self) -> np.ndarray:
        """What each removal costs; nats are clipped to 1 a document. Shape [document, layer]."""
        loss = self.base[:, None] - self.values
        return np.clip(loss, -1.0, 1.0) if in_nats(self.metric) else loss

    @cached_property
    def too_few(self) -> str:
        """Why there are too few questions, or subjects of a group, to judge a share, a centre or a claim; "" if not."""
        return too_few(self.units, self.documents)

    def mean(self, values: np.ndarray, *, bounded: bool = True) -> Mean:
        """The mean of values of the documents. Shape [document, ...]."""
        return means.mean(values, self.units, bounded=bounded)

    def mean_loss(self, weights: np.ndarray | None = None) -> Mean:
        """Mean loss of each layer, or sums of losses over layers with weights that add up to 1.

        Args:
            weights: Shape [layer, ...]; None: each layer by itself.
        """
        return self.mean(self.loss if weights is None else self.loss @ weights)

    def relative_loss(self, weights: np.ndarray | None = None) -> Mean:
        """`mean_loss` as a share of what the whole model scores above the floor, the measured one where there is one.

        Raises:
            UserError: the metric has no floor.
        """
        if self.broken is not None:
            return self.mean_loss(weights) / self.mean(self.base - self.broken, bounded=False)
        if self.floor is None:
            fault = f"{self.metric} of task {self.task} has no chance level"
            raise UserError(f"{fault} that its losses could be a share of; use scale='importance'")
        return self.mean_loss(weights) / self.mean(self.base - self.floor, bounded=False)

    def share(self, weights: np.ndarray) -> Mean:
        """Losses summed over layers with weights, as a share of the summed loss of all layers. Shape [layer, ...]."""
        total = self.loss.sum(1)
        return self.mean(self.loss @ weights, bounded=False) / self.mean(total, bounded=False)

    @property
    def centre(self) -> Mean:
        """Centre of mass of the losses over depth: the mean depth of the removed layers, weighted with their losses.

        0 for a loss that is all in the model's first layer, 1 for its last; outside where gains weigh much.
        """
        return self.share(self.depth)

    @property
    def depth(self) -> np.ndarray:
        """Depth of the removed layers: 0 is the first layer of the model, 1 the last. Shape [layer]."""
        return self.layers / max(self.n_layers - 1, 1)

    @cached_property
    def thirds(self) -> np.ndarray:
        """The third of the model's depth that each removed layer is in: 0, 1 or 2. Shape [layer].

        Raises:
            UserError: a third without layers.
        """
        third = layer_third(self.layers, self.n_layers)
        if missing := [name for i, name in enumerate(THIRDS) if i not in third]:
            fault = f"task {self.task}: no layer of the {missing[0]} was removed ({self.n_layers} layers)"
            raise UserError(f"{fault}; sweep all layers of a model of at least three")
        return third

    def unusable(self, scale: str) -> str:
        """Why there is nothing to say on one of `depthlens.analysis.depth.SCALES`, "" if there is.

        A share of the losses needs losses that can be placed. The other scales need a score above chance.
        """
        if scale == "importance":
            return self.unplaced
        return AT_CHANCE if self.at_chance else ""

    @cached_property
    def unplaced(self) -> str:
        """Why the losses cannot be placed in depth, "" if they can.

        The whole model is at chance, there are too few questions, or the interval of the summed loss is not above 0:
        shares of such a sum could be anything.
        """
        if self.at_chance or self.too_few:
            return AT_CHANCE if self.at_chance else self.too_few
        return "" if self.mean(self.loss.sum(1), bounded=False).interval()[0] > 0 else NO_LOSS


def too_few(units: Sequence[str], documents: Sequence[str]) -> str:
    """Why there are too few units to judge a share, a centre or a claim; "" if there are enough.

    Args:
        units: The unit of each document: its question, or its subject.
        documents: What each document is (`depthlens.analysis.questions.identities`).
    """
    n_units, n_questions = len(set(units)), len({name.partition("#")[0] for name in documents})
    if n_questions < FEWEST_QUESTIONS:
        return f"{n_questions} questions are too few; at least {FEWEST_QUESTIONS} are needed"
    if n_units < min(n_questions, FEWEST_SUBJECTS):
        return f"{n_units} subjects are too few; at least {FEWEST_SUBJECTS} are needed"
    return ""


def layer_third(layers: Any, n_layers: int) -> Any:
    """The third of a model's depth that layers are in: 0, 1 or 2.

    Args:
        layers: A whole number, or an array or Series of them.
        n_layers: Of the model.
    """
    return layers * 3 // n_layers


def broken_condition(n_layers: int) -> str:
    """The first half of a model's layers as a condition: without it a model is broken, and scores its floor."""
    return f"L0-{max(n_layers // 2 - 1, 1)}"


def third_conditions(n_layers: int) -> list[str]:
    """The thirds of a model's layers as conditions, first to last: ``L0-9``, ``L10-19``, ``L20-29`` of 30 layers."""
    thirds = pd.Series(range(n_layers)).groupby(layer_third(np.arange(n_layers), n_layers)).agg(["min", "max"])
    return [f"L{first}-{last}" if last > first else f"L{first}" for first, last in thirds.itertuples(index=False)]


def labels(result: Result) -> dict[tuple[str, str], str]:
    """A name for every task and metric of a result: the task's, with the metric's where it has several."""
    pairs = list(dict.fromkeys(result.baselines[["task", "metric"]].itertuples(index=False, name=None)))
    tasks = [task for task, _ in pairs]
    return {(t, m): f"{t} {m.removesuffix(',none')}" if tasks.count(t) > 1 else t for t, m in pairs}


def layer_scores(result: Result, suffix: str | None = None) -> list[Scores]:
    """One profile a task and metric of a result of one model.

    Args:
        result: A layer sweep.
        suffix: Which conditions, of a sweep that removes each layer in several ways: those whose text is a layer and
            this, such as "", ``[1:]`` or ``@mean``. None: there is one a layer.

    Raises:
        UserError: several models, or conditions that are not one a layer.
    """
    arguments.result(result)
    if len(models := result.docs["model"].unique()) > 1:
        raise UserError(f"the result has models {', '.join(models)}; choose one with select(models=...)")
    names = labels(result)
    return [_profile(result, row, names[row.task, row.metric], suffix) for row in result.baselines.itertuples()]


def _profile(result: Result, row: Any, label: str, suffix: str | None) -> Scores:
    rows = result.docs.loc[(result.docs["task"] == row.task) & (result.docs["metric"] == row.metric)]
    conditions = rows.drop_duplicates("condition").set_index("condition")
    single = conditions.loc[conditions["layer"].notna() & conditions["head"].isna(), "layer"].sort_values()
    if suffix is not None:
        single = single[[name == f"L{layer}{suffix}" for name, layer in single.items()]]
        if not len(single):
            fault = f"task {row.task} has no condition L0{suffix}, L1{suffix} and so on"
            raise UserError(f"{fault}; sweep layers{suffix}")
    if single.duplicated().any() or not len(single):
        raise UserError(f"task {row.task} has not one condition a layer; give the result of a layer sweep")
    return scores_of(result, row, label, list(single.index), single.to_numpy(dtype=int))


def scores_of(result: Result, row: Any, label: str, conditions: Sequence[str], layers: np.ndarray) -> Scores:
    """The scores of one task and metric under some conditions.

    Args:
        result: A sweep.
        row: Of its `depthlens.Result.baselines`.
        label: See `Scores`.
        conditions: Any, whose scores are the columns of ``values``.
        layers: The layer of each. Shape [condition].
    """
    info = result.metric_info(row.task, row.metric)
    sign = 1.0 if info["higher_is_better"] else -1.0
    scores = sign * result.scores(row.task, row.metric, row.model)
    values, base = scores[list(conditions)].to_numpy(), scores[BASELINE].to_numpy()
    broken = broken_condition(result.n_layers)
    return Scores(
        model=row.model,
        task=row.task,
        metric=row.metric,
        label=label,
        values=values,
        base=base,
        layers=layers,
        documents=tuple(questions.identities(result, row.task)),
        n_layers=result.n_layers,
        floor=floor_of(result, row.task, info, bool(values.min(initial=0) >= 0 and base.min() >= 0)),
        binary=stats.is_binary(np.abs(np.append(values, base))),
        at_chance=bool(row.at_chance),
        sign=sign,
        units=tuple(questions.units(result, row.task)),
        broken=scores[broken].to_numpy() if broken in scores else None,
    )


def floor_of(result: Result, task: str, info: dict[str, Any], never_below_zero: bool) -> float | None:
    """What a broken model scores: as recorded, else as far as older records tell; its sign is turned with the score's.

    Args:
        result: Whose record to read.
        task: Name of the task.
        info: Of the metric.
        never_below_zero: Whether no score is below 0, the floor of what is not recorded; else there is none.
    """
    sign = 1.0 if info["higher_is_better"] else -1.0
    if "floor" in info:
        floor = info["floor"]
    elif result.record["tasks"][task].get("output_type") == "generate_until":
        floor = 0.0 if info["higher_is_better"] else None
    else:
        floor = info["chance"]
    if floor is not None:
        return sign * float(floor)
    return 0.0 if never_below_zero else None


def comparable(a: Result, b: Result) -> None:
    """Check that two results are of one model each, and of the same tasks and metrics asked alike.

    Raises:
        UserError: naming what differs.
    """
    for result in (a, b):
        if len(models := result.docs["model"].unique()) > 1:
            raise UserError(f"a result has models {', '.join(models)}; choose one with select(models=...)")
    names = [str(result.docs["model"].iloc[0]) for result in (a, b)]
    metrics = [[f"{metric} of {task}" for task, metric in labels(result)] for result in (a, b)]
    same("metrics", "", names, metrics)
    pairs = [("", _OF_RUN, a.record, b.record)]
    tasks = dict.fromkeys(task for task, _ in labels(a))
    pairs += [(f"task {t}: ", _OF_TASK, a.record["tasks"][t], b.record["tasks"][t]) for t in tasks]
    for where, fields, first, second in pairs:
        for field in fields:
            if first.get(field) != second.get(field):
                fault = f"{field} is {first.get(field)!r} for {names[0]} and {second.get(field)!r} for {names[1]}"
                raise UserError(f"{where}{fault}; run both alike")


def paired_scores(base: Result, distilled: Result) -> list[tuple[Scores, Scores]]:
    """Profiles of two models, task by task, after a check that they can be compared.

    Raises:
        UserError: naming what differs.
    """
    comparable(base, distilled)
    by_task = {(p.task, p.metric): p for p in layer_scores(distilled)}
    pairs = [(p, by_task[p.task, p.metric]) for p in layer_scores(base)]
    for a, b in pairs:
        conditions = [list(r.scores(a.task, a.metric)) for r in (base, distilled)]
        same("conditions", a.task, [a.model, b.model], conditions)
        ids = [list(result.scores(a.task, a.metric).index) for result in (base, distilled)]
        same("documents", a.task, [a.model, b.model], ids)
        if not any(name.startswith(f"{a.task}:") for name in (*a.documents, *b.documents)):  # what they are is known
            same("documents", a.task, [a.model, b.model], [a.documents, b.documents])
    # the ids are the same, and so are the documents: an older result does not say what they are
    return [(a, replace(b, documents=a.documents, units=a.units)) for a, b in pairs]


def same(what: str, task: str, models: Sequence[str], values: Sequence[Sequence]) -> None:
    """Refuse lists of two models that differ.

    Raises:
        UserError: naming up to three values that only one of them has.
    """
    for i, j in ((0, 1), (1, 0)):
        if extra := [str(x) for x in values[i] if x not in set(values[j])]:
            examples = ", ".join(extra[:3]) + (f" and {len(extra) - 3} more" if len(extra) > 3 else "")
            where = f"task {task}: " if task else ""
            fault = f"{where}{what} {examples} of {models[i]} are missing for {models[j]}"
            raise UserError(f"{fault}; run both alike, or choose with select(...)")
