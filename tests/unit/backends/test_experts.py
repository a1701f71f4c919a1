"""Removed experts, against models whose weights lack them."""

import copy
import re

import model_classes
import pytest
import tiny
import torch
from by_hand import under, written
from model_classes import scores
from refusals import refused
from torch import nn

import depthlens as dl
from depthlens.ablations import BASELINE, expand, parse_condition
from depthlens.requests import GenerateRequest

NIGHTLY = "qwen3_moe deepseek_v2 granitemoe ernie4_5_moe hunyuan_v1_moe".split()
# softmax over all experts with and without new weights, over the chosen ones, sigmoids with a bias that only the choice
# sees, groups of experts, routers with biases, shared experts, dense first layers
KINDS = ["mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss"]
KINDS += [pytest.param(kind, marks=pytest.mark.nightly) for kind in NIGHTLY]
SAME = 1e-5  # nats: experts are summed in another order
LAST = 3


def without(lens, layer, expert):
    """A copy of the model whose layer has one expert fewer: its matrices and its row of the router are gone."""
    model = copy.deepcopy(lens.model)
    n = lens.dims.n_experts[layer]
    left = torch.tensor([i for i in range(n) if i != expert])
    mlp = model.get_submodule(f"{lens.arch.family.layers}.{layer}.{lens.arch.family.mlp}")
    for child in (m for name, m in mlp.named_children() if "shared_" not in name):
        for module in child.modules():
            for table in (module._parameters, module._buffers):
                for name, w in table.items():
                    if w is not None and n in w.shape[:2]:
                        fewer = w.detach().index_select(list(w.shape[:2]).index(n), left)
                        table[name] = nn.Parameter(fewer) if isinstance(w, nn.Parameter) else fewer
            for name, value in vars(module).items():
                if isinstance(value, int) and not isinstance(value, bool) and value == n and "expert" in name:
                    setattr(module, name, n - 1)
                if name in ("n_group", "num_group", "topk_group"):
                    assert value == 1
    return dl.Lens(model, lens.tokenizer)


def one_group(kind):
    """A tiny model whose router, if it chooses by groups, has one."""
    config = model_classes.config(kind)
    lens = model_classes.lens(kind)
    if getattr(config, "n_group", None):
        for module in lens.model.modules():
            for name in ("n_group", "num_group", "topk_group"):
                if hasattr(module, name):
                    setattr(module, name, 1)
    return lens


@pytest.mark.parametrize("kind", KINDS)
def test_removal_is_what_a_model_without_the_expert_computes(kind):
    lens = one_group(kind)
    for layer, expert in ((LAST, 0), (1, 2)):
        cut = scores(without(lens, layer, expert), [BASELINE])[0]
        found = scores(lens, [BASELINE, parse_condition(f"L{layer}.E{expert}")])
        assert torch.allclose(found[1], cut, atol=SAME)
        assert not torch.allclose(found[0], cut, atol=100 * SAME)


@pytest.mark.parametrize("kind", KINDS)
def test_paths_agree(kind):
    lens = model_classes.lens(kind)
    conditions = expand("experts,experts[3:],L1.E0+L3.E1+L2.H1,L3.E0+L3.E1+L3.E2,L2.E0+L3", lens.dims)
    before = scores(lens, [BASELINE])
    found = scores(lens, conditions)
    assert not torch.allclose(found[0], found[1:].mean(0), atol=100 * SAME)
    assert torch.allclose(found, scores(lens, conditions, path="padded_rows"), atol=SAME)
    assert torch.allclose(found, scores(lens, conditions, batch_tokens=40), atol=SAME)
    assert torch.equal(before, scores(lens, [BASELINE]))


@pytest.mark.parametrize("kind", ["mixtral", "deepseek_v3"])
def test_written_texts_are_those_of_a_model_without_the_expert(kind):
    lens = one_group(kind)
    asked = [GenerateRequest(tuple(range(5, 12 + i)), (), 10) for i in range(3)]
    conditions = [BASELINE, parse_condition(f"L{LAST}.E0"), parse_condition("L1.E2")]
    texts = dl.Engine(lens, progress=False).generate_until(asked, conditions)
    for row, model in zip(texts, [lens.model, without(lens, LAST, 0).model, without(lens, 1, 2).model], strict=True):
        assert row == [written(lens, request, model) for request in asked]


def test_the_router_is_whole_again_after_an_error():
    lens = model_classes.lens("mixtral")
    before = scores(lens, [BASELINE])
    tokens = torch.arange(5, 25)[None]
    whole = lens.model(tokens).logits
    with pytest.raises(ZeroDivisionError), under(lens, [parse_condition("L1.E0")]):
        assert not torch.allclose(lens.model(tokens).logits, whole, atol=100 * SAME)
        raise ZeroDivisionError
    assert torch.equal(lens.model(tokens).logits, whole)
    assert torch.equal(before, scores(lens, [BASELINE]))
    assert all("forward" not in vars(module) for module in lens.model.modules())


@pytest.mark.parametrize("kind, text, message", [
    ("llama-gqa", "L1.E0", "layer 1 has no experts"),
    ("deepseek-v3", "L3.E4", "expert 4 does not exist; experts are 0..3"),
    ("qwen3-moe", "L1.E0+L1.mlp@int4", "an MLP that has other weights"),
    ("qwen3-moe", "L1.E0+L1.E1+L1.E2+L1.E3", "all are removed"),
])  # fmt: skip
def test_bad_conditions_are_refused(kind, text, message):
    refused(message.replace("(", r"\("), expand, text, tiny.lens(kind).dims)


@pytest.mark.parametrize("backend", ["nnsight", "transformer_lens"])
@pytest.mark.parametrize("condition", ["L1x2", "(L0-2)x2", "L1@int4", "L1.E0"])
def test_other_backends_run_no_layer_twice_and_neither_round_nor_remove_experts(backend, condition):
    with pytest.raises(dl.UserError, match=f"{re.escape(condition)} can be computed by backend 'torch' only; use that"):
        scores(tiny.lens("qwen3-moe"), [parse_condition(condition)], backend=backend)
