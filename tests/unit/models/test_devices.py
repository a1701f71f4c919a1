"""Devices: which one a name means, and products that are wrong without an error."""

from __future__ import annotations

import pytest
import tiny
import torch

from depthlens.errors import UserError
from depthlens.models import devices, loading

LINEAR = torch.nn.functional.linear


def available(monkeypatch, *, cuda=False, mps=False):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


def test_auto_prefers_cuda_then_mps_then_cpu(monkeypatch):
    available(monkeypatch)
    assert devices.torch_device("auto").type == "cpu"
    available(monkeypatch, mps=True)
    assert devices.torch_device("auto").type == "mps"
    available(monkeypatch, cuda=True, mps=True)
    assert devices.torch_device("auto").type == "cuda"
    assert devices.torch_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="'cuda:2': there are 2 GPUs"):
        devices.torch_device("cuda:2")


def ignores_strides(x, weight, bias=None):
    """As torch 2.8.0 on MPS: a weight that is not contiguous is read as if it were."""
    if not weight.is_contiguous():
        weight = weight.T.contiguous().view(weight.shape)
    return LINEAR(x, weight, bias)


def test_right_products_pass():
    devices.check_linear(torch.device("cpu"))


def test_wrong_products_are_refused_with_the_fix(monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "linear", ignores_strides)
    with pytest.raises(UserError, match="device 'cpu': torch .* wrong matrix products .*; install torch 2.9 or later"):
        devices.check_linear(torch.device("cpu"))


def test_products_are_checked_before_a_model_is_loaded_onto_mps(tmp_path, monkeypatch):
    def refuse(device):
        raise UserError(f"{device} is wrong")

    available(monkeypatch, mps=True)
    monkeypatch.setattr(devices, "check_linear", refuse)
    with pytest.raises(UserError, match="mps is wrong"):
        loading.load(str(tiny.save(tmp_path, "llama-gqa")), device="auto")
