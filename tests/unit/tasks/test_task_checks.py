"""Tasks that would give meaningless numbers, or fail after hours: refused in one line before a model is loaded."""

from __future__ import annotations

import json
import textwrap

import pytest
import tiny

from depthlens.errors import UserError
from depthlens.experiments import condition_runs
from depthlens.experiments.sweep import condition_sweep, run_sweep
from depthlens.tasks import harness

DOCS = [
    {"q": "Is ice cold?", "options": ["yes", "no"], "answer": 0, "word": "yes", "accepted": ["yes", "sure"]},
    {"q": "Is fire cold?", "options": ["yes", "no"], "answer": 1, "word": "no", "accepted": ["no"]},
    {"q": "Is snow hot?", "options": ["yes", "no", "so"], "answer": 1, "word": "no", "accepted": ["no"]},
    {"q": "Is lava hot?", "options": ["yes", "no"], "answer": 0, "word": "yes", "accepted": ["yes"]},
]
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "options",
    "doc_to_target": "answer",
}
CLOZE = {"output_type": "loglikelihood", "doc_to_text": "{{q}}", "doc_to_target": " {{word}}"}
ROLLING = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "q"}
WRITTEN = {
    "output_type": "generate_until",
    "doc_to_text": "{{q}}",
    "doc_to_target": "word",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 3},
}
KINDS = {"choice": CHOICE, "cloze": CLOZE, "rolling": ROLLING, "written": WRITTEN}


@pytest.fixture
def task(tmp_path):
    """Write a task of a kind with changed settings, documents or Python functions; returns what loads it."""

    def make(kind, docs=DOCS, functions="", **changes):
        config = KINDS[kind] | {"task": "mine", "dataset_path": "json", "test_split": "test"}
        config["dataset_kwargs"] = {
            "data_files": {"test": str(tmp_path / "docs.jsonl")},
            "cache_dir": str(tmp_path / "cache"),
        }
        (tmp_path / "docs.jsonl").write_text("".join(json.dumps(d) + "\n" for d in docs))
        (tmp_path / "utils.py").write_text(textwrap.dedent(functions))
        lines = [f"{k}: {v if '!function' in str(v) else json.dumps(v)}" for k, v in (config | changes).items()]
        (tmp_path / "mine.yaml").write_text("\n".join(lines) + "\n")
        return lambda **options: harness.load_tasks(["mine"], include_path=tmp_path, **options)

    return make


@pytest.fixture
def refused(task):
    """The one line that refuses a task."""

    def line(*args, **changes):
        with pytest.raises(UserError) as told:
            task(*args, **changes)()
        assert "\n" not in str(told.value)
        return str(told.value)

    return line


def changed(doc_id, **values):
    """The documents, one of them changed."""
    docs = [dict(d) for d in DOCS]
    docs[doc_id] |= values
    return docs


# -- answers and options --


@pytest.mark.parametrize(("doc_id", "answer"), [(0, -1), (3, 2), (3, None)])
def test_an_answer_that_is_not_among_the_options(refused, doc_id, answer):
    said = refused("choice", changed(doc_id, answer=answer))
    assert f"task mine, document {doc_id}: doc_to_target 'answer' gives {answer}" in said
    assert "a whole number from 0 to 1, or one of 'yes', 'no'" in said


def test_an_answer_may_be_the_text_of_an_option(task, refused):
    assert task("choice", doc_to_target="word")()
    said = refused("choice", changed(2, word="perhaps"), doc_to_target="word")
    assert "document 2: doc_to_target 'word' gives 'perhaps'; allowed: a whole number from 0 to 2, or one of" in said


@pytest.mark.parametrize("options", [["yes"], None])
def test_documents_with_less_than_two_options(refused, options):
    said = f"document 2: doc_to_choice 'options' gives {options}; it must give a list of at least 2 texts"
    assert said in refused("choice", changed(2, options=options))


def test_options_that_name_no_field(refused):
    said = refused("choice", doc_to_choice="optoins")
    assert "doc_to_choice 'optoins' names no field; fields: q, options, answer, word, accepted" in said


def test_a_task_whose_documents_are_all_left_out(refused):
    functions = "def none(docs):\n    return docs.select([])\n"
    said = refused("choice", functions=functions, process_docs="!function utils.none")
    assert said == "task mine: its test or validation split has no documents; correct its data or its splits"


def test_only_documents_that_run_are_checked(task):
    bad = task("choice", changed(3, answer=7))
    assert bad(limit=3)
    for limit in (4, None):
        with pytest.raises(UserError, match="document 3"):
            bad(limit=limit)


@pytest.mark.parametrize("kind", ["choice", "rolling"])
def test_a_target_that_names_no_field(refused, kind):
    said = refused(kind, doc_to_target="wrod")
    assert "doc_to_target 'wrod' names no field" in said
    assert "fields: q, options, answer, word, accepted" in said


