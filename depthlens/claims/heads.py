"""The claim on heads, C5: what lists of heads cost against random ones, on documents that did not choose them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from depthlens.ablations import heads_condition
from depthlens.analysis import questions
from depthlens.analysis.head_scores import HeadScores
from depthlens.analysis.layer_profiles import floor_of, too_few
from depthlens.analysis.means import ALPHA, Mean, mean
from depthlens.analysis.removal_contrasts import TIMES
from depthlens.analysis.removal_curve import RemovalCurve
from depthlens.analysis.results import Result
from depthlens.analysis.stats import BASELINE
from depthlens.claims.evidence import Evidence
from depthlens.claims.parts import Estimate, Part, Question, missing, named
from depthlens.metrics import LOGPROBS

COSTS = Question("Removing the {name} heads costs {{}}", "of its answers", 0.10)
EXCESS = Question(
    f"Removing the {{name}} heads costs {{{{}}}} beyond {TIMES} times random heads", "of its answers", 0.10
)
OWN_TASK = Question("{name} heads cost {{}} more on their own tasks than on each other's", "of its answers", 0.10)
PROBABILITY = "of the answer's probability"
Of = dict[tuple[str, str], "Costs"]  # by task and metric


@dataclass(frozen=True)
class Costs:
    """What lists and their random rivals cost on one task and metric.

    Attributes:
        lists: Cost of each list. Each of shape [document].
        random: Costs of its random rivals. Each of shape [draw, document].
        room: What there is to lose: the score above the floor. Shape [document].
        units: Of the documents. Shape [document].
    """

    lists: dict[str, np.ndarray]
    random: dict[str, np.ndarray]
    room: np.ndarray
    units: np.ndarray

    def mean(self, cost: np.ndarray) -> Mean:
        """A cost as a share of what there is to lose."""
        return mean(cost, self.units) / mean(self.room, self.units, bounded=False)


def parts(evidence: Evidence) -> Iterator[Part]:
    """What each list costs, how much more than random heads, and on which task; see `compared`."""
    own, curve, chose = evidence.head_tasks or {}, evidence.curves[0], evidence.head_scores or {}
    if len(own) < 2:
        yield missing(named(COSTS, next(iter(own), "no")), "give a list for retrieval and one for reasoning")
        return
    why = {
        name: _reused(curve.result, task, chose.get(name), name) or _unable(curve, task) for name, task in own.items()
    }
    yield from compared({_name(curve, i): _costs(curve) for i, curve in enumerate(evidence.curves)}, own, why)


def compared(by_curve: Mapping[str, Of], own: Mapping[str, str], why: Mapping[str, str]) -> Iterator[Part]:
    """Every list costs something, and more than random heads; two lists cost most on their own tasks.

    In every metric of the curves.

    Args:
        by_curve: The costs by view or few-shot seed; the first decides.
        own: The task of each list.
        why: Why a list cannot be judged, "" if it can.
    """
    first = next(iter(by_curve.values()))
    for name, task in own.items():
        for key in (key for key in first if key[0] == task):
            random = first[key].random[name].mean(1)
            rank = (1 + int((random >= first[key].lists[name].mean()).sum())) / (1 + len(random))
            but = "" if rank < ALPHA else f"{rank:.0%} of random lists of the same layers cost as much"
            for question, of in ((COSTS, _own), (EXCESS, _excess)):
                asked = _in_metric(named(question, name), key[1])
                if why[name]:
                    yield missing(asked, why[name])
                    continue
                few = too_few(first[key].units, first[key].units)
                found = {
                    view: Estimate.of(of(costs[key], name), few) for view, costs in by_curve.items() if key in costs
                }
                main = found.pop(next(iter(found)))
                yield Part(asked, main, found, (" ".join(key),), (), but if of is _excess else "")
    yield from _interactions(by_curve, own, why)


def _interactions(by_curve: Mapping[str, Of], own: Mapping[str, str], why: Mapping[str, str]) -> Iterator[Part]:
    """Whether two lists together cost more on their own tasks than on each other's, in every metric of both tasks."""
    (a, one), (b, two) = list(own.items())[:2]
    first = next(iter(by_curve.values()))
    metrics = [[metric for task, metric in first if task == of] for of in (one, two)]
    for keys in zip(((one, m) for m in metrics[0]), ((two, m) for m in metrics[1]), strict=False):
        asked = _in_metric(named(OWN_TASK, f"{a} and {b}".capitalize()), keys[0][1])
        if why[a] or why[b]:
            yield missing(asked, why[a] or why[b])
            continue
        terms = {}
        for view, costs in by_curve.items():
            if all(key in costs for key in keys):
                on, other = (costs[key] for key in keys)
                terms[view] = on.mean(on.lists[a] - on.lists[b]), other.mean(other.lists[b] - other.lists[a])
        (main, of_main), *others = terms.items()
        against = [
            f"the {name} heads cost no more on {task} than the {rival} heads"
            for name, rival, task, term in ((a, b, one, of_main[0]), (b, a, two, of_main[1]))
            if not term.interval()[0] > 0
        ]
        beside = {view: Estimate.of(left + right) for view, (left, right) in others}
        tasks = tuple(" ".join(key) for key in keys)
        few = next((few for key in keys if (few := too_few(first[key].units, first[key].units))), "")
        yield Part(asked, Estimate.of(of_main[0] + of_main[1], few), beside, tasks, (), " and ".join(against))


