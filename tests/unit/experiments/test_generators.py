"""The random numbers of the process are the caller's: every call leaves them as they were, and none depends on them."""

import json
import random

import mini_tasks
import numpy as np
import pytest
import torch

import depthlens as dl
from depthlens.errors import UserError

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
    mini_tasks.write_task(folder, "broken", **config | {"doc_to_text": "!function shuffled.none"})
    return folder


def states():
    name, keys, *rest = np.random.get_state()
    return random.getstate(), (name, keys.tobytes(), *rest), torch.get_rng_state().numpy().tobytes()


CALLS = {
    "tasks": lambda lens, **o: dl.load_tasks(["mini_shots", "shuffled"], include_path=o["include_path"]),
    "layers": lambda lens, **o: dl.layer_sweep(lens, ["mini_choice", "mini_rolling", "shuffled"], **o),
    "examples": lambda lens, **o: dl.layer_sweep(lens, "mini_shots", num_fewshot=1, **o),
    "drawn texts": lambda lens, **o: dl.layer_sweep(lens, "mini_writing", gen_kwargs={"temperature": 1.0}, **o),
    "noise": lambda lens, **o: dl.condition_sweep(lens, "mini_choice", "L1@noise,L2.H1,L1@int4", **o),
    "attribution": lambda lens, **o: dl.head_sweep(lens, "mini_choice", method="attribution", **o),
    "race": lambda lens, **o: dl.race(lens, "mini_choice", "layers", **o),
    "plan": lambda lens, **o: dl.plan(lens, "mini_choice", "layers", include_path=o["include_path"], store=None),
    "curve": lambda lens, **o: dl.removal_curve(lens, "mini_choice", {"a": [(0, 1)]}, k=[1], n_draws=10, **o),
    "induction": lambda lens, **o: dl.induction_scores(lens, n_texts=2, length=8, **QUIET),
    "free text": lambda lens, **o: dl.free_text(lens, "L1", n_prompts=2, prompt_tokens=4, max_new_tokens=4, **QUIET),
    "an error": lambda lens, **o: dl.layer_sweep(lens, "broken", **o),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_call_leaves_the_generators_as_they_were(lens, folder, name):
    before = states()
    try:
        CALLS[name](lens, include_path=folder, limit=4, **QUIET)
    except UserError:
        assert name == "an error"
    for library, was, now in zip(("random", "numpy", "torch"), before, states(), strict=True):
        assert was == now, library


def test_a_task_that_draws_has_the_same_documents_and_values_every_time(lens, folder):
    """As GPQA does, whose options lm-eval shuffles with the process's generator after it has seeded it."""
    results = []
    for seed in (1, 2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        before = ["mini_choice"] * (seed - 1)  # nor do other tasks matter
        results.append(
            dl.layer_sweep(lens, [*before, "shuffled"], include_path=folder, **QUIET).select(tasks="shuffled")
        )
    one, two = results
    assert one.questions().to_json() == two.questions().to_json() and one.docs.equals(two.docs)
    assert one.questions()["question"].map(lambda text: text.split(" 0.")[0]).tolist() != [
        json.loads(line)["q"] for line in (folder / "test.jsonl").read_text().splitlines()
    ]
    assert set(one.docs["value"]) == {0.0, 1.0}
