"""Resample ablation: z of a reference prompt at the same position, against hooks written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from depthlens.ablations import parse_condition
from depthlens.backends import get
from depthlens.backends.torch import TorchBackend
from depthlens.engine.engine import Engine
from depthlens.engine.references import measure_means, sample
from depthlens.errors import UserError
from depthlens.experiments.sweep import head_sweep
from depthlens.requests import GenerateRequest, LoglikelihoodRequest

LOGPROB_TOLERANCE = 1e-4  # float32 sums of a few log-probabilities in another batch layout
REFERENCE = [7, 80, 33, 120, 9, 41]
CONDITIONS = ["L1.H2@resample", "L3.KV1@resample", "L0.H1@resample+L2.H0", "L2.H3@resample+L4.mlp"]


@pytest.fixture(scope="module")
def requests():
    g = torch.Generator().manual_seed(4)
    made = [torch.randint(0, 256, (n,), generator=g).tolist() for n in (5, 9, 21)]  # shorter and longer than it
    return [LoglikelihoodRequest(tuple(t[:-2]), tuple(t[-2:])) for t in made]


def with_sample(lens):
    return sample(lens, measure_means(lens, [REFERENCE], "one prompt"), REFERENCE, "one prompt")


def by_hand(lens, request, heads, zeroed=(), reference=REFERENCE):
    """Log-likelihood when heads (layer, head) get z of the reference at their position, read again after its end."""
    n_ref, d = len(reference), lens.dims.d_head
    z = {}
    hooks = [
        o.register_forward_pre_hook(lambda m, a, i=i: z.update({i: a[0].clone()}))
        for i, o in enumerate(lens.arch.o_proj)
    ]
    lens.model(torch.tensor([reference]))
    for hook in hooks:
        hook.remove()
    tokens = [*request.context, *request.continuation]
    places = [p if p < n_ref else 1 + (p - 1) % (n_ref - 1) for p in range(len(tokens))]

    def put(layer):
        def hook(module, args):
            new = args[0].clone()
            for where, head in heads:
                if where == layer:
                    new[0, :, head * d : (head + 1) * d] = z[layer][0, places, head * d : (head + 1) * d]
            for where, head in zeroed:
                if where == layer:
                    new[0, :, head * d : (head + 1) * d] = 0
            return (new,)

        return hook

    hooks = [o.register_forward_pre_hook(put(i)) for i, o in enumerate(lens.arch.o_proj)]
    logprobs = lens.model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    for hook in hooks:
        hook.remove()
    n = len(request.context)
    return sum(logprobs[n + i - 1, t].item() for i, t in enumerate(request.continuation))


@pytest.mark.parametrize("family", ["llama-gqa", "qwen3", "deepseek-v3"])
def test_equals_hooks_written_by_hand(family, requests, kernel):
    lens = tiny.lens(family)
    engine = Engine(lens, means=with_sample(lens), progress=False)
    answers = engine.loglikelihood(requests, [parse_condition("baseline"), *map(parse_condition, CONDITIONS[:3])])
    group = [(3, h) for h in lens.dims.query_heads(1)]
    for r, request in enumerate(requests):
        wanted = [
            by_hand(lens, request, []),
            by_hand(lens, request, [(1, 2)]),
            by_hand(lens, request, group),
            by_hand(lens, request, [(0, 1)], zeroed=[(2, 0)]),
        ]
        assert [row[r].logprob for row in answers] == pytest.approx(wanted, abs=LOGPROB_TOLERANCE)
        assert abs(wanted[1] - wanted[0]) > 10 * LOGPROB_TOLERANCE


def test_every_path_gives_the_same(requests):
    lens = tiny.lens("llama-gqa")
    means, conditions = with_sample(lens), list(map(parse_condition, CONDITIONS))
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
    answers = Engine(lens, means=with_sample(lens), progress=False).loglikelihood(
        [same], [parse_condition("baseline"), parse_condition("L2.H1@resample")]
    )
    assert answers[0][0].logprob == pytest.approx(answers[1][0].logprob, abs=LOGPROB_TOLERANCE)


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


def test_what_is_missing_is_said(requests):
    lens = tiny.lens("llama-gqa", max_position_embeddings=4096)
    for options, message in [
        ({"mode": "resample"}, "L0.H0@resample needs resample_prompts"),
        ({"resample_prompts": ["x"]}, "used by @resample conditions only"),
        ({"mode": "resample", "resample_prompts": "x"}, "give a list of prompts"),
        ({"mode": "resample", "resample_prompts": [" "]}, "none of them empty"),
        (
            {"mode": "resample", "resample_prompts": ["x"], "method": "attribution"},
            "mode 'resample': attribution estimates",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            head_sweep(lens, "capitals_continuation", limit=1, progress=False, **options)
    with pytest.raises(UserError, match="does not fit site 'attn'; allowed: zero, mean"):
        parse_condition("L1.attn@resample")
    backend = get("torch", lens, measure_means(lens, [REFERENCE], "x"))
    with pytest.raises(UserError, match="needs a reference prompt"):
        backend.forward(torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.long), [parse_condition("L1.H0@resample")])
    with (
        pytest.raises(UserError, match="needs to know positions"),
        TorchBackend(lens, with_sample(lens)).ablate([parse_condition("L1.H0@resample")]),
    ):
        pass
    assert lens.identify().obstacle is None, "hooks are left"
