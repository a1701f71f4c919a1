"""Methods of finding heads on the embedded model: short checks on a few documents each."""

from __future__ import annotations

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
