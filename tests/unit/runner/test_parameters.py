"""Parameters of notebooks and profiles: every mistake is told before a kernel starts."""

from __future__ import annotations

import re

import pytest
from nbformat.v4 import new_notebook
from notebook_suite import code

from depthlens import paths
from depthlens.errors import UserError
from depthlens.runner import execute
from depthlens.runner.notebook_files import read_notebook
from depthlens.runner.parameters import Profiles, declared, fit
from depthlens.tasks import task_index


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["00_goood"]}, r"unknown notebook '00_goood'; did you mean 00_good\?"),
        ({"names": ["all", "00_good"]}, "'all' cannot be combined with names"),
        ({"names": []}, "no notebook named"),
        (
            {"profile": "papr"},
            r"unknown profile 'papr'; allowed: smoke, demo; profiles are in .*profiles.yml",
        ),
        (
            {"parameters": {"modle": "x"}},
            "no selected notebook has a parameter 'modle'; 00_good declares: limit, model, out, tasks, ",
        ),
        (
            {"parameters": {"limit": "five"}},
            "parameter limit = 'five' of notebook 00_good must be a whole number, like",
        ),
        ({"parameters": {"limit": "2.5"}}, "must be a whole number"),
        ({"parameters": {"limit": "true"}}, "must be a whole number"),
        ({"parameters": {"limit": ""}}, "must be a whole number"),
        ({"parameters": {"limit": "[1"}}, "must be a whole number"),
        ({"parameters": {"threshold": "high"}}, "must be a number, like its default 0.5"),
        ({"parameters": {"verbose": "1"}}, "must be true or false"),
        (
            {"parameters": {"tasks": "capitals"}},
            r"must be a list of text, like its default \[capitals, elements\]",
        ),
        ({"parameters": {"tasks": [1]}}, "must be a list of text"),
        ({"parameters": {"model": 7}}, "must be text, like its default organism"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_written(suite, tmp_path, arguments, message):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=message) as caught:
        execute.run(**{"names": ["00_good"], "out": out} | arguments)
    assert not out.exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"limit": "0"}, "limit 0: give a whole number of documents"),
        ({"model": "smollm-135m"}, "unknown model 'smollm-135m'; did you mean smollm2-135m, "),
        ({"model": "./nowhere"}, "model directory './nowhere' does not exist"),
        ({"tasks": "[capitals, capitols_default]"}, "unknown task 'capitols_default'; did you mean capitals_default"),
        ({"tasks": "[capitals, capitals]"}, "tasks: 'capitals' is named twice"),
    ],
)
def test_values_that_the_notebook_would_refuse_are_found_before_a_kernel_starts(
    suite, tmp_path, monkeypatch, parameters, message
):
    monkeypatch.setattr(execute, "NBClientEngine", None)
    with pytest.raises(UserError, match=f"notebook 00_good: {re.escape(message)}"):
        execute.run("all", out=tmp_path / "out", parameters=parameters)
    assert not (tmp_path / "out").exists()


def test_values_of_the_profile_are_held_against_the_same_rules(suite, tmp_path):
    (suite / "profiles.yml").write_text("demo: {00_good: {limit: -1}}")
    with pytest.raises(UserError, match="notebook 00_good: limit -1"):
        execute.run(["00_good"], out=tmp_path / "out")


def test_the_embedded_tasks_are_known_without_lm_eval():
    assert paths.embedded_names() == set(task_index.task_manager(["capitals"]).all_tasks)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("demo: {00_good: {limt: 3}}", "profile demo of .*profiles.yml: .*no parameter|'limt'"),
        ("demo: {00_good: {limit: many}}", "profile demo of .*profiles.yml: parameter limit = 'many'"),
        ("demo: {_all: {nothing: 3}}", "profile demo of .*profiles.yml: .*'nothing'"),
        ("demo: {00_god: {limit: 3}}", "unknown notebook '00_god'.*profiles.yml"),
        ("demo: {_order: [00_god]}", "unknown notebook '00_god'.*profiles.yml"),
        ("demo: {_extends: smoke}\nsmok: {}", "unknown profile 'smoke'; did you mean smok.*of profile demo"),
        ("demo: {_extends: b}\nb: {_extends: c}\nc: {}", "unknown profile 'b'; .*c.*in _extends of profile demo"),
        ("demo: [1", "profiles.yml is not YAML"),
        ("demo: 3", "profiles.yml must map"),
    ],
)
def test_bad_profiles_name_their_file(suite, tmp_path, content, message):
    (suite / "profiles.yml").write_text(content)
    with pytest.raises(UserError, match=message):
        execute.run(["00_good"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_profile_extends_another_notebook_by_notebook(suite):
    (suite / "profiles.yml").write_text(
        "demo: {_all: {limit: 2, model: a}, _order: [02_plain], 00_good: {threshold: 0.1, tasks: [x]}, 02_plain: }\n"
        "more: {_extends: demo, _all: {model: b}, 00_good: {tasks: [y], verbose: true}, 01_bad: {limit: 7}}\n"
    )
    defaults = {name: declared(read_notebook(suite / f"{name}.ipynb"), name) for name in execute.notebook_names()}
    profiles = Profiles(suite / "profiles.yml", defaults)
    values = profiles.values("more")
    assert values["00_good"] == {"limit": 2, "model": "b", "threshold": 0.1, "tasks": ["y"], "verbose": True}
    assert values["01_bad"] == {"limit": 7} and values["02_plain"] == {}
    assert profiles.order("more") == ["02_plain"]
    assert profiles.values("demo")["00_good"] == {"limit": 2, "model": "a", "threshold": 0.1, "tasks": ["x"]}


def test_parameter_none_of_the_selected_declares_though_others_do(suite, tmp_path):
    with pytest.raises(UserError, match="no selected notebook has a parameter 'limit'; 02_plain declares: none"):
        execute.run(["02_plain"], out=tmp_path / "out", parameters={"limit": "3"})


def test_declared_reads_what_papermill_would_skip():
    nb = new_notebook(
        cells=[code('a = 1  # so that a = 1\nb = "x#y"\nc: float = 2.0\nd = None\ne = a + 1', "parameters")]
    )
    found = declared(nb, "x")
    assert list(found) == ["a", "b", "c", "d", "e"] and found["b"] == "x#y" and found["c"] == 2.0
    assert fit("3", found["d"], "d", "x") == 3 and fit("7", found["e"], "e", "x") == 7
    with pytest.raises(UserError, match="parameters cell is not Python"):
        declared(new_notebook(cells=[code("a = = 1", "parameters")]), "x")


def test_fit_keeps_types():
    assert fit("123", "tiny", "model", "x") == "123"
    assert fit("[no, 1]", ["a"], "tasks", "x") == ["no", "1"]  # names, whatever they look like
    assert (value := fit(2, 0.5, "threshold", "x")) == 2.0 and isinstance(value, float)
    assert fit("[1, 2]", [], "layers", "x") == [1, 2]
    with pytest.raises(UserError, match="list of whole numbers"):
        fit("[1, a]", [0], "layers", "x")
