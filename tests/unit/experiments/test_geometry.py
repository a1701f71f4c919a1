"""Depth geometry against hand-written forward passes, and how well it predicts the losses of removed layers."""

import math

import hub
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from by_hand import peak_bytes, recorded
from geometries import ACCURACIES, N_LAYERS, TEXTS
from made_results import exact
from refusals import refused
from scipy import stats as sps

import depthlens as dl
from depthlens.experiments import geometry as geo
from depthlens.experiments import texts
from depthlens.models import loading

FAMILIES = ("llama-gqa", "deepseek-v3")
# float32 on both sides; the walk sums attention in another order than transformers' own kernels
SAME = 2e-5
# a t interval of three values is 2.5 standard deviations wide to each side, and so are their errors
INTERVAL = 1e-4
# effects are quotients of such numbers, up to several times the size of what is divided
QUOTIENT = 2e-4
# float64: what is left of 1e-16 after a few operations
ROUNDING = 1e-12


@pytest.fixture(scope="module", params=FAMILIES)
def lens(request):
    return tiny.lens(request.param)


def streams(lens, text):
    """Residual streams by hand, float64 [depth, pos, d_model], and the logits [pos, vocabulary]."""
    modules = {-1: lens.arch.embed} | dict(enumerate(lens.arch.layers))
    kept, logits = recorded(lens.model, lens.tokenizer(text).input_ids, modules)
    return torch.stack([out[0].double() for _, out in kept.values()]), logits


def cosine(a, b):
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


# the least and the greatest value that there can be
LIMITS = {"distance": (0, 1), "influence": (0, 2), "probability": (0, 1), "rank": (1, np.inf), "entropy": (0, np.inf)}


def check_interval(row, values, name, low="ci_low", high="ci_high"):
    half = sps.t.ppf(0.975, len(values) - 1) * sps.sem(values)
    ends = np.clip([np.mean(values) - half, np.mean(values) + half], *LIMITS[name])
    assert (row[low], row[high]) == pytest.approx(ends.tolist(), abs=INTERVAL)
    assert row["n"] == len(values)


def test_distances_and_influences_equal_those_of_transformers_hidden_states(lens):
    g = geo.depth_geometry(lens, TEXTS, progress=False)
    every = [streams(lens, text)[0] for text in TEXTS]
    n_layers = lens.dims.n_layers
    assert len(g.distances) == n_layers * (n_layers + 1) // 2 and len(g.influences) == n_layers
    for _, row in g.distances.iterrows():
        a, b = int(row["layer"]), int(row["layer"] + row["size"])
        values = [math.acos(float(cosine(x[a, -1], x[b, -1]))) / math.pi for x in every]
        assert row["distance"] == pytest.approx(np.mean(values), abs=SAME)
        check_interval(row, values, "distance")
    for layer, row in g.influences.iterrows():
        values = [1 - float(cosine(x[layer], x[layer + 1]).mean()) for x in every]
        assert row["layer"] == layer and row["influence"] == pytest.approx(np.mean(values), abs=SAME)
        check_interval(row, values, "influence")


def test_the_logit_lens_equals_norm_and_unembedding_by_hand(lens):
    table = geo.depth_geometry(lens, TEXTS, progress=False).logit_lens
    assert table["depth"].tolist() == list(range(lens.dims.n_layers + 1))
    for depth, row in table.iterrows():
        values = []
        for text in TEXTS:
            states, logits = streams(lens, text)
            top = logits.argmax(-1)
            x = states[depth].float()
            with torch.no_grad():
                normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + lens.model.config.rms_norm_eps)
                p = torch.softmax((normed * lens.model.model.norm.weight) @ lens.model.lm_head.weight.T, -1).double()
            order = p.argsort(-1, descending=True)
            ranks = [1 + order[i].tolist().index(int(t)) for i, t in enumerate(top)]
            of_top = p[torch.arange(len(top)), top]
            values.append((float(of_top.mean()), np.median(ranks), float(-(p * p.log()).sum(-1).mean())))
        for name, column in zip(geo.LENS, zip(*values, strict=True), strict=True):
            assert row[name] == pytest.approx(np.mean(column), abs=SAME, rel=SAME), name
            check_interval(row, column, name, f"{name}_low", f"{name}_high")
    assert table["rank"].iloc[-1] == 1, "the final top-1 token is on top after the last layer"


