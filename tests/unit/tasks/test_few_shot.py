"""No prompt holds the document that it asks among its worked examples; all other examples are lm-eval's."""

from __future__ import annotations

import mini_tasks
import pytest
import tiny
from lm_eval.tasks import TaskManager

import depthlens as dl
from depthlens.errors import UserError
from depthlens.tasks import harness

# splits, and how many documents lie between a question and the same one among the examples
SPLITS = {
    "a test split only": ({}, None),
    "evaluated on its validation split": (
        {"test_split": None, "validation_split": "test", "fewshot_split": "test"},
        None,
    ),
    "examples from the same questions": ({"fewshot_split": "shots"}, 3),
    "as lm-eval means it": ({"fewshot_split": "test"}, None),
    "the first ones": ({"fewshot_split": "shots", "fewshot_config": {"sampler": "first_n"}}, 3),
}


@pytest.fixture
def folder(tmp_path):
    """A task of eight sums; makes it with some splits."""

    def make(kind, n_docs=8):
        splits, shift = SPLITS[kind]
        docs = {"test": [{"id": i, "q": f"{i}+{i}", "a": str(2 * i)} for i in range(n_docs)]}
        if shift:  # the same questions with other numbers
            docs["shots"] = [{**doc, "id": doc["id"] + shift} for doc in docs["test"]]
        config = {"output_type": "loglikelihood", "doc_to_text": "{{q}}=", "doc_to_target": "{{a}}"}
        mini_tasks.write_task(tmp_path, "sums", docs, **config, **splits)
        return tmp_path

    return make


def prompts(folder, n, seed=0):
    (prepared,) = harness.prepare(
        tiny.lens("llama-gqa"), dl.load_tasks("sums", include_path=folder, num_fewshot=n, seed=seed)
    )
    return [instance.args[0] for instance in prepared.task.instances]


def of_lm_eval(folder, n, seed=0):
    """Prompts that lm-eval makes."""
    task = TaskManager(include_path=str(folder), include_defaults=False).load(["sums"])["tasks"]["sums"]
    task.set_config(key="num_fewshot", value=n)
    task.set_fewshot_seed(seed=seed)
    task.build_all_requests(rank=0, world_size=1)
    return [instance.args[0] for instance in task.instances]


def holds_itself(prompt):
    *examples, question = prompt.split("\n\n")
    return any(example.startswith(question) for example in examples)


@pytest.mark.parametrize("kind", SPLITS)
def test_a_document_is_never_its_own_example(folder, kind):
    at = folder(kind)
    wanted, found = of_lm_eval(at, 3), prompts(at, 3)
    replaced = sum(map(holds_itself, wanted))
    assert not any(map(holds_itself, found)) and {prompt.count("=") for prompt in found} == {4}
    assert [one for one in found if one in wanted] == [one for one in wanted if not holds_itself(one)]
    assert (replaced > 0) == (kind != "as lm-eval means it")


def test_the_note_of_a_result_says_so(folder):
    options = {"include_path": folder("a test split only"), "num_fewshot": 3, "progress": False}
    result = dl.layer_sweep(tiny.lens("llama-gqa"), "sums", **options)
    n = result.record["tasks"]["sums"]["n_replaced_examples"]
    assert (
        n
        and f"sums: lm-eval would show {n} documents among their own examples; another stands there, if there is one"
        in (result.notes)
    )


def test_without_another_document_there_is_an_example_less(folder):
    found = prompts(folder("a test split only", n_docs=2), 2)
    assert not any(map(holds_itself, found)) and {prompt.count("=") for prompt in found} == {2}
    with pytest.raises(UserError, match="num_fewshot 1: task sums has no example beside a document that it asks"):
        dl.load_tasks("sums", include_path=folder("a test split only", n_docs=1), num_fewshot=1)
