"""Simulated sweeps for the study's claims, of models whose truth is known.

A document has a margin: the log-odds that the whole model gives the right answer. Removing a layer lowers the log-odds
by what the layer does to the task (times what is fragile in the document), or destroys the answer altogether. A chosen
answer is right as often as the log-odds say, and else a guess; a written one is right or wrong, and may lose its form.
"""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import made_results
import numpy as np
import pandas as pd

from depthlens.analysis.heads.curves import Costs
from depthlens.analysis.numbers.means import UNLIMITED, mean
from depthlens.analysis.result.losses import Losses
from depthlens.claims import heads
from depthlens.claims.evidence import Evidence
from depthlens.claims.in_depth import recovered

CHANCE = 0.25
# the field of each task, what it is asked about, whether it is written
ROLES = {
    **{"letters": ("facts", False), "generation": ("facts", True), "continuation": ("facts", False)},
    **{"retrieval": ("codes", False), "text": ("text", False), "long_text": ("text", False)},
    **{"reasoning": ("sums", True), "reasoning_continuation": ("sums", False), "copying": ("copies", True)},
    "reasoning_choice": ("steps", False),
}
TOKENS = ("continuation", "retrieval", "text", "long_text", "reasoning", "copying", "reasoning_choice")


@dataclass(frozen=True)
class Task:
    """What the removal of each layer does to a task.

    Attributes:
        lowered: By how much it lowers the log-odds of a document, on average. Shape [layer].
        destroyed: How often it leaves only a guess. Shape [layer].
        margin: Mean log-odds of the whole model.
        spread: Their standard deviation over documents.
        unread: How often a written answer cannot be read without the layer though it is right. Shape [layer].
        floor: What a broken model scores where the task is chosen; guessing is `CHANCE`.
    """

    lowered: np.ndarray
    destroyed: np.ndarray | float = 0.0
    margin: float = 1.2
    spread: float = 1.2
    unread: np.ndarray | float = 0.0
    floor: float = CHANCE


# a result without written texts
NO_TEXTS = SimpleNamespace(docs=pd.DataFrame({"task": [], "layer": [], "parsed": []}), n_layers=1)


@dataclass(frozen=True, eq=False)
class Made(Evidence):
    """Evidence of made-up profiles, so that the claims' own code judges them."""

    by_field: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        vars(self).update(generation=NO_TEXTS, reasoning=NO_TEXTS)

    def has(self, name):
        return name in self.by_field

    def profiles(self, name):
        return self.by_field.get(name, [])

    def easy(self, name, tasks):
        """The whole model's log-odds with other luck than that of the prompts that are judged."""
        own = [p for p in self.by_field[name] if p.task in tasks]
        margins = [zip(p.documents, self.by_field["margins"][p.model, p.task], strict=True) for p in own]
        return {document: x for of_task in margins for document, x in of_task}

    def has_other_margins(self, names):
        return True

    def first(self, n):
        """The evidence of the first n documents of every task."""
        margins = {key: values[:n] for key, values in self.by_field["margins"].items()}
        found: dict = {"margins": margins}
        for name in self.by_field.keys() - {"margins"}:
            fewer = [p.select(documents=range(n)) for p in self.by_field[name]]
            found[name] = [replace(p, at_chance=_at_chance(p)) for p in fewer]
        return Made(by_field=found)


def evidence(tasks, control=None, *, n=300, rng, repeats=1, subjects=None, luck=0.0):
    """Evidence on one model, with a control if there is one.

    Args:
        tasks: A `Task` by field of `ROLES`; "rest" is that of all others.
        control: The same of the control model.
        n: Documents of each task.
        rng: Of all draws.
        repeats: How often each question is asked.
        subjects: Units that the documents belong to, instead of questions: a number of them.
        luck: Standard deviation of what a prompt adds to the log-odds of a document, apart from other prompts of it.
    """
    by_field = {"margins": {}}
    hard = {topic: rng.standard_normal(n) for topic in dict.fromkeys(topic for topic, _ in ROLES.values())}
    fragile = {topic: rng.gamma(2.0, 0.5, n) for topic in hard}
    for model, of in (("model", tasks), ("control", control)):
        for name, (topic, written) in ROLES.items() if of else ():
            task = of.get(name, of["rest"])
            lucky = luck * rng.standard_normal((2, n))
            scores = _sweep(task, hard[topic], fragile[topic], lucky[0], written=written, rng=rng)
            by_field["margins"][model, name] = np.repeat(task.margin + task.spread * hard[topic] + lucky[1], repeats)
            asked = [f"{topic}:{i}" for i in range(n)]
            units = asked if subjects is None else [f"{topic}:subject {i % subjects}" for i in range(n)]
            made = [_profile(name, model, asked, units, repeats, written, kind, *scores[kind]) for kind in scores]
            if model == "model":
                by_field[name] = [made[0]]
            if name in TOKENS:
                by_field.setdefault("tokens" if model == "model" else "control", []).append(made[1])
    return Made(by_field=by_field)


