"""Notebooks on several models: a folder each, one index, and no mistake that is found late."""

from __future__ import annotations

import json

import pytest
from nbformat.v4 import new_markdown_cell
from notebook_suite import FIGURE, code, write

from depthlens import cli, runner
from depthlens.errors import UserError
from depthlens.runner.several import folder_name

MODELS = ["organism:seed=1", "organism"]


@pytest.mark.slow
def test_each_model_has_its_folder_and_one_that_fails_does_not_keep_others_from_running(suite, tmp_path):
    fails = code("if 'seed' in model:\n    raise ValueError('too short')")
    write(
        suite, "03_model", new_markdown_cell("# Which?"), code("model = 'organism'", "parameters"), fails, code(FIGURE)
    )
    out = tmp_path / "out"
    done = runner.run_models("03_model", MODELS, out=out, profile=None, progress=False)
    assert done.exit_code == 1 and list(done.reports) == MODELS
    assert done.errors == ["organism:seed=1: notebook 03_model, cell 4: ValueError: too short"]
    index = (out / "index.html").read_text()
    assert "2 models, 1 not finished" in index and "refresh" not in index
    for model, folder in zip(MODELS, ("organism_seed=1", "organism"), strict=True):
        record = json.loads((out / folder / "record.json").read_text())
        assert record["notebooks"][0]["parameters"]["model"] == model
        assert f'href="{folder}/index.html"' in index and (out / folder / "index.html").exists()
    assert index.count("data:image/png;base64,") == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"models": ["organism", "no/such"]}, "model 'no/such'"),
        ({"models": ["organism", "organism"]}, "models .*: give a name or a list of names, each once"),
        ({"models": []}, "models \\[\\]: give a name"),
        ({"models": ["a/b", "a--b"]}, "model 'a/b'|would write to the folder 'a--b'; run one of them apart"),
        ({"parameters": {"model": "x"}}, "the parameter model and several models: give one of them"),
        ({"parameters": {"limit": -1}}, "limit -1: give a whole number"),
    ],
)
def test_mistakes_are_found_before_the_first_notebook(suite, tmp_path, change, said):
    given = {"names": "00_good", "models": MODELS, "profile": "demo"} | change
    with pytest.raises(UserError, match=said):
        runner.run_models(given.pop("names"), given.pop("models"), out=tmp_path / "out", progress=False, **given)
    assert not (tmp_path / "out").exists()


def test_names_of_folders(tmp_path):
    assert folder_name("Qwen/Qwen3-8B") == "Qwen--Qwen3-8B"
    assert folder_name("org/name@main") == "org--name@main"
    (tmp_path / "my model").mkdir()
    assert folder_name(str(tmp_path / "my model")) == "my_model"


def test_command(suite, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["run", "00_good", "--models", "organism,no/such", "--out", str(tmp_path / "out")])
    assert end.value.code == 2 and not (tmp_path / "out").exists()
    assert "no/such" in capsys.readouterr().err.splitlines()[-1]
