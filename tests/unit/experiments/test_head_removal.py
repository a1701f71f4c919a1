"""Curves of heads removed, their random rivals and the overlap of lists, and organisms with truth."""

from collections import Counter
from random import Random

import numpy as np
import pytest

import depthlens as dl
from depthlens.experiments.head_curves import removal_curve, same_layers

ONE, TWO = "organism_one_hop", "organism_two_hop"
N_DOCS, N_DRAWS = 10, 20


@pytest.fixture(scope="module")
def curve(organism):
    lens, truth = organism
    lists = {"one-hop": [truth.role("retrieval"), (5, 0)], "two-hop": [truth.role("output"), truth.role("bridge")]}
    lists["noise"] = [(5, 2), (0, 1)]
    return removal_curve(lens, [ONE, TWO], lists, k=2, n_draws=N_DRAWS, limit=N_DOCS, progress=False)


# -- random rivals --------------------------------------------------------------------------------------------


def test_rivals_lie_in_the_same_layers_and_are_any_of_their_heads():
    heads = [(3, 1), (0, 2), (3, 5), (7, 0)]
    drawn = [same_layers(heads, 8, Random(seed)) for seed in range(400)]
    for rival in drawn:
        assert [layer for layer, _ in rival] == [3, 0, 3, 7]  # position by position, so that the first k match, too
        assert len(set(rival)) == 4
    for place in range(4):
        times = Counter(rival[place] for rival in drawn)
        assert len(times) == 8 and max(times.values()) < 2 * 400 / 8, "every head of the layer, equally often"


# -- curves on the organism -----------------------------------------------------------------------------------


def test_values_are_those_of_a_sweep(organism, curve):
    lens, _ = organism
    conditions = ["L4.H3", "L3.H0+L4.H3", "L2.H1+L5.H0"]
    alone = dl.condition_sweep(lens, [ONE, TWO], conditions, limit=N_DOCS, progress=False).summary
    alone = alone[alone["metric"] == "acc"].set_index(["task", "condition"])["value"]
    points = curve.points.set_index(["list", "task", "k"])["value"]
    for task in (ONE, TWO):
        assert points["two-hop", task, 1] == alone[task, "L4.H3"]
        assert points["two-hop", task, 2] == alone[task, "L3.H0+L4.H3"]
        assert points["one-hop", task, 2] == alone[task, "L2.H1+L5.H0"]
        assert points["noise", task, 0] == alone[task, "baseline"] == 1.0
    # the band by hand: every draw's own condition
    for name, k in (("one-hop", 1), ("two-hop", 2)):
        texts = ["+".join(f"L{a}.H{b}" for a, b in sorted(map(tuple, d[:k]))) for d in curve.record["draws"][name]]
        docs = curve.result.docs[curve.result.docs["task"] == TWO].groupby("condition")["value"].mean()
        band = curve.band.set_index(["list", "task", "k"]).loc[(name, TWO, k)]
        assert band["low"] == min(docs[texts]) and band["high"] == max(docs[texts])
        assert band["mean"] == pytest.approx(np.mean(docs[texts]))


def test_planted_lists_dissociate_though_layers_of_four_heads_let_no_list_separate(curve):
    found = curve.tests.set_index(["list", "task"])
    assert found["p_value"]["one-hop", ONE] < 0.3 and found["p_value"]["noise", ONE] == 1
    assert not found["separates"].any(), "of sixteen lists, no one can be called unusual at 0.05"
    assert found["value"]["two-hop", TWO] < 0.5 < found["random"]["two-hop", TWO]
    rows = curve.interactions.set_index(["list", "other_list"])
    double = {("one-hop", "two-hop"): True, ("one-hop", "noise"): False, ("two-hop", "noise"): False}
    assert rows["double"].to_dict() == double


def test_accuracy_and_nats_side_by_side_are_seeded(organism):
    lens, truth = organism
    lists = {"one-hop": [truth.role("retrieval"), (4, 0), (5, 1)], "two-hop": [truth.role("output"), (0, 1), (2, 2)]}
    options = {"k": [1, 3], "n_draws": 10, "limit": 6, "progress": False}
    both, nats = (removal_curve(lens, [ONE, TWO], lists, measure=m, **options) for m in ("both", "answer_logprob"))
    assert len(both.tests) == 2 * 2 * 2 and len(both.interactions) == 2 and set(both.points["k"]) == {0, 1, 3}
    assert (both.interactions["metric"] == both.interactions["other_metric"]).all(), "nats only with nats"
    own = both.tests[both.tests["metric"] == "answer_logprob"].reset_index(drop=True)
    assert np.allclose(own[["value", "p_value"]], nats.tests[["value", "p_value"]])
    other = removal_curve(lens, ONE, lists, seed=2, **options)
    assert other.record["draws"] != both.record["draws"] == nats.record["draws"]
