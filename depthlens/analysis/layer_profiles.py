"""One task's scores by removed layer, document by document, and the bootstrap over documents that reads them.

A mean over documents is redrawn with its documents (Efron & Tibshirani 1993, chapter 13). Two things make the
percentile interval honest where documents are few or hardly anything changes:

* its levels are moved outwards as far as Student's t is from the normal distribution (the *expanded* percentile
  interval of Hesterberg 2015, The American Statistician 69:371-386);
* with right and wrong answers, two imaginary documents are drawn along, one that is lost at a layer taken at random and
  one that is won at one. This is the idea of Agresti & Coull (1998, The American Statistician 52:119-126), made for
  pairs by Bonett & Price (2012, J. Educ. Behav. Stat. 37:479-488): that nothing changed on n documents does not prove
  that nothing ever changes, so no interval has zero width.

Documents are drawn jointly for all profiles that have the same ones, since a question is easy or hard under every
protocol and for every model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import stats as sps

from depthlens import arguments
from depthlens.analysis import stats
from depthlens.analysis.results import Result
from depthlens.analysis.stats import ALPHA, BASELINE
from depthlens.errors import UserError

N_BOOT = 1000
_OF_TASK = ("version", "num_fewshot", "output_type")
_OF_RUN = ("seed", "apply_chat_template", "system_instruction")
THIRDS = ("first third", "middle third", "last third")
AT_CHANCE, NO_LOSS = "at chance", "no loss to place in depth"


@dataclass(frozen=True, eq=False)
class Profile:
    """Scores of one model on one task under a layer sweep. Higher is better: other scores have their sign turned.

    Attributes:
        model: Name of the model.
        task: Name of the task.
        metric: Name of the metric.
        label: The task, with the metric where the result has several of it.
        values: Score with each layer removed. Shape [document, layer].
        base: Score of the whole model. Shape [document].
        layers: Numbers of the removed layers, rising. Shape [layer].
        documents: Ids of the documents, rising.
        n_layers: Of the model.
        floor: Score where nothing is left to lose: chance, or 0 for scores that are never below; None if there is none.
        binary: Whether all scores are 0 or 1.
        at_chance: See `depthlens.analysis.results`.
        sign: -1 where the sign was turned, else 1.
    """

    model: str
    task: str
    metric: str
    label: str
    values: np.ndarray
    base: np.ndarray
    layers: np.ndarray
    documents: tuple[int, ...]
    n_layers: int
    floor: float | None
    binary: bool
    at_chance: bool
    sign: float

    @property
    def loss(self) -> np.ndarray:
        """What each removal costs. Shape [document, layer]."""
        return self.base[:, None] - self.values

    @property
    def depth(self) -> np.ndarray:
        """Where the removed layers lie: 0 the first of the model, 1 the last. Shape [layer]."""
        return self.layers / max(self.n_layers - 1, 1)

    @cached_property
    def thirds(self) -> np.ndarray:
        """Which third of the model's depth each removed layer lies in: 0, 1 or 2. Shape [layer].

        Raises:
            UserError: a third without layers.
        """
        third = third_of(self.layers, self.n_layers)
        if missing := [name for i, name in enumerate(THIRDS) if i not in third]:
            fault = f"task {self.task}: no layer of the {missing[0]} was removed ({self.n_layers} layers)"
            raise UserError(f"{fault}; sweep all layers of a model of at least three")
        return third

    def idle(self, scale: str) -> str:
        """Why there is nothing to tell on one of `depthlens.analysis.depth.SCALES`, "" if there is.

        A share of the losses needs losses that can be placed; the other scales need a score above chance.
        """
        return self.unplaced if scale == "importance" else AT_CHANCE * self.at_chance

    @cached_property
    def unplaced(self) -> str:
        """Why the losses cannot be placed in depth, "" if they can.

        The whole model is at chance, or the sum of the losses is not proven to be above 0 (one-sample t test over
        documents): shares of such a sum could be anything.
        """
        if self.at_chance:
            return AT_CHANCE
        if len(self.base) < 2:
            return NO_LOSS
        total = self.loss.sum(1)[None]
        (p,) = stats.paired_t(total, float(np.ptp(self.loss)))[2]
        return "" if total.mean() > 0 and p < ALPHA else NO_LOSS


def third_of(layers: Any, n_layers: int) -> Any:
    """Which third of the depth of a model layers lie in: 0, 1 or 2. Whole numbers, or an array or Series of them."""
    return layers * 3 // n_layers


def parts_of(n_layers: int) -> list[str]:
    """The thirds of a model's layers as conditions, first to last: ``L0-9``, ``L10-19``, ``L20-29`` of 30 layers."""
    layers = [[layer for layer in range(n_layers) if third_of(layer, n_layers) == third] for third in range(3)]
    return [f"L{part[0]}-{part[-1]}" if len(part) > 1 else f"L{part[0]}" for part in layers if part]


