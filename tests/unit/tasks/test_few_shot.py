"""No prompt holds the document that it asks among its worked examples; all other examples are lm-eval's."""

from __future__ import annotations

import json

import pytest
import tiny
from lm_eval.tasks import TaskManager

import depthlens as dl
from depthlens.errors import UserError
from depthlens.tasks import harness

SPLITS = {
    "a test split only": ("test_split: test", {}),
    "evaluated on its validation split": ("validation_split: test\nfewshot_split: test", {}),
    "examples from the same questions": ("test_split: test\nfewshot_split: shots", {"shots": 3}),
    "as lm-eval means it": ("test_split: test\nfewshot_split: test", {}),
    "the first ones": ("test_split: test\nfewshot_split: shots\nfewshot_config: {sampler: first_n}", {"shots": 3}),
}


@pytest.fixture
def folder(tmp_path):
    """A task of eight sums; makes it with some splits."""

    def make(splits, more=None, n_docs=8):
        docs = {"test": [{"id": i, "q": f"{i}+{i}", "a": str(2 * i)} for i in range(n_docs)]}
        for name, shift in (more or {}).items():  # the same questions with other numbers
            docs[name] = [{**doc, "id": doc["id"] + shift} for doc in docs["test"]]
        for name, some in docs.items():
            (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)))
        files = ", ".join(f"{name}: {tmp_path / name}.jsonl" for name in docs)
        (tmp_path / "sums.yaml").write_text(
            f"task: sums\ndataset_path: json\n{splits}\noutput_type: loglikelihood\n"
            f'doc_to_text: "{{{{q}}}}="\ndoc_to_target: "{{{{a}}}}"\n'
            f"dataset_kwargs: {{data_files: {{{files}}}, cache_dir: {tmp_path}}}\n"
        )
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
    at = folder(*SPLITS[kind])
    wanted, found = of_lm_eval(at, 3), prompts(at, 3)
    replaced = sum(map(holds_itself, wanted))
    assert not any(map(holds_itself, found)) and {prompt.count("=") for prompt in found} == {4}
    assert [one for one in found if one in wanted] == [one for one in wanted if not holds_itself(one)]
    assert (replaced > 0) == (kind != "as lm-eval means it")


def test_the_note_of_a_result_says_so(folder):
    options = {"include_path": folder(*SPLITS["a test split only"]), "num_fewshot": 3, "progress": False}
    result = dl.layer_sweep(tiny.lens("llama-gqa"), "sums", **options)
    n = result.record["tasks"]["sums"]["n_replaced_examples"]
    assert (
        n
        and f"sums: lm-eval would show {n} documents among their own examples; another stands there, if there is one"
        in (result.notes)
    )


def test_without_another_document_there_is_an_example_less(folder):
    found = prompts(folder(*SPLITS["a test split only"], n_docs=2), 2)
    assert not any(map(holds_itself, found)) and {prompt.count("=") for prompt in found} == {2}
    with pytest.raises(UserError, match="num_fewshot 1: task sums has no example beside a document that it asks"):
        dl.load_tasks("sums", include_path=folder(*SPLITS["a test split only"], n_docs=1), num_fewshot=1)
