"""A model over two made-up devices: the same answers, value for value, and no tensor on the wrong device."""

import threading

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
    [
        ("llama-gqa", "wavefront"),
        ("llama-gqa", "padded_rows"),
        ("qwen3-moe", "wavefront"),
        ("deepseek-v2", "wavefront"),
    ],
)
def test_two_devices_give_the_answers_of_one_value_for_value(family, path, monkeypatch):
    whole_packs(monkeypatch)
    whole = tiny.lens(family)
    one, two = spread(whole, ONE), spread(whole, TWO)
    assert [str(device) for device in two.devices] == ["cpu:1", "cpu:2"]
    expected = answers(one, path, reference_of(one))
    assert answers(two, path, reference_of(two)) == expected


@pytest.mark.parametrize(
    ("conditions", "ends"), [("baseline", "cpu:2"), ("layers,L0-1,L3.H1", "cpu:2"), ("attn", "cpu:1")]
)
def test_parts_that_walk_at_once_give_the_same(conditions, ends):
    whole = tiny.lens("llama-gqa")
    two, conditions = spread(whole, TWO | {"ends": ends}), expand(conditions, whole.dims)
    wanted, found = answers(whole, None, None, conditions), answers(two, None, None, conditions)
    logprobs = [torch.tensor([[a.logprob for a in row] for row in scored]) for scored, _ in (wanted, found)]
    torch.testing.assert_close(*logprobs, atol=SAME, rtol=0)
    assert found[1] == wanted[1]
    assert answers(two, None, None, conditions) == found, "threads decide nothing"


def test_two_devices_compute_at_the_same_time():
    """The first part waits in a layer of the second device until another one is in a layer of the first."""
    two = spread(tiny.lens("llama-gqa"), TWO)
    engine, both = Engine(two, path="wavefront", progress=False), threading.Barrier(2)
    assert engine.path_for(9) == "wavefront"  # tried before anything waits
    passed = []

    def on_second(module, args):
        if "second" not in passed:
            passed.append("second")
            both.wait(timeout=30)

    def on_first(module, args):
        name = threading.current_thread().name
        if name.endswith("-1") and "first" not in passed:
            passed.append("first")
            both.wait(timeout=30)

    handles = [
        two.arch.attn[2].register_forward_pre_hook(on_second),
        two.arch.attn[0].register_forward_pre_hook(on_first),
    ]
    engine.loglikelihood(SCORED, expand("heads", two.dims))
    for handle in handles:
        handle.remove()
    assert sorted(passed) == ["first", "second"]


def test_a_part_that_runs_out_of_memory_is_computed_in_smaller_ones():
    two, conditions = spread(tiny.lens("llama-gqa"), TWO), expand("layers,heads", tiny.lens("llama-gqa").dims)
    engines = [Engine(two, progress=False) for _ in range(2)]
    wanted, faults = engines[0].loglikelihood(SCORED, conditions), [2, 5]
    assert engines[1].path_for(9) == "wavefront"  # tried before anything fails

    def fail(module, args):
        faults[:] = [n - 1 for n in faults]
        if faults and faults[0] < 0:
            faults.pop(0)
            raise torch.OutOfMemoryError("not enough memory")

    handle = two.arch.o_proj[3].register_forward_pre_hook(fail)
    found = engines[1].loglikelihood(SCORED, conditions)
    handle.remove()
    assert not faults and engines[1].batch_tokens < engines[0].batch_tokens
    logprobs = [torch.tensor([[a.logprob for a in row] for row in scored]) for scored in (wanted, found)]
    torch.testing.assert_close(*logprobs, atol=SAME, rtol=0)
    assert engines[1].work.rows == engines[0].work.rows