def _sweep(task, hard, fragile, lucky, *, written, rng):
    """Scores of the whole model, without each layer and of a broken model; by kind."""
    n, n_layers = len(hard), len(task.lowered)
    margin = task.margin + task.spread * hard + lucky
    odds = (margin - lucky)[:, None] - task.lowered * fragile[:, None] * rng.gamma(2.0, 0.5, (n, n_layers))
    gone = rng.random((n, n_layers)) < task.destroyed
    odds = np.where(gone, np.log(CHANCE / (1 - CHANCE)) + 0.3 * rng.standard_normal((n, n_layers)), odds)
    floor = 0.0 if written else task.floor
    luck, guess = rng.random((n, 1)), rng.random((n, n_layers)) < floor  # a document that is right stays so by itself
    sure = 1 / (1 + np.exp(-3 * np.column_stack([margin, odds])))
    right = np.where(gone, guess, luck < sure[:, 1:] * (1 - floor) + floor)
    if written:
        right = right & ~(rng.random((n, n_layers)) < task.unread)
    base = (luck < sure[:, :1] * (1 - floor) + floor)[:, 0]
    broken = (rng.random(n) < floor).astype(float)
    nats = [-np.log1p(np.exp(-x)) for x in (margin, odds)]
    return {"right": (base.astype(float), right.astype(float), broken), "nats": (*nats, None)}


def _profile(task, model, asked, units, repeats, written, kind, base, values, broken):
    chance = 0.0 if written else CHANCE
    nats = kind == "nats"
    again = [np.repeat(x, repeats, axis=0) if x is not None else None for x in (base, values, broken)]
    n_layers = values.shape[1]
    made = Losses(
        model=model, task=task, metric="token_logprob" if nats else "acc", label=task, values=again[1], base=again[0],
        conditions=tuple(f"L{i}" for i in range(n_layers)), layers=np.arange(n_layers), heads=np.full(n_layers, -1),
        documents=tuple(f"{name}#{i}" for name in asked for i in range(repeats)), n_layers=n_layers,
        limits=(-np.inf, 0.0) if nats else (0.0, 1.0), floor=None if nats else chance, chance=None if nats else chance,
        at_chance=False, sign=1.0, units=tuple(np.repeat(units, repeats)), broken=again[2],
    )  # fmt: skip
    return replace(made, at_chance=_at_chance(made))


def _at_chance(losses):
    return losses.chance is not None and bool(losses.whole.at_chance)


LISTS = {"retrieval": "codes", "reasoning": "sums"}  # lists of heads and their tasks


def head_parts(cost, *, both=False, others=0.0, n=300, rng, n_lists=40, size=4, n_heads=36):
    """The parts of C5: heads are chosen by an estimate on n documents, and removed on n others.

    Args:
        cost: How often the removal of the planted heads breaks their own task, by list.
        both: Whether they break the other task as often.
        others: The same of all other heads; below 0 their removal mends wrong answers.
        n: Documents that test.
        rng: Of all draws.
        n_lists: Random lists.
        size: Heads of a list.
        n_heads: Heads of the layers that lists are drawn from.
    """
    planted = {name: np.arange(size) + i * size for i, name in enumerate(LISTS)}
    harm = {}
    for name, task in LISTS.items():
        harm[task] = np.full(n_heads, others / size)
        for other, at in planted.items():
            if both or other == name:
                harm[task][at] = cost.get(other, 0.0) / size
    estimates = {name: harm[task] + 0.02 * rng.standard_normal(n_heads) for name, task in LISTS.items()}
    lists = {name: np.argsort(-of)[:size] for name, of in estimates.items()}
    draws = {name: [rng.permutation(n_heads)[:size] for _ in range(n_lists)] for name in LISTS}
    costs, ranks = {}, {}
    for task, rates in harm.items():
        right = rng.random(n) < 0.7
        luck = rng.random((n, n_heads))

        def cost_of(at, rates=rates, luck=luck, right=right):
            lost = (luck[:, at] < np.maximum(rates[at], 0)).any(1) & right
            won = (luck[:, at] < np.maximum(-rates[at], 0)).any(1) & ~right
            return lost.astype(float) - won

        rivals = {name: np.stack([cost_of(at) for at in of]) for name, of in draws.items()}
        units = np.array([f"{task}:{i}" for i in range(n)])
        own = {name: cost_of(at) for name, at in lists.items()}
        means = [{k: mean(x, units) for k, x in own.items()}, {k: mean(x.mean(0), units) for k, x in rivals.items()}]
        costs[task] = Costs(task, "acc", False, *means, mean(right, units, limits=UNLIMITED))
        for name, x in rivals.items():
            ranks[name, task] = (1 + (x.mean(1) >= own[name].mean()).sum()) / (1 + n_lists)
    return list(heads.compared(costs, LISTS, dict.fromkeys(LISTS, ""), ranks))


def transplants(*, n=300, rng, share=0.0, change=0.0, count=9):
    """C6's parts on transplants of one layer: one recovers a share of a gap of 0.5, and answers turn either way."""
    base, learns = rng.random(n) < 0.3, rng.random(n)
    donor = base | (learns < 0.5 / 0.7)
    moved = np.stack([base | (donor & (rng.random(n) < (share if i == 4 else 0))) for i in range(count)], 1)
    turned = rng.random((n, count)) < np.where(moved, change * 0.7, change * 0.3)
    about = {"documents": tuple(f"q{i}" for i in range(n)), "task": "sums"}
    own = made_results.profile(base.astype(float), (moved ^ turned).astype(float), 0.0, **about)
    goal = made_results.profile(donor.astype(float), np.zeros((n, 1)), 0.0, **about)
    return list(recovered(own, goal))
