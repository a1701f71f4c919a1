"""Blocks of layers, and layers removed one after another."""

import made_results
import numpy as np
import pandas as pd
import pytest

import depthlens as dl
from depthlens.analysis.layers import blocks
from depthlens.analysis.layers.removal import follow

CHOICE = "organism_one_hop"
LIMIT = 16


@pytest.fixture(scope="module")
def lens():
    return dl.load("organism")


@pytest.fixture(scope="module")
def swept(lens):
    return dl.block_sweep(lens, [CHOICE, "organism_two_hop"], max_size=3, limit=LIMIT, progress=False)


@pytest.fixture(scope="module")
def greedy(lens):
    return dl.greedy_removal(lens, CHOICE, tolerance=0.3, limit=LIMIT, progress=False)


def test_table_and_findings(swept):
    table = blocks.block_table(swept)
    assert len(table) == 2 * (6 + 5 + 4)
    row = table[(table["condition"] == "L3-5") & (table["task"] == CHOICE)].iloc[0]
    assert (row["start"], row["size"]) == (3, 3) and row["loss"] == pytest.approx(-row["delta"])
    # the one-hop circuit ends in layer 2; what lies after it costs under a half
    one_hop = next(line for line in blocks.describe_blocks(swept, margin=0.5) if line.startswith(CHOICE))
    assert "**L3-5** (3 layers; up to 3 were tried)" in one_hop
    none = next(line for line in swept.describe() if line.startswith(CHOICE))
    assert "none of 15 blocks of up to 3 layers is shown to cost less than 0.05 of acc" in none, "of 16 documents"


def test_each_step_is_the_cheapest_on_the_choosing_half(lens, greedy):
    gone: list[int] = []
    for step in greedy.steps.iloc[1:].itertuples():
        left = [layer for layer in range(6) if layer not in gone]
        tried = ["+".join(f"L{layer}" for layer in sorted([*gone, layer])) for layer in left]
        result = dl.condition_sweep(lens, CHOICE, tried, limit=LIMIT, progress=False).select(metrics="acc")
        names = list(dict.fromkeys(result.docs["condition"]))[1:]
        scores = []
        for name in names:
            values = result.docs[result.docs["condition"] == name].sort_values("doc_id")["value"].to_numpy()
            scores.append((values[::2].mean(), values[1::2].mean()))
        best = int(np.argmax([choose for choose, _ in scores]))
        assert step.layer == left[best] and step.removed == names[best]
        assert step.value == pytest.approx(scores[best][1])
        gone.append(step.layer)


def test_it_ends_where_the_task_has_fallen_too_far(greedy):
    steps = greedy.steps
    assert steps["within"].iloc[:-1].all() and not steps["within"].iloc[-1]
    assert steps["chosen_by"].iloc[-1] < -0.3 <= steps["chosen_by"].iloc[:-1].min()
    # the circuit has its two heads in layers 1 and 2
    assert not {1, 2} & set(greedy.removed) and len(greedy.removed) >= 2
    assert f"one half of the documents lets **{len(greedy.removed)} of 6** layers go" in greedy.describe()[0]
    assert f"one more (L{steps['layer'].iloc[-1]}) costs the choosing half" in greedy.stopped
    assert greedy.verdict in ("within", "open") and steps["delta"].iloc[-2] >= -0.3


@pytest.mark.slow
@pytest.mark.parametrize(("cost", "most"), [(0.0, 0.0), (0.06, 0.05)])
def test_the_judging_half_is_not_flattered(swept, cost, most):
    """Layers whose true losses add up beyond the tolerance are hardly ever said to be within it."""
    rng = np.random.default_rng(0)
    false = mean_judged = n = 0
    for _ in range(200):
        values: dict[str, np.ndarray] = {}

        def tried(gone, values=values):
            base, left = values.setdefault("", rng.normal(size=80)), [i for i in range(8) if i not in gone]
            harm = cost * (len(gone) + 1)
            scores = [values.setdefault(str([*gone, i]), base - harm + 0.2 * rng.normal(size=80)) for i in left]
            return left, made_results.profile(base, np.stack(scores, 1), None)

        rows, stopped = follow(tried, tolerance=0.1, max_removed=5)
        steps = pd.DataFrame(rows).astype({"layer": "Int64"})
        found = dl.Greedy(steps, swept, stopped, {"task": "t", "metric": "m", "tolerance": 0.1, "n_layers": 8})
        if found.removed:
            true = cost * len(found.removed)
            false += found.verdict == "within" and true > 0.1
            mean_judged += steps[steps["within"]].iloc[-1]["delta"] + true
            n += 1
    assert false / 200 <= most and n > 100
    assert abs(mean_judged / n) < 0.01, "the choice has not changed the mean on the judging half"
