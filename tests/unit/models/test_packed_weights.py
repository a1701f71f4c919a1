"""Packed checkpoints: the plain numbers that they stand for, in memory, offloaded and as donors."""

from __future__ import annotations

import json
import shutil

import model_classes
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GptOssForCausalLM

import depthlens as dl
from depthlens.ablations import BASELINE, expand
from depthlens.engine.engine import Engine
from depthlens.models import packed_weights
from depthlens.requests import GenerateRequest, LoglikelihoodRequest

SAME = 1e-4  # nats: rows are multiplied in batches of other sizes
EXACT = 1e-6  # of weights below 1: the scale times a whole number, in float32
GROUP = 32
ASKED = [LoglikelihoodRequest(tuple(range(3 + i, 20 + 2 * i)), (5, 6 + i, 7)) for i in range(3)]
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("plain")
    tiny.save(place, "llama-gqa", **SIZES)
    return place


def scores(lens, conditions):
    answers = Engine(lens, progress=False).loglikelihood(ASKED, conditions)
    return torch.tensor([[answer.logprob for answer in row] for row in answers])


def into_words(numbers, bits):
    """Integers of some bits one after another in words of 32, lowest bits first; by Python's own large integers."""
    stream = sum(int(number) << (bits * i) for i, number in enumerate(numbers))
    words = [(stream >> (32 * i)) & 0xFFFFFFFF for i in range(-(-len(numbers) * bits // 32))]
    return torch.tensor([word - 2**32 if word >= 2**31 else word for word in words], dtype=torch.int32)


def rounded(weight, bits, group_of):
    """Whole numbers, zeros and scales (of float16) by group of inputs, as both methods have them."""
    top, n_groups = 2**bits - 1, int(group_of.max()) + 1
    scales, zeros = torch.empty(n_groups, len(weight)), torch.empty(n_groups, len(weight), dtype=torch.int64)
    for g in range(n_groups):
        w = weight[:, group_of == g]
        low, high = w.min(1).values.clamp(max=0), w.max(1).values.clamp(min=0)
        scales[g] = ((high - low) / top).half().float()
        zeros[g] = (-low / scales[g]).round().clamp(0, top)
    q = (weight / scales[group_of].T + zeros[group_of].T).round().clamp(0, top).long()
    return q, zeros, scales, (scales[group_of].T * (q - zeros[group_of].T))


def gptq(weight, bits=4, form="gptq", act_order=False):
    """The tensors of a matrix, and the plain matrix that they stand for."""
    group_of = torch.arange(weight.shape[1]) // GROUP
    if act_order:
        group_of = group_of[torch.randperm(len(group_of), generator=torch.Generator().manual_seed(0))]
    q, zeros, scales, plain = rounded(weight, bits, group_of)
    stored = (zeros - int(form == "gptq")) % 2**bits
    return {
        "qweight": torch.stack([into_words(row, bits) for row in q], 1),
        "qzeros": torch.stack([into_words(row, bits) for row in stored]),
        "scales": scales.half(),
        "g_idx": group_of.to(torch.int32),
    }, plain


def awq(weight):
    q, zeros, scales, plain = rounded(weight, 4, torch.arange(weight.shape[1]) // GROUP)
    order = [8 * block + i for block in range(len(weight) // 8) for i in (0, 2, 4, 6, 1, 3, 5, 7)]
    return {
        "qweight": torch.stack([into_words(column[order], 4) for column in q.T]),
        "qzeros": torch.stack([into_words(row[order], 4) for row in zeros]),
        "scales": scales.half(),
    }, plain


def packed(source, place, pack, **settings):
    """A checkpoint of packed layers, and the state dict of plain ones that it stands for."""
    shutil.copytree(source, place)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    weights, plain = load_file(place / "model.safetensors"), {}
    for name in list(weights):
        if name.endswith("proj.weight"):
            parts, plain[name] = pack(weights.pop(name))
            weights |= {name.removesuffix("weight") + part: tensor.contiguous() for part, tensor in parts.items()}
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    return str(place), plain


def check(place, plain, source, method):
    """The loaded model has the plain numbers, and scores as it does when offloaded and as a donor."""
    lens, base = dl.load(place), dl.load(str(source))
    assert lens.describe()["quantization"] == f"dequantised ({method})"
    state = lens.model.state_dict()
    assert plain
    for name, weight in plain.items():
        assert torch.allclose(state[name], weight, atol=EXACT), name
    assert lens.identify().obstacle is None
    conditions = expand("layers,heads", lens.dims)
    expected = scores(lens, conditions)
    assert not torch.allclose(expected[0], scores(base, [BASELINE])[0], atol=SAME)
    offloaded = dl.load(place, offload="disk")
    assert torch.allclose(scores(offloaded, conditions), expected, atol=SAME)
    assert offloaded.describe()["quantization"] == f"dequantised ({method})"
    donated = scores(dl.with_donor(base, place), expand("whole@donor", base.dims))
    assert torch.allclose(donated[1], expected[0], atol=SAME)
    texts = Engine(lens, progress=False).generate_until([GenerateRequest(tuple(range(3, 12)), (), 6)], conditions[:3])
    assert all(row[0] for row in texts)


@pytest.mark.parametrize("form", list(packed_weights.GPTQ_FORMS))
@pytest.mark.parametrize("bits, act_order", [(2, False), (3, False), (4, False), (4, True), (8, False)])
def test_gptq(folder, tmp_path, bits, act_order, form):
    settings = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": act_order}
    place, plain = packed(
        folder, tmp_path / "m", lambda w: gptq(w, bits, form, act_order), checkpoint_format=form, **settings
    )
    check(place, plain, folder, "gptq")


def test_gptq_without_an_order_of_groups(folder, tmp_path):
    def pack(weight):
        parts, plain = gptq(weight)
        return {name: tensor for name, tensor in parts.items() if name != "g_idx"}, plain

    check(*packed(folder, tmp_path / "m", pack, quant_method="gptq", bits=4, group_size=GROUP), folder, "gptq")


def test_awq(folder, tmp_path):
    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    check(*packed(folder, tmp_path / "m", awq, **settings), folder, "awq")


@pytest.mark.parametrize("block", [[32, 48], None])
def test_fp8(folder, tmp_path, block):
    def pack(weight):
        n_rows, n_columns = block or weight.shape
        by_row, by_column = torch.arange(weight.shape[0]) // n_rows, torch.arange(weight.shape[1]) // n_columns
        scale = torch.zeros(int(by_row.max()) + 1, int(by_column.max()) + 1)
        for i in range(len(scale)):
            for j in range(scale.shape[1]):
                scale[i, j] = weight[by_row == i][:, by_column == j].abs().max() / 448
        every = scale[by_row][:, by_column]
        q = (weight / every).to(torch.float8_e4m3fn)
        return {"weight": q, "weight_scale_inv": scale if block else scale[0, 0]}, q.float() * every

    settings = {"quant_method": "fp8", "weight_block_size": block, "activation_scheme": "dynamic"}
    check(*packed(folder, tmp_path / "m", pack, **settings), folder, "fp8")


@pytest.mark.parametrize("double", [False, True])
def test_four_bits_of_bitsandbytes_offloaded(folder, tmp_path, double):
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double, bnb_4bit_compute_dtype="float32"
    )
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    lens, offloaded = dl.load(str(tmp_path)), dl.load(str(tmp_path), offload="disk")
    conditions = expand("layers", lens.dims)
    assert torch.allclose(scores(offloaded, conditions), scores(lens, conditions), atol=SAME)
    assert not torch.allclose(scores(offloaded, [BASELINE]), scores(dl.load(str(folder)), [BASELINE]), atol=SAME)


def test_llm_int8_offloaded(folder, tmp_path):
    config = BitsAndBytesConfig(load_in_8bit=True)
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    offloaded, plain = dl.load(str(tmp_path), offload="disk"), dl.load(str(folder))
    stored, state = load_file(tmp_path / "model.safetensors"), plain.model.state_dict()
    for name in [n for n in stored if n.endswith(".SCB")]:
        weight = name.replace("SCB", "weight")
        state[weight].copy_(stored[weight].float() * stored[name][:, None] / 127)
    conditions = expand("layers", plain.dims)
    assert torch.allclose(scores(offloaded, conditions), scores(plain, conditions), atol=SAME)
    assert offloaded.identify().obstacle is None  # activations are not rounded


def test_mxfp4_offloaded(tmp_path):
    config = model_classes.config("gpt_oss")
    config.intermediate_size = 64  # whole groups of 32
    torch.manual_seed(0)
    GptOssForCausalLM(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name in [n for n in weights if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, n_in, n_out = weights.pop(name).shape
        shape = experts, n_out, n_in // 32
        weights[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
        weights[f"{name}_scales"] = torch.randint(122, 126, shape, dtype=torch.uint8, generator=generator)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}}))
    lens, offloaded = dl.load(str(tmp_path)), dl.load(str(tmp_path), offload="disk")
    assert torch.allclose(scores(offloaded, [BASELINE]), scores(lens, [BASELINE]), atol=SAME)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "unknown checkpoint_format 'marlin'"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "only 'gemm' with 4 bits"),
        ({"quant_method": "torchao"}, "offload reads gptq, awq, fp8, mxfp4, bitsandbytes; load it without offload"),
    ],
)
def test_what_cannot_be_unpacked_is_one_line(folder, tmp_path, settings, message):
    place, _ = packed(folder, tmp_path / "m", awq, **settings)
    with pytest.raises(dl.UserError, match=message):
        dl.load(place, offload="disk")


def test_a_missing_tensor_is_named(folder, tmp_path):
    def pack(weight):
        parts, plain = awq(weight)
        return {"qweight": parts["qweight"], "scales": parts["scales"]}, plain

    place, _ = packed(folder, tmp_path / "m", pack, quant_method="awq", bits=4)
    with pytest.raises(dl.UserError, match=r"lacks its tensor model\.layers\.0\..*qzeros"):
        dl.load(place)
