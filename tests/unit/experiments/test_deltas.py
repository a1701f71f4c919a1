"""Deltas of weights and activations between two models, against sums by hand."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from by_hand import recorded
from transplants import other

from depthlens.analysis.stats import mean_intervals
from depthlens.errors import UserError
from depthlens.experiments import distillation
from depthlens.models import loading
from depthlens.models.lens import Lens


@pytest.mark.parametrize(("family", "streamed"), [("llama-gqa", True), ("qwen3-moe", False), ("deepseek-v3", True)])
def test_weight_deltas_by_hand(folders, family, streamed):
    base, donor = loading.load(folders(family)), loading.load(folders(family, moved=True))
    table = distillation.weight_deltas(base, folders(family, moved=True) if streamed else donor)
    mine, its = base.model.state_dict(), donor.model.state_dict()
    names = {"embed.weight": "model.embed_tokens.weight", "final_norm.weight": "model.norm.weight"}
    names["unembed.weight"] = "lm_head.weight"
    found = set()
    for row in table.itertuples():
        key = names[row.matrix] if row.layer is pd.NA else f"model.layers.{row.layer}.{row.matrix}"
        a, b = mine[key].double().flatten(), its[key].double().flatten()
        assert row.relative == pytest.approx(float((b - a).norm() / a.norm()), rel=1e-5)
        assert row.cosine == pytest.approx(float(a @ b / a.norm() / b.norm()), abs=1e-6)
        assert row.n_parameters == a.numel()
        site = {"embed": "embed", "final_norm": "unembed", "unembed": "unembed"}.get(row.matrix.split(".")[0])
        inside = "attn" if "self_attn" in key or "input_layernorm" in key else "mlp"
        assert row.site == (site or inside)
        found.add(key)
    assert found == set(mine)


def test_weight_deltas_of_equal_and_zero_weights():
    base = tiny.lens("qwen2")  # its biases start as zeros
    assert float(base.arch.attn[0].q_proj.bias.abs().max()) == 0
    donor = Lens(copy.deepcopy(base.model), base.tokenizer, "donor")
    table = distillation.weight_deltas(base, donor)
    assert (table["relative"] == 0).all()
    assert table.loc[table["matrix"].str.endswith("bias"), "cosine"].isna().all()
    donor.model.model.layers[1].self_attn.q_proj.bias.data += 1
    moved = distillation.weight_deltas(base, donor).query("relative > 0")
    assert moved["matrix"].tolist() == ["self_attn.q_proj.bias"] and moved["relative"].tolist() == [float("inf")]


def taken_apart(lens, tokens):
    """attn_out, mlp_out and resid_post of every layer from a forward pass of the model, each [pos, d_model]."""
    parts = ("attn_out", "self_attn"), ("mlp_out", "mlp"), ("resid_post", "")
    layers = lens.model.model.layers
    modules = {(i, name): la.get_submodule(part) for i, la in enumerate(layers) for name, part in parts}
    return {name: out[0].double() for name, (_, out) in recorded(lens, tokens, modules)[0].items()}


@pytest.mark.parametrize(("family", "streamed"), [("llama-gqa", True), ("qwen3-moe", True), ("deepseek-v3", False)])
def test_activation_deltas_by_hand(folders, family, streamed):
    base, donor = loading.load(folders(family)), loading.load(folders(family, moved=True))
    rows = [list(b"a longer prompt than that"), "other text", list(b"ab")]
    table = distillation.activation_deltas(base, folders(family, moved=True) if streamed else donor, rows)
    tokens = [base.tokenizer(r).input_ids if isinstance(r, str) else r for r in rows]
    kept = [(taken_apart(base, t), taken_apart(donor, t)) for t in tokens]
    assert table["layer"].tolist() == [i for i in range(5) for _ in range(3)] and set(table["n"]) == {3}
    for row in table.itertuples():
        at = row.layer, row.part
        relative = [float(((b[at] - a[at]).norm(dim=-1) / a[at].norm(dim=-1)).mean()) for a, b in kept]
        cosine = [float(torch.cosine_similarity(a[at], b[at], dim=-1).mean()) for a, b in kept]
        assert row.relative == pytest.approx(sum(relative) / 3, rel=1e-3)
        assert row.cosine == pytest.approx(sum(cosine) / 3, abs=1e-4)
        ends = np.clip(mean_intervals(np.array([cosine])), -1, 1)[:, 0]
        assert (row.cosine_low, row.cosine_high) == pytest.approx(ends.tolist(), abs=1e-3)
        assert 0 <= row.relative_low < row.relative < row.relative_high


def test_activation_deltas_of_equal_models_and_bad_prompts():
    base = tiny.lens("llama-gqa")
    twin = Lens(copy.deepcopy(base.model), base.tokenizer, "same")
    table = distillation.activation_deltas(base, twin, ["one prompt"])
    assert (table["relative"] == 0).all() and table["relative_low"].isna().all()
    for prompts_, message in (([], "give a list"), (["a", ""], "prompt 1 has 0 tokens")):
        with pytest.raises(UserError, match=message):
            distillation.activation_deltas(base, twin, prompts_)
    windowed = tiny.lens("mistral", sliding_window=4)
    with pytest.raises(UserError, match="prompt 0 has 5 tokens; the attention window is 4"):
        distillation.activation_deltas(windowed, other(windowed), [[1, 2, 3, 4, 5]])