def labels(result: Result) -> dict[tuple[str, str], str]:
    """A name for every task and metric of a result: the task's, with the metric's where it has several."""
    pairs = list(dict.fromkeys(result.baselines[["task", "metric"]].itertuples(index=False, name=None)))
    tasks = [task for task, _ in pairs]
    return {(t, m): f"{t} {m.removesuffix(',none')}" if tasks.count(t) > 1 else t for t, m in pairs}


def profiles(result: Result) -> list[Profile]:
    """One profile a task and metric of a result of one model.

    Raises:
        UserError: several models, or conditions that are not one a layer.
    """
    arguments.result(result)
    if len(models := result.docs["model"].unique()) > 1:
        raise UserError(f"the result has models {', '.join(models)}; choose one with select(models=...)")
    return [_profile(result, row, labels(result)[row.task, row.metric]) for row in result.baselines.itertuples()]


def _profile(result: Result, row: object, label: str) -> Profile:
    docs = result.docs[(result.docs["task"] == row.task) & (result.docs["metric"] == row.metric)]
    single = docs[docs["layer"].notna() & docs["head"].isna()]
    if single["condition"].nunique() != single["layer"].nunique() or not len(single):
        raise UserError(f"task {row.task} has not one condition a layer; give the result of a layer sweep")
    values = single.pivot(index="doc_id", columns="layer", values="value")
    base = docs[docs["condition"] == BASELINE].set_index("doc_id")["value"].loc[values.index]
    layers = values.columns.to_numpy(dtype=int)
    info = result.metric_info(row.task, row.metric)
    sign = 1.0 if info["higher_is_better"] else -1.0
    values, documents, base = sign * values.to_numpy(), tuple(map(int, base.index)), sign * base.to_numpy()
    floor = sign * info["chance"] if info["chance"] is not None else None
    if floor is None and values.min() >= 0 and base.min() >= 0:
        floor = 0.0
    n_layers = result.record.get("model", {}).get("dims", {}).get("n_layers", layers.max() + 1)
    binary = stats.is_binary(np.abs(np.append(values, base)))
    names = row.model, row.task, row.metric, label
    return Profile(*names, values, base, layers, documents, int(n_layers), floor, binary, row.at_chance, sign)


def draws(n: int, n_boot: int, seed: int) -> np.ndarray:
    """How often each document is drawn: the sample itself, then bootstrap draws. Shape [1 + n_boot, document]."""
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_boot)
    return np.vstack([np.ones(n), counts])  # counts and not shares: sums of 0/1 values stay exact, so ties stay ties


