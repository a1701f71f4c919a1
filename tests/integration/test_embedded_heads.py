"""Methods of finding heads on the embedded model: short checks on a few documents each."""

from __future__ import annotations

import numpy as np
import pytest

import depthlens as dl

pytestmark = pytest.mark.integration
OPTIONS = {"store": None, "progress": False}


@pytest.fixture(scope="module")
def lens():
    return dl.load("smollm2-135m")


def test_integrated_gradients_find_the_head_that_attribution_misses(lens):
    """L16.H0 copies the value in ``kv_retrieval_4``, behind a saturated softmax."""
    options = {"layers": [16], "limit": 2, "num_fewshot": 0, "measure": "answer_logprob", **OPTIONS}
    loss = {}
    for method in ("exact", "attribution", "integrated_gradients"):
        found = dl.head_sweep(lens, "kv_retrieval_4", method=method, **options)
        loss[method] = found.losses().set_index("condition")["loss"]
    assert loss["exact"].idxmax() == loss["integrated_gradients"].idxmax() == "L16.H0"
    assert loss["exact"]["L16.H0"] > 2 and loss["integrated_gradients"]["L16.H0"] > 1  # nats
    assert loss["attribution"]["L16.H0"] < 0.5


@pytest.fixture(scope="module")
def solver():
    return dl.load("smollm2-135m-cot")  # trained to write the steps of these problems


@pytest.mark.nightly
def test_the_model_is_surer_of_its_own_right_solutions_than_of_references(solver):
    options = {"limit": 12, "num_fewshot": 0, "method": "attribution", **OPTIONS}
    own, reference = (dl.reasoning_scores(solver, solutions=kind, **options) for kind in ("own", "reference"))
    assert 8 <= own.record["n_right"] <= own.record["n_asked"] == 12
    for kind in ("computed", "text"):  # copies are almost sure in both
        surer, less = (scores.record["baseline"][kind]["nats_per_token"] for scores in (own, reference))
        assert less < surer < 0, kind
    assert np.isfinite(own.normalised.values).all()
