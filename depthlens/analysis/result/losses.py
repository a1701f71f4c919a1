"""The one way from a result to a number: what conditions cost a model on a task, question by question.

`depthlens.Result.losses` gives `Losses`. It carries what every number depends on: which documents are independent of
one another (units), which values a score can have (limits), which way is better (sign), and what a broken model scores
(floor). A number is a `depthlens.analysis.numbers.means.Mean` over units: the loss of each condition, its share of the
score above the floor, its share of all losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from depthlens.analysis.numbers import means
from depthlens.analysis.numbers.means import ALPHA, CHANGES, UNLIMITED, Mean, max_t
from depthlens.analysis.numbers.stats import BASELINE, GROUP, Whole, whole_model
from depthlens.analysis.numbers.words import NOT_ABOVE_CHANCE
from depthlens.analysis.result import questions
from depthlens.errors import UserError
from depthlens.metrics import in_nats, limits

METRIC: dict[str, Any] = {"higher_is_better": True, "chance": None, "min_effect": 0.0}  # where a record says nothing
THIRDS = ("first third", "middle third", "last third")
AT_CHANCE, NO_LOSS = NOT_ABOVE_CHANCE, "losses and gains of all layers may cancel"
# before a share, a centre or a claim is judged: of fewer, intervals cover too seldom
FEWEST_QUESTIONS, FEWEST_SUBJECTS = 100, 10


@dataclass(frozen=True, eq=False)
class Losses:
    """What conditions cost a model on a task, by one metric. Higher scores are better: others have their sign turned.

    Attributes:
        model: Name of the model.
        task: Name of the task.
        metric: Name of the metric.
        label: The task, with the metric where the result has several of it.
        values: Score under each condition. Shape [document, condition].
        base: Score of the whole model. Shape [document].
        conditions: Texts of the conditions.
        layers: The layer of each condition, -1 where it is not of one. Shape [condition].
        heads: The head (group) of each condition, -1 where it is not of one. Shape [condition].
        documents: What the documents are (`depthlens.analysis.result.questions`).
        units: What is independent of one another, by document: questions, or the subjects of a group.
        limits: The least and the greatest score that there can be; infinite where nothing bounds it.
        n_layers: Of the model.
        floor: What a broken model scores: chance among options, 0 for written answers and for scores that are never
            below; None if there is no such score.
        chance: Of guessing; None where there is no such level.
        at_chance: See `depthlens.analysis.result.scored`.
        sign: -1 where the sign was turned, else 1.
        min_effect: The smallest loss that is called an effect.
        broken: Score of a broken model, which lacks the first half of its layers (`broken_condition`): the measured
            floor. Shape [document]; None where it was not swept.

    Example:
        >>> losses = result.losses("organism_one_hop")
        >>> losses.conditions[:2], losses.loss.shape
        (('L0', 'L1'), (12, 6))
        >>> losses.mean().value.round(2)
        array([0.  , 0.58, 1.  , 0.  , 0.  , 0.  ])
    """

    model: str
    task: str
    metric: str
    label: str
    values: np.ndarray
    base: np.ndarray
    conditions: tuple[str, ...]
    layers: np.ndarray
    heads: np.ndarray
    documents: tuple[str, ...]
    units: tuple[str, ...]
    limits: tuple[float, float]
    n_layers: int
    floor: float | None
    chance: float | None
    at_chance: bool
    sign: float
    min_effect: float = 0.0
    broken: np.ndarray | None = None

    def select(self, conditions: Any = slice(None), *, documents: Sequence[int] | np.ndarray | None = None) -> Losses:
        """Some conditions and documents.

        Args:
            conditions: Texts of conditions, in the order that is wanted, or any index of the columns of ``values``.
            documents: Places of documents; None: all.
        """
        if isinstance(conditions, Sequence) and len(conditions) and isinstance(conditions[0], str):
            conditions = [self.conditions.index(name) for name in conditions]
        rows = slice(None) if documents is None else list(documents)
        names, units, asked = (np.array(of, dtype=object) for of in (self.conditions, self.units, self.documents))
        return replace(
            self,
            values=self.values[rows][:, conditions],
            base=self.base[rows],
            conditions=tuple(names[conditions]),
            layers=self.layers[conditions],
            heads=self.heads[conditions],
            documents=tuple(asked[rows]),
            units=tuple(units[rows]),
            broken=None if self.broken is None else self.broken[rows],
        )

    def join(self, other: Losses, *, every: bool = False) -> tuple[Losses, Losses]:
        """Both on the documents that both have, in the same order, and with the same units.

        Args:
            other: Losses of another task or model.
            every: Both have to have the same documents.

        Raises:
            UserError: a document is of one only, and ``every`` is asked for.
        """
        at = pd.Index(other.documents).get_indexer(list(self.documents))
        if every and (missing := len({*self.documents} ^ {*other.documents})):
            fault = f"{self.task} and {other.task} were asked other documents ({missing} are of one only)"
            raise UserError(f"{fault}; pair tasks of the same documents, with the same limit or samples")
        own = self if (at >= 0).all() else self.select(documents=np.flatnonzero(at >= 0))
        return own, replace(other.select(documents=at[at >= 0]), units=own.units)

    def halves(self, seed: int | None = None) -> tuple[Losses, Losses]:
        """Two halves of the units, in turn or, with a seed, drawn: one to choose by, the other to test on."""
        of_unit, names = pd.factorize(pd.Index(self.units))
        turn = np.arange(len(names)) % 2 if seed is None else np.random.default_rng(seed).permutation(len(names)) % 2
        first, second = (self.select(documents=np.flatnonzero(turn[of_unit] == half)) for half in (0, 1))
        return first, second

    def beyond(self, n: int) -> Losses:
        """The losses without the first ``n`` layers of the model.

        Raises:
            UserError: no other layer was removed.
        """
        if not (kept := self.layers >= n).any():
            raise UserError(f"task {self.task}: only layers below {n} were removed; sweep all layers")
        return self if kept.all() else self.select(kept)  # itself with what it has already computed

    def __sub__(self, other: Losses) -> Mean:
        """How much more each condition costs here, unit by unit wherever both have the same. Shape [condition]."""
        names = [name for name in self.conditions if name in other.conditions]
        return self.select(names).mean() - other.select(names).mean()

    def gain_over(self, other: Losses) -> Mean:
        """How much better this whole model scores than another one on the same documents; nats as in `loss`."""
        gain, limits = self.base - other.base, (self.limits[0] - other.limits[1], self.limits[1] - other.limits[0])
        return self.over(np.clip(gain, *CHANGES), CHANGES) if in_nats(self.metric) else self.over(gain, limits)

    @property
    def loss(self) -> np.ndarray:
        """What each condition costs; nats are clipped to 1 a document. Shape [document, condition]."""
        loss = self.base[:, None] - self.values
        return np.clip(loss, *CHANGES) if in_nats(self.metric) else loss

    @property
    def loss_limits(self) -> tuple[float, float]:
        """The least and the greatest loss that there can be."""
        low, high = self.limits
        return CHANGES if in_nats(self.metric) else (low - high, high - low)

    @cached_property
    def n_questions(self) -> int:
        """Different questions; one that is asked several times counts once."""
        return len({name.partition("#")[0] for name in self.documents})

    def over(self, values: np.ndarray, limits: tuple[float, float] = UNLIMITED) -> Mean:
        """The mean of any values of the documents; see `means.mean`. Shape [document, ...]."""
        return means.mean(values, self.units, limits=limits, n_questions=self.n_questions)

    def mean(self, weights: np.ndarray | None = None) -> Mean:
        """Mean loss of each condition, or sums of losses over conditions with weights that add up to 1.

        Args:
            weights: Shape [condition, ...]; None: each condition by itself.
        """
        return self.over(self.loss if weights is None else self.loss @ weights, self.loss_limits)

    @property
    def whole(self) -> Whole:
        """Score of the whole model in the metric's own sign, its interval, and whether it is at chance."""
        ends = sorted(self.sign * end for end in self.limits)
        chance = None if self.chance is None else self.sign * self.chance
        mean = self.over(self.sign * self.base, (ends[0], ends[1]))
        return whole_model(self.sign * self.base, mean, chance, higher_is_better=self.sign > 0)

    @cached_property
    def p_adjusted(self) -> np.ndarray:
        """P-value of each loss, corrected over all conditions (`max_t`). Shape [condition]."""
        return max_t(self.mean())

    def critical(self) -> np.ndarray:
        """Whether each condition is shown to cost something, and more than `min_effect`. Shape [condition]."""
        return (self.p_adjusted < ALPHA) & (self.mean().value > self.min_effect) & (not self.at_chance)

    def gain(self) -> np.ndarray:
        """Whether the model is shown to be better without it, by more than `min_effect`. Shape [condition]."""
        return (self.p_adjusted < ALPHA) & (-self.mean().value > self.min_effect) & (not self.at_chance)

    def costs(self) -> dict[str, Any]:
        """The columns of `depthlens.Result.loss_table` that say what each condition costs."""
        loss = self.mean()
        low, high = loss.interval()
        found = {"loss": loss.value, "loss_low": low, "loss_high": high, "min_effect": self.min_effect}
        return found | {"critical": self.critical(), "gain": self.gain()}

    def summary(self) -> pd.DataFrame:
        """The rows of `depthlens.Result.summary`, the baseline first."""
        values, base, change = self.sign * self.values, self.sign * self.base, self.mean() * -self.sign
        columns = {"value": values.mean(0), "delta": (values - base[:, None]).mean(0)}
        columns |= change.columns("bounded") | {"p_adjusted": self.p_adjusted}
        of_base = {name: np.nan if name.startswith("p_") else 0.0 for name in columns} | {"value": base.mean()}
        places = {"layer": np.r_[-1, self.layers], "head": np.r_[-1, self.heads]}
        table = pd.DataFrame(places | {name: np.r_[of_base[name], rest] for name, rest in columns.items()})
        about = {"model": self.model, "task": self.task, "metric": self.metric, "n": len(base), "baseline": base.mean()}
        return table.assign(condition=[BASELINE, *self.conditions], **about)

    @property
    def room(self) -> Mean:
        """What the whole model scores above the floor, the measured one where there is one.

        Raises:
            UserError: the metric has no floor.
        """
        floor = self.floor if self.broken is None else self.broken
        if floor is None:
            fault = f"{self.metric} of task {self.task} has no chance level"
            raise UserError(f"{fault} that its losses could be a share of; use scale='importance'")
        return self.over(self.base - floor)

    def relative(self, weights: np.ndarray | None = None) -> Mean:
        """`mean` as a share of `room`.

        Raises:
            UserError: the metric has no floor.
        """
        return self.mean(weights) / self.room

    def share(self, weights: np.ndarray) -> Mean:
        """Losses summed over conditions with weights, as a share of their whole sum. Shape [condition, ...]."""
        return self.over(self.loss @ weights) / self.over(self.loss.sum(1))

    @property
    def centre(self) -> Mean:
        """Centre of mass of the losses over depth: the mean depth of the removed layers, weighted with their losses.

        0 for a loss that is all in the model's first layer, 1 for its last; outside where gains weigh much.
        """
        return self.share(self.depth)

    @property
    def depth(self) -> np.ndarray:
        """Depth of the removed layers: 0 is the first layer of the model, 1 the last. Shape [condition]."""
        return self.layers / max(self.n_layers - 1, 1)

    @cached_property
    def thirds(self) -> np.ndarray:
        """The third of the model's depth that each removed layer is in: 0, 1 or 2. Shape [condition].

        Raises:
            UserError: a third without layers.
        """
        third = layer_third(self.layers, self.n_layers)
        if missing := [name for i, name in enumerate(THIRDS) if i not in third]:
            raise UserError(f"task {self.task}: no layer of the {missing[0]} was removed; sweep all layers")
        return third

    @cached_property
    def too_few(self) -> str:
        """Why there are too few questions, or subjects of a group, to judge a share, a centre or a claim; "" if not."""
        n_units = len(set(self.units))
        if self.n_questions < FEWEST_QUESTIONS:
            return f"{self.n_questions} questions are too few; take at least {FEWEST_QUESTIONS}"
        few = n_units < min(self.n_questions, FEWEST_SUBJECTS)
        return f"{n_units} subjects are too few; take at least {FEWEST_SUBJECTS}" if few else ""

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
        return self.too_few if self.over(self.loss.sum(1)).interval()[0] > 0 else NO_LOSS


