"""No prompt holds the document that it asks among examples of the split that is evaluated."""

from __future__ import annotations

import mini_tasks
import pytest
import tiny

from depthlens.errors import UserError
from depthlens.tasks import harness

ON_VALIDATION = {"test_split": None, "validation_split": "test"}
SPLITS = {
    "a test split only": {},
    "the first ones of it": {"fewshot_config": {"sampler": "first_n"}},
    "as lm-eval means it": {"fewshot_split": "test"},
    "evaluated on its validation split": ON_VALIDATION,
    "which the examples name": ON_VALIDATION | {"fewshot_split": "test"},
}


@pytest.fixture
def prompts(tmp_path):
    """Prompts of a task of some sums, with examples from some splits."""

    def make(kind, n, n_docs=8):
        docs = {"test": [{"q": f"{i}+{i}", "a": str(2 * i)} for i in range(n_docs)]}
        config = {"output_type": "loglikelihood", "doc_to_text": "{{q}}=", "doc_to_target": "{{a}}"}
        mini_tasks.write_task(tmp_path, "sums", docs, **config, **SPLITS[kind])
        tasks = harness.load_tasks("sums", include_path=tmp_path, num_fewshot=n)
        (prepared,) = harness.prepare(tiny.lens("llama-gqa"), tasks)
        return [instance.args[0] for instance in prepared.task.instances]

    return make


@pytest.mark.parametrize("kind", SPLITS)
def test_a_document_is_never_its_own_example(prompts, kind):
    for prompt in prompts(kind, 3):
        *examples, question = prompt.split("\n\n")
        assert len(examples) == 3 and not any(example.startswith(question) for example in examples)


def test_there_have_to_be_enough_other_documents(prompts):
    assert len(prompts("a test split only", 2, n_docs=3)) == 3
    with pytest.raises(UserError, match="task sums: its prompts cannot be made .*Sample larger than"):
        prompts("a test split only", 2, n_docs=2)
