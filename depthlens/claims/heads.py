"""The claim on heads, C5: what lists of heads cost against random ones, on documents that did not choose them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from depthlens.analysis.heads.curves import Costs, RemovalCurve, costs
from depthlens.analysis.heads.scores import HeadScores
from depthlens.analysis.numbers.means import ALPHA, Mean, Ratio
from depthlens.analysis.numbers.words import NOT_ABOVE_CHANCE
from depthlens.analysis.result.losses import Losses
from depthlens.claims import questions
from depthlens.claims.evidence import Evidence
from depthlens.claims.measures import not_measured
from depthlens.claims.parts import LEVEL, Estimate, Part, missing, named, too_few
from depthlens.metrics import LOGPROBS

LEAST = 0.10  # of what there is to lose, that a list has to cost for its multiple of random heads to be shown


def parts(evidence: Evidence) -> Iterator[Part]:
    """Removing a list of heads costs at least 10% of the answers more than random heads of the same layers.

    Heads are chosen on other documents than those that test them. Controlled: the list costs at least three times as
    much as random heads, more than 95% of such lists, and at least 10% of what there is to lose. What it costs on the
    task of the other list stands beside.
    """
    own, chose = evidence.head_tasks or {}, evidence.head_scores or {}
    if len(own) < 2 or evidence.heads is None:
        fault = f"{not_measured(['heads'])}; give a list for retrieval and one for reasoning"
        yield from (missing(named(question, next(iter(own), "no")), fault) for question in questions.HEADS)
        return
    curve = evidence.heads
    why = {
        name: _unable(curve, task, name) or _reused(curve, task, chose.get(name), name) for name, task in own.items()
    }
    of_task = {of.task: of for of in costs(_scored(curve), curve.record)}
    scored = curve.tests[~curve.tests["metric"].isin(LOGPROBS)]
    ranks = {(row.list, row.task): float(row.p_value) for row in scored.itertuples()}
    yield from compared(of_task, own, why, ranks)


def compared(
    of_task: Mapping[str, Costs],
    own: Mapping[str, str],
    why: Mapping[str, str],
    ranks: Mapping[tuple[str, str], float],
) -> Iterator[Part]:
    """The parts of every list.

    Args:
        of_task: What the lists cost on each task.
        own: The task of each list.
        why: Why a list cannot be judged, "" if it can.
        ranks: By list and task, the share of random lists that cost as much.
    """
    for name, task in own.items():
        if why[name]:
            yield from (missing(named(question, name), why[name]) for question in questions.HEADS)
            continue
        on = of_task[task]
        rank, cost = ranks[name, task], on.lists[name]
        against = f"{rank:.0%} of random lists of the same layers cost as much" if rank >= ALPHA else ""
        if on.room is not None and not (cost - on.room * LEAST).interval(LEVEL)[0] > 0:
            against = against or f"the list is not shown to cost {LEAST:.0%} of what there is to lose"
        elsewhere = {f"on {t}": Estimate.of([_more(of, name)]) for t, of in of_task.items() if t != task}
        excess, times = Estimate.of([_more(on, name)]), Estimate.of([Ratio(_more(on, name), on.random[name])])
        measured: list[tuple[Estimate, dict[str, Estimate], str]] = [(excess, elsewhere, ""), (times, {}, against)]
        for question, (found, beside, but) in zip(questions.HEADS, measured, strict=True):
            yield Part(named(question, name), replace(found, why=too_few(found.n)), beside, (task,), (), but)


def _more(on: Costs, name: str) -> Mean:
    return on.lists[name] - on.random[name]


def _scored(curve: RemovalCurve) -> Iterator[Losses]:
    """The losses of a curve in each task's own metric."""
    return (losses for losses in curve.result.every_losses.values() if losses.metric not in LOGPROBS)


def _unable(curve: RemovalCurve, task: str, name: str) -> str:
    """Why nothing can be said on a task: a likelihood says nothing where the model cannot do the task."""
    tests = curve.tests[~curve.tests["metric"].isin(LOGPROBS)]
    scored = tests[(tests["task"] == task) & (tests["list"] == name)]
    if not len(scored):
        return f"no accuracy of {task} without the heads of {name} says that the model can do it; measure both"
    return f"{task} is {NOT_ABOVE_CHANCE}" if scored["at_chance"].any() else ""


def _reused(curve: RemovalCurve, task: str, scores: HeadScores | None, name: str) -> str:
    """Why a list was not chosen apart from the documents that test it; "" if it was."""
    if scores is None or "documents" not in scores.record:
        return f"say what chose the heads of {name} (head_scores=)"
    tests = next(each for key, each in curve.result.every_losses.items() if key[0] == task)
    again = {*tests.documents} & {*scores.record["documents"]}
    return (
        f"{len(again)} documents of {task} both chose and test the heads of {name}; use other samples" if again else ""
    )