def every(docs: pd.DataFrame, record: Mapping[str, Any], asked: pd.DataFrame | None, n_layers: int) -> Iterator[Losses]:
    """The losses of every task and metric of a result, in the order of its documents.

    Args:
        docs: See `depthlens.Result`.
        record: See `depthlens.Result`.
        asked: See `depthlens.Result`.
        n_layers: Of the model.

    Raises:
        UserError: no baseline, or a condition without a number for each document of the baseline, which it names.
    """
    told = record.get("tasks", {})
    slim = docs[[*GROUP, "condition", "layer", "head", "doc_id", "value"]]
    slim = slim.astype(dict.fromkeys([*GROUP, "condition"], "category"))  # texts are compared once
    metrics, whole = slim.groupby("task", observed=True)["metric"].nunique(), slim[slim["condition"] == BASELINE]
    about = {task: questions.identities_and_units(whole, asked, task) for task in metrics.index}
    for (model, task, metric), rows in slim.groupby(GROUP, sort=False, observed=True):
        info = METRIC | told.get(task, {}).get("metrics", {}).get(metric, {})
        scores = _matrix(rows, f"{task} {metric} of {model}")
        values, (names, units) = scores.to_numpy(), (of.loc[scores.index] for of in about[task])
        places = rows.drop_duplicates("condition").set_index("condition").loc[scores.columns[1:], ["layer", "head"]]
        layers, heads = places.fillna(-1).to_numpy(dtype=int).T
        ends, sign = limits(metric, values.min(), values.max()), 1.0 if info["higher_is_better"] else -1.0
        turned = sorted(sign * end for end in ends)
        floor = info.get("floor", info["chance"])  # older records have no floor
        if floor is None and (sign * values).min(initial=0) >= 0:
            floor = 0.0
        broken = broken_condition(n_layers)
        made = Losses(
            model=str(model),
            task=str(task),
            metric=str(metric),
            label=f"{task} {str(metric).removesuffix(',none')}" if metrics[task] > 1 else str(task),
            values=sign * values[:, 1:],
            base=sign * values[:, 0],
            conditions=tuple(map(str, scores.columns[1:])),
            layers=layers,
            heads=heads,
            documents=tuple(names),
            units=tuple(units),
            limits=(turned[0], turned[1]),
            n_layers=n_layers,
            floor=None if floor is None else sign * float(floor),
            chance=None if info["chance"] is None else sign * float(info["chance"]),
            at_chance=False,
            sign=sign,
            min_effect=info["min_effect"],
            broken=sign * scores[broken].to_numpy() if broken in scores else None,
        )
        yield replace(made, at_chance=made.whole.at_chance)


def _matrix(rows: pd.DataFrame, where: str) -> pd.DataFrame:
    """Scores, documents (by rising id) x conditions (baseline first); refuses what cannot be compared."""
    names = sorted(rows["condition"].unique(), key=lambda name: name != BASELINE)
    if BASELINE not in names:
        raise UserError(f"{where} has no {BASELINE!r} condition to compare with; add it to the sweep")
    table = rows.pivot(index="doc_id", columns="condition", values="value")[names]
    for name, document in np.argwhere(~np.isfinite(table.to_numpy().T)):
        fault = f"condition {names[name]!r}: {where} has no number on document {table.index[document]}"
        raise UserError(f"{fault}; every condition needs one for each document; NaN may be due to float16")
    return table


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
