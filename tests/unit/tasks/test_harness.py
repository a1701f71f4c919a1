"""Loading lm-eval tasks: names, groups, examples, limits and options that are refused."""

from __future__ import annotations

import datasets
import pytest
from mini_tasks import DOCUMENTS

from depthlens.errors import UserError
from depthlens.tasks import harness


def test_groups_stand_for_their_tasks_and_order_is_kept(load):
    assert list(harness.load_tasks(["kv_retrieval"])) == [
        "kv_retrieval_4",
        "kv_retrieval_8",
        "kv_retrieval_16",
    ]
    assert list(load("mini_rolling", "mini")) == ["mini_rolling", "mini_shots", "mini_cloze"]
    assert list(load("mini", "mini_cloze")) == ["mini_shots", "mini_cloze"]


def test_unknown_task_suggests_the_nearest(load):
    with pytest.raises(UserError, match="unknown task 'mini_choise'; did you mean mini_choice"):
        load("mini_choise")
    with pytest.raises(UserError, match="unknown task 'mini_choice'.*include_path"):
        harness.load_tasks(["mini_choice"])


@pytest.mark.slow
def test_data_that_is_not_cached_is_refused_without_a_network():
    assert datasets.config.HF_HUB_OFFLINE, "the tests run with HF_HUB_OFFLINE=1"
    with pytest.raises(UserError, match="task hellaswag: lm-eval cannot load it .*HF_HUB_OFFLINE=1") as raised:
        harness.load_tasks(["hellaswag"])
    assert "\n" not in str(raised.value)


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
    with pytest.raises(UserError, match="task mini_spaces is fixed at 0 examples"):
        load("mini_spaces", num_fewshot=1)
    assert load("mini_spaces", num_fewshot=0)["mini_spaces"].config.num_fewshot == 0


def test_limit_takes_the_first_documents_and_may_be_larger_than_the_task(lens, load):
    assert list(harness.prepare(lens, load("mini_choice"), limit=2)[0].docs) == [0, 1]
    assert len(harness.prepare(lens, load("mini_choice"), limit=10**20)[0].docs) == len(DOCUMENTS)