def test_distances_are_a_metric_between_0_and_1_also_where_directions_nearly_agree():
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(16, generator=draw, dtype=torch.float64)
    near = [base * s + 10.0**-k * torch.randn(16, generator=draw) for k in range(2, 18, 3) for s in (1e-3, 1.0, 1e4)]
    points = torch.stack([base, -base, 3 * base, *near])
    d = geo.angular_distance(points[:, None].expand(-1, len(points), -1), points[None].expand(len(points), -1, -1))
    assert d.dtype == torch.float64 and d.isfinite().all() and d.min() >= 0 and d.max() <= 1
    assert d[0, 0] == 0 and d[0, 2] < ROUNDING and abs(d[0, 1] - 1) < ROUNDING
    torch.testing.assert_close(d, d.T, rtol=0, atol=ROUNDING)
    excess = d[:, None, :] - (d[:, :, None] + d[None])  # [a, b, c]: d(a, c) - d(a, b) - d(b, c)
    assert excess.max() <= ROUNDING


def test_a_text_is_walked_once_and_memory_is_that_of_one_text(monkeypatch):
    lens, walked, streams = tiny.lens("llama-gqa"), [], geo.residual_streams
    with monkeypatch.context() as patch:
        patch.setattr(geo, "residual_streams", lambda *args: walked.append(len(args[1])) or streams(*args))
        geo.depth_geometry(lens, TEXTS, progress=False)
    assert walked == [len(t) for t in TEXTS]
    few, many = (peak_bytes(lambda n=n: geo.depth_geometry(lens, TEXTS[:1] * n, progress=False)) for n in (2, 8))
    assert many == pytest.approx(few, rel=0.05), "states of an earlier text are still held"


def test_an_offloaded_model_gives_the_same(tmp_path):
    folder = str(tiny.save(tmp_path / "model", "deepseek-v3"))
    tables = []
    for offload in (None, "disk"):
        lens = loading.load(folder, offload=offload)
        g = geo.depth_geometry(lens, TEXTS, progress=False)
        assert g.record["model"]["offload"] == offload
        tables.append((g.distances, g.influences, g.logit_lens))
    assert all(t.is_meta for layer in lens.arch.layers for t in layer.parameters()), "no layer stays in memory"
    for whole, streamed in zip(*tables, strict=True):
        # where weights lie in memory can change the order of some sums
        pd.testing.assert_frame_equal(streamed, whole, rtol=QUOTIENT, atol=QUOTIENT)


def test_weights_that_overflow_are_refused():
    broken = tiny.lens("llama-gqa")
    broken.arch.layers[3].mlp.down_proj.weight[0, 0] = math.nan
    refused("not finite under baseline", geo.depth_geometry, broken, TEXTS, progress=False)


def test_c4_is_its_first_validation_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(hub.write(tmp_path))
    wanted = [doc["text"] for doc in hub.DATA_SETS["allenai/c4"]["en"]["validation"]]
    assert texts.chosen("c4", 3) == wanted[:3] and texts.chosen("c4", 100) == wanted
    lens = tiny.lens("llama-gqa")
    by_name, by_hand = (geo.depth_geometry(lens, texts, limit=2, progress=False) for texts in ("c4", wanted))
    assert by_name.record["texts"]["source"] == "c4" and by_hand.record["texts"]["source"] == "given"
    assert by_name.record["texts"]["digest"] == by_hand.record["texts"]["digest"]
    assert by_name.distances.equals(by_hand.distances)


def test_agreement_is_spearman_of_the_layers_that_the_sweep_removes():
    cheap = pd.DataFrame({"layer": range(N_LAYERS), "good": [9, 5, 4, 2, 1.0], "poor": [1, 5, 0, 9, 2.0], "flat": 1.0})
    table = dl.agreement(exact(ACCURACIES), cheap.sample(frac=1, random_state=1)).table.set_index("predictor")
    assert set(table["task"]) == {"sums"}, "a task at chance has no losses to foretell"
    base, without = ACCURACIES["sums"]
    loss = [base - a for a in without]
    for name in ("good", "poor"):
        assert table.loc[name, "spearman"] == pytest.approx(sps.spearmanr(cheap[name], loss).statistic)
        assert table.loc[name, "other_reliability"] == 1
    assert table.loc["good", "spearman"] == pytest.approx(1) and np.isnan(table.loc["flat", "spearman"])
