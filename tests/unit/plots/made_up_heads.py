"""Made-up head sweeps and scores, and what tests ask of the figures that are drawn from them."""

from __future__ import annotations

import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
from drawn import by_gid

from depthlens.analysis.head_scores import HeadScores
from depthlens.analysis.results import DOCS_COLUMNS, Result

N_LAYERS, N_HEADS, N_KV, N = 6, 4, 2, 40
SIZES = [(30, 9, 3), (36, 32, 8), (80, 64, 8)]  # SmolLM2-135M, Qwen3-8B, LLaMA-70B


def record(model="tiny", sizes=(N_LAYERS, N_HEADS, N_KV), **more):
    return {
        "model": {"name": model, "dims": dict(zip(("n_layers", "n_heads", "n_kv_heads"), sizes, strict=True))},
        **more,
    }


def sweep(
    task="kv_retrieval", metric="acc", kept=None, *, base=0.9, chance=0.25, better=True, letter="H", mode="",
    n_heads=N_HEADS, layers=range(N_LAYERS), scale=1.0, **more,
):  # fmt: skip
    """A deterministic head sweep; ``kept`` is what remains of the score where (layer, head) is removed."""
    kept = {(1, 2): 0.0, (3, 0): 0.5} if kept is None else kept
    rows = []
    conditions = [(la, h) for la in layers for h in range(n_heads)]
    for where in (None, *conditions):
        right = np.arange(N) < round(kept.get(where, 1.0) * base * N)
        name = "baseline" if where is None else f"L{where[0]}.{letter}{where[1]}{mode}"
        layer, head = where or (None, None)
        head = head if letter == "H" else None
        rows += [("tiny", task, metric, name, layer, head, d, scale * float(v), "x") for d, v in enumerate(right)]
    about = {"higher_is_better": better, "chance": chance}
    tasks = {task: {"version": 1, "num_fewshot": 0, "metrics": {metric: about}}}
    return Result(pd.DataFrame(rows, columns=DOCS_COLUMNS), record(tasks=tasks, **more))


def logprobs(task="kv_retrieval", effects=None, **more):
    """Answer log-probabilities in nats; ``effects`` are the changes by (layer, head)."""
    effects = {(1, 2): -2.0, (4, 1): 1.0} if effects is None else effects
    rng = np.random.default_rng(0)
    clean = rng.normal(-3, 1, N)
    rows = []
    for where in (None, *np.ndindex(N_LAYERS, N_HEADS)):
        values = clean + effects.get(where, 0.0) + (0 if where is None else rng.normal(0, 0.1, N))
        name = "baseline" if where is None else f"L{where[0]}.H{where[1]}"
        rows += [
            ("tiny", task, "answer_logprob", name, *(where or (None, None)), d, v, "x") for d, v in enumerate(values)
        ]
    tasks = {
        task: {
            "version": 1,
            "num_fewshot": 0,
            "metrics": {"answer_logprob": {"higher_is_better": True, "chance": None}},
        }
    }
    return Result(pd.DataFrame(rows, columns=DOCS_COLUMNS), record(tasks=tasks, **more))


def scores(values, name="copy-paste score", unit="", critical=None, **about):
    values = np.asarray(values, dtype=float)
    return HeadScores(name, unit, values, None, None, 25, critical, record(**about))


def planted(sizes, seed=0, *, loss=False, k=6):
    """Scores of a model of a real size: a few high, all others low."""
    rng = np.random.default_rng(seed)
    values = rng.beta(0.3, 9, sizes[:2])
    high = rng.choice(values.size, k, replace=False)
    values.ravel()[high] = np.linspace(0.6, 0.9, k)
    if loss:
        values = values * 2 - 0.05
        return scores(values, "loss on computed tokens", "nats", values > 1, sizes=sizes)
    return scores(values, sizes=sizes)


def points(fig, gid):
    """(layer, head) of the marks."""
    return sorted((int(x), int(y)) for line in by_gid(fig, gid) for x, y in line.get_xydata())


def mesh(ax):
    (only,) = [c for c in ax.collections if isinstance(c, mpl.collections.QuadMesh)]
    return only


def maps(fig):
    return [ax for ax in fig.axes if ax.get_xlabel() == "layer"]


def bars(fig):
    return [ax.get_xlabel() for ax in fig.axes if ax.get_label() == "<colorbar>"]


def names(fig, gid="name"):
    return [t.get_text() for t in by_gid(fig, gid)]


def apart(artists):
    boxes = [t.get_window_extent() for t in artists]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2)), "names touch each other"


def luminance(colour) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))
