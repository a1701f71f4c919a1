"""Our engine as an lm-eval model: equal to lm-eval's own `hf` model, whole and ablated, with and without chat."""

import lm_eval
import pytest
import tiny
from by_hand import under
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from depthlens import paths
from depthlens.ablations import parse_condition
from depthlens.progress import quiet

pytestmark = pytest.mark.slow

TASKS = ["capitals_continuation", "kv_retrieval_4"]
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
CHAT += "{% if add_generation_prompt %}<bot>{% endif %}"


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("qwen2", max_position_embeddings=2048)


@pytest.fixture(scope="module")
def manager():
    with quiet():
        return TaskManager(include_path=str(paths.tasks_dir()), include_defaults=False)


def evaluate(model, manager, **kwargs):
    """Per-document samples of each task."""
    with quiet():
        found = lm_eval.simple_evaluate(
            model=model, tasks=TASKS, task_manager=manager, limit=3, bootstrap_iters=0, fewshot_random_seed=0, **kwargs
        )
    return {t: [(s["doc_id"], s["filtered_resps"], s["arguments"]) for s in found["samples"][t]] for t in TASKS}


def equal(mine, wanted):
    for task in TASKS:
        for (doc, resps, args), (doc2, resps2, args2) in zip(mine[task], wanted[task], strict=True):
            assert (doc, args) == (doc2, args2)
            for one, other in zip(resps, resps2, strict=True):
                if isinstance(one, str):
                    assert one == other
                else:
                    assert float(one[0]) == pytest.approx(float(other[0]), abs=1e-3)


def hf(lens):
    return HFLM(pretrained=lens.model, tokenizer=lens.tokenizer, batch_size=4)


@pytest.mark.parametrize("condition", ["baseline", "L2", "L1.H3"])
def test_equals_the_hf_model_under_the_same_hooks(lens, manager, condition):
    ours = evaluate("depthlens", manager, model_args={"pretrained": lens, "condition": condition})
    # one hook a row: the peer's batches are of any size, so every row gets the condition in a batch of one
    peer = hf(lens)
    peer.batch_size_per_gpu = 1
    with under(lens, [parse_condition(condition)]):
        equal(ours, evaluate(peer, manager))


def test_chat_template_and_system_prompt_make_the_prompts_of_lm_eval(lens, manager, monkeypatch):
    monkeypatch.setattr(lens.tokenizer, "chat_template", CHAT)
    peer = evaluate(hf(lens), manager, apply_chat_template=True, system_instruction="Be brief.")
    chat = {"apply_chat_template": True, "system_instruction": "Be brief."}
    ours = evaluate("depthlens", manager, model_args={"pretrained": lens}, **chat)
    equal(ours, peer)
    assert peer["kv_retrieval_4"][0][2][0][0].startswith("<system>Be brief.")