def _own(costs: Costs, name: str) -> Mean:
    return costs.mean(costs.lists[name])


def _excess(costs: Costs, name: str) -> Mean:
    return costs.mean(costs.lists[name] - TIMES * costs.random[name].mean(0))


def _in_metric(question: Question, metric: str) -> Question:
    return replace(question, of=PROBABILITY) if metric in LOGPROBS else question


def _name(curve: RemovalCurve, i: int) -> str:
    """The view or few-shot seed that a curve stands for."""
    suffix = curve.record.get("suffix", "")
    return {"[1:]": "first token spared", "@mean": "mean ablation"}.get(suffix, f"few-shot seed {i + 1}")


def _costs(curve: RemovalCurve) -> dict[tuple[str, str], Costs]:
    """Costs on every task and metric of a curve, means over the numbers of heads."""
    record, result = curve.record, curve.result

    def cost(order: list, losses: pd.DataFrame) -> np.ndarray:
        names = [str(heads_condition([tuple(h) for h in order[:k]], record.get("suffix", ""))) for k in record["k"]]
        return losses[names].mean(axis=1).to_numpy()

    found = {}
    for row in result.baselines.itertuples():
        scores = result.scores(row.task, row.metric)
        info = result.metric_info(row.task, row.metric)
        sign = 1.0 if info["higher_is_better"] else -1.0
        if row.metric in LOGPROBS:
            scores, floor = np.exp(scores), 0.0
        elif (floor := floor_of(result, row.task, info, bool((scores >= 0).all(axis=None)))) is None:
            continue
        base = sign * scores[BASELINE]
        losses = base.to_numpy()[:, None] - sign * scores
        found[row.task, row.metric] = Costs(
            {name: cost(order, losses) for name, order in record["lists"].items()},
            {name: np.stack([cost(order, losses) for order in orders]) for name, orders in record["draws"].items()},
            base.to_numpy() - floor,
            questions.units(result, row.task).loc[scores.index].to_numpy(),
        )
    return found


def _unable(curve: RemovalCurve, task: str) -> str:
    """Why nothing can be said on a task: a likelihood says nothing where the model cannot do the task."""
    rows = curve.tests[curve.tests["task"] == task].drop_duplicates("metric")
    scored = rows[~rows["metric"].isin(LOGPROBS)]
    if not len(scored):
        return f"no accuracy of {task} says that the model can do it; measure both"
    return f"{task} is at chance" if scored["at_chance"].any() else ""


def _reused(result: Result, task: str, scores: HeadScores | None, name: str) -> str:
    """Why a list was not chosen apart from the documents that test it; "" if it was."""
    if scores is None:
        return f"say what chose the heads of {name} (head_scores=)"
    record: Mapping[str, Any] = scores.record
    asked = set(questions.units(result, task)) if questions.subtasks(result, task) is None else set()
    asked |= set(questions.identities(result, task))
    again = asked & set(record.get("documents", ()))
    if not again and task in record.get("tasks", ()):
        tested = set(result.docs.loc[result.docs["task"] == task, "doc_id"])
        chosen = record.get("samples")
        chosen = chosen.get(task) if isinstance(chosen, Mapping) else chosen
        if chosen is None:
            chosen = range(int(record["limit"])) if record.get("limit") is not None else tested
        again = tested & set(chosen)
    return (
        f"{len(again)} documents of {task} both chose and test the heads of {name}; use other samples" if again else ""
    )
