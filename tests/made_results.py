"""The one maker of made-up results: scores of documents by task and condition, and a record that says what they are.

Scores are written out (`result`), nested (`exact`), or drawn with a loss that is known (`sweep`, `nats`, `viewed`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

import depthlens as dl
from depthlens.analysis.heads.scores import HeadScores
from depthlens.analysis.result.concat import concat
from depthlens.analysis.result.losses import Losses, broken_condition
from depthlens.analysis.result.results import DOCS_COLUMNS, Result

if TYPE_CHECKING:
    from depthlens.claims import Verdicts

N_LAYERS, N = 9, 120  # documents: a share of losses needs 100
EARLY = np.array([0.9, 0.7, 0.5, 0.1, 0.05, 0, 0, 0, 0])
LATE = EARLY[::-1]
# of twelve layers
FEW, FLAT = np.where(np.arange(12) < 2, 0.6, 0.0), np.full(12, 0.22)
ACC = {"higher_is_better": True, "chance": 0.25, "binary": True}
HEAD, LAYER = re.compile(r"L(\d+)\.H(\d+)[^+]*"), re.compile(r"L(\d+)([.\[@][^+]*)?")


def docs_of(scores: Mapping[str, Sequence[float]], *, task="capitals", metric="acc", model="tiny") -> pd.DataFrame:
    """Documents of one task and metric from {condition: one score a document}; conditions tell layer and head."""
    rows = []
    for condition, values in scores.items():
        head, layer = HEAD.fullmatch(condition), LAYER.fullmatch(condition)
        place = (int(head[1]), int(head[2])) if head else (int(layer[1]) if layer else pd.NA, pd.NA)
        for i, v in enumerate(values):
            rows.append((model, task, metric, condition, *place, i, float(v), f"é{v}"))
    return pd.DataFrame(rows, columns=DOCS_COLUMNS)


def record_of(**tasks: dict) -> dict:
    """A record of tasks, of which each is said by its metrics."""
    entry = {"version": 1, "num_fewshot": 0, "output_type": "multiple_choice"}
    told = {task: {**entry, "metrics": metrics} for task, metrics in tasks.items()}
    return {"model": {"name": "tiny", "n_layers": 4}, "seed": 0, "tasks": told}


def result(tasks, *, metric="acc", model="m", n_layers=6, n_heads=4, n_kv_heads=4, info=(), **record) -> Result:
    """A result of {task: {condition: one score a document}}.

    Args:
        tasks: Scores; the first condition is usually ``baseline``.
        metric: Of all tasks.
        model: Its name.
        n_layers: Of the model.
        n_heads: Of each layer.
        n_kv_heads: Of each layer.
        info: More or else than `ACC` of what the record says of the metric.
        record: More or else of the record.
    """
    docs = pd.concat([docs_of(scores, task=task, metric=metric, model=model) for task, scores in tasks.items()])
    dims = {"n_layers": n_layers, "n_heads": n_heads, "n_kv_heads": n_kv_heads}
    made = record_of(**{task: {metric: ACC | dict(info)} for task in tasks})
    return Result(docs, made | {"model": {"name": model, "dims": dims}} | record)


def nested(accuracies: Mapping[str, float], n: int) -> dict[str, np.ndarray]:
    """Right and wrong answers; who solves fewer solves none that others fail."""
    return {condition: np.arange(n) < round(accuracy * n) for condition, accuracy in accuracies.items()}


def exact(tasks, *, n=N, layers=None, **options) -> Result:
    """A sweep of {task: (accuracy of the whole model, accuracies without each layer)}, of some layers or all."""
    made = {}
    for task, (base, without) in tasks.items():
        chosen = range(len(without)) if layers is None else layers
        made[task] = nested({"baseline": base} | {f"L{layer}": without[layer] for layer in chosen}, n)
    return result(made, n_layers=len(without), **options)


def result_of(values, *, task="sums", metric="acc", model="base", chance=0.0, better=True, record=(), info=(), **more):
    """A result of one task; values: {condition: one score a document}."""
    info = {"higher_is_better": better, "chance": chance} | dict(info)
    return result({task: values}, metric=metric, model=model, info=info, **{"n_layers": N_LAYERS} | more | dict(record))


def sweep(losses, *, accuracy=0.9, n=N, seed=0, suffix="", better=True, **options) -> Result:
    """Right answers at a rate of ``accuracy``, lost with the probability ``losses`` by layer, or by condition.

    Where a low score is ``better`` they are told by errors.
    """
    rng = np.random.default_rng(seed)
    right = rng.random(n) < accuracy
    values = {name: right & (rng.random(n) >= loss) for name, loss in by_condition(losses, suffix).items()}
    values = {name: answers == better for name, answers in {"baseline": right, **values}.items()}
    return result_of(values, better=better, **options)


def nats(losses, *, n=N, seed=0, noise=0.5, suffix="", **options) -> Result:
    """Log-likelihoods around -5 nats that fall by ``losses`` on average."""
    rng = np.random.default_rng(seed)
    base = -5 + rng.normal(0, 1, n)
    values = {name: base - loss + rng.normal(0, noise, n) for name, loss in by_condition(losses, suffix).items()}
    return result_of({"baseline": base} | values, **{"metric": "answer_logprob", "chance": None} | options)


def by_condition(losses, suffix: str) -> Mapping[str, float]:
    return losses if isinstance(losses, dict) else {f"L{layer}{suffix}": loss for layer, loss in enumerate(losses)}


def viewed(loss, task="task", *, n=150, broken=None, accuracy=0.9, **options) -> Result:
    """A sweep of one task of four options; ``broken``: the measured floor."""
    losses = dict(by_condition(loss, ""))
    losses |= {} if broken is None else {broken_condition(len(loss)): 1 - broken / accuracy}
    of_task = {"task": task, "model": "m", "n_layers": len(loss), "chance": 0.25, "n": n, "accuracy": accuracy}
    return sweep(losses, **of_task | options)


def tokens(losses: Mapping[str, np.ndarray], *, n=150, model="m") -> Result:
    """A sweep in nats of tasks of equal difficulty: {task: mean loss of each layer}."""
    options = {"metric": "token_logprob", "model": model, "n": n, "noise": 0.1}
    return concat([nats(x, task=t, seed=i, n_layers=len(x), **options) for i, (t, x) in enumerate(losses.items())])


def profile(base, values, floor: float | None, **fields) -> Losses:
    """Losses by layer without the result around them."""
    n, n_layers = values.shape
    own = {"model": "m", "task": "t", "metric": "x", "label": "t", "sign": 1.0, "at_chance": False, "chance": floor}
    least, most = min(base.min(), values.min()), max(base.max(), values.max())
    own |= {"conditions": tuple(f"L{i}" for i in range(n_layers)), "heads": np.full(n_layers, -1)}
    own["limits"] = (0.0, 1.0) if 0 <= least and most <= 1 else (-np.inf, np.inf)
    own["documents"] = tuple(map(str, range(n)))
    own |= {"units": fields.get("documents", own["documents"])}
    return Losses(values=values, base=base, layers=np.arange(n_layers), n_layers=n_layers, floor=floor, **own | fields)


def head_scores(values, name="test", unit="", *, critical=None, n=5, **model) -> dl.HeadScores:
    """Scores of heads [layer, head] without intervals; ``model``: what the record says of it."""
    values = np.asarray(values, dtype=float)
    heads = list(np.ndindex(values.shape))
    frame = pd.DataFrame(heads, columns=["layer", "head"])
    frame = frame.assign(condition=[f"L{layer}.H{head}" for layer, head in heads], value=values.ravel())
    frame = frame.assign(low=np.nan, high=np.nan, critical=pd.array([pd.NA] * len(frame), "boolean"))
    if critical is not None:
        frame["critical"] = pd.array(np.ravel(critical), "boolean")
    return HeadScores(name, unit, frame, n, {"model": {"name": "m"} | model})


def race(decisions: Sequence[str]) -> dl.Race:
    """A race of as many conditions as are decided; the first took 20 documents, each one more than the one before."""
    table = pd.DataFrame({"condition": [f"L{i}" for i in range(len(decisions))], "decision": decisions})
    about = {"task": "t", "metric": "acc", "layer": 0, "head": 1, "loss": 0.0, "ci_low": -1.0, "ci_high": 1.0}
    losses = pd.DataFrame({"task": "t", "condition": "L0", "doc_id": [1], "wave": [1], "loss": [0.5]})
    record = {"alpha": 0.05, "margin": 0.1, "n_documents": {"t": 200}}
    return dl.Race(table.assign(n=20 + table.index, **about), losses, record)


# right answers of 20 without nothing, without each list (one head each), and without the random heads L0.H2 and L0.H3
RIGHT = {
    "copy": {"baseline": 20, "L0.H0": 2, "L0.H1": 19, "L0.H2": 19, "L0.H3": 18},
    "sums": {"baseline": 20, "L0.H0": 19, "L0.H1": 3, "L0.H2": 19, "L0.H3": 18},
    "guess": {"baseline": 5, "L0.H0": 5, "L0.H1": 5, "L0.H2": 5, "L0.H3": 5},
}
LISTS = {"retrieval": "L0.H0", "reasoning": "L0.H1"}


def removal_curve(tasks=tuple(RIGHT), *, better=True, times=1) -> dl.RemovalCurve:
    """A list of one head matters to `copy`, one to `sums`; `guess` is at chance. Told by errors if not ``better``.

    20 documents so many ``times``.
    """
    points, band, tests, scores = [], [], [], {}
    for task in tasks:
        scores[task] = {name: (np.arange(20 * times) < n * times) == better for name, n in RIGHT[task].items()}
        means = {name: answers.mean() for name, answers in scores[task].items()}
        for name, condition in LISTS.items():
            key, value, random = (name, task, "acc"), means[condition], [means[c] for c in ("L0.H2", "L0.H3")]
            edges = min(random), max(random), sum(random) / 2
            for k, v in enumerate((means["baseline"], value)):
                points.append((*key, k, v, v - 0.05, v + 0.05))
                band.append((*key, k, *edges, 2))
            separates = value < edges[0] if better else value > edges[1]
            tests.append((*key, better, value, *edges, 0.04 if separates else 0.5, 0.04, separates, task == "guess"))
    keys = ["list", "task", "metric"]
    of_test = ["higher_is_better", "value", "low", "high", "random", "p_value", "smallest_p", "separates", "at_chance"]
    lists = {name: [(0, int(condition[-1]))] for name, condition in LISTS.items()}
    draws = {name: [[(0, 2)], [(0, 3)]] for name in LISTS}
    of_points, of_band = ["k", "value", "ci_low", "ci_high"], ["k", "low", "high", "mean", "n_draws"]
    made = ((tests, of_test), (points, of_points), (band, of_band))
    tables = (pd.DataFrame(rows, columns=[*keys, *columns]) for rows, columns in made)
    record = {"lists": lists, "draws": draws, "k": [1], "n_draws": 2, "n_lists": {}}
    return dl.RemovalCurve(*tables, result(scores, info={"higher_is_better": better}), record)


def greedy(**record) -> dl.Greedy:
    """Layer 5 of six is let go."""
    steps = pd.DataFrame({"step": [0, 1], "layer": pd.array([None, 5], "Int64"), "removed": ["baseline", "L5"]})
    numbers = {"delta": [0.0, -0.02], "chosen_by": [0.0, -0.01], "value": 0.9, "ci_low": -0.1, "ci_high": 0.1, "n": 20}
    about = {"task": "sums", "metric": "acc", "tolerance": 0.1, "n_layers": 6, "model": {"name": "base"}}
    return dl.Greedy(steps.assign(**numbers, within=True), sweep(EARLY[:6], n_layers=6), "enough", about | record)


def same_documents(made: Result, times: int = 1) -> Result:
    """The result with questions that say: document i of one task is document i of every other.

    Several ``times``: documents 0, 1 and so on are one question, and so are the next.
    """
    asked = made.docs[["task", "doc_id"]].drop_duplicates().assign(question="?", reference="!", choices=None)
    return Result(made.docs, made.record, asked.assign(doc_hash=[f"document {i // times}" for i in asked["doc_id"]]))


def capitals_and_elements() -> Result:
    """`capitals` 18/20 at baseline, L0 fatal, L1 harmless; `elements` 5/20, which is chance."""
    good = [1] * 18 + [0, 0]
    capitals = docs_of({"baseline": good, "L0": [0] * 20, "L1": [0] + good[1:]})
    elements = docs_of({"baseline": [1] * 5 + [0] * 15, "L0": [0] * 20, "L1": [1] * 20}, task="elements")
    return Result(pd.concat([capitals, elements]), record_of(capitals={"acc": ACC}, elements={"acc": ACC}))


def steps(n: int) -> list[Result]:
    """Stages of one model whose losses move from the first layers to the last; the first is at chance on `sums`."""
    made = []
    for i, late in enumerate(np.linspace(0, 1, n)):
        loss, name = (1 - late) * EARLY + late * LATE, f"step{i + 1}"
        right = sweep(loss, model=name, seed=i, n=100, accuracy=0.3 + 0.6 * late, chance=0.3)
        made.append(concat([right, nats(2 * loss, model=name, task="words", seed=10 + i)]))
    return made


def verdicts(loss: np.ndarray, model: str) -> Verdicts:
    """Verdicts on C1 and C2 by made-up sweeps; C2 was not measured."""
    from depthlens.claims import Evidence, judge

    tasks = {"letters": "letters", "continuation": "facts"}
    sweeps = {role: viewed(loss, task, model=model) for role, task in tasks.items()}
    return judge(Evidence(**sweeps), claims=["C1", "C2"])
