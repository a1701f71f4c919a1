"""Models that place tokens without rotary embeddings, or have layers that mix tokens without attention."""

import copy

import model_classes
import pytest
import torch
from by_hand import logprob
from model_classes import ASKED, scores
from refusals import refused

from depthlens.ablations import BASELINE, expand, parse_condition

SAME = 1e-4  # nats, of sums in another order
nightly = pytest.mark.nightly
POSITIONS = ["gpt2", "bloom", "gptj", *(pytest.param(k, marks=nightly) for k in ("gpt_bigcode", "falcon", "codegen"))]
HYBRIDS = ["qwen3_next", pytest.param("qwen3_5_text", marks=nightly)]


OTHERS = ["gpt_bigcode", "falcon", "llama4_text", "qwen3_5_text"]


def by_hand(lens, layer, site):
    """Log-likelihoods of a copy in which a hook puts nothing in place of what a part gives, or a layer's input."""
    model, family = copy.deepcopy(lens.model), lens.arch.family
    part = model.get_submodule(family.layers)[layer]
    if site != "layer":
        part = part.get_submodule(family.mixes(layer) if site == "attn" else family.mlp)

    def put(module, args, kwargs, out):
        read = args[0] if args else kwargs["hidden_states"]
        new = read if site == "layer" else torch.zeros_like(read)
        return (new, *out[1:]) if isinstance(out, tuple) else new

    part.register_forward_hook(put, with_kwargs=True)
    return torch.tensor([logprob(model, request) for request in ASKED])


@pytest.mark.parametrize("kind", [*POSITIONS, *HYBRIDS])
def test_removal_is_what_a_copy_without_the_part_computes(kind, caplog):
    lens = model_classes.lens(kind)
    sites = ["layer"] if kind == "bloom" else ["layer", "attn", "mlp"]  # bloom adds the stream inside of its parts
    for layer in (0, 3):
        for site in sites:
            condition = parse_condition(f"L{layer}" + ("" if site == "layer" else f".{site}"))
            found = scores(lens, [BASELINE, condition])
            wanted = by_hand(lens, layer, site)
            assert torch.allclose(found[1], wanted, atol=SAME), (layer, site)
            assert not torch.allclose(found[0], wanted, atol=100 * SAME)
    walked = kind in ("gptj", "codegen")
    assert ("each row takes a whole pass" in caplog.text) != walked


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "qwen3_next", *(pytest.param(k, marks=nightly) for k in OTHERS)])
def test_backends_agree(kind):
    lens = model_classes.lens(kind)
    backends = ["nnsight"] if "qwen3" in kind else ["nnsight", "transformer_lens"]
    heads = [c for c in expand("heads", lens.dims)[1:] if c.layer == 3]
    conditions = [*expand("layers,attn,mlp", lens.dims), *heads]
    found = scores(lens, conditions)
    for backend in backends:
        assert torch.allclose(found, scores(lens, conditions, backend=backend), atol=SAME)
    for row in found[-len(heads) :]:
        assert not torch.allclose(row, found[0], atol=10 * SAME)


def test_a_layer_without_heads_says_so():
    lens = model_classes.lens("qwen3_next")
    assert lens.dims.headless == (0, 1, 2)
    assert {c.layer for c in expand("heads", lens.dims)[1:]} == {3}
    for condition in ("L0.H1", "L2.KV0"):
        refused(r"layer \d has no (heads|KV groups); remove L\d.attn", expand, condition, lens.dims)
    refused("takes weights that are not only used by calls of modules", scores, lens, [parse_condition("L0@int4")])
    assert scores(lens, [parse_condition("L0.mlp@int4+L3@int8")]).isfinite().all()
    refused("no hooks for", scores, lens, [BASELINE], backend="transformer_lens")
