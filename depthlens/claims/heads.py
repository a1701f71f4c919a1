"""The claim on heads, C5: what lists of heads cost against random ones, on documents that did not choose them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from depthlens.analysis.heads.curves import TIMES, Costs, RemovalCurve, costs
from depthlens.analysis.heads.scores import HeadScores
from depthlens.analysis.numbers.means import ALPHA, Mean
from depthlens.analysis.numbers.words import NOT_ABOVE_CHANCE
from depthlens.analysis.result.losses import Losses, too_few
from depthlens.analysis.result.results import Result
from depthlens.claims.evidence import Evidence
from depthlens.claims.parts import ANSWERS, PROBABILITY, Estimate, Part, Question, missing, named
from depthlens.metrics import LOGPROBS

COSTS = Question("Removing the {name} heads costs {effect}", ANSWERS, 0.10)
EXCESS = Question(f"Removing the {{name}} heads costs {{effect}} beyond {TIMES} times random heads", ANSWERS, 0.10)
OWN_TASK = Question("{name} heads cost {effect} more on their own tasks than on each other's", ANSWERS, 0.10)
ByTask = Mapping[tuple[str, str], Costs]  # by task and metric


def parts(evidence: Evidence) -> Iterator[Part]:
    """Heads are chosen on other documents than those that test them.

    Removing a list costs at least 10% of the answers, at least 10% more than 3 times what random heads of the same
    layers cost, and more than 95% of such lists; and two lists cost at least 10% more on their own tasks than on each
    other's. In accuracy and in the answer's probability.
    """
    own, curve, chose = evidence.head_tasks or {}, evidence.curves[0], evidence.head_scores or {}
    if len(own) < 2:
        yield missing(named(COSTS, next(iter(own), "no")), "give a list for retrieval and one for reasoning")
        return
    why = {
        name: _reused(curve.result, task, chose.get(name), name) or _unable(curve, task) for name, task in own.items()
    }
    by_curve = {
        _name(curve, i): {(c.task, c.metric): c for c in costs(_probabilities(curve.result), curve.record)}
        for i, curve in enumerate(evidence.curves)
    }
    ranks = {(row.list, row.task, row.metric): float(row.p_value) for row in curve.tests.itertuples()}
    yield from compared(by_curve, own, why, ranks)


def compared(
    by_curve: Mapping[str, ByTask],
    own: Mapping[str, str],
    why: Mapping[str, str],
    ranks: Mapping[tuple[str, str, str], float],
) -> Iterator[Part]:
    """The parts, in every metric of the curves.

    Args:
        by_curve: The costs by view or few-shot seed; the first decides.
        own: The task of each list.
        why: Why a list cannot be judged, "" if it can.
        ranks: By list, task and metric, the share of random lists that cost as much.
    """
    first = next(iter(by_curve.values()))
    for name, task in own.items():
        for key in (key for key in first if key[0] == task):
            rank = ranks[(name, *key)]
            but = "" if rank < ALPHA else f"{rank:.0%} of random lists of the same layers cost as much"
            for question, times in ((COSTS, 0), (EXCESS, TIMES)):
                effects = {
                    view: on[key].relative(on[key].lists[name] - on[key].random[name] * times)
                    for view, on in by_curve.items()
                    if key in on
                }
                yield _part(named(question, name), effects, [key], why[name], but if times else "")
    (a, one), (b, two) = list(own.items())[:2]
    for keys in zip(*([key for key in first if key[0] == task] for task in (one, two)), strict=False):
        terms = {
            view: (on[keys[0]].relative(on[keys[0]].lists[a] - on[keys[0]].lists[b]),
                   on[keys[1]].relative(on[keys[1]].lists[b] - on[keys[1]].lists[a]))
            for view, on in by_curve.items()
            if all(key in on for key in keys)
        }  # fmt: skip
        against = [
            f"the {name} heads cost no more on {task} than the {rival} heads"
            for name, rival, task, term in zip((a, b), (b, a), (one, two), next(iter(terms.values())), strict=True)
            if not term.interval()[0] > 0
        ]
        effects = {view: left + right for view, (left, right) in terms.items()}
        question = named(OWN_TASK, f"{a} and {b}".capitalize())
        yield _part(question, effects, keys, why[a] or why[b], " and ".join(against))


def _part(
    question: Question, effects: Mapping[str, Mean], keys: list[tuple[str, str]] | tuple, why: str, but: str
) -> Part:
    if keys[0][1] in LOGPROBS:
        question = question._replace(of=PROBABILITY)
    if why:
        return missing(question, why)
    (main, *others), tasks = effects.items(), tuple(" ".join(key) for key in keys)
    few = too_few(main[1].units, main[1].units)
    return Part(question, Estimate.of(main[1], few), {v: Estimate.of(e, few) for v, e in others}, tasks, (), but)


def _name(curve: RemovalCurve, i: int) -> str:
    """The view or few-shot seed that a curve stands for."""
    suffix = curve.record.get("suffix", "")
    return {"[1:]": "first token spared", "@mean": "mean ablation"}.get(suffix, f"few-shot seed {i + 1}")


def _probabilities(result: Result) -> Iterator[Losses]:
    """The losses of a curve, those of answers' log-likelihoods as losses of their probability."""
    for losses in result.every_losses.values():
        if losses.metric in LOGPROBS:
            values, base = (np.exp(np.minimum(scores, 0.0)) for scores in (losses.values, losses.base))
            losses = replace(losses, values=values, base=base, limits=(0.0, 1.0))
        yield losses


def _unable(curve: RemovalCurve, task: str) -> str:
    """Why nothing can be said on a task: a likelihood says nothing where the model cannot do the task."""
    rows = curve.tests[curve.tests["task"] == task].drop_duplicates("metric")
    scored = rows[~rows["metric"].isin(LOGPROBS)]
    if not len(scored):
        return f"no accuracy of {task} says that the model can do it; measure both"
    return f"{task} is {NOT_ABOVE_CHANCE}" if scored["at_chance"].any() else ""


def _reused(result: Result, task: str, scores: HeadScores | None, name: str) -> str:
    """Why a list was not chosen apart from the documents that test it; "" if it was."""
    if scores is None:
        return f"say what chose the heads of {name} (head_scores=)"
    record: Mapping[str, Any] = scores.record
    tests = next(each for key, each in result.every_losses.items() if key[1] == task)
    again = {*tests.documents} & set(record.get("documents", ()))
    if not again and task in record.get("tasks", ()):
        tested = set(result.docs.loc[result.docs["task"] == task, "doc_id"])
        chosen = record.get("samples")
        chosen = chosen.get(task) if isinstance(chosen, Mapping) else chosen
        if chosen is None:
            chosen = range(int(record["limit"])) if record.get("limit") is not None else tested
        again = tested & set(chosen)
    both = f"{len(again)} documents of {task} both chose and test the heads of {name}; use other samples"
    return both if again else ""
