"""Parts that are found: every family binds to its real modules, and a model that was changed is an error."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from depthlens.ablations import Dims
from depthlens.errors import UserError
from depthlens.models.architectures import Architecture

DIMS = {
    "llama-mha": Dims(5, 4, 4, 32, 8),
    "llama-gqa": Dims(5, 4, 2, 32, 8),
    "llama-mqa": Dims(5, 4, 1, 32, 8),
    "mistral": Dims(5, 4, 2, 32, 8),
    "qwen2": Dims(5, 4, 2, 32, 8),
    "qwen3": Dims(5, 4, 2, 32, 12),  # heads side by side are wider than the residual stream
    "qwen3-moe": Dims(5, 4, 2, 32, 12, (4,) * 5),
    "deepseek-v2": Dims(5, 4, 4, 32, 12, (0, 4, 4, 4, 4)),  # latent: no shared keys and values
    "deepseek-v3": Dims(5, 4, 4, 32, 12, (0, 4, 4, 4, 4)),
}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_binds_to_its_own_modules(family):
    model = tiny.model(family)
    arch = Architecture(model)
    assert arch.dims == DIMS[family]
    assert arch.embed is model.get_input_embeddings() and arch.unembed is model.get_output_embeddings()
    assert arch.layers == tuple(model.model.layers)
    assert (arch.family.attn_norm, arch.family.mlp_norm) == ("input_layernorm", "post_attention_layernorm")
    for parts in (arch.attn, arch.o_proj, arch.mlp):
        assert len(parts) == len(set(map(id, parts))) == arch.dims.n_layers
    for layer, attn, o_proj, mlp in zip(arch.layers, arch.attn, arch.o_proj, arch.mlp, strict=True):
        assert layer.self_attn is attn and attn.o_proj is o_proj and layer.mlp is mlp


def test_a_part_that_is_missing_is_named():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16))
    del model.transformer.ln_f
    with pytest.raises(UserError, match="GPT2LMHeadModel has no final norm; it is not supported"):
        Architecture(model)


@pytest.mark.parametrize("path", ["", "self_attn.o_proj"])
def test_a_module_at_two_depths_is_refused_with_the_way(path):
    model = tiny.model("llama-gqa")
    where = f"model.layers.2.{path}".rstrip(".")
    model.set_submodule(where, model.get_submodule(where.replace("2", "1")))
    said = f"layers 1 and 2 share {path or 'one module'}, so that neither can be removed alone; give layer 2 a copy"
    with pytest.raises(UserError, match=said):
        Architecture(model)
    model.set_submodule(where, copy.deepcopy(model.get_submodule(where), {id(model.config): model.config}))
    if path == "":
        with pytest.raises(UserError, match="no attention has layer_idx 2, .*; set layer_idx of each attention to"):
            Architecture(model)
        model.model.layers[2].self_attn.layer_idx = 2
    assert Architecture(model).dims.n_layers == 5


@pytest.mark.parametrize("path", ["", "model.layers.4.mlp"])
def test_compiled_modules_are_refused(path):
    """Compiled code does not see hooks that come later: an MLP that was removed stayed."""
    model = tiny.model("llama-gqa")
    model.get_submodule(path).compile(backend="eager")
    with pytest.raises(UserError, match=f"^{path or 'LlamaForCausalLM'} is compiled, .*as it was before torch.compile"):
        Architecture(model)
    if path:
        model = tiny.model("llama-gqa")
        model.set_submodule(path, torch.compile(model.get_submodule(path), backend="eager"))
        with pytest.raises(UserError, match=f"^{path} is compiled, "):
            Architecture(model)
    model = tiny.model("llama-gqa")
    model.forward = torch.compile(model.forward, backend="eager")
    with pytest.raises(UserError, match="^LlamaForCausalLM is compiled, "):
        Architecture(model)
