"""The handles of other libraries share one set of weights, and nothing that is done to one reaches another."""

import pytest
import surgery
import torch
from backend_table import TOKENS, TOLERANCE, batch_logits
from tokenizers import processors

from depthlens import arguments, backends
from depthlens.ablations import BASELINE, parse_condition


@pytest.fixture(scope="module")
def lens():
    return surgery.rough_lens("llama-gqa", max_position_embeddings=4096)


# --- one set of weights, and nothing that is done to one reaches another --------------------------------------------


def ask(lens, who):
    """Logits of TOKENS from one of the three handles. Shape [pos, d_vocab]."""
    with torch.no_grad():
        if who == "bridge":
            return lens.bridge(TOKENS[None])[0]
        if who == "nnsight":
            with lens.nnsight.trace(TOKENS[None]):
                out = lens.nnsight.lm_head.output.save()
            return out[0]
        return lens.model(TOKENS[None], use_cache=False).logits[0]


HANDLES = ("model", "bridge", "nnsight")


@pytest.mark.parametrize("family", ["llama-gqa", "qwen3-moe"])
def test_the_weights_are_the_same_storage(family):
    lens = surgery.rough_lens(family, tie_word_embeddings=True)
    wanted = {p.untyped_storage().data_ptr() for p in lens.model.parameters()}
    assert {p.untyped_storage().data_ptr() for p in lens.bridge.original_model.parameters()} == wanted
    assert {p.untyped_storage().data_ptr() for p in lens.nnsight._module.parameters()} == wanted
    assert lens.bridge is lens.bridge and lens.nnsight is lens.nnsight
    before = ask(lens, "model")
    with torch.no_grad():
        lens.arch.o_proj[1].weight.mul_(2)  # changed in place: for all
    for who in HANDLES:
        assert (ask(lens, who) - before).abs().max() > 0.01
        assert torch.allclose(ask(lens, who), ask(lens, "model"), atol=TOLERANCE)


@pytest.fixture(scope="module")
def alone(lens):
    """What each handle returns on a model where no other was ever made."""
    return {who: ask(surgery.rough_lens("llama-gqa", max_position_embeddings=4096), who) for who in HANDLES}


def test_what_a_user_leaves_on_a_handle_changes_no_sweep_and_no_other_handle(alone):
    lens = surgery.rough_lens("llama-gqa", max_position_embeddings=4096)
    conditions = [BASELINE, parse_condition("L1.H2")]
    wanted = {name: batch_logits(backends.get(name, lens), conditions) for name in arguments.BACKENDS}
    lens.bridge.add_hook("blocks.1.hook_mlp_out", lambda x, hook: x * 0)
    with lens.nnsight.edit(inplace=True):
        lens.nnsight.model.layers[1].mlp.output = lens.nnsight.model.layers[1].mlp.output * 0
    assert not torch.allclose(ask(lens, "bridge"), alone["bridge"], atol=0.1)  # the user's hook works
    assert not torch.allclose(ask(lens, "nnsight"), alone["nnsight"], atol=0.1)
    assert torch.equal(ask(lens, "model"), alone["model"])
    for name in arguments.BACKENDS:
        assert torch.equal(batch_logits(backends.get(name, lens), conditions), wanted[name]), name
    lens.bridge.reset_hooks()
    lens.nnsight.clear_edits()
    for who in HANDLES:
        assert torch.equal(ask(lens, who), alone[who])


@pytest.mark.parametrize("family", ["qwen2", "qwen3-moe"])
def test_compatibility_mode_of_the_bridge_leaves_the_weights_alone(family):
    """TransformerLens folds norms into weights there; on stacked experts it would do so in place."""
    lens = surgery.rough_lens(family)
    before = {who: ask(lens, who) for who in HANDLES}
    lens.bridge.enable_compatibility_mode()
    for who in ("model", "nnsight"):
        assert torch.equal(ask(lens, who), before[who]), who
    # centring the unembedding moves all logits of a position together
    assert torch.allclose(ask(lens, "bridge").log_softmax(-1), before["bridge"].log_softmax(-1), atol=TOLERANCE)


@pytest.mark.parametrize(("family", "begins"), [("llama-gqa", True), ("deepseek-v3", False)], ids=["bos", "plain"])
def test_the_bridge_reads_and_writes_what_the_model_does(family, begins):
    """TransformerLens prepends a token of its own, and its cache of keys is not seen with this transformers."""
    lens = surgery.rough_lens(family)
    if begins:
        first = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 256)])
        lens.tokenizer.backend_tokenizer.post_processor = first
    text, tokens = "The capital of Peru is", torch.tensor([lens.tokenizer("The capital of Peru is").input_ids])
    assert tokens[0, 0].item() == (256 if begins else lens.tokenizer("T").input_ids[-1])
    assert torch.equal(lens.bridge.to_tokens(text), tokens)
    assert torch.allclose(lens.bridge(text), lens.model(tokens).logits, atol=TOLERANCE)
    wanted = lens.model.generate(tokens, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(tokens))
    assert torch.equal(lens.bridge.generate(tokens, max_new_tokens=12, do_sample=False, verbose=False), wanted)
    said = lens.bridge.generate(text, max_new_tokens=12, do_sample=False, verbose=False)
    assert said == lens.bridge.tokenizer.decode(wanted[0], skip_special_tokens=True)
