"""Parameters of notebooks, profiles, models and the set-up cell: every mistake is told before a kernel starts."""

import random
import shutil

import gguf_files
import made_results
import numpy as np
import pytest
import tiny
import torch
from nbformat.v4 import new_notebook
from notebook_suite import code
from refusals import refused

import depthlens as dl
from depthlens import paths
from depthlens.models import loading
from depthlens.runner import execute
from depthlens.runner.notebook_files import read_notebook
from depthlens.runner.parameters import declared, fit, read_profile
from depthlens.tasks import harness

WHOLE = "notebook 00_good: limit .*: give a whole number of documents, at least 1"


@pytest.mark.parametrize(("arguments", "message"), [
    *(({"parameters": {"limit": text}}, WHOLE) for text in ("five", "true", "[1")),
    ({"parameters": {"tasks": "[capitals, capitols_default]"}}, "unknown task 'capitols_default'; did you mean cap"),
    ({"names": [3]}, r"notebooks \[3\]: give a name or a list of names"),
    ({"out": None}, "out None: give the path of a folder"),
])  # fmt: skip
@pytest.mark.usefixtures("unchecked")
def test_bad_requests_are_refused_before_anything_is_written(suite, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(execute, "NBClientEngine", None)
    refused(message, execute.run, **{"names": ["00_good"], "out": tmp_path / "out"} | arguments)
    assert not (tmp_path / "out").exists()


def test_the_embedded_tasks_are_known_without_lm_eval():
    assert paths.embedded_names() == set(harness.task_manager(["capitals"]).all_tasks)


@pytest.fixture
def profiles(suite, tmp_path):
    """Reads a profile of the suite's notebooks from a text."""
    defaults = {name: declared(read_notebook(path), name) for name, path in execute.suite().items()}

    def read(content, name="demo"):
        (tmp_path / "profiles.yml").write_text(content)
        return read_profile(tmp_path / "profiles.yml", name, defaults)

    return read


@pytest.mark.parametrize(("content", "message"), [
    ("demo: {00_good: {limt: 3}}", "profile demo of .*profiles.yml: unknown parameter 'limt'; did you mean limit"),
    ("demo: {00_god: {limit: 3}}", "profiles.yml: unknown notebook '00_god'; did you mean 00_good"),
    ("demo: [1", "profiles.yml does not map"),
])  # fmt: skip
def test_bad_profiles_name_their_file(profiles, content, message):
    refused(message, profiles, content)


def test_values_of_a_profile_are_held_against_the_rules_of_the_notebook(suite, tmp_path, monkeypatch):
    own = (suite / "profiles.yml").read_text()
    (suite / "profiles.yml").write_text("demo: {00_good: {limit: -1}}")
    refused("notebook 00_good: limit -1", execute.prepare, ["00_good"], out=tmp_path / "out", profile="demo")
    (suite / "profiles.yml").write_text(own)


def test_a_profile_has_values_for_all_notebooks_and_for_one(profiles):
    values, n_layers = profiles("demo: {_all: {limit: 2, model: a}, _layers: 3, 00_good: {limit: 7}, 02_plain: }")
    assert values["00_good"] == {"limit": 7, "model": "a"}
    assert (values["01_bad"], values["02_plain"], n_layers) == ({"limit": 2}, {}, 3)


def test_a_profile_of_first_layers_cuts_a_gguf_file_as_other_models(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "notebooks_dir", lambda: tmp_path)
    shutil.copy(suite / "00_good.ipynb", tmp_path)
    (tmp_path / "profiles.yml").write_text("smoke: {_layers: 2}")
    file = gguf_files.write(tmp_path / "own.gguf", tiny.lens("llama-gqa").model)
    (run,) = execute.prepare("all", out=tmp_path / "out", profile="smoke", parameters={"model": str(file)}).notebooks
    assert run.parameters["model"] == f"{file}[:2]"
    assert dl.load(run.parameters["model"], device="cpu").dims.n_layers == 2


def test_declared_reads_what_papermill_would_skip():
    source = 'a = 1  # so that a = 1\nb = "x#y"\nc: float = 2.0\nd = None\ne = a + 1'
    found = declared(new_notebook(cells=[code(source, "parameters")]), "x")
    assert list(found) == ["a", "b", "c", "d", "e"] and found["b"] == "x#y" and found["c"] == 2.0
    refused("parameters cell is not Python", declared, new_notebook(cells=[code("a = = 1", "parameters")]), "x")


@pytest.mark.parametrize(("text", "default", "value"), [
    ("123", "tiny", "123"), ("[a, b]", ["c"], ["a", "b"]), ("[1, 2]", [], [1, 2]), ("1e-3", 0.5, 0.001),
    ("None", 5, None), ("null", 5, None), ("3", None, 3), ("", 5, ""), ("[1", 5, "[1"),
    ("{max_gen_toks: 8}", None, {"max_gen_toks": 8}), (2, "text", 2),
])  # fmt: skip
def test_text_is_read_unless_the_default_is_text(text, default, value):
    assert fit(text, default) == value


TASKS = ["capitals_continuation", "kv_retrieval_4"]


@pytest.fixture(scope="module")
def folder(saved):
    return saved()


def test_a_good_start_prints_one_line_and_gives_the_model_and_what_cells_repeat(folder, tmp_path, capsys):
    chosen = {"limit": 3, "num_fewshot": None, "seed": 7}
    loaded = {"model": folder, "tasks": TASKS, "dtype": "bfloat16", "device": "cpu", "out": None, "tables": 3}
    study = dl.setup_notebook(chosen | loaded)
    assert isinstance(study.lens, dl.Lens) and study.lens.dtype == torch.bfloat16
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1 and printed.err == ""
    for part in ("depthlens 0.", "torch ", "lm-eval ", "git ", folder, "bfloat16 on cpu", "sdpa", "seed 7"):
        assert part in printed.out
    assert study.lens.fingerprint[:12] in printed.out
    assert study.options == study.documents == chosen and study.chat == study.writing == {}
    rest = {"num_fewshot": None, "seed": 7}
    assert study.halves() == ({"samples": "0:3:2", **rest}, {"samples": "1:3:2", **rest})
    told = study.recap(None, "one", ["two"], made_results.head_scores(np.eye(2), "score")).data
    assert [line[:5] for line in told.splitlines()] == ["- one", "- two", "- sco", "- Res"] and "no files" in told


def test_the_seed_reaches_every_generator(folder):
    def draw(seed):
        dl.setup_notebook({"model": folder, "tasks": TASKS, "seed": seed})
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    first, again, other = draw(3), draw(3), draw(4)
    assert first == again and all(a != b for a, b in zip(first, other, strict=True))


def test_the_output_folder_is_made_and_what_is_saved_lies_there(folder, tmp_path):
    study = dl.setup_notebook({"model": folder, "tasks": TASKS, "out": str(tmp_path / "a" / "b")})
    assert (tmp_path / "a" / "b").is_dir() and not any((tmp_path / "a" / "b").iterdir())
    scores = made_results.head_scores(np.eye(2), "score")
    study.save(scores, "scores")
    assert dl.HeadScores.load(tmp_path / "a" / "b" / "scores").top(1) == [(0, 0)]


def test_one_document_has_no_halves(folder):
    with pytest.raises(dl.UserError, match="limit 1: one half of the documents chooses"):
        dl.setup_notebook({"model": folder, "tasks": TASKS, "limit": 1}).halves()


def test_everything_cheap_is_checked_before_the_model_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "load", lambda *a, **k: pytest.fail("the model is loaded"))
    for wrong in ({"limit": 0}, {"seed": -1}, {"tasks": ["no_such_task"]}, {"num_fewshot": 99}):
        refused("", dl.setup_notebook, {"model": "smollm2-135m", "tasks": ["capitals_continuation"], **wrong})
