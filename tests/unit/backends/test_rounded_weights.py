"""Parts that compute with rounded weights (``@int8``, ``@int4``) against models whose weights were rounded by hand."""

import copy

import pytest
import tiny
import torch
from model_classes import scores

import depthlens as dl

SAME = 1e-4  # nats, of sums in another order
FAMILIES = ["llama-gqa", "qwen3-moe", "deepseek-v3"]
CONDITIONS = ["L1@int4", "L2.mlp@int8", "L1.attn@int4+L3.mlp@int4", "L0@int8+L2@int4+L4.H1", "L1@int4+L1.H2"]
CONDITIONS += ["L0-4@int4", "L3@int4+L4"]
BITS = {"int8": 8, "int4": 4}


def by_hand(weight: torch.Tensor, mode: str) -> torch.Tensor:
    """Rows, and under four bits pieces of 32 of their numbers where these fit, one after another."""
    made, top = weight.clone(), 2 ** (BITS[mode] - 1) - 1
    for row in made.reshape(-1, made.shape[-1]):
        size = 32 if mode == "int4" and len(row) % 32 == 0 else len(row)
        for piece in row.split(size):
            step = piece.abs().max() / top
            piece.copy_((piece / step).round() * step)
    return made


def operated(lens: dl.Lens, condition: str) -> tuple[dl.Lens, str]:
    """A copy of a model with rounded weights, and what of the condition is left to do."""
    model = copy.deepcopy(lens.model)
    left = []
    with torch.no_grad():
        for a in dl.parse_condition(condition).ablations:
            if a.mode not in BITS:
                left.append(str(a))
                continue
            layer = model.model.layers[a.layer]
            part = {"layer": layer, "attn": layer.self_attn, "mlp": layer.mlp}[a.site]
            for weight in part.parameters():
                if weight.ndim > 1:
                    weight.copy_(by_hand(weight, a.mode))
    return dl.Lens(model, lens.tokenizer, "operated"), "+".join(left) or "baseline"


def logprobs(lens: dl.Lens, *conditions: str, path: str | None = None) -> torch.Tensor:
    return scores(lens, conditions, path=path)


@pytest.mark.parametrize("path", ["wavefront", "padded_rows"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_rounded_weights(family, path):
    lens = tiny.lens(family)
    before = lens.fingerprint
    found = logprobs(lens, "baseline", *CONDITIONS, path=path)  # all in one batch, both modes in some layers
    assert torch.allclose(found[0], logprobs(lens, "baseline")[0], atol=SAME)
    for row, condition in zip(found[1:], CONDITIONS, strict=True):
        model, left = operated(lens, condition)
        assert torch.allclose(row, logprobs(model, left)[0], atol=SAME), condition
        assert not torch.allclose(row, logprobs(lens, left)[0], atol=SAME), condition
    assert lens.fingerprint == before and lens.identify().obstacle is None


@pytest.mark.parametrize("condition", ["L1.H2@int4", "L1.KV1@int4", "L1.H0@int8+L1.H3"])
def test_heads_have_their_rows_and_columns_rounded(condition):
    lens = tiny.lens("llama-gqa")
    (a, *others) = dl.parse_condition(condition).ablations
    model, n = copy.deepcopy(lens.model), lens.dims.d_head
    attention = model.model.layers[a.layer].self_attn
    heads = [a.index] if a.site == "head" else [*lens.dims.query_heads(a.index)]
    with torch.no_grad():
        for h in heads:
            at = slice(h * n, (h + 1) * n)
            attention.q_proj.weight[at] = by_hand(attention.q_proj.weight, a.mode)[at]
        rounded = by_hand(attention.o_proj.weight, a.mode)
        for h in heads:
            at = slice(h * n, (h + 1) * n)
            attention.o_proj.weight[:, at] = rounded[:, at]
        if a.site == "kv":
            at = slice(a.index * n, (a.index + 1) * n)
            for name in ("k_proj", "v_proj"):
                weight = getattr(attention, name).weight
                weight[at] = by_hand(weight, a.mode)[at]
    left = "+".join(map(str, others)) or "baseline"
    wanted = logprobs(dl.Lens(model, lens.tokenizer), left)[0]
    assert torch.allclose(logprobs(lens, condition)[0], wanted, atol=SAME)
    assert not torch.allclose(logprobs(lens, left)[0], wanted, atol=SAME)


@pytest.mark.parametrize("path", [None, "padded_rows"])
def test_a_layer_is_rounded_as_it_is_now(path):
    """Also after a weight was edited without a trace, and after another module took its place."""
    lens = tiny.lens("llama-gqa")
    layers = lens.model.model.layers
    found = [logprobs(lens, "L1@int4", path=path)[0]]
    layers[1].mlp.down_proj.weight.data.mul_(-1)
    found.append(logprobs(lens, "L1@int4", path=path)[0])
    layers[1] = copy.deepcopy(layers[1])
    layers[1].mlp.down_proj.weight.data.mul_(-1)
    found.append(logprobs(lens, "L1@int4", path=path)[0])
    assert torch.allclose(found[2], found[0], atol=SAME) and not torch.allclose(found[1], found[0], atol=SAME)
