"""Remote models: simulated by nnsight in this process, and on a server in a process that alone has the weights."""

from __future__ import annotations

import json

import backend_table
import pandas as pd
import pytest
import surgery
import tiny
import torch
from remote_models import (
    KINDS,
    TASK,
    TOKENS,
    TOLERANCE,
    contexts_and_answers,
    every_kind,
    requests,
    scores,
)

import depthlens as dl
from depthlens.ablations import BASELINE, expand, parse_condition
from depthlens.backends.remote import RemoteNnsight
from depthlens.engine.engine import Engine
from depthlens.engine.references import measure_means
from depthlens.errors import UserError
from depthlens.experiments import attention_patterns, sweep
from depthlens.models import remote
from depthlens.requests import GenerateRequest


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


# --- the simulation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama-gqa", "deepseek-v3"])
def test_every_kind_of_condition_equals_a_model_that_was_cut(family, pair):
    whole, far = pair(family)
    means = measure_means(far, backend_table.REFERENCE, "two prompts", backend_table.ANSWERS)
    conditions = [BASELINE, *(parse_condition(text) for text in KINDS.values())]
    logits = backend_table.batch_logits(RemoteNnsight(far, means), conditions)
    clean = whole.model(TOKENS[None], use_cache=False).logits[0]
    assert (logits[0] - clean).abs().max() < TOLERANCE
    for kind, condition, found in zip(["baseline", *KINDS], conditions, logits, strict=True):
        wanted = surgery.logits(whole, condition, means, TOKENS, backend_table.N_CONTEXT)
        assert (found - wanted).abs().max() < TOLERANCE, kind
        assert kind == "baseline" or (found - clean).abs().max() > 0.1, f"{kind} changes nothing"


@pytest.mark.parametrize("family", ["qwen3"])
def test_scores_and_texts_are_those_of_the_torch_backend(family, pair):
    whole, far = pair(family)
    here, there = (measure_means(lens, *contexts_and_answers()) for lens in (whole, far))
    assert not torch.allclose(here.z[:, 1], here.z[:, 2], atol=0.01), "prompts and answers have the same mean"
    for site in ("layer", "attn", "mlp", "z"):
        torch.testing.assert_close(getattr(there, site), getattr(here, site), rtol=0, atol=TOLERANCE)
    conditions = every_kind(whole.dims)
    wanted, got = scores(whole, conditions, means=here), scores(far, conditions, means=there)
    torch.testing.assert_close(got[0], wanted[0], rtol=0, atol=TOLERANCE)
    assert got[1] == wanted[1]
    assert (wanted[0][1:] - wanted[0][0]).abs().amax(1).min() > 1e-3, "a condition changes nothing"
    asked = [GenerateRequest(q.context, ("a", "�"), 3 + i) for i, q in enumerate(requests())]
    some = [*conditions[:: len(conditions) // 8], *conditions[-3:]]
    texts = [
        Engine(lens, progress=False, means=means).generate_until(asked, some)
        for lens, means in ((whole, here), (far, there))
    ]
    assert texts[1] == texts[0] and len({t for row in texts[0] for t in row}) > 5


def test_one_trace_serves_all_conditions_and_the_budget_cuts_it(pair):
    whole, far = pair("llama-gqa")
    conditions = expand("heads", whole.dims)
    n_rows, longest = len(conditions) * len(requests()), max(len(q.context + q.continuation) - 1 for q in requests())
    wanted = scores(whole, conditions)
    for budget, least, most in (
        (None, 1, 1),
        (longest * len(conditions), 5, 5),
        (longest * 4, 20, 35),
        (1, n_rows, n_rows),
    ):
        before = far.remote.traffic.traces
        found = scores(far, conditions, batch_tokens=budget)
        assert least <= far.remote.traffic.traces - before <= most, budget
        torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=TOLERANCE)
        assert found[1] == wanted[1]


def test_a_whole_sweep_by_name(tmp_path):
    folder = str(tiny.save(tmp_path, "llama-gqa", max_position_embeddings=4096))
    whole, far = (
        sweep.run_sweep(
            folder, [TASK, "kv_retrieval_4"], "L1,L2.attn@mean,L3.H2", limit=2, remote=r, progress=False, device="cpu"
        )
        for r in (False, "local")
    )
    columns = ["task", "metric", "condition", "doc_id", "value", "response"]
    pd.testing.assert_frame_equal(far.docs[columns], whole.docs[columns], rtol=0, atol=TOLERANCE)
    about, other = far.record["model"], whole.record["model"]
    assert about["fingerprint"].startswith("remote:") and about["remote"]["host"] == "local"
    assert other["remote"] is None
    differ = {"fingerprint", "remote"}
    assert {k: v for k, v in about.items() if k not in differ} == {k: v for k, v in other.items() if k not in differ}
    json.dumps(far.record)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda lens: dl.head_sweep(lens, TASK, method="attribution", limit=1, progress=False), "attribution needs"),
        (lambda lens: sweep.condition_sweep(lens, TASK, "L1.H1@resample", resample_prompts=["x"]), "@resample needs"),
        (
            lambda lens: Engine(lens).loglikelihood(requests(), [parse_condition("L1@noise")]),
            "condition L1@noise: @noise is not done remotely; use @mean",
        ),
        (lambda lens: Engine(lens, backend="transformer_lens"), "a remote model is reached through nnsight"),
        (lambda lens: attention_patterns.read(lens, [[1, 2]], [[1]], print), "the attention pattern needs the weights"),
    ],
)
def test_what_needs_the_weights_here_is_refused(pair, call, said):
    lens = pair("llama-gqa")[1]
    before = lens.remote.traffic.traces
    with pytest.raises(UserError) as caught:
        call(lens)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert lens.remote.traffic.traces == before
