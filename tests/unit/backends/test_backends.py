"""TransformerLens and nnsight against models that were really cut."""

import re

import backend_table
import pytest
import surgery
import tiny
import torch
from backend_table import TOKENS, TOLERANCE, batch_logits
from refusals import refused
from transformer_lens.factories import architecture_adapter_factory

import depthlens as dl
from depthlens import arguments, backends
from depthlens.ablations import BASELINE, parse_condition
from depthlens.requests import GenerateRequest

# kinds that meet what is special in a family: shared heads, wide or latent z, biases, mixtures
CROSSING = ("attn @mean", "mlp @resample", "head @mean", "KV @resample", "KV [1:]@noise", "sum [n:]", "nested")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_kind_of_condition_equals_a_model_that_was_cut(family):
    """One family in every kind, the others in those that cross."""
    found = backend_table.measure(family, tuple(backend_table.KINDS) if family == "llama-gqa" else CROSSING)
    for way, kinds in found.items():
        for kind, drift in kinds.items():
            if drift is not None:
                assert drift < TOLERANCE, f"{way}, {family}, {kind}: drift {drift:.1e}, bound {TOLERANCE:.0e}"


@pytest.mark.nightly
def test_the_page_has_the_cells_that_are_measured():
    """But for the digits of what is within the bound."""
    page = backend_table.DOCS.read_text().split(backend_table.BEGIN)[1].split(backend_table.END)[0]
    tables = page.strip(), backend_table.render(backend_table.whole()).strip()
    said, now = (re.sub(r"(?<=\| )(0|\de-(0[5-9]|[1-9]\d))(?= \|)", "equal", text) for text in tables)
    assert said == now, "run python tests/backend_table.py"


LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0}
VARIANTS = {
    "biases": ("llama-gqa", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama-3": ("llama-gqa", {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 16}}),
    "dense layer among sparse ones": ("qwen3-moe", {"mlp_only_layers": [1]}),
    "v2-lite": ("deepseek-v2", {"q_lora_rank": None}),
    "yarn": ("deepseek-v3", {"rope_parameters": YARN | {"original_max_position_embeddings": 128}}),
}


@pytest.mark.parametrize(("family", "changes"), VARIANTS.values(), ids=VARIANTS)
def test_variants_of_a_family(family, changes):
    lens = surgery.rough_lens(family, **changes)
    conditions = [BASELINE, parse_condition("L1"), parse_condition("L0.H1+L2.attn+L3.mlp")]
    cut = [surgery.cut(lens, c, None)(TOKENS[None], use_cache=False).logits[0] for c in conditions]
    for name in arguments.BACKENDS:
        drift = (batch_logits(backends.get(name, lens), conditions) - torch.stack(cut)).abs().max().item()
        assert drift < TOLERANCE, f"{name}: drift {drift:.1e}, bound {TOLERANCE:.0e}"


# --- errors --------------------------------------------------------------------------------------------------------


def test_a_family_that_transformer_lens_does_not_know_is_refused_with_the_backends_that_do(monkeypatch):
    monkeypatch.delitem(architecture_adapter_factory.SUPPORTED_ARCHITECTURES, "LlamaForCausalLM")
    fresh = surgery.rough_lens("llama-gqa")
    said = "TransformerLens does not support LlamaForCausalLM; use backend 'torch' or 'nnsight'"
    refused(re.escape(said), dl.Engine, fresh, backend="transformer_lens")
    refused(re.escape(said), lambda: fresh.bridge)


def test_latent_attention_writes_no_texts_with_transformer_lens():
    engine = dl.Engine(surgery.rough_lens("deepseek-v3"), backend="transformer_lens", progress=False)
    with pytest.raises(dl.UserError, match="kept keys and values of 0 tokens, not of .*; write texts with"):
        engine.generate_until([GenerateRequest((5, 6, 7), (), 4)], [BASELINE])
