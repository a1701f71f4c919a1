"""Models of the user: ``Lens(model, tokenizer)``, ``BASE+ADAPTER``, or a folder that peft wrote."""

import shutil

import pytest
import tiny
import torch
from model_classes import scores
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from refusals import refused
from transformers import AutoModelForCausalLM

import depthlens as dl
from depthlens import paths
from depthlens.ablations import expand
from depthlens.models import loading

pytestmark = pytest.mark.usefixtures("unchecked")


def test_it_is_taken_over_for_evaluation():
    model = dl.Lens(tiny.model("llama-gqa").train(), tiny.tokenizer()).model
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_adapters_that_are_not_merged_are_refused_with_the_way(tmp_path):
    wrapped = get_peft_model(tiny.model("qwen2"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    refused(r"Lens of PeftModel .*; of one of peft model.merge_and_unload\(\)", dl.Lens, wrapped, tiny.tokenizer())
    assert dl.Lens(wrapped.merge_and_unload(), tiny.tokenizer()).identify().obstacle is None


@pytest.mark.parametrize("targets", [["q_proj", "v_proj", "o_proj", "down_proj"], ["embed_tokens", "lm_head"]])
@pytest.mark.parametrize("path", ["wavefront", "padded_rows"])
def test_adapters_inside_a_model_count_as_its_own(targets, path):
    models = adapted(targets).get_base_model(), adapted(targets).merge_and_unload()
    lens, merged = (dl.Lens(model, tiny.tokenizer(), "mine") for model in models)
    conditions = expand("L1,L2.attn,L1.mlp,L1.H1,L1.KV0", lens.dims)
    found, wanted = (scores(one, conditions, path=path) for one in (lens, merged))
    assert torch.allclose(found, wanted, rtol=0, atol=1e-4)  # products of base and adapter are summed apart
    for condition in ("L1.H1@int4", "L1@int8"):
        said = f"condition {condition} puts other weights in place, .* merge them first"
        refused(said, scores, lens, expand(condition, lens.dims))


def adapted(targets):
    """A model of peft whose adapters change much."""
    torch.manual_seed(0)
    return get_peft_model(tiny.model("llama-gqa"), LoraConfig(r=2, target_modules=targets, init_lora_weights=False))


def test_a_compiled_model_is_refused_with_the_way():
    with pytest.raises(dl.UserError, match=r"Lens of OptimizedModule .*, of a compiled one model._orig_mod"):
        dl.Lens(torch.compile(tiny.model("qwen2"), backend="eager"), tiny.tokenizer())


# -- adapters by name --

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


def test_an_embedded_adapter_is_loaded_by_name(desk, tmp_path, monkeypatch):
    shutil.copytree(desk / "adapter", tmp_path / "adapters" / "smollm2-135m-cot")
    monkeypatch.setattr(loading, "converted", lambda gguf, name: desk / "base")
    monkeypatch.setattr(paths, "data_dir", lambda: tmp_path)
    lens = dl.load("smollm2-135m-cot")
    assert lens.name == "smollm2-135m-cot"
    assert lens.fingerprint == dl.load(f"{desk}/base+{desk}/adapter").fingerprint != dl.load(desk / "base").fingerprint


REFUSED = {
    "{desk}/base+{desk}/nowhere": r"base\+.*nowhere' cannot be loaded: ",
    "{desk}/base+": "adapter '' of .* does not exist; give owner/name@revision of the hub, model",
    "{desk}/base+{desk}/wider": "cannot be loaded: .*size mismatch",
    "{desk}/base+{desk}/prompts": "PROMPT_TUNING adds tokens, and weights cannot take it up",
    "{desk}/base+owner/adapter": r"owner/adapter' cannot be loaded: ",
    "organism+{desk}/adapter": "adapter .* of 'organism' does not exist; give",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_adapter_is_one_line(desk, name):
    refused(REFUSED[name], dl.load, name.format(desk=desk))
