"""NaN and infinite numbers stop a sweep, with the condition named."""

import dataclasses

import pytest
import tiny
from refusals import refused

import depthlens as dl
from depthlens.engine.references import measure_means
from depthlens.requests import GenerateRequest, LoglikelihoodRequest

READ = [LoglikelihoodRequest((5, 6, 7), (8, 9)), LoglikelihoodRequest((5, 6), (10,))]
WRITE = [GenerateRequest((5, 6, 7), ("\n",), 4)]


def broken(value: float = float("nan"), layer: int = 2, **changes):
    """A tiny model one of whose MLPs has one bad weight."""
    lens = tiny.lens("llama-gqa", **changes)
    lens.model.model.layers[layer].mlp.down_proj.weight[0, 0] = value
    return lens


def ask(lens, conditions=("baseline", "L0"), *, write=False, **options):
    engine = dl.Engine(lens, progress=False, **options)
    wanted = [dl.parse_condition(c) for c in conditions]
    return engine.generate_until(WRITE, wanted) if write else engine.loglikelihood(READ, wanted)


@pytest.mark.parametrize(("backend", "path", "value", "write"), [
    *(("torch", None, float("nan"), False), ("torch", None, -float("inf"), True)),
    *(("torch", "padded_rows", float("nan"), True), ("nnsight", None, float("nan"), True)),
    ("transformer_lens", None, float("nan"), False),
])  # fmt: skip
def test_a_broken_weight_is_one_line(backend, path, value, write):
    said = r"^model 'tiny-llama-gqa' gives numbers that are not finite under (baseline|L0) \(float32\); use dtype="
    refused(said, ask, broken(value), backend=backend, path=path, write=write)


@pytest.mark.parametrize("write", [False, True])
def test_the_condition_that_breaks_it_is_named(write):
    lens = tiny.lens("llama-gqa")
    means = measure_means(lens, [[5, 6, 7]], "one")
    attn = means.mean["attn"].clone()
    attn[1] = float("inf")
    conditions = ["baseline", "L0", "L1.attn@mean", "L3"]
    with pytest.raises(dl.UserError, match=r"not finite under L1\.attn@mean "):
        ask(lens, conditions, means=dataclasses.replace(means, mean={**means.mean, "attn": attn}), write=write)
    assert ask(lens, ["baseline", "L0", "L3"], means=means, write=write)


def test_half_precision_that_overflows_is_told_to_use_float32():
    lens = tiny.lens("llama-gqa")
    lens.model.half()
    lens.model.model.layers[1].mlp.down_proj.weight.fill_(6e4)
    refused(r"\(float16\); use dtype=float32", ask, lens)
