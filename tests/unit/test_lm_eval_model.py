"""Our engine as an lm-eval model: equal to lm-eval's own `hf` model, whole and ablated."""

import lm_evals
import pytest
import tiny
from by_hand import under

import depthlens.lm_eval_model  # noqa: F401 - registers the model
from depthlens.ablations import parse_condition

pytestmark = pytest.mark.slow

TASKS = ["capitals_continuation", "kv_retrieval_4"]


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("qwen2", max_position_embeddings=2048)


def evaluate(model, **options):
    """Per-document samples of each task."""
    found = lm_evals.evaluate(model, TASKS, limit=3, **options)["samples"]
    return {t: [(s["doc_id"], s["filtered_resps"], s["arguments"]) for s in found[t]] for t in TASKS}


def equal(mine, wanted):
    for task in TASKS:
        for (doc, resps, args), (doc2, resps2, args2) in zip(mine[task], wanted[task], strict=True):
            assert (doc, args) == (doc2, args2)
            for one, other in zip(resps, resps2, strict=True):
                if isinstance(one, str):
                    assert one == other
                else:
                    assert float(one[0]) == pytest.approx(float(other[0]), abs=1e-3)


@pytest.mark.parametrize("condition", ["baseline", "L2", "L1.H3"])
def test_equals_the_hf_model_under_the_same_hooks(lens, condition):
    ours = evaluate("depthlens", model_args={"pretrained": lens, "condition": condition})
    with under(lens, [parse_condition(condition)]):
        equal(ours, evaluate(lm_evals.Noting(lens)))
