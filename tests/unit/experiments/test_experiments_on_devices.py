"""On two made-up devices a model gives what it gives on one, value for value, and mixes no tensors."""

import made_up_devices
import numpy as np
import pytest
import tiny
import torch
from backend_table import KINDS, reference_of
from by_hand import made_needles
from made_up_devices import ONE, TWO, spread
from transplants import ALIKE as SAME

from depthlens.ablations import BASELINE, parse_condition
from depthlens.engine.engine import Engine
from depthlens.experiments import attribution, geometry, one_prompt
from depthlens.experiments.retrieval_heads import DETECTORS
from depthlens.requests import GenerateRequest, LoglikelihoodRequest

REQUESTS = [LoglikelihoodRequest((1, 2, 3, 4 + i, 60), (9, 8 + i)) for i in range(3)]
TOKENS = [1, 50, 3, 9, 120, 7, 33, 8]


@pytest.fixture(autouse=True)
def devices(monkeypatch):
    with made_up_devices.made_up_devices(monkeypatch):
        yield


MEASURES = {
    "slope": lambda lens: attribution.attribute(lens, REQUESTS)[0],
    "path": lambda lens: attribution.attribute(lens, REQUESTS, steps=2, groups=2)[0],
    "streams": lambda lens: torch.stack(geometry.residual_streams(lens, TOKENS)),
    "patterns": lambda lens: one_prompt.attention(lens, TOKENS, "L4.H1").pattern[:, [2, 7]],
}
for name, of in DETECTORS.items():
    MEASURES[name] = lambda lens, of=of: np.concatenate([of.measure(lens, n) for n in made_needles()])
MEASURED = [*(("llama-gqa", name) for name in MEASURES), *(("deepseek-v3", name) for name in DETECTORS)]


@pytest.mark.parametrize(("family", "measure"), MEASURED)
def test_two_devices_give_what_one_gives(family, measure):
    whole = tiny.lens(family)
    found, wanted = (torch.as_tensor(MEASURES[measure](lens)) for lens in (spread(whole, TWO), whole))
    torch.testing.assert_close(found, wanted, atol=10 * SAME, rtol=1e-4)


SCORED = [LoglikelihoodRequest((1, 2, 3, 4 + i), (9, 8 + i, 7)[: 2 + i % 2]) for i in range(4)]
WRITTEN = [GenerateRequest((1, 2, 3, 4 + i, 30 + i), ("\n",), 3) for i in range(3)]


def answers(lens, path, means=None, conditions=None):
    conditions = conditions or [BASELINE, *map(parse_condition, KINDS.values())]
    engine = Engine(lens, path=path, means=means, progress=False)
    return engine.loglikelihood(SCORED, conditions), engine.generate_until(WRITTEN, conditions[::3])


@pytest.mark.parametrize(("family", "path"), [("llama-gqa", "padded_rows"), ("deepseek-v2", "wavefront")])
def test_two_devices_give_the_answers_of_one_value_for_value(family, path):
    whole = tiny.lens(family)
    one, two = spread(whole, ONE), spread(whole, TWO)
    assert [str(device) for device in two.devices] == ["cpu:1", "cpu:2"]
    expected = answers(one, path, reference_of(one))
    assert answers(two, path, reference_of(two)) == expected
