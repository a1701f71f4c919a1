"""Sufficiency: conditions against hand-made ones, numbers against their definition, organisms whose truth is known."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import tiny

import depthlens as dl
from depthlens.ablations import Ablation, Condition
from depthlens.analysis import sufficiency as analysis
from depthlens.engine.engine import Engine
from depthlens.engine.references import measure_means
from depthlens.experiments.lists_of_heads import same_layers
from depthlens.experiments.sufficiency import keep_only
from depthlens.requests import LoglikelihoodRequest

LOGPROB_TOLERANCE = 1e-4  # float32 sums of a few log-probabilities in another batch layout
ONE, TWO = "organism_one_hop", "organism_two_hop"
N_DRAWS = 10


@pytest.fixture(scope="module")
def curve(organism):
    lens, truth = organism
    planted = [truth.role(role) for role in ("previous_token", "retrieval", "bridge", "output")]
    lists = {"planted": planted, "noise": [(0, 0), (5, 1), (2, 3), (3, 2)]}
    options = {"limit": 8, "measure": "answer_logprob", "store": None, "progress": False}
    return dl.sufficiency_curve(lens, [ONE, TWO], lists, k=[1, 2, 4], n_draws=N_DRAWS, **options)


# -- what is kept -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama-gqa", "deepseek-v2"])
@pytest.mark.parametrize("kept", [[], [(0, 0), (2, 1), (2, 3)], [(3, h) for h in range(4)]])
def test_every_other_head_is_at_its_mean(family, kept):
    lens = tiny.lens(family)
    dims = lens.dims
    requests = [LoglikelihoodRequest((5, 80, 31, 200, 7), (9, 44)), LoglikelihoodRequest((17, 3, 90), (61,))]
    means = measure_means(lens, [q.context for q in requests], "contexts")
    plainly = [Ablation(la, "head", h, "mean") for la in range(dims.n_layers) for h in range(4) if (la, h) not in kept]
    short, long = keep_only(kept, dims), Condition(tuple(plainly))
    assert len(short.ablations) <= len(long.ablations)
    whole, one, other = Engine(lens, means=means, progress=False).loglikelihood(requests, [Condition(), short, long])
    for a, b, c in zip(whole, one, other, strict=True):
        assert b.logprob == pytest.approx(c.logprob, abs=LOGPROB_TOLERANCE)
        assert abs(b.logprob - a.logprob) > 10 * LOGPROB_TOLERANCE


def test_all_heads_kept_is_the_whole_model():
    dims = tiny.lens("llama-gqa").dims
    assert keep_only(list(np.ndindex(dims.n_layers, dims.n_heads)), dims) == Condition()


# -- random lists --------------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_the_rank_test_keeps_its_level_where_no_list_is_special():
    """Random worths of heads, a list chosen without looking at them: p <= 0.05 in at most 5% of cases."""
    random, rng = Random(1), np.random.default_rng(1)
    shares = np.array([0, 1, 2, 3, 12]) / 12
    rejected = 0
    for _ in range(1000):
        worth = rng.exponential(size=(3, 4)) ** 2  # few heads hold most of it, as in models
        worth /= worth.sum()
        orders = [[(0, 1), (1, 2), (0, 3)]]
        orders += [same_layers(orders[0], 4, random) for _ in range(19)]
        f = np.array([[0, *np.cumsum([worth[head] for head in order]), 1] for order in orders])
        cpr, _ = analysis.areas(f, shares)
        rejected += (1 + (cpr[1:] >= cpr[0]).sum()) / 20 <= 0.05
    assert rejected / 1000 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)


# -- faithfulness and areas -----------------------------------------------------------------------------------------


def test_areas_of_known_curves():
    f = np.array([[0, 0.25, 0.5, 1], [0, 1, 1, 1], [0, 1.5, 1, 1]])  # as by chance; at once; more than the whole model
    cpr, cmd = analysis.areas(f, np.array([0, 0.25, 0.5, 1]))
    assert cpr.tolist() == [0.5, 0.875, 1.0]
    assert cmd.tolist() == [0.5, 0.125, 0.25]  # too much is as far from the model as too little


def test_faithfulness_of_either_direction():
    kept, none, whole = np.array([[-3.0, -2.0, -1.0]]), np.array([-3.0]), np.array([-1.0])
    assert analysis.faithfulness(kept, none, whole).tolist() == [[0, 0.5, 1]]
    assert analysis.faithfulness(-kept, -none, -whole, higher_is_better=False).tolist() == [[0, 0.5, 1]]
    assert np.isnan(analysis.faithfulness(kept, whole, none)).all()  # nothing to restore


def test_points_follow_from_the_documents(curve, organism):
    lens, _ = organism
    scores = curve.result.scores(ONE, "answer_logprob").mean()
    none = scores[str(keep_only([], lens.dims))]
    for name, heads in curve.record["lists"].items():
        own = curve.points[(curve.points["list"] == name) & (curve.points["task"] == ONE)].set_index("k")
        assert list(own.index) == [0, 1, 2, 4, 24]
        for k in (0, 1, 2, 4):
            kept = scores[str(keep_only([tuple(h) for h in heads[:k]], lens.dims))]
            assert own.loc[k, "value"] == pytest.approx(kept)
            assert own.loc[k, "faithfulness"] == pytest.approx((kept - none) / (scores["baseline"] - none))
        assert own.loc[24, "faithfulness"] == 1 and own.loc[0, "faithfulness"] == 0
        row = curve.areas[(curve.areas["list"] == name) & (curve.areas["task"] == ONE)].iloc[0]
        assert row["cpr"] == pytest.approx(np.trapezoid(own["faithfulness"], own.index / 24))
        assert row["cmd"] == pytest.approx(np.trapezoid(np.abs(1 - own["faithfulness"]), own.index / 24))
        assert row["cpr_low"] <= row["cpr"] <= row["cpr_high"] and row["random_low"] <= row["random_high"]
    assert (curve.band["low"] <= curve.band["mean"]).all() and set(curve.band["n_draws"]) == {N_DRAWS}


# -- verdicts on the organism ---------------------------------------------------------------------------------------


def test_planted_heads_suffice_and_noise_does_not(curve):
    table = curve.areas.set_index(["list", "task"])
    assert table["judged"].all()
    for task in (ONE, TWO):
        at_four = curve.points[(curve.points["k"] == 4) & (curve.points["task"] == task)].set_index("list")
        assert at_four.loc["planted", "faithfulness"] > 0.8 > 0.3 > at_four.loc["noise", "faithfulness"]
        assert table.loc[("planted", task), "cpr"] > 0.7 > table.loc[("noise", task), "cpr"] > 0
        # a list of noise is better than ten of its kind in one case of eleven; their range is about 0.02
        better = (table["cpr"] - table["random_cpr"])[:, task]
        assert table.loc[("planted", task), "separates"] and better["planted"] > 0.2 > 0.05 > better["noise"]
        assert table.loc[("planted", task), "p_value"] == pytest.approx(1 / (1 + N_DRAWS))
    lines = [line for line in dl.plots.sufficiency(curve).axes[0].lines if line.get_gid() == "list"]
    drawn = curve.points[(curve.points["task"] == ONE) & (curve.points["k"] > 0)]
    for line, name in zip(lines, ("planted", "noise"), strict=True):
        assert np.allclose(line.get_ydata(), drawn.loc[drawn["list"] == name, "faithfulness"])
    said = curve.describe()
    assert len(said) == 4 and "4 heads (17%) restore" in said[0] and "CPR" in said[0] and "planted" in repr(curve)


def test_a_task_whose_heads_add_nothing_is_not_judged():
    lens = tiny.lens("llama-gqa", max_position_embeddings=4096, initializer_range=0.001)  # says nothing of anything
    options = {"limit": 4, "num_fewshot": 0, "measure": "answer_logprob", "store": None, "progress": False}
    found = dl.sufficiency_curve(lens, "capitals_continuation", {"some": [(1, 1), (2, 2)]}, k=2, n_draws=10, **options)
    assert not found.areas["judged"].any() and not found.areas["separates"].any()
    assert "cannot judge" in found.describe()[0]
    assert dl.plots.sufficiency(found).axes


# -- refusals -------------------------------------------------------------------------------------------------------


def test_a_curve_is_read_as_it_was_written(curve, tmp_path):
    curve.save(tmp_path)
    again = dl.SufficiencyCurve.load(tmp_path)
    assert again.describe() == curve.describe() and again.areas.equals(curve.areas)
    assert dl.Result.load(tmp_path).docs["value"].equals(curve.result.docs["value"])