def test_a_question_that_names_no_field(refused):
    assert "doc_to_text 'question' names no field of its documents; fields: q," in refused(
        "written", doc_to_text="question"
    )
    assert """write a fixed text as "{{'question'}}\"""" in refused("written", doc_to_text="question")


def test_a_document_without_an_answer_or_a_text(refused):
    assert "document 2: doc_to_target 'word' gives None; it must give an answer" in refused(
        "written", changed(2, word=None)
    )
    assert "document 1: doc_to_target 'q' gives ''; it must give a text to score" in refused(
        "rolling", changed(1, q="")
    )
    said = refused("cloze", changed(3, word=None), doc_to_target="word")
    assert "document 3: doc_to_target 'word' gives None; it must give a text to score" in said
    said = refused("written", changed(3, q=None), doc_to_text="q")
    assert "document 3: doc_to_text 'q' gives None; it must give text" in said


# -- metrics and settings --


@pytest.mark.parametrize(
    ("kind", "metric", "said"),
    [
        ("choice", "perplexity", "multiple_choice tasks have no metric 'perplexity'; they have acc, acc_norm,"),
        ("cloze", "acc_norm", "loglikelihood tasks have no metric 'acc_norm'; they have acc, perplexity"),
        ("rolling", "acc", "loglikelihood_rolling tasks have no metric 'acc'; they have word_perplexity, byte_"),
        ("written", "acc", "written answers have no metric 'acc'; use exact_match, or a function"),
    ],
)
def test_a_metric_that_the_kind_of_task_never_yields(refused, kind, metric, said):
    both = [{"metric": "acc"}, {"metric": metric}] if kind != "written" else [{"metric": metric}]
    assert said in refused(kind, metric_list=both)


@pytest.mark.parametrize(("key", "value"), [("max_gen_toks", 0), ("max_new_tokens", 2.5)])
def test_a_length_that_is_no_number_of_tokens(refused, key, value):
    said = refused("written", generation_kwargs={"until": ["\n"], key: value})
    assert said == f"task mine: {key} {value!r}: give a whole number of tokens, at least 1"


# -- functions of the user --

RAISES = """
def divide(doc, results):
    return {"acc": 1 / 0}

def insists(doc, results):
    assert results[0] == "x"

def nothing(doc, results):
    pass

def number(doc, results):
    return {"acc": int(results[0])}

def text(doc):
    return doc["qq"]

def metric(references, predictions):
    raise RuntimeError("no such metric\\nat all")
"""


@pytest.mark.parametrize(
    ("kind", "function", "said"),
    [
        (
            "choice",
            "divide",
            "document 0: scoring the answer (-1.0, False) fails (ZeroDivisionError at utils.py line 3: div",
        ),
        ("written", "insists", "document 0: scoring the answer 'yes' fails (AssertionError at utils.py line 6)"),
        ("written", "nothing", "document 0: process_results returns NoneType; return a dict such as {'acc': 1.0}"),
        ("rolling", "nothing", "document 0: process_results returns NoneType; return a dict such as {'acc': 1.0}"),
        (
            "written",
            "number",
            "document 0: scoring the answer 'yes' fails (ValueError at utils.py line 12: invalid lit",
        ),
    ],
)
def test_scoring_that_fails_is_told_before_anything_is_computed(refused, kind, function, said):
    assert said in refused(kind, functions=RAISES, process_results=f"!function utils.{function}")


def test_a_question_function_that_fails(refused):
    said = refused("written", functions=RAISES, doc_to_text="!function utils.text")
    assert "document 0: its question, answer or options cannot be made (KeyError at utils.py line 15: 'qq')" in said
    later = 'def text(doc):\n    return doc["q"] if doc["answer"] == 0 else 1 / 0\n'
    said = refused("written", functions=later, doc_to_text="!function utils.text")
    assert (
        "task mine, document 1: its question, answer or options cannot be made (ZeroDivisionError at utils.py" in said
    )


# -- when it is told --


def test_run_sweep_checks_documents_before_it_loads_the_model(task, tmp_path, monkeypatch):
    task("choice", changed(2, answer=-1))
    monkeypatch.setattr(condition_runs.loading, "load", lambda *a, **k: pytest.fail("the model is loaded"))
    with pytest.raises(UserError, match="document 2: doc_to_target 'answer' gives -1"):
        run_sweep("smollm2-135m", ["mine"], "layers", include_path=tmp_path)


@pytest.mark.parametrize(
    ("sampler", "shots", "noted"), [("first_n", 2, True), ("default", 2, False), ("first_n", 0, False)]
)
def test_examples_that_no_seed_changes_are_noted(task, sampler, shots, noted):
    load = task("choice", fewshot_split="test", fewshot_config={"sampler": sampler})
    lens = tiny.lens("llama-gqa", max_position_embeddings=512)
    result = condition_sweep(lens, load(num_fewshot=shots), "L2", progress=False)
    said = "mine: its 2 examples are the first 2 under every seed, so that seeds say nothing about them"
    assert (said in result.notes) == noted