def drawn(found: Sequence[Profile], *, seed: int, n_boot: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean loss and mean score of the whole model for every profile: of the sample itself, then of bootstrap draws.

    Returns:
        A pair for each profile, of shapes [1 + n_boot, layer] and [1 + n_boot].
    """
    chosen: dict[tuple[int, ...], np.ndarray] = {}
    means = []
    for i, profile in enumerate(found):
        n = len(profile.documents)
        if profile.documents not in chosen:
            chosen[profile.documents] = draws(n, n_boot, seed + len(chosen))
        counts = chosen[profile.documents]
        loss, base = counts @ profile.loss / n, counts @ profile.base / n
        if profile.binary:
            loss[1:] += imaginary(loss[1:].shape, np.random.default_rng([seed, i])) / n
        means.append((loss, base))
    return means


def imaginary(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """What two imaginary documents, each lost or won at one layer, add to summed losses. Shape [draw, layer]."""
    n_draws, n_layers = shape
    added = np.zeros(shape)
    for loss in (1, -1):
        times = rng.poisson(1, n_draws)  # how often a document is drawn
        at = np.repeat(np.arange(n_draws), times), np.repeat(rng.integers(0, n_layers, n_draws), times)
        np.add.at(added, at, loss)
    return added


def interval(values: np.ndarray, n: int) -> np.ndarray:
    """Expanded 95% percentile interval of bootstrap draws over n documents.

    Draws without a value, such as a share of something that is not above 0, are left out.

    Args:
        values: The sample's own value first, then the draws. Shape [1 + n_boot, ...].
        n: Number of documents.

    Returns:
        Lower and upper ends. Shape [2, ...]; NaN for one document.
    """
    if n < 2 or np.isnan(values[1:]).all():
        return np.full((2, *values.shape[1:]), np.nan)
    level = sps.norm.cdf(np.sqrt(n / (n - 1)) * sps.t.ppf(0.025, n - 1))
    return np.nanquantile(values[1:], [level, 1 - level], axis=0)


def ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """``over / under``, NaN where ``under`` is not above 0."""
    return np.divide(over, under, out=np.full(np.broadcast(over, under).shape, np.nan), where=under > 0)


def change(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float, float]:
    """Mean of ``other`` minus ``one`` over paired documents, interval and p-value, as `stats.summarise` finds them."""
    gap = other - one
    if not stats.is_binary(np.abs([one, other])):
        low, high, p = stats.paired_t(gap[None], float(np.ptp([one, other])))
        return float(gap.mean()), float(low[0]), float(high[0]), float(p[0])
    lost, gained = int((gap < 0).sum()), int((gap > 0).sum())
    low, high = stats.tango_interval(lost, gained, len(gap))
    return float(gap.mean()), float(low), float(high), float(stats.mcnemar_p(lost, gained))


def comparable(one: Result, other: Result) -> None:
    """Check that two results are of one model each, and of the same tasks and metrics asked alike.

    Raises:
        UserError: naming what differs.
    """
    for result in (one, other):
        if len(models := result.docs["model"].unique()) > 1:
            raise UserError(f"a result has models {', '.join(models)}; choose one with select(models=...)")
    names = [str(result.docs["model"].iloc[0]) for result in (one, other)]
    keys = [list(labels(result)) for result in (one, other)]
    same("metrics", "", [(name, [f"{m} of {t}" for t, m in k]) for name, k in zip(names, keys, strict=True)])
    both = [("", _OF_RUN, one.record, other.record)]
    both += [(f"task {t}: ", _OF_TASK, one.record["tasks"][t], other.record["tasks"][t]) for t in dict(keys[0])]
    for where, fields, a, b in both:
        for field in fields:
            if a.get(field) != b.get(field):
                found = f"{field} is {a.get(field)!r} for {names[0]} and {b.get(field)!r} for {names[1]}"
                raise UserError(f"{where}{found}; run both alike")


def same(what: str, task: str, found: Sequence[tuple[str, Sequence]]) -> None:
    """Refuse lists of two models that differ, with what only one of them has.

    Raises:
        UserError: naming up to three of these.
    """
    (one, here), (other, there) = found
    for first, second, a, b in ((one, other, here, there), (other, one, there, here)):
        if extra := [str(x) for x in a if x not in set(b)]:
            shown = ", ".join(extra[:3]) + (f" and {len(extra) - 3} more" if len(extra) > 3 else "")
            where = f"task {task}: " if task else ""
            fault = f"{where}{what} {shown} of {first} are missing for {second}"
            raise UserError(f"{fault}; run both alike, or choose with select(...)")
