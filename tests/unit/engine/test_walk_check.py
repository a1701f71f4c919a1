"""A walk is trusted where it computes what the model computes: many classes, and models changed by hand."""

import logging
import re

import model_classes
import pytest
import tiny
import torch
from by_hand import logprob
from model_classes import ABLATE, ASKED, CONTEXTS, logprobs, scores
from refusals import refused
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import depthlens as dl
from depthlens.ablations import BASELINE, expand
from depthlens.engine import tree_attention, walk_check
from depthlens.experiments import attribution
from depthlens.requests import GenerateRequest, LoglikelihoodRequest

SAME = 1e-4  # nats, of sums in another order
WRITTEN = [GenerateRequest(context, (), 5) for context in CONTEXTS]


# of classes that differ in what a walk must know; all others are tried at night
KINDS = ["bitnet", "cohere2", "gemma3_text", "glm4_moe", "granite", "minimax_m2", "olmo2", "phi"]


def tried(kinds, always):
    return [kind if kind in always else pytest.param(kind, marks=pytest.mark.nightly) for kind in kinds]


@pytest.mark.parametrize("kind", tried(model_classes.WALKED, KINDS))
def test_a_class_that_is_walked_has_the_scores_and_texts_of_whole_passes(kind):
    lens = model_classes.lens(kind)
    assert walk_check.found(lens).fault is None
    walked, whole = (logprobs(lens, path) for path in ("wavefront", "padded_rows"))
    assert torch.allclose(walked, whole, atol=SAME) and not torch.allclose(whole[0], whole[1], atol=1e-3)
    conditions = expand(ABLATE, lens.dims)
    texts = [dl.Engine(lens, path=p, progress=False).generate_until(WRITTEN, conditions) for p in (None, "padded_rows")]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("kind", tried(model_classes.WHOLE_PASSES, ["gemma2", "gpt_oss", "diffllama"]))
def test_a_class_that_is_not_walked_is_right_and_says_why(kind, caplog):
    lens = model_classes.lens(kind)
    with caplog.at_level(logging.WARNING):
        found = logprobs(lens, None)
    assert f"model {kind}: " in caplog.text and "each row takes a whole pass" in caplog.text
    assert found[0].tolist() == pytest.approx([logprob(lens.model, request) for request in ASKED], abs=SAME)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def embedding_scaled(model):
    own = model.model.forward

    def forward(input_ids=None, **kwargs):
        return own(**kwargs | {"inputs_embeds": model.model.embed_tokens(input_ids) * 2})

    model.model.forward = forward


class Halved(LlamaDecoderLayer):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs) * 0.5


def passes(order):
    """A model whose own loop over its layers follows an order."""

    def change(model):
        own, layers = model.model.forward, list(model.model.layers)

        def forward(**kwargs):
            model.model.layers = nn.ModuleList(layers[i] for i in order)
            try:
                return own(**kwargs)
            finally:
                model.model.layers = nn.ModuleList(layers)

        model.model.forward = forward

    return change


def test_a_layer_of_another_class_is_walked_as_it_is():
    model = tiny.model("llama-gqa")
    model.model.layers[2].__class__ = Halved
    lens = dl.Lens(model, tiny.tokenizer(), "mine")
    tried = walk_check.found(lens)
    assert tried.fault is None and not tried.adds
    found, whole = (scores(lens, expand("L0,L1,L3", lens.dims), path=path) for path in ("wavefront", "padded_rows"))
    assert torch.allclose(found[0], torch.tensor([logprob(model, request) for request in ASKED]), atol=SAME)
    assert torch.allclose(found, whole, atol=SAME)
    walk_check.require(lens, "this")


@pytest.mark.parametrize("change", [embedding_scaled, passes([0, 2, 1, 3, 4])])
def test_a_changed_model_is_not_walked(change, caplog):
    model = tiny.model("llama-gqa")
    change(model)
    lens = dl.Lens(model, tiny.tokenizer(), "mine")
    with caplog.at_level(logging.WARNING):
        (found,) = dl.Engine(lens, progress=False).loglikelihood(ASKED, expand("baseline", lens.dims))
    assert "model mine: " in caplog.text and "whole pass" in caplog.text
    for request, answer in zip(ASKED, found, strict=True):
        assert answer.logprob == pytest.approx(logprob(model, request), abs=SAME)
    assert dl.Engine(lens, progress=False).path_for(2) == "padded_rows"


def no_kernel(*about):
    raise RuntimeError("no kernel image is available")


