"""Packed checkpoints: the plain numbers that they stand for, in memory, offloaded and as donors."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import depthlens as dl
from depthlens.ablations import BASELINE, expand
from depthlens.engine.engine import Engine
from depthlens.requests import LoglikelihoodRequest

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


def into_words(numbers):
    """Integers of four bits one after another in words of 32, lowest bits first; by Python's own large integers."""
    stream = sum(int(number) << (4 * i) for i, number in enumerate(numbers))
    words = [(stream >> (32 * i)) & 0xFFFFFFFF for i in range(len(numbers) // 8)]
    return torch.tensor([word - 2**32 if word >= 2**31 else word for word in words], dtype=torch.int32)


def rounded(weight):
    """Whole numbers, zeros and scales (of float16) by group of inputs, and the plain matrix that they stand for."""
    grouped = weight.unflatten(1, (-1, GROUP))
    low, high = grouped.amin(2).clamp(max=0), grouped.amax(2).clamp(min=0)
    scales = ((high - low) / 15).half().float()
    zeros = (-low / scales).round().clamp(0, 15)
    q = (grouped / scales[..., None] + zeros[..., None]).round().clamp(0, 15)
    plain = scales[..., None] * (q - zeros[..., None])
    return q.flatten(1).long(), zeros.T.long(), scales.T, plain.flatten(1)


def gptq(weight):
    """The tensors of a matrix, and the plain matrix that they stand for."""
    q, zeros, scales, plain = rounded(weight)
    return {
        "qweight": torch.stack([into_words(row) for row in q], 1),
        "qzeros": torch.stack([into_words(row) for row in (zeros - 1) % 16]),
        "scales": scales.half(),
        "g_idx": (torch.arange(weight.shape[1]) // GROUP).to(torch.int32),
    }, plain


def awq(weight):
    q, zeros, scales, plain = rounded(weight)
    order = [8 * block + i for block in range(len(weight) // 8) for i in (0, 2, 4, 6, 1, 3, 5, 7)]
    return {
        "qweight": torch.stack([into_words(column[order]) for column in q.T]),
        "qzeros": torch.stack([into_words(row[order]) for row in zeros]),
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
    """The loaded model has the plain numbers, and scores as it does when offloaded."""
    lens, base = dl.load(place), dl.load(str(source))
    assert lens.describe()["quantization"] == f"dequantised ({method})"
    state = lens.model.state_dict()
    assert plain
    for name, weight in plain.items():
        assert torch.allclose(state[name], weight, atol=EXACT), name
    assert lens.identify().obstacle is None
    conditions = expand("layers", lens.dims)
    expected = scores(lens, conditions)
    assert not torch.allclose(expected[0], scores(base, [BASELINE])[0], atol=SAME)
    assert torch.allclose(scores(dl.load(place, offload="disk"), conditions), expected, atol=SAME)


def test_gptq(folder, tmp_path):
    settings = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "checkpoint_format": "gptq"}
    check(*packed(folder, tmp_path / "m", gptq, **settings), folder, "gptq")


def test_awq(folder, tmp_path):
    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    check(*packed(folder, tmp_path / "m", awq, **settings), folder, "awq")


def test_fp8(folder, tmp_path):
    def pack(weight):
        scale = weight.abs().max() / 448
        q = (weight / scale).to(torch.float8_e4m3fn)
        return {"weight": q, "weight_scale_inv": scale}, q.float() * scale

    settings = {"quant_method": "fp8", "weight_block_size": None, "activation_scheme": "dynamic"}
    check(*packed(folder, tmp_path / "m", pack, **settings), folder, "fp8")
