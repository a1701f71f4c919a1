"""Synthetic evidence for the study's claims: sweeps and removal curves whose truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import norm

from depthlens.analysis.layer_profiles import Profile
from depthlens.analysis.removal_curve import RemovalCurve
from depthlens.analysis.results import Result

N_LAYERS, N_DOCS = 12, 40
BASE, CHANCE, GAIN = 0.9, 0.25, 0.1
FIRST, REST = np.arange(N_LAYERS) < 2, np.arange(N_LAYERS) >= 2
THIRD = np.arange(N_LAYERS) * 3 // N_LAYERS


def answers(loss, rng, n=N_DOCS, base=BASE, hardness=None):
    """0/1 answers of the whole model [document] and without each layer [document, layer], of these expected losses.

    A right answer is lost and a wrong one won, both at random; a document easily lost at one layer is so at all.
    """
    hardness = rng.standard_normal(n) if hardness is None else hardness
    whole = norm.cdf(hardness) < base  # a hard document is answered wrongly, and lost easily where it is not
    gain = np.where(np.asarray(loss) >= 0, GAIN, GAIN - np.asarray(loss) / (1 - base))
    lost = (np.asarray(loss) + (1 - base) * gain) / base
    fragile = rng.standard_normal(n)
    noise = np.sqrt(0.3) * fragile[:, None] + np.sqrt(0.7) * rng.standard_normal((n, len(loss)))
    flip = norm.cdf(noise) < np.where(whole[:, None], lost, gain)
    return whole.astype(float), np.where(flip, ~whole[:, None], whole[:, None]).astype(float)


def profile(loss, rng, *, name="task", model="m", chance=CHANCE, **options):
    whole, without = answers(loss, rng, **options)
    layers, ids = np.arange(len(loss)), tuple(map(str, range(len(whole))))
    return Profile(model, name, "acc", name, without, whole, layers, ids, len(loss), chance, True, False, 1.0)


def result(tasks, *, model="m", seed=0, names=None, chance=CHANCE, n=N_DOCS, **options):
    """A sweep; tasks: {name: expected loss of each condition}."""
    parts, record = [], {"model": {"dims": {"n_layers": N_LAYERS}}, "seed": 0, "tasks": {}}
    for i, (task, loss) in enumerate(tasks.items()):
        whole, without = answers(loss, np.random.default_rng([seed, i]), n=n, **options)
        record["tasks"][task] = {"metrics": {"acc": {"higher_is_better": True, "chance": chance}}}
        conditions = names or [f"L{layer}" for layer in range(len(loss))]
        layers = [int(c[1:]) if c[1:].isdigit() else None for c in conditions]
        for name, layer, value in zip(["baseline", *conditions], [None, *layers], [whole, *without.T], strict=True):
            parts.append(pd.DataFrame({"condition": name, "layer": layer, "doc_id": np.arange(n), "value": value}))
            parts[-1]["task"] = task
    docs = pd.concat([p.astype({"layer": "Int64"}) for p in parts]).assign(
        model=model, metric="acc", head=None, response=""
    )
    return Result(docs, record)


TESTS = ("higher_is_better", "p_value", "at_chance")
EXCESS = ("excess", "ci_low", "ci_high", "n", "at_chance")


def heads(costs, seed=0, n_draws=40, n=N_DOCS):
    """Tables of a removal curve: {list: how much more than random heads it costs}, each on a task of its own."""
    rng = np.random.default_rng(seed)
    tests, excess = [], []
    for name, cost in costs.items():
        task = f"{name}_task"
        hardness = rng.standard_normal(n)

        def scores(accuracy, hardness=hardness):
            return norm.cdf(0.6 * hardness + 0.8 * rng.standard_normal(n)) < accuracy

        own, draws = scores(0.8 - cost), np.array([scores(0.8) for _ in range(n_draws)])
        gap = draws.mean(0) - own
        p = (1 + (draws.mean(1) <= own.mean()).sum()) / (1 + n_draws)
        half = 2.023 * gap.std(ddof=1) / np.sqrt(n)  # Student's t for 40 documents
        tests.append((name, task, "acc", True, p, False))
        excess.append((name, task, "acc", gap.mean(), gap.mean() - half, gap.mean() + half, n, False))
    keys = ["list", "task", "metric"]
    tables = pd.DataFrame(), pd.DataFrame(), pd.DataFrame(tests, columns=[*keys, *TESTS])
    curve = RemovalCurve(*tables, sweep(FLAT), {"n_draws": n_draws})
    curve.__dict__["excess"] = pd.DataFrame(excess, columns=[*keys, *EXCESS])  # a cached property, known here
    return curve


OWN = {name: f"{name}_task" for name in ("retrieval", "reasoning")}


def transplants(share, seed=0, n=N_DOCS, n_conditions=6, base=0.3, donor=0.7):
    """Sweep of the base over transplants (the first recovers ``share`` of the gap, the others nothing), and donor."""
    names = [f"L{i}-{i + 1}@donor" for i in range(n_conditions)]
    losses = np.zeros(n_conditions)
    losses[0] = -share * (donor - base)
    hardness = np.random.default_rng([seed, 9]).standard_normal(n)
    options = {"seed": seed, "n": n, "hardness": hardness, "chance": None}
    own = result({"reason": losses}, names=names, base=base, **options)
    return own, result({"reason": np.zeros(N_LAYERS)}, model="d", base=donor, **options)


# layer profiles: expected loss of accuracy (0.65 above chance)
EARLY = np.where(THIRD == 0, 0.5, 0.03)
LATE = np.where(THIRD == 0, 0.03, 0.45)
FLAT = np.full(N_LAYERS, 0.2)
HALF = np.where(THIRD == 0, 0.2, 0.1)  # the first third holds half of all loss
FEW = np.where(FIRST, 0.55, 0.0)


def sweep(loss, name="task", seed=0, **options):
    return result({name: loss}, seed=seed, **options)
