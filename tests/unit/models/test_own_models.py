"""``Lens(model, tokenizer)``: a model that the user loaded, changed or trained."""

from __future__ import annotations

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model

import depthlens as dl

pytestmark = pytest.mark.usefixtures("unchecked")


def test_it_is_named_by_its_folder_or_class(tmp_path):
    tiny.save(tmp_path / "mine", "qwen2")
    loaded = dl.load(str(tmp_path / "mine"))
    assert dl.Lens(loaded.model, loaded.tokenizer).name == str(tmp_path / "mine")
    assert dl.Lens(tiny.model("qwen2"), tiny.tokenizer()).name == "Qwen2ForCausalLM"
    assert dl.Lens(tiny.model("qwen2"), tiny.tokenizer(), "tuned").name == "tuned"


def test_it_is_swept_as_it_is_now(tmp_path):
    model = tiny.model("llama-gqa").train()
    lens = dl.Lens(model, tiny.tokenizer())
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    before = lens.fingerprint
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.zero_()
    assert lens.fingerprint != before and lens.identify().obstacle is None
    shown = dl.next_token(lens, "abc", ["L2.mlp", "L1.mlp"])
    assert shown["L2.mlp"].to_numpy() == pytest.approx(shown["baseline"].to_numpy(), abs=1e-6)
    assert shown["L1.mlp"].to_numpy() != pytest.approx(shown["baseline"].to_numpy(), abs=1e-4)


def test_adapters_that_are_not_merged_are_refused_with_the_way(tmp_path):
    wrapped = get_peft_model(tiny.model("qwen2"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with pytest.raises(dl.UserError, match=r"one of peft; give Lens\(model.merge_and_unload\(\), tokenizer\)"):
        dl.Lens(wrapped, tiny.tokenizer())
    assert dl.Lens(wrapped.merge_and_unload(), tiny.tokenizer()).identify().obstacle is None
    wrapped = get_peft_model(tiny.model("qwen2"), LoraConfig(r=2, target_modules=["q_proj", "o_proj"]))
    with pytest.raises(dl.UserError, match="Qwen2ForCausalLM has no attention in model.layers.0"):
        dl.Lens(wrapped.get_base_model(), tiny.tokenizer())


def test_what_is_no_model_is_refused():
    for given in (
        ("mine", tiny.model("qwen2")),
        (tiny.model("qwen2"), None),
        (torch.nn.Linear(2, 2), tiny.tokenizer()),
    ):
        with pytest.raises(dl.UserError, match="give a causal language model of transformers and its tokenizer"):
            dl.Lens(*given)
