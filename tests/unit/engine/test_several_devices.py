"""A model over two made-up devices: the same answers, value for value, and no tensor on the wrong device."""

import made_up_devices
import pytest
import tiny
import torch
from backend_table import KINDS, reference_of
from made_up_devices import ONE, TWO, spread
from offloaded import SAME

from depthlens.ablations import BASELINE, expand, parse_condition
from depthlens.engine import pipeline
from depthlens.engine.engine import Engine
from depthlens.requests import GenerateRequest, LoglikelihoodRequest

SCORED = [LoglikelihoodRequest((1, 2, 3, 4 + i), (9, 8 + i, 7)[: 2 + i % 2]) for i in range(4)]
WRITTEN = [GenerateRequest((1, 2, 3, 4 + i, 30 + i), ("\n",), 3) for i in range(3)]


@pytest.fixture(autouse=True)
def devices(monkeypatch):
    with made_up_devices.made_up_devices(monkeypatch):
        yield


def answers(lens, path, means=None, conditions=None):
    conditions = conditions or [BASELINE, *map(parse_condition, KINDS.values())]
    engine = Engine(lens, path=path, means=means, progress=False)
    return engine.loglikelihood(SCORED, conditions), engine.generate_until(WRITTEN, conditions[::3])


def whole_packs(monkeypatch):
    """Nothing is cut, so that every product has the rows that it has on one device."""
    monkeypatch.setattr(pipeline, "parts", lambda lens, tokens, pack, group, *rest, **how: [(pack, group, rest[1])])


@pytest.mark.parametrize(
    ("family", "path"),
    [("llama-gqa", "padded_rows"), ("deepseek-v2", "wavefront")],
)
def test_two_devices_give_the_answers_of_one_value_for_value(family, path, monkeypatch):
    whole_packs(monkeypatch)
    whole = tiny.lens(family)
    one, two = spread(whole, ONE), spread(whole, TWO)
    assert [str(device) for device in two.devices] == ["cpu:1", "cpu:2"]
    expected = answers(one, path, reference_of(one))
    assert answers(two, path, reference_of(two)) == expected


def test_parts_that_walk_at_once_give_the_same():
    whole = tiny.lens("llama-gqa")
    two, conditions = spread(whole, TWO), expand("layers,L0-1,L3.H1", whole.dims)
    wanted, found = answers(whole, None, None, conditions), answers(two, None, None, conditions)
    logprobs = [torch.tensor([[a.logprob for a in row] for row in scored]) for scored, _ in (wanted, found)]
    torch.testing.assert_close(*logprobs, atol=SAME, rtol=0)
    assert found[1] == wanted[1]
    assert answers(two, None, None, conditions) == found, "threads decide nothing"
