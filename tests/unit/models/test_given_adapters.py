"""Adapters of the user: ``BASE+ADAPTER``, or a folder that peft wrote."""

from __future__ import annotations

import pytest
import tiny
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

import depthlens as dl

TOKENS = torch.tensor([[5, 6, 7, 8, 9]])
SAME = 1e-5  # W x + B (A x) against (W + B A) x


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A base, an adapter of it that changes its answers, and one of a wider model."""
    folder = tmp_path_factory.mktemp("adapters")
    tiny.save(folder / "base", "qwen2")
    for name, changes in (("adapter", {}), ("wider", {"hidden_size": 64})):
        model = tiny.model("qwen2", **changes)
        lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj", "lm_head"], init_lora_weights=False)
        model.name_or_path = str(folder / "base")  # as after from_pretrained
        torch.manual_seed(1)
        get_peft_model(model, lora).save_pretrained(folder / name)
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    get_peft_model(tiny.model("qwen2"), prompts).save_pretrained(folder / "prompts")
    return folder


@pytest.mark.parametrize("name", ["{desk}/base+{desk}/adapter", "{desk}/adapter"])
def test_logits_are_those_of_peft(desk, name):
    lens = dl.load(name.format(desk=desk))
    assert lens.name == name.format(desk=desk)
    base = AutoModelForCausalLM.from_pretrained(desk / "base")
    before = base(TOKENS).logits
    base.load_adapter(str(desk / "adapter"))  # transformers keeps it beside the weights
    wanted = base(TOKENS).logits
    assert torch.allclose(lens.model(TOKENS).logits, wanted, atol=SAME)
    assert not torch.allclose(wanted, before, atol=100 * SAME)
    assert lens.identify().obstacle is None, "its answers can be kept"
    assert all("lora" not in key for key, _ in lens.model.named_parameters())


REFUSED = {
    "{desk}/base+{desk}/nowhere": r"base\+.*nowhere' cannot be loaded: ",
    "{desk}/base+": "adapter '' of .* does not exist; give owner/name@revision of the hub, model",
    "+{desk}/adapter": "model '': give an alias",
    "{desk}/base+{desk}/base": r"base\+.*base' cannot be loaded: ",
    "{desk}/base+{desk}/wider": "cannot be loaded: .*size mismatch",
    "{desk}/base+{desk}/prompts": "PROMPT_TUNING adds tokens, and weights cannot take it up",
    "{desk}/base+owner/adapter": r"owner/adapter' cannot be loaded: ",
    "organism+{desk}/adapter": "adapter .* of 'organism' does not exist; give",
    "nowhere+{desk}/adapter": "unknown model 'nowhere'",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_adapter_is_one_line(desk, name):
    with pytest.raises(dl.UserError, match=REFUSED[name]):
        dl.load(name.format(desk=desk))
