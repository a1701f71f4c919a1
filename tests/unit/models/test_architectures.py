"""Parts that are found: every family binds to its real modules, and a model that was changed is an error."""

import copy

import pytest
import tiny
import torch
from refusals import refused
from transformers import GPT2Config, GPT2LMHeadModel

from depthlens.models.architectures import Architecture


def test_a_part_that_is_missing_is_named():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16))
    del model.transformer.ln_f
    refused("GPT2LMHeadModel has no final norm; it is not supported", Architecture, model)


@pytest.mark.parametrize("path", ["", "self_attn.o_proj"])
def test_a_module_at_two_depths_is_refused_with_the_way(path):
    model = tiny.model("llama-gqa")
    where = f"model.layers.2.{path}".rstrip(".")
    model.set_submodule(where, model.get_submodule(where.replace("2", "1")))
    said = f"layers 1 and 2 share {path or 'one module'}, so that neither can be removed alone; give layer 2 a copy"
    refused(said, Architecture, model)
    model.set_submodule(where, copy.deepcopy(model.get_submodule(where), {id(model.config): model.config}))
    if path == "":
        refused("no attention has layer_idx 2, .*; set layer_idx of each attention to", Architecture, model)
        model.model.layers[2].self_attn.layer_idx = 2
    assert Architecture(model).dims.n_layers == 5


@pytest.mark.parametrize("path", ["", "model.layers.4.mlp"])
def test_compiled_modules_are_refused(path):
    """Compiled code does not see hooks that come later: an MLP that was removed stayed."""
    model = tiny.model("llama-gqa")
    model.get_submodule(path).compile(backend="eager")
    refused(f"^{path or 'LlamaForCausalLM'} is compiled, .*as it was before torch.compile", Architecture, model)
    if path:
        model = tiny.model("llama-gqa")
        model.set_submodule(path, torch.compile(model.get_submodule(path), backend="eager"))
        refused(f"^{path} is compiled, ", Architecture, model)
    model = tiny.model("llama-gqa")
    model.forward = torch.compile(model.forward, backend="eager")
    refused("^LlamaForCausalLM is compiled, ", Architecture, model)
