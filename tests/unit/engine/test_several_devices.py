"""A model over two made-up devices: the same answers, value for value, and no tensor on the wrong device."""

import copy
from contextlib import contextmanager

import made_up_devices
import pytest
import tiny
import torch
from accelerate import dispatch_model
from backend_table import KINDS, reference_of

from depthlens.ablations import BASELINE, expand, parse_condition
from depthlens.engine.engine import Engine
from depthlens.models import pairs
from depthlens.models.lens import Lens
from depthlens.requests import GenerateRequest, LoglikelihoodRequest

BORDER = 2
ONE = dict.fromkeys(("embed", "low", "high", "ends"), "cpu:1")
TWO = {"embed": "cpu:1", "low": "cpu:1", "high": "cpu:2", "ends": "cpu:2"}
SCORED = [LoglikelihoodRequest((1, 2, 3, 4 + i), (9, 8 + i, 7)[: 2 + i % 2]) for i in range(4)]
WRITTEN = [GenerateRequest((1, 2, 3, 4 + i, 30 + i), ("\n",), 6) for i in range(3)]


@pytest.fixture(autouse=True)
def devices(monkeypatch):
    with made_up_devices.made_up_devices(monkeypatch):
        yield


def spread(lens, places):
    """The same model with its parts on these devices, by accelerate's hooks."""
    model = copy.deepcopy(lens.model)
    n = lens.dims.n_layers
    where = {f"model.layers.{i}": places["low" if i < BORDER else "high"] for i in range(n)}
    where |= {"model.embed_tokens": places["embed"], "model.rotary_emb": places["embed"]}
    where |= {"model.norm": places["ends"], "lm_head": places["ends"]}
    made_up_devices.spread(model, lambda name: where[next(key for key in where if f"{name}.".startswith(f"{key}."))])
    dispatch_model(model, where, force_hooks=True)
    return Lens(lens.name, model, lens.tokenizer)


def answers(lens, path, means=None, conditions=None):
    conditions = conditions or [BASELINE, *map(parse_condition, KINDS.values())]
    engine = Engine(lens, path=path, means=means, progress=False)
    return engine.loglikelihood(SCORED, conditions), engine.generate_until(WRITTEN, conditions)


@pytest.mark.parametrize(
    ("family", "path"),
    [("llama-gqa", "wavefront"), ("llama-gqa", "padded_rows"), ("qwen3-moe", "wavefront"), ("deepseek-v2", "wavefront")],
)
def test_two_devices_give_the_answers_of_one(family, path):
    whole = tiny.lens(family)
    one, two = spread(whole, ONE), spread(whole, TWO)
    assert [str(device) for device in two.devices] == ["cpu:1", "cpu:2"]
    assert two.describe()["device"] == "cpu:1,cpu:2"
    expected = answers(one, path, reference_of(one))
    assert answers(two, path, reference_of(two)) == expected
