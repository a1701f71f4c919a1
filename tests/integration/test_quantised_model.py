"""The embedded model with weights in few bits: a walk has the scores of whole passes."""

from __future__ import annotations

import pytest
import torch

import depthlens as dl
from depthlens.ablations import expand
from depthlens.engine.engine import Engine
from depthlens.models import quantised
from depthlens.requests import LoglikelihoodRequest

SAME = 1e-3  # nats: rows are multiplied in batches of other sizes, through thirty layers
MIB = 2**20


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize(
    "scheme, most",
    [("int8", 215), *(pytest.param(*row, marks=pytest.mark.nightly) for row in (("int4", 222), ("nf4", 170)))],
)
def test_a_walk_has_the_scores_of_whole_passes(scheme, most):
    lens = dl.load("smollm2-135m", quantize=scheme)
    stored = [tensor for weight in lens.model.parameters() for tensor in quantised.tensors_of(weight)]
    assert sum(tensor.nbytes for tensor in stored) < most * MIB  # 513 MiB in float32, 108 of them the embedding
    tokens = lens.tokenizer
    asked = [
        LoglikelihoodRequest(tuple(tokens(f"The capital of {country} is").input_ids), tuple(tokens(city).input_ids))
        for country, city in (("France", " Paris"), ("Peru", " Lima"), ("Japan", " Tokyo"))
    ]
    conditions = expand("L3,L12.attn,L16.H0,L20.mlp@noise,L25x2", lens.dims)
    walked, whole = (
        Engine(lens, path=path, progress=False).loglikelihood(asked, conditions)
        for path in ("wavefront", "padded_rows")
    )
    found, wanted = (torch.tensor([[answer.logprob for answer in row] for row in rows]) for rows in (walked, whole))
    assert torch.allclose(found, wanted, atol=SAME)
    assert not torch.allclose(found[0], found[1:].mean(0), atol=100 * SAME)
