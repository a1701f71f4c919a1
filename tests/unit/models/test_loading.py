"""Loading: what comes out equals what went in, nothing downloaded is executed, every failure is one line."""

import json
import pickle
import shutil

import gguf_files
import pytest
import tiny
import torch
from refusals import refused
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, LlamaForCausalLM
from transplants import logits

import depthlens as dl
from depthlens.models import loading


@pytest.fixture
def copy(tmp_path):
    """A folder to spoil."""
    return tiny.save(tmp_path / "copy", "llama-gqa")


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("family", ["llama-mha", "qwen3", "deepseek-v2"])
def test_a_folder_gives_the_model_that_was_saved(family, tmp_path):
    loaded = loading.load(str(tiny.save(tmp_path, family)))
    original = tiny.lens(family)
    assert torch.equal(logits(loaded.model), logits(original.model))
    assert loaded.dims == original.dims
    assert loaded.fingerprint == original.fingerprint
    assert loaded.identify().obstacle is None and not loaded.model.use_kernels, "no code of the hub, and a store keeps"
    assert loaded.tokenizer("Ünïcode 1").input_ids == original.tokenizer("Ünïcode 1").input_ids


# -- GGUF --


@pytest.mark.parametrize("family", ["llama-gqa", "qwen2"])
def test_a_gguf_file_is_converted_once_to_what_transformers_makes_of_it(family, tmp_path, cache, monkeypatch):
    path = gguf_files.write(tmp_path / "m.gguf", tiny.model(family), architecture=family.removesuffix("-gqa"))
    plain = {"gguf_file": path.name, "quantization_config": GgufConfig(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(tmp_path, **plain, dtype=torch.float32).eval()
    direct = dl.Lens(model, AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name), str(path))
    tokens = torch.tensor([[5, 9, 200, 31, 7]])
    if family == "llama-gqa":  # `gguf_files` writes it as llama.cpp does
        assert torch.equal(model(tokens).logits, tiny.model(family)(tokens).logits)
    first = loading.load(path)
    monkeypatch.setattr(loading, "convert", lambda *given: pytest.fail("the file is converted again"))
    (folder,) = cache.iterdir()
    again = loading.load(shutil.copy(path, tmp_path / "renamed.gguf"))
    assert again.tokenizer.backend_tokenizer.to_str() == direct.tokenizer.backend_tokenizer.to_str()
    assert again.tokenizer.chat_template == direct.tokenizer.chat_template == gguf_files.CHAT
    streamed = loading.load(path, offload="disk")
    for lens in (first, again, streamed):
        assert lens.identify() == direct.identify() and torch.equal(logits(lens.model), logits(direct.model))
    assert first.describe() == direct.describe()
    cut = loading.load(f"{path}[:2]", dtype="bfloat16")
    kept = model.to(torch.bfloat16).state_dict()
    assert cut.dims.n_layers == 2 and all(torch.equal(w, kept[key]) for key, w in cut.model.state_dict().items())
    assert [*cache.iterdir()] == [folder]


@pytest.mark.parametrize(("file_type", "dtype"), [(None, "float32"), (1, "float16"), (15, "float32"), (32, "bfloat16")])
def test_a_converted_file_keeps_float32_and_says_what_it_was_written_in(file_type, dtype, tmp_path, cache):
    path = gguf_files.write(tmp_path / "m.gguf", tiny.model("llama-gqa"), file_type=file_type)
    assert loading.load(path).dtype == torch.float32, "as everything on a CPU"
    (folder,) = cache.iterdir()
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == getattr(torch, dtype), "on a GPU"


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    path = gguf_files.write(tmp_path / "m.gguf", tiny.model("llama-gqa"))
    monkeypatch.setenv("DEPTHLENS_CACHE", str(path / "within"))
    message = refused("", loading.load, path)
    assert f"model {str(path)!r} cannot be written to {path}/within (NotADirectoryError" in message
    assert "free 4 bytes a weight there or set DEPTHLENS_CACHE to another folder" in message


@pytest.mark.parametrize(("spoilt", "said"), [
    ({"without": "blk.1.ffn_up.weight"},
     "files lack 1 of its weights, e.g. model.layers.1.mlp.up_proj.weight is missing; load the model from the"),
    ({"beside": {"blk.0.attn_q.bias": torch.ones(32)}}, "transformers does not read its blk.0.attn_q.bias, and scores"),
    ({"architecture": "mistral"}, "cannot be loaded: Unknown gguf model_type: mistral in gguf-py"),
])  # fmt: skip
def test_a_gguf_file_of_which_transformers_would_make_another_model(spoilt, said, tmp_path, cache):
    path = gguf_files.write(tmp_path / "m.gguf", tiny.model("llama-gqa"), **spoilt)
    for _ in range(2):
        assert said in refused("", loading.load, path) and [*cache.iterdir()] == [], "nothing is kept"


# -- nothing that came with a model runs --


@pytest.mark.parametrize("model_type", ["llama", "brand_new"])
def test_code_beside_the_weights_is_never_executed(copy, tmp_path, model_type, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("the user is asked to trust code"))
    marker = tmp_path / "executed"
    (copy / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    auto = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": ["evil.T", "evil.T"]}
    change_config(copy, auto_map=auto, model_type=model_type)
    tokenizer = copy / "tokenizer_config.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"auto_map": auto}))
    if model_type == "llama":  # a family that transformers knows needs none of that code
        assert loading.load(str(copy)).dims.n_layers == 5
    else:
        assert "contains custom code" in refused("", loading.load, str(copy))
    assert not marker.exists()


def test_pickled_weights_are_refused_unread(copy, tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "executed"), "w")

    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    message = refused("", loading.load, str(copy))
    assert "model.safetensors" in message and str(copy) in message
    assert not (tmp_path / "executed").exists()


# -- what cannot be loaded --


def without_tokenizer(folder):
    for path in folder.glob("tokenizer*.json"):
        path.unlink()


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda folder: (folder / "config.json").unlink(), "Unrecognized model in"),
    (without_tokenizer, "has no tokenizer that can be read (ValueError at "),
    (lambda folder: change_config(folder, intermediate_size=64), "has shape [32, 48], not [32, 64]"),
])  # fmt: skip
def test_a_damaged_folder_is_one_line(copy, spoil, said):
    spoil(copy)
    assert said in refused("", loading.load, str(copy))


def test_weights_that_are_missing_are_not_filled_at_random(copy, capfd):
    change_config(copy, num_hidden_layers=7)
    message = refused("", loading.load, str(copy))
    assert "lack 18 of its weights, e.g. model.layers.5.input_layernorm.weight is missing; get the" in message
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_model_too_large_for_the_memory(copy, monkeypatch, error):
    def full(*given, **options):
        raise error

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", full)
    assert "does not fit into memory; try dtype=bfloat16 or offload=disk" in refused("", loading.load, str(copy))
