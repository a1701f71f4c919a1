"""Which models make a pair of base and donor; what differs is named."""

import copy

import pytest
import tiny
import torch
from refusals import refused
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from depthlens.models import pairs
from depthlens.models.lens import Lens


@pytest.mark.parametrize(("family", "changes", "message"), [
    ("qwen2", {}, "class is LlamaForCausalLM in the base, Qwen2ForCausalLM in the donor"),
    ("llama-gqa", {"hidden_size": 64}, "head_dim is 8 in the base, 16 in the donor"),
    ("llama-mha", {}, "num_key_value_heads is 2 in the base, 4 in the donor"),
    ("llama-gqa", {"vocab_size": 300}, "vocab_size is 260 in the base, 300 in the donor"),
    ("llama-gqa", {"attention_bias": True}, "attention_bias is False in the base, True in the donor"),
])  # fmt: skip
def test_what_is_no_pair_is_refused_with_the_difference_named(family, changes, message):
    base, donor = tiny.lens("llama-gqa"), tiny.lens(family, **changes)
    refused(message, pairs.with_donor, base, donor)


MERGES = [("a", "b"), ("b", "c"), ("ab", "c")]


def byte_pair(vocab, merges):
    built = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(vocab)}, merges=merges))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=built)


def test_a_matrix_of_another_shape_is_refused():
    base, donor = tiny.lens("llama-gqa"), tiny.lens("llama-gqa")
    donor.arch.mlp[0].gate_proj = torch.nn.Linear(32, 64, bias=False)
    refused(r"shape of model.layers.0.mlp.gate_proj.weight is \[48, 32\] in the base", pairs.with_donor, base, donor)


def test_tokenizers_that_make_other_tokens_are_refused():
    base = tiny.lens("llama-gqa")
    plain = ["a", "b", "c", "ab", "bc", "abc"]
    base.tokenizer = byte_pair(plain, MERGES)

    def compared(tokenizer):
        return not pairs.with_donor(base, Lens(copy.deepcopy(base.model), tokenizer, "changed")).own_rotary

    assert compared(byte_pair(plain, MERGES))
    moved, fewer = byte_pair(["a", "b", "c", "bc", "ab", "abc"], MERGES), byte_pair(plain[:5], MERGES[:2])
    refused("token 3 is 'ab' in the base, 'bc' in the donor", compared, moved)
    refused("token 5 is 'abc' in the base, missing in the donor", compared, fewer)
    distilled = byte_pair(plain, MERGES)
    distilled.add_tokens([AddedToken("<think>", special=False)])
    distilled.add_special_tokens({"bos_token": "<begin>"})
    distilled.chat_template = "{{ messages }}"
    assert compared(distilled)
    base.tokenizer.add_special_tokens({"bos_token": "<|reserved|>"})
    assert compared(distilled), "one name has another number"
