"""Models in float64 are computed in float64."""

import backend_table
import pytest
import surgery
import torch
from by_hand import written

import depthlens as dl
from depthlens.ablations import BASELINE, parse_condition
from depthlens.experiments import attribution
from depthlens.requests import GenerateRequest, LoglikelihoodRequest

SAME = 1e-9  # nats: norms of transformers are taken in float32, but of the same numbers
EAGER = 1e-5  # transformers' own eager attention, which TransformerLens uses, has a softmax in float32
WAYS = [*((*way, SAME) for way in (("torch", None), ("torch", "padded_rows"), ("nnsight", None)))]
WAYS += [("transformer_lens", None, EAGER)]
TOKENS, N_CONTEXT = backend_table.TOKENS.tolist(), backend_table.N_CONTEXT
REQUEST = LoglikelihoodRequest(tuple(TOKENS[:N_CONTEXT]), tuple(TOKENS[N_CONTEXT:]))


@pytest.fixture(scope="module")
def lens():
    rough = surgery.rough_lens("llama-gqa")
    return dl.Lens(rough.model.double(), rough.tokenizer, "double")


@pytest.mark.parametrize(("backend", "path", "same"), WAYS)
def test_log_likelihoods_are_those_of_a_model_that_was_cut(lens, backend, path, same):
    means = backend_table.reference_of(lens)
    assert {means.mean["layer"].dtype, means.mean["z"].dtype, means.sample["attn"].dtype} == {torch.float64}
    conditions = [BASELINE, *map(parse_condition, backend_table.KINDS.values())]
    engine = dl.Engine(lens, backend=backend, path=path, means=means, progress=False)
    found = [row[0].logprob for row in engine.loglikelihood([REQUEST], conditions)]
    wanted = [surgery.logprob(lens, condition, means, REQUEST) for condition in conditions]
    assert found == pytest.approx(wanted, abs=same, rel=0)


@pytest.mark.parametrize(("backend", "path"), [way[:2] for way in WAYS])
def test_texts_are_those_of_the_model(lens, backend, path):
    """Prompts of unequal lengths: in float64 eager attention makes NaN of padding."""
    asked = [GenerateRequest(REQUEST.context[:n], (), 8) for n in (6, 4, 6, 2)]
    found = dl.Engine(lens, backend=backend, path=path, progress=False).generate_until(asked, [BASELINE])[0]
    assert found == [written(lens, request) for request in asked]


def test_gradients_are_in_float64(lens):
    for steps in (0, 1):
        change, clean = attribution.attribute(lens, [REQUEST], steps=steps)
        assert change.dtype == clean.dtype == torch.float64
        assert clean.item() == pytest.approx(surgery.logprob(lens, BASELINE, None, REQUEST), abs=SAME, rel=0)
