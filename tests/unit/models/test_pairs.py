"""Which models make a pair of base and donor; what differs is named."""

from __future__ import annotations

import copy

import pytest
import tiny
from transformers import AddedToken

from depthlens.errors import UserError
from depthlens.experiments import distillation
from depthlens.models import pairs
from depthlens.models.lens import Lens


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("qwen2", {}, "class is LlamaForCausalLM in the base, Qwen2ForCausalLM in the donor"),
        ("llama-gqa", {"num_hidden_layers": 4}, "n_layers is 5 in the base, 4 in the donor"),
        ("llama-gqa", {"hidden_size": 64}, "d_model is 32 in the base, 64 in the donor"),
        ("llama-mha", {}, "n_kv_heads is 2 in the base, 4 in the donor"),
        ("llama-gqa", {"vocab_size": 300}, r"\(vocabulary size\) are 260 in the base, 300 in the donor"),
        ("llama-gqa", {"intermediate_size": 64}, r"shape of model.layers.0.mlp.gate_proj.weight is \[48, 32\] in"),
        ("llama-gqa", {"attention_bias": True}, "q_proj.bias is missing in the base"),
        ("llama-gqa", {"rms_norm_eps": 1e-3}, "variance_epsilon of input_layernorm is 1e-06 in the base, 0.001"),
        ("llama-gqa", {"hidden_act": "gelu"}, "a module mlp.act_fn is"),
    ],
)
def test_what_is_no_pair_is_refused_with_the_difference_named(family, changes, message):
    base, donor = tiny.lens("llama-gqa"), tiny.lens(family, **changes)
    with pytest.raises(UserError, match=message):
        distillation.with_donor(base, donor)
    with pytest.raises(UserError, match="are no pair"), distillation.transplant(base, donor, layers=[0]):
        pass
    for measure in (distillation.weight_deltas, lambda a, b: distillation.activation_deltas(a, b, ["text"])):
        with pytest.raises(UserError, match="are no pair"):
            measure(base, donor)


def byte_pair(vocab, merges):
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as raw
    from transformers import PreTrainedTokenizerFast

    built = Tokenizer(raw.BPE(vocab={t: i for i, t in enumerate(vocab)}, merges=merges))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=built)


def test_tokenizers_that_make_other_tokens_are_refused_and_harmless_differences_noted():
    base = tiny.lens("llama-gqa")
    plain = ["a", "b", "c", "ab", "bc", "abc"]
    base.tokenizer = byte_pair(plain, [("a", "b"), ("b", "c"), ("ab", "c")])

    def compared(tokenizer):
        return pairs.compare(base, Lens(copy.deepcopy(base.model), tokenizer, "changed")).notes

    assert compared(byte_pair(plain, [("a", "b"), ("b", "c"), ("ab", "c")])) == ()
    with pytest.raises(UserError, match="token 3 is 'ab' in the base, 'bc' in the donor"):
        compared(byte_pair(["a", "b", "c", "bc", "ab", "abc"], [("a", "b"), ("b", "c"), ("ab", "c")]))
    with pytest.raises(UserError, match="token 5 is 'abc' in the base, 'missing'|missing in the donor"):
        compared(byte_pair(plain[:5], [("a", "b"), ("b", "c")]))
    with pytest.raises(UserError, match="merge 0 of the tokenizer is 'a b' in the base, 'b c' in the donor"):
        compared(byte_pair(plain, [("b", "c"), ("a", "b"), ("ab", "c")]))
    distilled = byte_pair(plain, [("a", "b"), ("b", "c"), ("ab", "c")])
    distilled.add_tokens([AddedToken("<think>", special=False)])
    distilled.add_special_tokens({"bos_token": "<begin>"})
    distilled.chat_template = "{{ messages }}"
    added, template = compared(distilled)
    assert added == "2 added tokens differ, e.g. 6 is absent in the base, '<think>' in the donor"
    assert template == "chat templates differ; prompts are wrapped by the base's"
    base.tokenizer.add_special_tokens({"bos_token": "<|reserved|>"})
    assert "2 added tokens differ, e.g. 6 is '<|reserved|>' in the base, '<think>' in the donor" in compared(distilled)
    split = byte_pair(plain, [("a", "b"), ("b", "c"), ("ab", "c")])
    split.backend_tokenizer.pre_tokenizer = None
    assert any("pre_tokenizer differ" in note for note in compared(split))
