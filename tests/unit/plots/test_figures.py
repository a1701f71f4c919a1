"""Every figure by one table: how many panels, which series with which numbers, what is proven, and what is written.

A number is that of the table or result that the figure is drawn from, and is compared with the figure's own table:
`test_panels` proves that the pictures draw it. `check` draws each without warnings or cut edges.
"""

import geometries
import made_results
import numpy as np
import pytest
from drawn import Case, holds
from made_results import EARLY, LATE, sweep

import depthlens as dl
from depthlens.analysis.runs.comparison import LOSS, SHARE

N, N_LAYERS = 120, 6


def layers(
    task="capitals", metric="acc", site="", *, base=0.9, scale=1.0, gain=None, flip=False, model="tiny", n=N, **info
):
    """A deterministic sweep: without layer 0 all is lost, without layer 3 a share of 0.3 is kept; others do nothing."""
    kept = {"baseline": 1.0} | {f"L{i}{site}": {0: 0.0, 3: 0.3, gain: 1.0 / base}.get(i, 1.0) for i in range(N_LAYERS)}
    scores = {c: scale * (np.arange(n) < round(share * base * n)) for c, share in kept.items()}
    scores = {c: 1 - s for c, s in scores.items()} if flip else scores
    told = {"higher_is_better": not flip} | ({"chance": None} if flip else {}) | info
    return made_results.result({task: scores}, metric=metric, model=model, n_layers=N_LAYERS, info=told)


def delta(result, task=None):
    """Change by layer."""
    return (result.select(tasks=task) if task else result).summary["delta"].iloc[1:].to_numpy()


TASKS = "continuation", "guess", "written"
GUESS = layers("guess", base=0.25)
PROTOCOLS = dl.concat([layers("continuation"), GUESS, layers("written", "exact_match", base=0.8, chance=None)])


def profiles():
    one = layers()
    said = ("tiny, capitals: one layer removed at a time, n = 120 documents", "95% interval", "critical", "chance")
    yield Case(one.plot("depth_profile"), 1, one.summary["value"].iloc[1:], [0, 3], {"baseline": 1, "chance": 1}, said)
    yield Case(one.plot("depth_profile", title="T"), 1, words=("T", "accuracy"))
    scores = {task: PROTOCOLS.select(tasks=task).summary["value"].iloc[1:] for task in ("continuation", "guess")}
    yield Case(PROTOCOLS.plot("depth_profile"), 1, scores, [0, 3] * 2, {"series": 3, "baseline": 3}, cannot_judge=1)
    graded = layers("summaries", "rouge", scale=37.5, chance=None)
    yield Case(dl.concat([one, graded]).plot("depth_profile"), 2, words=("accuracy", "rouge"))
    sites = dl.concat([one, layers(site=".attn"), layers(site="@donor")])
    said = ("attention", "donor", "one layer or part of it removed or replaced at a time")
    yield Case(sites.plot("depth_profile"), 1, count={"series": 3}, words=said)
    yield Case(layers(site="@mean").plot("depth_profile"), 1, words=("one layer under @mean at a time",))
    errors = layers(metric="error", flip=True)
    yield Case(errors.plot("depth_profile"), 1, errors.summary["value"].iloc[1:], [0, 3])
    judged = np.where(np.arange(18) // 6 == 1, np.nan, np.ravel([delta(PROTOCOLS, t) for t in TASKS]))
    said = ("continuation", "guess", "baseline 0.90", "critical")
    yield Case(PROTOCOLS.plot("protocol_comparison"), 2, judged, [0, 3] * 2, {"hatch": 1}, said, cannot_judge=1)
    gain = layers(base=0.6, gain=5).plot("protocol_comparison")
    yield Case(gain, 2, shown=[0, 3], count={"gain": 1}, words=("significant gain",))


def transplants():
    """The last two layers hold what the donor knows more; each condition with its share of the gap."""
    order, last = np.arange(N) / N, N_LAYERS - 1
    shares = {f"L{k}@donor": 0 for k in range(N_LAYERS)} | {f"L0-{k}@donor": max(0, k - 3) / 2 for k in range(1, 6)}
    shares |= {f"L{k}-{last}@donor": min(1, (6 - k) / 2) for k in range(1, last)}
    scores = {c: order < 0.2 + 0.7 * s for c, s in ({"baseline": 0} | shares).items()}
    result = made_results.result({"t": scores}, model="base", info={"chance": 0.0})
    donor = made_results.result({"t": {"baseline": order < 0.9}}, model="donor", info={"chance": 0.0})
    moved = {"layer x alone": [0.2] * 6, "layers 0 to x": [0.2] * 4 + [0.55, 0.9]}
    moved["layers x to the last"] = [0.9] * 5 + [0.2]
    said = ("base with layers of donor, n = 120 documents", "differs from the base")
    yield Case(result.plot("recovery_curve", donor=donor), 1, moved, count={"base": 1, "donor": 1}, words=said)


def head_figures():
    curve = made_results.removal_curve(("copy", "sums"))
    own = {name: curve.points.loc[curve.points["list"] == name, "value"] for name in curve.points["list"].unique()}
    own["retrieval: random heads"] = [0.925] * 4
    said = ("m: first k heads of a list removed, 2 random draws", "retrieval p = 0.04", "worse than every random draw")
    yield Case(curve.plot(), 2, own, [1, 1], {"random": 4}, said)
    guess = made_results.removal_curve(("guess",)).plot()
    yield Case(guess, 1, shown=[], count={"series": 2}, cannot_judge=3)


def geometry_figures():
    g = geometries.measured()
    single = g.distances[g.distances["size"] == 1]["distance"]
    every = [*g.influences["influence"], *single, *g.logit_lens["probability"], *g.logit_lens["entropy"]]
    said = ("n = 3 texts", "entropy (nats)", "final top-1 token")
    yield Case(g.plot(), 4, every, count={"band": 4}, words=said)


def run_figures():
    base, late = sweep(EARLY, n=120, model="base"), sweep(LATE, n=120, model="late", seed=1)
    two = dl.compare(base, late)
    rows = two.of(SHARE)
    shares = {run: rows.loc[rows["run"] == run, "value"] for run in two.runs}
    critical = rows.loc[rows["critical"], "layer"]
    yield Case(two.plot(), 1, shares, critical, words=("base, late: loss by removed part", "removed layer"))
    table = two.of(LOSS, SHARE, compared=True)
    shown = table.loc[table["shown"], "layer"]
    yield Case(two.plot("loss_difference"), 2, table["difference"], shown, words=("late minus base",))
    shorter = dl.compare(base, sweep(LATE[:6], n=120, model="late", n_layers=6))
    yield Case(shorter.plot(), 1, words=("depth (layer / last layer)",))
    guesses = [sweep(EARLY, accuracy=0.2, chance=0.25, model=name) for name in "ab"]
    yield Case(dl.compare(*guesses).plot(), 1, shown=[], cannot_judge=2)


def other_figures():
    blocks = {f"L{i}-{j}" if j > i else f"L{i}": 0.2 * (j - i + 1) for i in range(4) for j in range(i, min(4, i + 3))}
    scores = {c: np.arange(N) < (0.9 - x) * N for c, x in {"baseline": 0, **blocks}.items()}
    made = made_results.result({"t": scores}, n_layers=4)
    yield Case(made.plot(), 2, list(blocks.values()), count={"cells": 1}, words=("first layer of the block",))


@pytest.mark.parametrize("made", [profiles, transplants, head_figures, geometry_figures, other_figures, run_figures])
def test_figures_draw_their_tables(made):
    for case in made():
        holds(case)
