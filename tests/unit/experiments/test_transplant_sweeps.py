"""Transplants as conditions of sweeps, of the command line and of the lm-eval model."""

from __future__ import annotations

import json
import logging

import pandas as pd
import pytest
import torch
from transplants import SAME, TOKENS, logits, requests, same, scores

from depthlens.ablations import parse_condition
from depthlens.analysis.results import Result
from depthlens.engine.engine import Engine
from depthlens.errors import UserError
from depthlens.experiments import distillation
from depthlens.experiments.sweep import condition_sweep
from depthlens.lm_eval_model import DepthlensLM
from depthlens.models import loading

TASK, WRITTEN = "capitals_continuation", "kv_retrieval_4"


@pytest.fixture(scope="module")
def swept(folders):
    base = loading.load(folders("llama-gqa"))
    ablate = "layers@donor,L0-1,bottom@donor,L2@donor+L3.H1,whole@donor"
    return condition_sweep(
        base, [TASK, WRITTEN], ablate, limit=4, donor=folders("llama-gqa", moved=True), measure="both", progress=False
    )


def test_transplants_go_through_sweep_statistics_and_record(swept, folders, tmp_path):
    assert list(swept.docs["condition"].unique()) == swept.record["conditions"]
    assert swept.record["conditions"][-2:] == ["L2@donor+L3.H1", "embed@donor+unembed@donor+L0-4@donor"]
    summary = swept.summary
    assert not summary[["value", "delta"]].isna().any().any()
    one = summary[summary["condition"] == "L2@donor"]
    assert set(one["layer"]) == {2} and summary.loc[summary["condition"] == "L0-2@donor", "layer"].isna().all()
    donor = loading.load(folders("llama-gqa", moved=True))
    alone = condition_sweep(donor, [TASK, WRITTEN], ["baseline"], limit=4, measure="both", progress=False)
    mine = swept.docs[swept.docs["condition"] == swept.record["conditions"][-1]].reset_index(drop=True)
    assert mine["doc_id"].tolist() == alone.docs["doc_id"].tolist()
    assert mine["response"].tolist() == alone.docs["response"].tolist()
    pd.testing.assert_series_equal(mine["value"], alone.docs["value"], rtol=0, atol=SAME)
    swept.save(tmp_path)
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["donor"]["name"] == folders("llama-gqa", moved=True)
    assert record["donor"]["fingerprint"] == donor.fingerprint != record["model"]["fingerprint"]
    assert record["donor"]["notes"] == [
        "embed and unembed differ; a condition takes them along by embed@donor+unembed@donor"
    ]
    again = Result.load(tmp_path)
    pd.testing.assert_frame_equal(again.summary, swept.summary)


def test_the_ends_that_stay_are_told(folders, caplog):
    base, donor = loading.load(folders("llama-gqa")), folders("llama-gqa", moved=True)
    with caplog.at_level(logging.WARNING, "depthlens"):
        condition_sweep(base, TASK, "bottom@donor", limit=1, donor=donor, progress=False)
    (said,) = caplog.messages
    assert "differs in embed and unembed too" in said and "add embed@donor and unembed@donor, or whole@donor" in said
    caplog.clear()
    with caplog.at_level(logging.WARNING, "depthlens"):
        condition_sweep(base, TASK, "L1@donor,whole@donor", limit=1, donor=donor, progress=False)
    assert caplog.messages == []


def test_a_remote_model_takes_no_transplant(folders):
    base, donor = loading.load(folders("llama-gqa"), remote="local"), folders("llama-gqa", moved=True)
    with pytest.raises(UserError, match="@donor needs the weights of .* here; load it without remote"):
        condition_sweep(base, TASK, "L1@donor", limit=1, donor=donor, progress=False)
    with pytest.raises(UserError, match="condition L1@donor is not done remotely"):
        Engine(base, progress=False).backend.score(torch.tensor([[1, 2]]), [parse_condition("L1@donor")], [[0]], [[2]])


def test_a_twin_made_inside_a_transplant_is_the_base(folders):
    base, donor = loading.load(folders("llama-gqa")), loading.load(folders("llama-gqa", moved=True))
    clean = logits(base.model)
    with distillation.transplant(base, donor, layers=[1]):
        wrapped = base.nnsight
    with torch.no_grad(), wrapped.trace(TOKENS):
        found = wrapped.lm_head.output.save()
    same(found, clean)


def test_lm_eval_model(folders):
    base, donor = folders("llama-gqa"), loading.load(folders("llama-gqa", moved=True))
    model = DepthlensLM(base, condition="L1@donor", donor=donor)
    found = model.engine.loglikelihood(requests(), [model.condition])
    together = distillation.with_donor(loading.load(base), donor)
    same(torch.tensor([[a.logprob for a in found[0]]]), scores(together, [parse_condition("L1@donor")]))
