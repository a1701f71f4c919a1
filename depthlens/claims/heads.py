"""The claim on heads, C5, as estimates: tables of a removal curve in, parts of the claim out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import scipy

from depthlens.analysis import questions
from depthlens.analysis.head_scores import HeadScores
from depthlens.analysis.removal_curve import RemovalCurve
from depthlens.analysis.stats import ALPHA
from depthlens.claims.decision import ABOVE, MEAN, SEED_VIEWS, SPARED, Estimate, Part, Spec, beside
from depthlens.metrics import metric_unit

COSTS = Spec("the cost of a list minus 3 times that of random heads", "of the score", 0.0, ABOVE, 0.1, main=None)
# power: each list has to cost more on its own task, which takes 5.7 times as many documents as their sum does
OWN_TASK = Spec("the cost of two lists on their own tasks minus on each other's", "of the score", 0.0, ABOVE, 0.1,
                main=None, power=0.999999)  # fmt: skip
_MATTERS_NATS = 0.5


def specific_heads(
    curves: Sequence[RemovalCurve], own: Mapping[str, str], scores: Mapping[str, HeadScores]
) -> list[Part]:
    """C5: every list costs at least 3 times what random heads of the same layers cost, and mostly on its own task.

    In every metric of the curves: accuracy as well as nats.

    Args:
        curves: Removal of the lists; random lists are drawn from all heads of the same layers. The first decides, and
            the others are its views: other few-shot seeds, heads spared at the first token or replaced by their mean.
        own: The task of each list.
        scores: What chose the heads of each list; its documents must not be those of the curves.

    Raises:
        UserError: the curves are not of the same lists, tasks and metrics.
    """
    found: dict[str, list[Part]] = {}
    for curve in curves:
        of_suffix = [view.name for view in (SPARED, MEAN) if view.suffix == curve.record.get("suffix", "")]
        name = of_suffix[0] if of_suffix else f"few-shot seed {len(found) + 1}"
        found[name] = _parts(curve, own, scores, decides=not found)
    return beside(found, wanted=(*SEED_VIEWS, SPARED.name, MEAN.name))


def _parts(
    curve: RemovalCurve, own: Mapping[str, str], scores: Mapping[str, HeadScores], *, decides: bool
) -> list[Part]:
    n_draws = int(curve.record["n_draws"])
    reused = {name: _reused(curve, name, task, scores) for name, task in own.items()}
    parts = []
    for name, task in own.items():
        for row in curve.ratio[(curve.ratio["list"] == name) & (curve.ratio["task"] == task)].itertuples():
            test = _only(curve.tests, list=name, task=task, metric=row.metric)
            p, why = float(test.p_value), reused[name] or _unable(curve, task, row.metric)
            if decides and not 1 / (1 + n_draws) < ALPHA:
                why = why or f"{n_draws} random lists cannot reach p < {ALPHA}; give n_draws={math.ceil(1 / ALPHA)}"
            spec = _spec(COSTS, f"the cost of {name} heads minus 3 times that of random heads", row.metric)
            if not test.smallest_p < ALPHA:
                why = why or "there are so few such lists that many draws are the list itself"
            against = float(getattr(test, "p_cheaper", 1.0))  # curves that were saved before there was one have none
            numbers = row.effect, row.ci_low, row.ci_high, int(row.n)
            parts.append(Part(spec, _estimate(*numbers, (f"{task} {row.metric}",), why), p=p, p_against=against))
    for row in curve.interactions.itertuples():
        pair = row.list, row.other_list
        if not set(pair) <= set(own) or {row.task, row.other_task} != {own[name] for name in pair}:
            continue
        # above 0 where the first list belongs to the first task; they may be named the other way round
        sign = 1 if row.task == own[row.list] else -1
        low, high = sorted((sign * row.ci_low, sign * row.ci_high))
        metrics = {row.task: row.metric, row.other_task: row.other_metric}
        unable = [_unable(curve, task, metric) for task, metric in metrics.items()]
        why = next((w for w in (*(reused[name] for name in pair), *unable) if w), "")
        what = f"the cost of {' and '.join(pair)} heads on their own task minus on the other's"
        spec, tasks = _spec(OWN_TASK, what, row.metric), tuple(f"{task} {metric}" for task, metric in metrics.items())
        # a list that costs more on both tasks is not specific to its own, whatever the sum
        terms = {row.task: (sign * row.on_task, row.p_on_task), row.other_task: (sign * row.on_other, row.p_on_other)}
        p = max(float(p) if term > 0 else 1.0 for term, p in terms.values())
        obstacles = [
            f"{name} heads cost no more on {own[name]} than {other} heads"
            for name, other in (pair, pair[::-1])
            if not terms[own[name]][0] > 0
        ]
        estimate = _estimate(sign * row.effect, low, high, int(row.n), tasks, why)
        parts.append(Part(spec, estimate, p=p, obstacle=" and ".join(obstacles)))
    return parts


def _spec(spec: Spec, what: str, metric: str) -> Spec:
    unit = metric_unit(metric)
    matters = _MATTERS_NATS if unit else spec.matters
    return replace(spec, what=what, unit=unit or spec.unit, matters=matters)


def _estimate(effect: float, low: float, high: float, n: int, tasks: tuple[str, ...], why: str) -> Estimate:
    critical = float(scipy.stats.t.ppf(1 - ALPHA / 2, max(n - 1, 1)))
    se = float(high - low) / 2 / critical
    return Estimate("", float(effect), float(low), float(high), n, 1, se, critical=critical, tasks=tasks, why=why)


def _unable(curve: RemovalCurve, task: str, metric: str) -> str:
    """Why nothing can be said on a task; a likelihood says nothing where the model cannot do the task."""
    rows = curve.tests[curve.tests["task"] == task].drop_duplicates("metric")
    scored = rows[[not metric_unit(m) for m in rows["metric"]]]
    if not len(scored):
        return f"no accuracy of {task} says that the model can do it; measure both"
    chance = scored[scored["at_chance"]]
    return f"{task}: at chance" if len(chance) == len(scored) or metric in set(chance["metric"]) else ""


def _reused(curve: RemovalCurve, name: str, task: str, scores: Mapping[str, HeadScores]) -> str:
    """Why a list was not chosen apart from the documents that test it; "" if it was."""
    if name not in scores:
        return f"say what chose the heads of {name} (head_scores=)"
    record = scores[name].record
    # tasks that ask the same documents under other names or in other forms
    asked = set(questions.identities(curve.result, task))
    if again := asked & set(record.get("documents", ())):
        return f"{len(again)} documents of {task} both chose and test the heads of {name}; use other samples"
    if task not in record.get("tasks", ()):
        return ""
    tested = set(curve.result.docs.loc[curve.result.docs["task"] == task, "doc_id"])
    chosen = record.get("samples")
    chosen = chosen.get(task) if isinstance(chosen, Mapping) else chosen
    if chosen is None:
        limit = record.get("limit")
        chosen = range(int(limit)) if limit is not None else tested
    if both := sorted(tested & set(chosen)):
        return f"{len(both)} documents of {task} both chose and test the heads of {name}; use other samples"
    return ""


def _only(table: pd.DataFrame, **values: str) -> Any:
    for column, value in values.items():
        table = table[table[column] == value]
    return next(table.itertuples())
