"""Devices by name, and models over several: where layers go, what has no room, and what accelerate spreads."""

import copy

import made_up_devices
import pytest
import tiny
import torch
from accelerate import dispatch_model
from refusals import refused
from transplants import ALIKE, scores

import depthlens as dl
from depthlens.ablations import BASELINE, parse_condition
from depthlens.models import loading, placement

CONDITIONS = [BASELINE, *map(parse_condition, ("L0", "L2.attn", "L3.H1", "L1.mlp@noise", "L2.H0@noise"))]
LISTED = "cuda:0,cuda:1"


@pytest.fixture(scope="module")
def folder(saved):
    return saved()


@pytest.fixture
def gpus(monkeypatch):
    """Two made-up devices with so much free memory, in multiples of what the model needs."""

    def give(*free):
        found = [torch.device(f"cpu:{i + 1}") for i in range(len(free))]
        size = tiny.model("llama-gqa").get_memory_footprint()
        monkeypatch.setattr(placement, "torch_devices", lambda name: found)
        monkeypatch.setattr(placement, "free_bytes", lambda device: int(free[device.index - 1] * size))

    with made_up_devices.made_up_devices(monkeypatch):
        yield give


def test_auto_prefers_cuda_then_mps_then_cpu(monkeypatch):
    for cuda, mps, found in ((0, False, ["cpu"]), (0, True, ["mps"]), (2, True, ["cuda:0", "cuda:1"])):
        monkeypatch.setattr(torch.cuda, "device_count", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert placement.torch_devices("auto") == [*map(torch.device, found)]
    assert placement.torch_devices("cuda:1") == [torch.device("cuda", 1)]
    refused("'cuda:2': torch finds 2 CUDA GPUs here", placement.torch_devices, "cuda:0,cuda:2")


def places(lens):
    return [str(lens.device_of(layer)) for layer in range(lens.dims.n_layers)]


def test_layers_are_shared_by_room_and_answers_stay(folder, gpus):
    wanted = scores(loading.load(folder, device="cpu"), CONDITIONS)
    gpus(1.2, 1.2)
    even = loading.load(folder, device=LISTED)
    assert sorted(places(even)) == places(even), "layers stay in order"
    assert set(places(even)) == {"cpu:1", "cpu:2"}
    torch.testing.assert_close(scores(even, CONDITIONS), wanted, atol=ALIKE, rtol=0)
    assert even.describe()["device"] == "cpu:1,cpu:2" and "cpu:1,cpu:2" in repr(even)
    gpus(0.6, 2.4)
    assert places(loading.load(folder, device=LISTED)).count("cpu:1") < places(even).count("cpu:1")
    gpus(0.4, 0.4)
    refused("does not fit into memory; try dtype=bfloat16 or offload=disk", loading.load, folder, device=LISTED)


def test_donors_of_a_spread_model_are_spread_alike(folder, gpus):
    gpus(1.2, 1.2)
    base, donor = (loading.load(folder, device=LISTED) for _ in range(2))
    together = dl.with_donor(base, donor)
    taken = [parse_condition(text) for text in ("L0@donor", "L4.attn@donor", "L3.H1@donor", "L2.mlp@donor+L4")]
    # the same weights: a transplant changes nothing
    for conditions, same in ((taken[:3], [BASELINE] * 3), (taken[3:], [parse_condition("L4")])):
        torch.testing.assert_close(scores(together, conditions), scores(base, same), atol=ALIKE, rtol=0)
    gpus(0.6, 2.4)
    refused("device of layer", dl.with_donor, base, loading.load(folder, device=LISTED))


def test_a_donor_follows_its_base_onto_what_torch_calls_mps_0(saved, monkeypatch):
    """On a Mac: loaded as ``mps``, tensors say ``mps:0``."""
    base, found, asked = loading.load(saved()), placement.torch_devices, []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(dl.Lens, "devices", property(lambda lens: [torch.device("mps", 0)]))
    monkeypatch.setattr(placement, "torch_devices", lambda name: asked.extend(found(name)) or [torch.device("cpu")])
    assert dl.with_donor(base, saved(moved=True)).donor is not None and asked == [torch.device("mps", 0)]


@pytest.fixture
def on_disk(tmp_path):
    """A model that a user has spread with accelerate over memory and disk, and the same one in memory."""
    whole = tiny.lens("llama-gqa")
    model = copy.deepcopy(whole.model)
    where = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "disk"}
    where |= {f"model.layers.{i}": "disk" if i > 1 else "cpu" for i in range(5)}
    return dl.Lens(dispatch_model(model, where, offload_dir=tmp_path), whole.tokenizer, whole.name), whole


@pytest.mark.parametrize("path", ["wavefront", "padded_rows"])
def test_what_accelerate_keeps_on_disk_is_read_for_a_walk(on_disk, path):
    lens, whole = on_disk
    assert torch.equal(scores(lens, CONDITIONS, path=path), scores(whole, CONDITIONS, path=path))
    assert all(p.is_meta for p in lens.arch.layers[3].parameters()), "it is out of memory again"


def test_where_weights_are_does_not_change_the_fingerprint(on_disk):
    lens, whole = on_disk
    assert lens.identify() == whole.identify()
    hooked = dispatch_model(copy.deepcopy(whole.model), {"": "cpu"}, force_hooks=True)
    moved = dl.Lens(hooked, whole.tokenizer, whole.name)
    assert moved.identify() == whole.identify()
    hooked.model.layers[1].mlp.forward = lambda x: x
    assert "forward method of its own in model.layers.1.mlp" in moved.identify().obstacle
