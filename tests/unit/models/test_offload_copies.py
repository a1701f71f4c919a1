"""Layers on their way to a GPU: pinned, on another stream, and waited for before they are used; the GPU is made up."""

import made_up_devices
import pytest
import tiny
import torch
from offloaded import SAME, scores

from depthlens.ablations import expand
from depthlens.engine import walk_check
from depthlens.models import devices, loading, offload

GPU = torch.device("cpu", 1)


class Recorded:
    """`depthlens.models.offload.Copies` without CUDA: the same calls, written down."""

    def __init__(self, device):
        self.device = device
        self.events = []

    def send(self, weight):
        assert weight.device.type == "cpu" and weight.device.index is None, "pinned memory is the host's"
        self.events.append(("send", tuple(weight.shape)))
        return weight.to(self.device)

    def receive(self, weights):
        weights = list(weights)
        assert {weight.device for weight in weights} == {self.device}
        self.events.append(("receive", len(weights)))


@pytest.fixture
def on_gpu(tmp_path, monkeypatch):
    folder, made = tiny.save(tmp_path, "llama-gqa"), []

    def copies(device):
        made.append(Recorded(device))
        return made[0]

    with made_up_devices.made_up_devices(monkeypatch):
        whole = loading.load(folder, device="cpu")
        monkeypatch.setattr(devices, "torch_devices", lambda name: [GPU])
        monkeypatch.setattr(offload, "copies_to", copies)
        yield loading.load(folder, offload="disk"), whole, made[0]


def test_layers_are_sent_and_received_once_a_walk(on_gpu):
    lens, whole, copies = on_gpu
    conditions = expand("layers", whole.dims)
    wanted = scores(whole, conditions)
    assert walk_check.found(lens).fault is None
    copies.events.clear()
    torch.testing.assert_close(scores(lens, conditions), wanted, atol=SAME, rtol=0)
    n_weights = len(list(whole.arch.layers[0].parameters()))
    assert [n for kind, n in copies.events if kind == "receive"] == [n_weights] * whole.dims.n_layers
    sent = [shape for kind, shape in copies.events if kind == "send"]
    shapes = [tuple(p.shape) for p in whole.arch.layers[0].parameters()]
    assert sorted(sent) == sorted(shapes * whole.dims.n_layers)
    assert all(p.is_meta for layer in lens.arch.layers for p in layer.parameters()), "all are out of memory again"


def test_copies_wait_on_streams(monkeypatch):
    """The calls of CUDA, in order; no GPU is here to run them."""
    log = []

    class Made:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            log.append(f"{self.name} waits for {other.name}")

        def __enter__(self):
            log.append(f"on {self.name}")

        def __exit__(self, *error):
            log.append("back")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Made("side"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Made("main"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: log.append("pin") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, non_blocking: log.append(f"to {non_blocking}") or self)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: log.append(f"kept for {stream.name}"))
    copies = offload.copies_to(torch.device("cuda", 0))
    copies.receive([copies.send(torch.ones(2))])
    assert log == ["on side", "pin", "to True", "back", "main waits for side", "kept for main"]
    assert offload.copies_to(torch.device("cpu")) is None
