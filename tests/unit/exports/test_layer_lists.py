"""Lists of layers, as PEFT and transformers' quantisers take them."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, TorchAoConfig

import depthlens as dl
from depthlens.models import quantised

NAME = "model.layers."


@pytest.mark.parametrize(
    "condition, layers, changed",
    [
        ("L1", [0, 2, 3, 4], [0, 1]),
        ("L0", [1, 2, 3, 4], [0]),
        ("L3-4", [0, 1, 2], [2]),
        ("L1+L3.mlp", [0, 2, 3, 4], [0, 1, 2]),
        ("L2x2", [0, 1, 2, 2, 3, 4], [2, 3]),
        ("L2.H1+L4.attn@int8", [0, 1, 2, 3, 4], [2, 4]),
    ],
)
def test_layers_around_a_gap_and_edited_ones_are_to_be_tuned(condition, layers, changed):
    found = dl.layer_lists(tiny.lens("llama-gqa"), condition)
    assert (found["layers"], found["layers_to_transform"]) == (layers, changed)


def test_an_export_has_them_and_peft_takes_them(tmp_path):
    lens = tiny.lens("llama-gqa")
    dl.export(lens, "L1+L3.mlp", tmp_path / "out")
    lists = json.loads((tmp_path / "out" / "layer_lists.json").read_text())
    assert lists == dl.layer_lists(lens, "L1+L3.mlp")
    smaller = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    of_peft = {name: lists[name] for name in ("layers_to_transform", "layers_pattern")}
    tuned = get_peft_model(smaller, LoraConfig(r=2, target_modules=["q_proj"], **of_peft))
    names = [name for name, p in tuned.named_parameters() if p.requires_grad]
    assert {int(name.split("layers.")[1].split(".")[0]) for name in names} == {0, 1, 2}


def test_bits_and_what_a_quantiser_leaves(saved):
    folder = saved("llama-gqa")
    condition = "L0@int8+L2.mlp@int8+L3.attn@int4"
    found = dl.layer_lists(dl.load(folder), condition)
    assert found["bits"] == {NAME + "0": 8, NAME + "2.mlp": 8, NAME + "3.self_attn": 4}
    left = found["modules_to_not_convert"]
    assert left == [NAME + "1", NAME + "2.self_attn", NAME + "3.mlp", NAME + "4", "lm_head"]
    config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=left)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    names = {
        name.removeprefix(NAME).rpartition(".")[0]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and quantised.is_quantised(module.weight)
    }
    assert names == {"0.self_attn", "0.mlp", "2.mlp", "3.self_attn"}


def test_a_part_that_is_not_there_is_refused():
    with pytest.raises(dl.UserError, match="layer 9 does not exist"):
        dl.layer_lists(tiny.lens("llama-gqa"), "L9")
