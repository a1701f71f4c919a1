"""A task whose functions draw random numbers depends on none of the process, and leaves those as they were."""

import json
import random

import mini_tasks
import numpy as np
import pytest
import torch

import depthlens as dl

pytestmark = pytest.mark.usefixtures("unchecked")  # the type checker of the tests draws random numbers
QUIET = {"store": None, "progress": False}
SHUFFLED = """
import random, numpy, torch

def documents(dataset):
    return dataset.select(random.sample(range(len(dataset)), len(dataset)))

def text(doc):
    return f"{doc['q']} {random.random()} {numpy.random.random()} {float(torch.rand(()))}"

def scored(doc, results):
    return {"acc": float(random.random() < 0.5)}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = mini_tasks.write(tmp_path_factory.mktemp("tasks"))
    (folder / "shuffled.py").write_text(SHUFFLED)
    functions = {"process_docs": "documents", "doc_to_text": "text", "process_results": "scored"}
    config = mini_tasks.choice("", "acc") | {key: f"!function shuffled.{name}" for key, name in functions.items()}
    mini_tasks.write_task(folder, "shuffled", **config, fewshot_split="shots")
    return folder


def states():
    name, keys, *rest = np.random.get_state()
    return random.getstate(), (name, keys.tobytes(), *rest), torch.get_rng_state().numpy().tobytes()


def test_a_task_that_draws_has_the_same_documents_and_values_every_time(lens, folder):
    """As GPQA does, whose options lm-eval shuffles with the process's generator after it has seeded it."""
    results = []
    for seed in (1, 2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        tasks, state = [*["mini_choice"] * (seed - 1), "shuffled"], states()  # nor do other tasks matter
        results.append(dl.layer_sweep(lens, tasks, include_path=folder, **QUIET).select(tasks="shuffled"))
        assert states() == state
    one, two = results
    assert one.questions().to_json() == two.questions().to_json() and one.docs.equals(two.docs)
    asked = [text.split(" 0.")[0] for text in one.questions()["question"]]
    assert asked != [json.loads(line)["q"] for line in (folder / "test.jsonl").read_text().splitlines()]
    assert set(one.docs["value"]) == {0.0, 1.0}
