"""Resample ablation: what a part does on a reference prompt at the same position, against hooks written by hand."""

from __future__ import annotations

import numpy as np
import pytest
import surgery
import tiny
import torch

from depthlens.ablations import BASELINE, parse_condition
from depthlens.backends.torch import TorchBackend
from depthlens.engine.engine import Engine
from depthlens.engine.references import measure_means, sample
from depthlens.errors import UserError
from depthlens.experiments.sweep import condition_sweep, head_sweep
from depthlens.requests import GenerateRequest, LoglikelihoodRequest

LOGPROB_TOLERANCE = 1e-4  # float32 sums of a few log-probabilities in another batch layout
REFERENCE = [7, 80, 33, 120, 9, 41]
CONDITIONS = ["L1.H2@resample", "L3.KV1@resample", "L0.H1@resample+L2.H0", "L2.H3@resample+L4.mlp"]
WHOLE = ["L2@resample", "L1.attn@resample", "L3.mlp@resample", "L1-2[1:]@resample", "L1@resample+L2.H0+L3@mean"]


@pytest.fixture(scope="module")
def requests():
    g = torch.Generator().manual_seed(4)
    made = [torch.randint(0, 256, (n,), generator=g).tolist() for n in (5, 9, 21)]  # shorter and longer than it
    return [LoglikelihoodRequest(tuple(t[:-2]), tuple(t[-2:])) for t in made]


def with_sample(lens):
    return sample(lens, measure_means(lens, [REFERENCE], "one prompt"), REFERENCE, "one prompt")


@pytest.mark.parametrize("family", ["llama-gqa", "qwen3", "deepseek-v3"])
def test_log_likelihoods_are_those_of_a_model_that_was_cut(family, requests):
    """The prompt is shorter than some requests, and is read again after its end, more than once."""
    lens = surgery.rough_lens(family)
    means, conditions = with_sample(lens), [BASELINE, *map(parse_condition, [*CONDITIONS, *WHOLE])]
    answers = Engine(lens, means=means, progress=False).loglikelihood(requests, conditions)
    for condition, row in zip(conditions, answers, strict=True):
        for q, answer, clean in zip(requests, row, answers[0], strict=True):
            wanted = surgery.logprob(lens, condition, means, q)
            assert answer.logprob == pytest.approx(wanted, abs=LOGPROB_TOLERANCE), str(condition)
            assert condition == BASELINE or abs(answer.logprob - clean.logprob) > 10 * LOGPROB_TOLERANCE


def test_every_path_gives_the_same(requests):
    lens = tiny.lens("llama-gqa")
    means, conditions = with_sample(lens), list(map(parse_condition, [*CONDITIONS, *WHOLE]))
    asked = [GenerateRequest(q.context, (), 6) for q in requests]
    fast = Engine(lens, means=means, batch_tokens=40, progress=False)
    wanted, texts = fast.loglikelihood(requests, conditions), fast.generate_until(asked, conditions)
    for backend in ("torch", "transformer_lens", "nnsight"):
        plain = Engine(lens, backend=backend, path="padded_rows", means=means, progress=False)
        for row, wanted_row in zip(plain.loglikelihood(requests, conditions), wanted, strict=True):
            assert [a.logprob for a in row] == pytest.approx([a.logprob for a in wanted_row], abs=LOGPROB_TOLERANCE)
        assert plain.generate_until(asked, conditions) == texts, backend


def test_the_reference_itself_is_left_as_it_is(requests):
    lens = tiny.lens("llama-gqa")
    same = LoglikelihoodRequest(tuple(REFERENCE[:4]), tuple(REFERENCE[4:]))
    asked = [parse_condition(text) for text in ("baseline", "L2.H1@resample", "L1-3@resample")]
    (clean,), *others = Engine(lens, means=with_sample(lens), progress=False).loglikelihood([same], asked)
    assert [row[0].logprob for row in others] == pytest.approx([clean.logprob] * 2, abs=LOGPROB_TOLERANCE)


def test_head_sweep_means_over_references():
    lens = tiny.lens("llama-gqa", max_position_embeddings=4096)
    options = {"layers": [1], "limit": 2, "mode": "resample", "num_fewshot": 0, "progress": False}
    one, two = "The capital of Peru is Lima.", "A fox met a crow at the well and said nothing."
    first = head_sweep(lens, "capitals_continuation", resample_prompts=[one], **options)
    second = head_sweep(lens, "capitals_continuation", resample_prompts=[two], **options)
    both = head_sweep(lens, "capitals_continuation", resample_prompts=[one, two], **options)
    assert np.allclose(both.docs["value"], (first.docs["value"] + second.docs["value"]) / 2)
    assert not np.allclose(first.docs["value"], second.docs["value"])
    assert both.record["resample_prompts"] == [one, two]
    assert both.record["conditions"][1] == "L1.H0@resample"


def test_a_mean_over_references_has_the_answers_of_all():
    lens = tiny.lens("llama-gqa", max_position_embeddings=4096)
    prompts = ["The capital of Peru is Lima.", "A fox met a crow at the well and said nothing."]
    options = {"limit": 8, "store": None, "progress": False}
    *alone, both = (
        condition_sweep(lens, ["capitals_default", "kv_retrieval_4"], "L1@resample", resample_prompts=some, **options)
        for some in ([prompts[0]], [prompts[1]], prompts)
    )
    given = [" | ".join(dict.fromkeys(pair)) for pair in zip(*(r.docs["response"] for r in alone), strict=True)]
    assert both.docs["response"].tolist() == given and any(" | " in text for text in given)
    for flag in ("parsed", "complete"):
        assert both.docs[flag].equals(alone[0].docs[flag] & alone[1].docs[flag])


def test_what_is_missing_is_said():
    lens = tiny.lens("llama-gqa")
    condition, tokens = parse_condition("L1.H0@resample"), torch.tensor([[1, 2]])
    backend = TorchBackend(lens, measure_means(lens, [REFERENCE], "x"))
    with pytest.raises(UserError, match="needs a reference prompt"):
        backend.forward(tokens, torch.ones_like(tokens), [condition])
    with (
        pytest.raises(UserError, match="needs to know positions"),
        TorchBackend(lens, with_sample(lens)).ablate([condition]),
    ):
        pass
    assert lens.identify().obstacle is None, "hooks are left"
