"""What cannot be offloaded, and files that cannot be read."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from depthlens.errors import UserError
from depthlens.models import loading


def logits(lens):
    with torch.no_grad():
        return lens.model(torch.tensor([[1, 2, 3, 4, 5]])).logits


# -- what cannot be loaded --


def test_a_gguf_file_is_refused(tmp_path):
    tiny.gguf_head(tmp_path / "m.gguf")
    with pytest.raises(UserError, match="m.gguf': layers can be read from safetensors only; convert it once"):
        loading.load(tmp_path / "m.gguf", offload="disk")


@pytest.fixture
def copy(tmp_path):
    return tiny.save(tmp_path / "copy", "qwen3-moe")


def refusal(folder, offload):
    with pytest.raises(UserError) as caught:
        loading.load(folder, offload=offload)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "how"),
    [("model.layers.2.mlp.experts.1.down_proj.weight", "missing"), ("model.norm.weight", "other shape")],
)
def test_weights_that_do_not_fit_are_refused_as_for_a_whole_model(copy, key, how):
    weights = load_file(copy / "model.safetensors")
    names = [k for k in weights if k.startswith("model.layers.2.mlp.experts.")] if "experts" in key else [key]
    for name in names:  # transformers stacks the experts that are there: one that lacks shows in the shape
        if how == "missing":
            del weights[name]
        else:
            weights[name] = weights[name][..., :-1].contiguous()
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    message = refusal(copy, "disk")
    assert message == refusal(copy, None)
    assert ("lacks" if how == "missing" else "has shape") in message


@pytest.mark.parametrize("what", ["quantization_config", "dtype"])
def test_quantised_weights_are_refused(copy, what):
    if what == "dtype":
        weights = load_file(copy / "model.safetensors")
        weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.float8_e4m3fn)
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
        assert "model.norm.weight is stored as F8_E4M3; only F64, F32, F16, BF16 can be" in refusal(copy, "disk")
    else:
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {what: {"quant_method": "torchao"}}))
        assert "is quantised by 'torchao'; offload reads gptq, awq" in refusal(copy, "disk")
