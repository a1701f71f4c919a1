"""The claim on heads, C5: what lists of heads cost against random ones, on documents that did not choose them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from depthlens.analysis.heads.curves import TIMES, Costs, RemovalCurve, costs
from depthlens.analysis.heads.scores import HeadScores
from depthlens.analysis.numbers.means import ALPHA, Mean, Ratio
from depthlens.analysis.numbers.words import NOT_ABOVE_CHANCE
from depthlens.analysis.result.losses import Losses
from depthlens.analysis.result.results import Result
from depthlens.claims.evidence import Evidence
from depthlens.claims.parts import ANSWERS, CONTROLLED, FEWEST, LEVEL, Estimate, Part, Question, missing, named
from depthlens.metrics import LOGPROBS

LEAST = 0.10  # of what there is to lose, that a list has to cost for its multiple of random heads to be shown
EXCESS = Question("Removing the {name} heads costs {effect} more than random heads of their layers", ANSWERS, 0.10)
TIMES_RANDOM = Question(
    "The {name} heads cost {effect} more, beyond the cost of random heads of their layers",
    "times their cost", TIMES - 1.0, row=CONTROLLED,
)  # fmt: skip
ByTask = Mapping[str, Costs]


def parts(evidence: Evidence) -> Iterator[Part]:
    """Removing a list of heads costs at least 10% of the answers more than random heads of the same layers.

    Heads are chosen on other documents than those that test them. Controlled: the list costs at least three times as
    much as random heads, more than 95% of such lists, and at least 10% of what there is to lose. What it costs on the
    task of the other list stands beside.
    """
    own, curve, chose = evidence.head_tasks or {}, evidence.curves[0], evidence.head_scores or {}
    if len(own) < 2:
        why = "give a list for retrieval and one for reasoning"
        yield from (missing(named(question, next(iter(own), "no")), why) for question in (EXCESS, TIMES_RANDOM))
        return
    why_not = {
        name: _reused(curve.result, task, chose.get(name), name) or _unable(curve, task) for name, task in own.items()
    }
    by_curve = {
        _name(curve, i): {c.task: c for c in costs(_scored(curve.result), curve.record)}
        for i, curve in enumerate(evidence.curves)
    }
    scored = curve.tests[~curve.tests["metric"].isin(LOGPROBS)]
    ranks = {(row.list, row.task): float(row.p_value) for row in scored.itertuples()}
    yield from compared(by_curve, own, why_not, ranks)


def compared(
    by_curve: Mapping[str, ByTask],
    own: Mapping[str, str],
    why: Mapping[str, str],
    ranks: Mapping[tuple[str, str], float],
) -> Iterator[Part]:
    """The parts of every list.

    Args:
        by_curve: The costs by view or few-shot seed; the first decides.
        own: The task of each list.
        why: Why a list cannot be judged, "" if it can.
        ranks: By list and task, the share of random lists that cost as much.
    """
    for name, task in own.items():
        found = {view: on[task] for view, on in by_curve.items() if task in on}
        if why[name] or not found:
            fault = why[name] or f"{task} was not scored"
            yield from (missing(named(question, name), fault) for question in (EXCESS, TIMES_RANDOM))
            continue
        first = next(iter(found.values()))
        rank, cost = ranks[name, task], first.lists[name]
        against = f"{rank:.0%} of random lists of the same layers cost as much" if rank >= ALPHA else ""
        if first.room is not None and not (cost - first.room * LEAST).interval(LEVEL)[0] > 0:
            against = against or f"the list is not shown to cost {LEAST:.0%} of what there is to lose"
        others = [on for other, on in next(iter(by_curve.values())).items() if other != task]
        elsewhere = {f"on {on.task}": Estimate.of([_more(on, name)]) for on in others}
        excess = {view: Estimate.of([_more(on, name)]) for view, on in found.items()}
        times = {view: Estimate.of([Ratio(_more(on, name), on.random[name])]) for view, on in found.items()}
        for question, effects, beside, but in ((EXCESS, excess, elsewhere, ""), (TIMES_RANDOM, times, {}, against)):
            main, *views = effects.items()
            few = f"{main[1].n} questions are too few; take at least {FEWEST}" if main[1].n < FEWEST else ""
            yield Part(named(question, name), replace(main[1], why=few), dict(views) | beside, (task,), (), but)


def _more(on: Costs, name: str) -> Mean:
    return on.lists[name] - on.random[name]


def _name(curve: RemovalCurve, i: int) -> str:
    """The view or few-shot seed that a curve stands for."""
    suffix = curve.record.get("suffix", "")
    return {"[1:]": "first token spared", "@mean": "mean ablation"}.get(suffix, f"few-shot seed {i + 1}")


def _scored(result: Result) -> Iterator[Losses]:
    """The losses of a curve in each task's own metric."""
    return (losses for losses in result.every_losses.values() if losses.metric not in LOGPROBS)


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
