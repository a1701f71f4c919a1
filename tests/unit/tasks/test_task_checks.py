"""Tasks that lm-eval cannot load, that would give meaningless numbers or fail after hours: refused in one line."""

from pathlib import Path

import mini_tasks
import pytest
from refusals import refused

from depthlens.experiments import sweep
from depthlens.experiments.sweep import run_by_name
from depthlens.tasks import harness

ASKED = {"Is ice cold?": 0, "Is fire cold?": 1, "Is lava hot?": 0}
DOCS = [{"q": q, "options": ["yes", "no"], "answer": i, "word": ("yes", "no")[i]} for q, i in ASKED.items()]
KINDS = {"choice": mini_tasks.choice(doc_to_choice="options", doc_to_target="answer")}
KINDS["rolling"] = mini_tasks.measured("loglikelihood_rolling", "", "q", "word_perplexity")
KINDS["written"] = mini_tasks.written("word", until=["\n"], max_gen_toks=3)


@pytest.fixture
def task(tmp_path):
    """Write a task of a kind with changed settings, documents or Python functions; returns what loads it."""

    def make(kind, docs=DOCS, functions="", **changes):
        mini_tasks.write_task(tmp_path, "mine", {"test": docs}, **KINDS[kind] | changes)
        (tmp_path / "utils.py").write_text(functions)
        return lambda **options: harness.load_tasks(["mine"], include_path=tmp_path, **options)

    return make


def function(name, key="process_results"):
    """A function of the user's in place of a setting."""
    return {"functions": FUNCTIONS, key: f"!function utils.{name}"}


FUNCTIONS = """
def divide(doc, results):
    return {"acc": 1 / 0}

def insists(doc, results):
    assert results[0] == "x"

def nothing(doc, results):
    pass

def right(doc, results):
    return {"acc": 1.0}
"""
FAULTS = [
    ("choice", function("divide"), "document 0: scoring the answer (-1.0, False) fails (ZeroDivisionError at utils.py"),
    ("written", function("insists"), "document 0: scoring the answer 'yes' fails (AssertionError at utils.py line 6)"),
    ("rolling", function("nothing"), "has no attribute 'items'); correct the task's scoring; process_results gives"),
]


@pytest.mark.parametrize(("kind", "changes", "said"), FAULTS)
def test_a_faulty_task_is_refused_in_one_line(task, kind, changes, said):
    assert said in refused("^task mine", task(kind, **changes))


@pytest.mark.parametrize("wrong", [7, -1, "maybe"])
def test_a_reference_answer_that_is_no_option_is_refused(lens, task, wrong):
    """lm-eval scores 0 for it, whatever a model says; a task that scores by itself may mean anything by it."""
    docs = [*DOCS[:2], {**DOCS[2], "answer": wrong}]
    said = r"task mine: answer .* of document 2 is no option \(0..1, or the text of one\); correct its YAML file"
    refused(said, harness.prepare, lens, task("choice", docs)())
    assert len(harness.prepare(lens, task("choice", docs)(), limit=2)[0].docs) == 2
    assert len(harness.prepare(lens, task("choice", docs, **function("right"))())[0].docs) == 3


def test_a_sweep_by_name_tries_tasks_before_it_loads_the_model(task, tmp_path, monkeypatch):
    task("choice", **function("divide"))
    monkeypatch.setattr(sweep.loading, "load", lambda *a, **k: pytest.fail("the model is loaded"))
    refused("document 0: scoring the answer", run_by_name, "smollm2-135m", ["mine"], "layers", include_path=tmp_path)


EMBEDDED = "capitals_continuation"
PARITY = [{"q": f"Is {i} even?", "a": i % 2} for i in range(4)]


def write(folder: Path, name="mine", docs=PARITY, **changes) -> Path:
    """A sound task of two options with its data."""
    asked = mini_tasks.choice(doc_to_choice=["yes", "no"], doc_to_target="a")
    return mini_tasks.write_task(folder, name, {"test": docs}, **asked | changes)


def refusal(folder, *names) -> str:
    return refused("", harness.load_tasks, names or ["mine"], include_path=folder)


def test_files_that_cannot_be_read_are_one_line(tmp_path):
    path = write(tmp_path)
    (tmp_path / "test.jsonl").write_text('{"q": "x", "a": 0}\n{"q": "y", "a":\n')
    assert "mine: lm-eval cannot load it (DatasetGenerationError" in refusal(tmp_path)
    write(tmp_path, test_split="tset")
    assert "'tset'); correct its YAML file or its data; data of the hub are read from its cache" in refusal(tmp_path)
    path.write_text("task: mine\ndoc_to_text: Question: {{q}}\n")
    assert "unknown task 'mine', and mine.yaml cannot be read (" in refusal(tmp_path)


def test_a_task_of_the_users_stands_before_an_embedded_one(tmp_path):
    write(tmp_path, "capitals", task=EMBEDDED)
    assert len(harness.load_tasks([EMBEDDED], include_path=tmp_path)[EMBEDDED].eval_docs) == len(PARITY)
