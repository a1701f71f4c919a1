"""One task's scores by removed layer, document by document.

`layer_scores` makes them from a layer sweep. What they say is a `depthlens.analysis.means.Mean`: the loss of each
layer, its share of the score above the floor, its share of all losses.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from depthlens.analysis import documents, means, questions
from depthlens.analysis.means import Mean
from depthlens.analysis.stats import BASELINE, GROUP
from depthlens.analysis.words import NOT_ABOVE_CHANCE
from depthlens.errors import UserError
from depthlens.metrics import in_nats

if TYPE_CHECKING:
    from depthlens.analysis.results import Result

# of a task and of a run: what has to be the same in two results
_SETTINGS = ("version", "num_fewshot", "output_type", "seed", "apply_chat_template", "system_instruction")
THIRDS = ("first third", "middle third", "last third")
AT_CHANCE, NO_LOSS = NOT_ABOVE_CHANCE, "losses and gains of all layers may cancel"
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
    at_chance: bool
    sign: float
    units: tuple[str, ...]
    broken: np.ndarray | None = None

    def of(self, *, documents: Sequence[int] | None = None, conditions: Any = slice(None)) -> Scores:
        """Some documents and conditions, by their places."""
        rows = range(len(self.base)) if documents is None else documents
        return replace(
            self,
            values=self.values[list(rows)][:, conditions],
            base=self.base[list(rows)],
            layers=self.layers[conditions],
            documents=tuple(self.documents[i] for i in rows),
            units=tuple(self.units[i] for i in rows),
            broken=None if self.broken is None else self.broken[list(rows)],
        )

    def beyond(self, n: int) -> Scores:
        """The scores without the first ``n`` layers of the model.

        Raises:
            UserError: no other layer was removed.
        """
        if not (kept := self.layers >= n).any():
            raise UserError(f"task {self.task}: only layers below {n} were removed; sweep all layers")
        return self if kept.all() else self.of(conditions=kept)  # itself with what it has already computed

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
        floor = self.floor if self.broken is None else self.broken
        if floor is None:
            fault = f"{self.metric} of task {self.task} has no chance level"
            raise UserError(f"{fault} that its losses could be a share of; use scale='importance'")
        return self.mean_loss(weights) / self.mean(self.base - floor, bounded=False)

    def share(self, weights: np.ndarray) -> Mean:
        """Losses summed over layers with weights, as a share of the summed loss of all layers. Shape [layer, ...]."""
        return self.mean(self.loss @ weights, bounded=False) / self.mean(self.loss.sum(1), bounded=False)

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
            raise UserError(f"task {self.task}: no layer of the {missing[0]} was removed; sweep all layers")
        return third

    @cached_property
    def unplaced(self) -> str:
        """Why the losses cannot be placed in depth, "" if they can.

        The whole model is at chance, the interval of the summed loss is not above 0 (shares of such a sum could be
        anything), or, named last, there are too few questions.
        """
        if self.at_chance:
            return AT_CHANCE
        if self.n_layers < len(THIRDS):
            return f"fewer than {len(THIRDS)} layers"
        return self.too_few if self.mean(self.loss.sum(1), bounded=False).interval()[0] > 0 else NO_LOSS


def too_few(units: Iterable[str], documents: Iterable[str]) -> str:
    """Why there are too few units to judge a share, a centre or a claim; "" if there are enough.

    Args:
        units: The unit of each document: its question, or its subject.
        documents: What each document is (`depthlens.analysis.questions.identities`).
    """
    n_units, n_questions = len(set(units)), len({name.partition("#")[0] for name in documents})
    if n_questions < FEWEST_QUESTIONS:
        return f"{n_questions} questions are too few; take at least {FEWEST_QUESTIONS}"
    if n_units < min(n_questions, FEWEST_SUBJECTS):
        return f"{n_units} subjects are too few; take at least {FEWEST_SUBJECTS}"
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
    """The thirds of a model's layers as conditions, first to last: ``L0-9``, ``L10-19``, ``L20-29`` of 30 layers.

    Example:
        >>> dl.analysis.third_conditions(30)
        ['L0-9', 'L10-19', 'L20-29']
    """
    thirds = pd.Series(range(n_layers)).groupby(layer_third(np.arange(n_layers), n_layers)).agg(["min", "max"])
    return [f"L{first}-{last}" if last > first else f"L{first}" for first, last in thirds.itertuples(index=False)]


def labels(result: Result) -> dict[tuple[str, str], str]:
    """A name for every task and metric of a result: the task's, with the metric's where it has several."""
    pairs = list(dict.fromkeys(result.baselines[["task", "metric"]].itertuples(index=False, name=None)))
    tasks = [task for task, _ in pairs]
    return {(t, m): f"{t} {m.removesuffix(',none')}" if tasks.count(t) > 1 else t for t, m in pairs}


def layer_scores(result: Result, suffix: str | None = None) -> list[Scores]:
    """The scores of every task and metric of a layer sweep of one model.

    Args:
        result: A layer sweep.
        suffix: Which conditions, of a sweep that removes each layer in several ways: those whose text is a layer and
            this, such as "", ``[1:]`` or ``@mean``. None: there is one a layer.

    Raises:
        UserError: several models, or conditions that are not one a layer.
    """
    one_model(result)
    names, found = labels(result), []
    for row in result.baselines.itertuples():
        rows = result.docs[(result.docs["task"] == row.task) & (result.docs["metric"] == row.metric)]
        rows = rows[rows["layer"].notna() & rows["head"].isna()].drop_duplicates("condition").sort_values("layer")
        if suffix is not None:
            rows = rows[rows["condition"] == "L" + rows["layer"].astype("str") + suffix]
        if rows["layer"].duplicated().any() or not len(rows):
            fault = f"task {row.task} has not one condition a layer"
            raise UserError(f"{fault}; give the result of a sweep of layers{suffix or ''}")
        layers = rows["layer"].to_numpy(dtype=int)
        found.append(scores_of(result, row, names[row.task, row.metric], list(rows["condition"]), layers))
    return found


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
    broken, floor = broken_condition(result.n_layers), info.get("floor", info["chance"])  # older records have no floor
    if floor is None and values.min(initial=0) >= 0 and base.min() >= 0:
        floor = 0.0
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
        floor=None if floor is None else sign * float(floor),
        at_chance=bool(row.at_chance),
        sign=sign,
        units=tuple(questions.units(result, row.task)),
        broken=scores[broken].to_numpy() if broken in scores else None,
    )


def comparable(a: Result, b: Result, columns: Sequence[str] = (*GROUP[1:], "condition", "doc_id")) -> list[str]:
    """Names of the models of two results that are of one model each, and were asked the same in the same way.

    Args:
        a: A sweep.
        b: Another.
        columns: Of `depthlens.Result.docs`, in which they have to have the same rows.

    Raises:
        UserError: naming what differs.
    """
    models = [one_model(result) for result in (a, b)]
    rows = [pd.MultiIndex.from_frame(result.docs[list(columns)]).unique() for result in (a, b)]
    if len(extra := rows[0].symmetric_difference(rows[1])):
        which = ", ".join(f"{column} {value}" for column, value in zip(columns, extra[0], strict=True))
        only = models[extra[0] in rows[1]]
        raise UserError(f"{which}: {only} alone has it; run both alike, or choose with select(...)")
    for task, key in itertools.product(a.docs["task"].unique(), _SETTINGS):
        own, other = ((r.record | r.record["tasks"][task]).get(key) for r in (a, b))
        if own != other:
            fault = f"task {task}: {key} is {own!r} for {models[0]} and {other!r} for {models[1]}"
            raise UserError(f"{fault}; run both alike")
    return models


def paired_scores(base: Result, distilled: Result) -> list[tuple[Scores, Scores]]:
    """The scores of two models, task by task and document by document, after a check that they can be compared.

    Raises:
        UserError: naming what differs.
    """
    models = comparable(base, distilled)
    by_task = {(s.task, s.metric): s for s in layer_scores(distilled)}
    pairs = [(s, by_task[s.task, s.metric]) for s in layer_scores(base)]
    for i, (a, b) in enumerate(pairs):
        # an older result does not say what its documents are; their ids are the same
        known = not any(name.startswith(f"{a.task}:") for name in (*a.documents, *b.documents))
        at = pd.Index(b.documents).get_indexer(list(a.documents)) if known else range(len(a.documents))
        if min(at) < 0:
            raise UserError(f"task {a.task}: {' and '.join(models)} were asked other documents; run both alike")
        pairs[i] = a, replace(b.of(documents=at), documents=a.documents, units=a.units)
    return pairs


def one_model(result: Result) -> str:
    """The model of a result; several are refused."""
    return documents.only(result.docs, "model", None)
