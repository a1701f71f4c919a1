"""Transplants equal surgery on copies of the model and leave nothing behind; deltas against sums by hand."""

import json

import pandas as pd
import pytest
import surgery
import tiny
import torch
import transplants
from accelerate.utils import OffloadedWeightsLoader
from transplants import SAME, conditions_for, logits, operated, removals, requests, same, scores, texts, two

import depthlens as dl
from depthlens.ablations import BASELINE, expand, parse_condition
from depthlens.engine.references import measure_means
from depthlens.lm_eval_model import DepthlensLM
from depthlens.models import loading

BIASED = {"attention_bias": True}  # that of the output projection goes with the whole attention


@pytest.mark.parametrize("family", ["llama-gqa", "deepseek-v3"])
def test_other_rotary_frequencies_go_with_whole_layers(family):
    base = surgery.rough_lens(family)
    donor = transplants.other(surgery.rough_lens(family, rope_parameters={"rope_type": "default", "rope_theta": 50.0}))
    together = dl.with_donor(base, donor)
    assert together.own_rotary
    with dl.ablated(together, "embed@donor+unembed@donor+L0-4@donor"):
        same(logits(base.model), logits(donor.model))
    conditions = expand("whole@donor,L2.H1@donor,L1", base.dims)
    found = scores(together, conditions)
    same(found[1], scores(donor, conditions[:1])[0])
    # a head shares keys with its group, so it is turned as they are
    same(found[2], scores(operated(base, donor, conditions[2]), conditions[:1])[0])
    assert texts(together, conditions)[1] == texts(donor, conditions[:1])[0]


TRIED = [*((family, 2048, {}) for family in tiny.FAMILIES), ("llama-gqa", 1, {})]
TRIED += [("llama-gqa", 2048, BIASED), ("deepseek-v2", 2048, BIASED)]


@pytest.mark.parametrize(("family", "batch_tokens", "changes"), TRIED)
def test_wavefront_plain_rows_and_generation_agree_with_surgery(family, batch_tokens, changes):
    base, donor = two(family, **changes)
    together = dl.with_donor(base, donor)
    conditions = conditions_for(base)
    clean, walked = scores(base, [BASELINE])[0], scores(together, conditions, batch_tokens=batch_tokens)
    written = texts(together, conditions)
    same(scores(together, conditions, batch_tokens=batch_tokens, path="padded_rows"), walked, "plain rows")
    assert texts(together, conditions, path="padded_rows") == written
    for i, condition in enumerate(conditions):
        cut = operated(base, donor, condition)
        same(walked[i], scores(cut, [removals(condition)])[0], str(condition))
        seen = bool((walked[i] - clean).abs().max() > 10 * SAME)
        assert bool(condition) == seen, f"{condition} does too little to see"
        if batch_tokens > 1:
            assert written[i] == texts(cut, [removals(condition)])[0], str(condition)
    assert len({tuple(row) for row in written}) > len(conditions) // 2, "the texts tell nothing apart"


def test_reference_means_and_donors_in_one_condition():
    base, donor = two("llama-gqa")
    means = measure_means(base, [q.context for q in requests()], "prompts")
    conditions = expand("L1@donor+L3.mlp@mean,L2.H0@mean+L2.KV1@donor,L4@mean", base.dims)
    found = scores(dl.with_donor(base, donor), conditions, means=means)
    for row, condition in zip(found, conditions, strict=True):
        cut = operated(base, donor, condition)
        same(row, scores(cut, [removals(condition)], means=means)[0], str(condition))


def test_a_failing_read_of_the_donor_leaves_the_base_whole(saved, monkeypatch):
    base, donor = loading.load(saved("llama-gqa")), loading.load(saved("llama-gqa", moved=True), offload="disk")
    clean, shape, together = logits(base.model), transplants.attributes(base.model), dl.with_donor(base, donor)

    def fail(self, key):
        raise OSError(f"cannot read {key}")

    with monkeypatch.context() as patch:
        patch.setattr(OffloadedWeightsLoader, "__getitem__", fail)
        with pytest.raises(OSError, match="cannot read"), dl.ablated(together, "L1@donor+L3@donor"):
            logits(base.model)
        with pytest.raises(OSError, match="cannot read"):
            scores(together, expand("L1@donor,L3@donor", base.dims))
    assert torch.equal(logits(base.model), clean) and transplants.attributes(base.model) == shape
    assert transplants.layers_in_memory(donor) == []


def test_transplants_inside_one_another_are_both_in_force():
    base, donor = two("llama-gqa")
    clean = logits(base.model)
    together = dl.with_donor(base, donor)
    with dl.ablated(together, "L1@donor"):
        outer = logits(base.model)
        with dl.ablated(together, "L2@donor+L3.attn@donor"):
            both = logits(base.model)
        assert torch.equal(logits(base.model), outer)
    assert torch.equal(logits(base.model), clean)
    with dl.ablated(together, "L1-2@donor+L3.attn@donor"):
        assert torch.equal(logits(base.model), both)


TASK, WRITTEN = "capitals_continuation", "kv_retrieval_4"


def test_transplants_go_through_sweep_statistics_and_record(saved, tmp_path):
    base, donor = loading.load(saved()), loading.load(saved(moved=True))
    options = {"limit": 4, "measure": "both", "progress": False}
    ablate = "layers@donor,L0-1,bottom@donor,L2@donor+L3.H1,whole@donor"
    swept = dl.condition_sweep(base, [TASK, WRITTEN], ablate, donor=saved(moved=True), **options)
    assert list(swept.docs["condition"].unique()) == swept.record["conditions"]
    assert swept.record["conditions"][-2:] == ["L2@donor+L3.H1", "embed@donor+unembed@donor+L0-4@donor"]
    alone = dl.condition_sweep(donor, [TASK, WRITTEN], ["baseline"], **options)
    mine = swept.docs[swept.docs["condition"] == swept.record["conditions"][-1]].reset_index(drop=True)
    assert mine["doc_id"].tolist() == alone.docs["doc_id"].tolist()
    assert mine["response"].tolist() == alone.docs["response"].tolist()
    pd.testing.assert_series_equal(mine["value"], alone.docs["value"], rtol=0, atol=SAME)
    swept.save(tmp_path)
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["donor"]["name"] == saved("llama-gqa", moved=True)
    assert record["donor"]["fingerprint"] == donor.fingerprint != record["model"]["fingerprint"]


def test_lm_eval_model(saved):
    base, donor = saved("llama-gqa"), loading.load(saved("llama-gqa", moved=True))
    model = DepthlensLM(base, condition="L1@donor", donor=donor)
    found = model.engine.loglikelihood(requests(), [model.condition])
    together = dl.with_donor(loading.load(base), donor)
    same(torch.tensor([[a.logprob for a in found[0]]]), scores(together, [parse_condition("L1@donor")]))
