"""Layers read from disk during the walk: scores, errors and fingerprint of the model loaded whole."""

import pytest
import tiny
import torch
import transplants
from refusals import refused
from safetensors.torch import load_file, save_file
from transplants import ALIKE, layers_in_memory, logits, requests, scores

from depthlens.ablations import expand
from depthlens.engine.references import measure_means
from depthlens.experiments import sweep
from depthlens.models import loading, pairs
from depthlens.models.architectures import Architecture

# -- the same model --


@pytest.mark.parametrize("family", ["llama-gqa", "qwen3-moe", "deepseek-v3"])
def test_an_offloaded_model_is_the_model_loaded_whole(saved, family, monkeypatch):
    whole, streamed = loading.load(saved(family)), loading.load(saved(family), offload="disk")
    assert layers_in_memory(whole) == list(range(5)) and layers_in_memory(streamed) == []
    conditions, held = expand("layers,attn,mlp,heads,kv,blocks:2", whole.dims), []
    wanted = scores(whole, conditions)
    call = Architecture.call
    monkeypatch.setattr(Architecture, "call", lambda *a: (held.append(layers_in_memory(streamed)), call(*a))[1])
    torch.testing.assert_close(scores(streamed, conditions), wanted, rtol=0, atol=ALIKE)
    assert max(map(len, held)) == 1 and layers_in_memory(streamed) == []
    assert streamed.fingerprint == whole.fingerprint
    assert streamed.describe() == whole.describe() | {"offload": "disk"} and whole.describe()["offload"] is None
    # called whole, as by hand in a notebook
    torch.testing.assert_close(logits(streamed.model), logits(whole.model), rtol=0, atol=ALIKE)
    assert layers_in_memory(streamed) == [] and not any(p.requires_grad for p in streamed.model.parameters())


@pytest.mark.parametrize(("family", "tied", "stored", "dtype"), [
    ("llama-gqa", True, torch.bfloat16, "auto"), ("deepseek-v3", False, torch.float32, "bfloat16"),
])  # fmt: skip
def test_shards_tied_embeddings_and_other_dtypes(tmp_path, family, tied, stored, dtype):
    tiny.model(family, tie_word_embeddings=tied).to(stored).save_pretrained(tmp_path, max_shard_size="40KB")
    tiny.tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    whole = loading.load(tmp_path, dtype=dtype, device="cpu")
    streamed = loading.load(tmp_path, dtype=dtype, device="cpu", offload="disk")
    assert streamed.dtype == whole.dtype and (streamed.arch.unembed.weight is streamed.arch.embed.weight) == tied
    assert streamed.fingerprint == whole.fingerprint  # of names, shapes, dtypes and values
    torch.testing.assert_close(logits(streamed.model), logits(whole.model), rtol=0, atol=ALIKE)


# -- what goes wrong on the way --


@pytest.mark.parametrize(("error", "whole_call"), [(RuntimeError("middle"), True), (KeyboardInterrupt(), False)])
def test_an_exception_in_a_layer_leaves_none_in_memory(saved, error, whole_call):
    lens = loading.load(saved(), offload="disk")
    conditions = expand("layers", lens.dims)
    wanted = scores(lens, conditions)

    def fail(*args):
        raise error

    handle = lens.arch.mlp[2].register_forward_hook(fail)
    with pytest.raises(type(error)):
        logits(lens.model) if whole_call else scores(lens, conditions)
    handle.remove()
    assert layers_in_memory(lens) == []
    assert torch.equal(scores(lens, conditions), wanted)


# -- off the fast path --


def test_means_rows_and_sliding_windows_read_layers_as_they_are_called(saved):
    """Contexts of 13 tokens in a window of 4: whole forward passes, with the attention that the model has."""
    folder = saved("mistral", sliding_window=4)
    whole, streamed = loading.load(folder), loading.load(folder, offload="disk")
    conditions = expand(["L1@mean", "L2.H1@mean", "L3", "L2[1:]", "L3.H0[1:]@noise"], whole.dims)
    texts = [[*r.context, *r.continuation] for r in requests()]
    means = [measure_means(lens, texts, "texts") for lens in (whole, streamed)]
    torch.testing.assert_close(means[1].mean["z"], means[0].mean["z"], rtol=0, atol=ALIKE)
    found = [scores(lens, conditions, means=m) for lens, m in zip((whole, streamed), means, strict=True)]
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=ALIKE)
    assert (found[0][1:] - found[0][0]).abs().max() > 0.01 and layers_in_memory(streamed) == []


def test_generation_is_refused_before_anything_runs(saved):
    lens = loading.load(saved(max_position_embeddings=4096), offload="disk")
    said = "read whole once for every token; load it without offload, or score"
    refused(said, transplants.texts, lens, expand("layers", lens.dims))
    tasks = ["capitals_continuation", "kv_retrieval_4"]
    refused("task kv_retrieval_4: an offloaded model", sweep.layer_sweep, lens, tasks, limit=1, progress=False)


@pytest.mark.parametrize(("family", "offloaded"), [("llama-gqa", "disk"), ("qwen3-moe", None), ("deepseek-v3", "disk")])
def test_a_donor_by_name_is_the_donor_in_memory(saved, family, offloaded):
    whole = loading.load(saved(family)), loading.load(saved(family, moved=True))
    base = loading.load(saved(family), offload=offloaded)
    together = pairs.with_donor(base, saved(family, moved=True))
    conditions = transplants.conditions_for(base)
    wanted = pairs.with_donor(*whole)
    transplants.same(transplants.scores(together, conditions), transplants.scores(wanted, conditions))
    assert layers_in_memory(together.donor) == []
    if not offloaded:
        assert transplants.texts(together, conditions) == transplants.texts(wanted, conditions)
        assert layers_in_memory(together.donor) == []
    assert together.donor.fingerprint == whole[1].fingerprint


def test_layers_of_a_donor_that_nothing_asks_for_are_not_read(saved, monkeypatch):
    base, donor = loading.load(saved("llama-gqa")), loading.load(saved("llama-gqa", moved=True), offload="disk")
    together, read, resident = pairs.with_donor(base, donor), [], donor.resident

    def noted(layer):
        read.extend({layer} - {*layers_in_memory(donor)})  # a layer that is asked for again is not read again
        return resident(layer)

    monkeypatch.setattr(donor, "resident", noted)
    transplants.scores(together, expand("L1@donor,L3@donor", base.dims))
    assert read == [1, 3] and layers_in_memory(donor) == []


# -- what cannot be loaded --


@pytest.mark.parametrize(("key", "how"), [
    ("model.layers.2.mlp.experts.1.down_proj.weight", "is missing"), ("model.norm.weight", "has shape"),
])  # fmt: skip
def test_weights_that_do_not_fit_are_refused_as_for_a_whole_model(tmp_path, key, how):
    copy = tiny.save(tmp_path, "qwen3-moe")
    weights = load_file(copy / "model.safetensors")
    names = [k for k in weights if k.startswith("model.layers.2.mlp.experts.")] if "experts" in key else [key]
    for name in names:  # transformers stacks the experts that are there: one that lacks shows in the shape
        if how == "is missing":
            del weights[name]
        else:
            weights[name] = weights[name][..., :-1].contiguous()
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert refused(how, loading.load, copy, offload="disk") == refused("", loading.load, copy)
