"""A model over two made-up devices: the same answers, value for value, and no tensor on the wrong device."""

import made_up_devices
import pytest
import tiny
from backend_table import KINDS, reference_of
from made_up_devices import ONE, TWO, spread

from depthlens.ablations import BASELINE, parse_condition
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


@pytest.mark.parametrize(
    ("family", "path"),
    [("llama-gqa", "padded_rows"), ("deepseek-v2", "wavefront")],
)
def test_two_devices_give_the_answers_of_one_value_for_value(family, path):
    whole = tiny.lens(family)
    one, two = spread(whole, ONE), spread(whole, TWO)
    assert [str(device) for device in two.devices] == ["cpu:1", "cpu:2"]
    expected = answers(one, path, reference_of(one))
    assert answers(two, path, reference_of(two)) == expected
