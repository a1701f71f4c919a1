"""Remote models: simulated by nnsight in this process."""

import json

import backend_table
import pandas as pd
import pytest
import surgery
import tiny
import torch
from backend_table import TOLERANCE
from refusals import refused
from transplants import requests

import depthlens as dl
from depthlens.ablations import BASELINE, parse_condition
from depthlens.engine.references import measure_means
from depthlens.experiments import sweep
from depthlens.models import loading, remote
from depthlens.requests import GenerateRequest, LoglikelihoodRequest

TASK = "capitals_continuation"
KINDS = {k: text for k, text in backend_table.KINDS.items() if "@resample" not in text and "@noise" not in text}


def scores(lens, asked, conditions, **options):
    answers = dl.Engine(lens, progress=False, **options).loglikelihood(asked, conditions)
    logprobs = torch.tensor([[a.logprob for a in row] for row in answers], dtype=torch.float64)
    return logprobs, [[a.is_greedy for a in row] for row in answers]


@pytest.fixture(scope="module")
def pair():
    """A model in memory, and the same one as only a simulated server has it."""
    kept = {}

    def of(family):
        if family not in kept:
            lens = surgery.rough_lens(family, max_position_embeddings=4096)
            kept[family] = lens, remote.simulated(lens)
        return kept[family]

    return of


@pytest.mark.parametrize("family", ["qwen3", "deepseek-v3"])
def test_scores_and_texts_are_those_of_the_torch_backend(pair, family):
    whole, far = pair(family)
    texts = [[*q.context, *q.continuation] for q in requests()]
    here, there = (measure_means(lens, texts, "texts") for lens in (whole, far))
    first, others = here.mean["z"].unbind(1)
    assert not torch.allclose(first, others, atol=0.01), "first tokens and others have the same mean"
    torch.testing.assert_close(there.mean, here.mean, rtol=0, atol=TOLERANCE)
    conditions = [BASELINE, *(parse_condition(text) for text in KINDS.values())]
    context = requests()[0].context
    likeliest = int(whole.model(torch.tensor([context])).logits[0, -1].argmax())
    scored = [*requests(), LoglikelihoodRequest(context, (likeliest,))]
    wanted, got = scores(whole, scored, conditions, means=here), scores(far, scored, conditions, means=there)
    torch.testing.assert_close(got[0], wanted[0], rtol=0, atol=TOLERANCE)
    assert got[1] == wanted[1] and wanted[1][0][-1], "the likeliest token is said to be it"
    assert (wanted[0][1:] - wanted[0][0]).abs().amax(1).min() > 1e-3, "a condition changes nothing"
    asked = [GenerateRequest(q.context, ("a", "�"), 3 + i) for i, q in enumerate(requests())]
    engines = (dl.Engine(lens, progress=False, means=means) for lens, means in ((whole, here), (far, there)))
    texts = [engine.generate_until(asked, conditions) for engine in engines]
    assert texts[1] == texts[0] and len({t for row in texts[0] for t in row}) > 5


def test_a_whole_sweep_by_name(tmp_path):
    folder = str(tiny.save(tmp_path, "llama-gqa", max_position_embeddings=4096))
    given = folder, [TASK, "kv_retrieval_4"], "L1,L2.attn@mean,L3.H2"
    options = {"limit": 2, "progress": False, "device": "cpu"}
    whole, far = (sweep.run_by_name(*given, remote=remote, **options) for remote in (False, "local"))
    columns = ["task", "metric", "condition", "doc_id", "value", "response"]
    pd.testing.assert_frame_equal(far.docs[columns], whole.docs[columns], rtol=0, atol=TOLERANCE)
    about, other = far.record["model"], whole.record["model"]
    assert about["fingerprint"].startswith("remote:") and about["remote"]["host"] == "local"
    assert other["remote"] is None
    differ = {"fingerprint", "remote"}
    assert {k: v for k, v in about.items() if k not in differ} == {k: v for k, v in other.items() if k not in differ}
    json.dumps(far.record)


@pytest.mark.parametrize(("call", "said"), [
    (lambda lens: dl.head_sweep(lens, TASK, method="attribution", limit=1, progress=False), "attribution needs"),
    (lambda lens: sweep.condition_sweep(lens, TASK, "L1.H1@resample", resample_prompts=["x"]), "@resample needs"),
    (lambda lens: dl.Engine(lens).loglikelihood(requests(), [parse_condition("L1@noise")]),
     "condition L1@noise is not done remotely; use @mean"),
    (lambda lens: sweep.condition_sweep(lens, TASK, "L1@donor", limit=1, donor=surgery.rough_lens("llama-gqa")),
     "@donor needs the weights of "),
])  # fmt: skip
def test_what_needs_the_weights_here_is_refused(pair, call, said, monkeypatch):
    lens = pair("llama-gqa")[1]
    monkeypatch.setattr(lens.remote, "attempt", lambda *given: pytest.fail("a trace was sent"))
    refused(said, call, lens)


def test_no_key_for_ndif_is_told_without_a_connection(monkeypatch):
    monkeypatch.setattr(remote.CONFIG.API, "APIKEY", None)
    monkeypatch.setattr(remote.CONFIG.API, "HOST", remote.NDIF)
    said = "^remote=True needs an NDIF API key; get one at https://login.ndif.us, then set NDIF_API_KEY[^\n]*$"
    refused(said, loading.load, "qwen3-8b", remote=True)
