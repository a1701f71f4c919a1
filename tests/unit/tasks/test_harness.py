"""Loading lm-eval tasks: names, groups, examples, documents by number, limits, and options that are refused."""

import mini_tasks
import pytest
import tiny
from mini_tasks import DOCUMENTS
from refusals import refused

from depthlens.tasks import harness


def test_groups_stand_for_their_tasks_and_order_is_kept(load):
    assert list(harness.load_tasks(["kv_retrieval"])) == ["kv_retrieval_4", "kv_retrieval_8", "kv_retrieval_16"]
    assert list(load("mini_rolling", "mini")) == ["mini_rolling", "mini_shots", "mini_cloze"]
    assert list(load("mini", "mini_cloze")) == ["mini_shots", "mini_cloze"]


def prompt(lens, tasks):
    (prepared,) = harness.prepare(lens, tasks, limit=1)
    return prepared.task.instances[0].args[0]


def test_num_fewshot_overrides_what_the_task_says(lens, load):
    assert prompt(lens, load("mini_shots")).count("A:") == 3
    assert prompt(lens, load("mini_shots", num_fewshot=0)).count("A:") == 1
    assert prompt(lens, load("mini_shots", num_fewshot=4)).count("A:") == 5
    assert prompt(lens, load("mini_choice")).count("A:") == 1  # unsaid means none
    assert prompt(lens, load("mini_choice", num_fewshot=1)).count("A:") == 2
    assert load("mini_shots", num_fewshot=4)["mini_shots"].config.num_fewshot == 4


def test_the_seed_chooses_the_examples(lens, load):
    prompts = [prompt(lens, load("mini_shots", seed=seed)) for seed in (0, 0, 1, 2, 3)]
    assert prompts[0] == prompts[1] and len(set(prompts)) > 1


def test_a_task_fixed_at_no_examples_refuses_some(load):
    refused("task mini_spaces is fixed at 0 examples", load, "mini_spaces", num_fewshot=1)
    assert load("mini_spaces", num_fewshot=0)["mini_spaces"].config.num_fewshot == 0


def test_limit_takes_the_first_documents_and_may_be_larger_than_the_task(lens, load):
    assert list(harness.prepare(lens, load("mini_choice"), limit=2)[0].docs) == [0, 1]
    assert len(harness.prepare(lens, load("mini_choice"), limit=10**20)[0].docs) == len(DOCUMENTS)


ON_VALIDATION = {"test_split": None, "validation_split": "test"}
SPLITS = {
    **{"a test split only": {}, "the first ones of it": {"fewshot_config": {"sampler": "first_n"}}},
    **{"as lm-eval means it": {"fewshot_split": "test"}, "evaluated on its validation split": ON_VALIDATION},
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
    refused("task sums: its prompts cannot be made .*Sample larger than", prompts, "a test split only", 2, n_docs=2)


N = len(DOCUMENTS)
ALL = list(range(N))


SOME = [
    (range(0, N, 2), ALL[0:N:2]), ([3, 1], [1, 3]), ("1::2", ALL[1::2]), ("-2:", ALL[-2:]), (":99", ALL), (None, ALL),
    ({"mini_shots": "2:4"}, ALL[2:4]), ({"mini_choice": [0]}, ALL),  # a task that is not named keeps all
]  # fmt: skip


@pytest.mark.parametrize(("samples", "wanted"), SOME)
def test_documents_keep_their_numbers_prompts_and_answers(lens, load, samples, wanted):
    tasks = ("mini_shots", "mini_choice")
    every, chosen = (harness.prepare(lens, load(*tasks, num_fewshot=1, samples=s), samples=s) for s in (None, samples))
    whole, some = every[0], chosen[0]
    assert list(some.docs) == wanted
    assert {i: some.docs[i] for i in wanted} == {i: whole.docs[i] for i in wanted}

    def ends(prepared):
        questions = ((i, DOCUMENTS[i.doc_id]["q"]) for i in prepared.task.instances)
        return {(i.doc_id, i.idx): i.args[0][-len(question) - 3 :] for i, question in questions}

    assert ends(some) == {key: text for key, text in ends(whole).items() if key[0] in wanted}
    assert some.asked["doc_id"].tolist() == wanted