ELSE, own = "layer 0 computes something else when it is called by itself", tree_attention.unfused
WRONG = {
    "raises": (no_kernel, r"layer 0 cannot be called by itself \(RuntimeError: no kernel image is available\)"),
    "sees what comes after": (lambda q, k, v, scale, mask, causal: own(q, k, v, scale, mask, False), ELSE),
    "sees other branches": (lambda q, k, v, scale, mask, causal: own(q, k, v, scale, None, causal), ELSE),
    "is wrong for the second row": (lambda q, k, v, *how: own(q, k[:1].expand_as(k), v, *how), ELSE),
}


@pytest.mark.parametrize("kind", WRONG)
def test_where_an_attention_kernel_is_wrong_whole_passes_answer(kind, monkeypatch, caplog):
    lens, (kernel, said) = tiny.lens("llama-gqa"), WRONG[kind]
    monkeypatch.setattr(tree_attention, "fused", kernel)
    with caplog.at_level(logging.WARNING):
        (found,) = dl.Engine(lens, progress=False).loglikelihood(ASKED, [BASELINE])
    assert "each row takes a whole pass" in caplog.text and re.search(said, caplog.text)
    assert [a.logprob for a in found] == pytest.approx([logprob(lens.model, q) for q in ASKED], abs=SAME)
    with pytest.raises(dl.UserError, match=f"path 'wavefront' of model 'tiny-llama-gqa': {said}; leave path out"):
        dl.Engine(lens, path="wavefront", progress=False).loglikelihood(ASKED, [BASELINE])


FULL = torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), MemoryError()


@pytest.mark.parametrize("fault", FULL)
def test_memory_that_runs_out_is_no_verdict_on_a_model(fault, monkeypatch):
    def full(*about):
        raise fault

    lens, kernel = tiny.lens("llama-gqa"), tree_attention.fused
    monkeypatch.setattr(tree_attention, "fused", full)
    with pytest.raises(type(fault)):
        walk_check.found(lens)
    monkeypatch.setattr(tree_attention, "fused", kernel)
    assert walk_check.found(lens).fault is None


def scaled(monkeypatch, layer, factor):
    """Have trees scale the scores of one layer by a factor too many."""
    own = tree_attention.Layout.attention

    def attention(self, i, query, key, value, scale):
        return own(self, i, query, key, value, scale * (factor if i == layer else 1))

    monkeypatch.setattr(tree_attention.Layout, "attention", attention)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("many", [False, True])
def test_a_softmax_scale_that_is_wrong_in_one_layer_is_noticed(dtype, many, monkeypatch):
    model = tiny.model("llama-gqa").to(dtype)
    if many:  # as on a GPU, where a tree has several blocks of what kernels compute together
        monkeypatch.setattr(walk_check, "CPU_TOKENS", walk_check.TOKENS)
    assert walk_check.found(dl.Lens(model, tiny.tokenizer())).fault is None
    for layer in range(5):
        with monkeypatch.context() as patch:
            scaled(patch, layer, 1.25)
            assert f"layer {layer} computes something else" in walk_check.found(dl.Lens(model, tiny.tokenizer())).fault


def test_a_model_that_passes_a_layer_twice_is_refused():
    model = tiny.model("llama-gqa")
    passes([0, 1, 2, 1, 2])(model)
    said = "'mine' .* is not supported: layer 1 is passed 2 times"
    refused(said, scores, dl.Lens(model, tiny.tokenizer(), "mine"), [BASELINE])


@pytest.mark.parametrize("angles", [
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 4.0}
    | {"original_max_position_embeddings": 20},
], ids=lambda angles: angles["rope_type"])  # fmt: skip
def test_texts_whose_rotary_angles_would_change_with_their_neighbours_are_refused(angles):
    """One text of a batch that is longer than the limit changes the angles, and so the scores, of all others."""
    lens = tiny.lens("llama-gqa", rope_parameters={"rope_theta": 1e4} | angles, max_position_embeddings=20)
    short = [LoglikelihoodRequest(tuple(range(5, 5 + n)), (7, 8)) for n in (18, 4)]
    for path in ("wavefront", "padded_rows"):
        (found,) = dl.Engine(lens, path=path, progress=False).loglikelihood(short, [BASELINE])
        for request, answer in zip(short, found, strict=True):
            assert answer.logprob == pytest.approx(logprob(lens.model, request), abs=SAME)
    long = [*short, LoglikelihoodRequest(tuple(range(5, 25)), (7, 8))]
    said = f"21 tokens: beyond 20 the rotary angles of 'tiny-llama-gqa' .{angles['rope_type']}. change for all texts"
    engine = dl.Engine(lens, progress=False)
    refused(said, engine.loglikelihood, long, [BASELINE])
    refused(said, engine.generate_until, [GenerateRequest((1,) * 16, (), 5)], [BASELINE])
    refused(said, attribution.attribute, lens, long)
