"""Notebooks on several models: a folder each, one index, and no mistake that is found late."""

from __future__ import annotations

import json
import re

import pytest
import tiny

from depthlens import cli, runner
from depthlens.errors import UserError
from depthlens.runner.several import folder_name

PARAMETERS = {"limit": 2, "num_fewshot": 0}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    options = {"max_position_embeddings": 4096}
    return [str(tiny.save(root / name, "llama-gqa", **options)) for name in ("first", "second")]


@pytest.mark.slow
def test_each_model_has_its_folder_and_one_that_fails_does_not_keep_others_from_running(models, tmp_path):
    """The first model's context is too short for the prompts; that is found in its kernel."""
    short = str(tiny.save(tmp_path / "short", "llama-gqa", max_position_embeddings=2))
    asked = [short, *models]
    out = tmp_path / "out"
    done = runner.run_models("00_tour", asked, out=out, profile=None, parameters=PARAMETERS, progress=False)
    assert done.exit_code == 1 and list(done.reports) == asked
    (line,) = done.errors
    assert line.startswith(f"{short}: notebook 00_tour, cell ") and "\n" not in line
    index = (out / "index.html").read_text()
    assert "3 models, 1 not finished" in index and "refresh" not in index
    for model, name in zip(models, ("first", "second"), strict=True):
        record = json.loads((out / name / "record.json").read_text())
        assert record["notebooks"][0]["parameters"]["model"] == model
        assert f'href="{name}/index.html"' in index and (out / name / "index.html").exists()
    assert index.count("data:image/png;base64,") == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"models": ["smollm2-135m", "no/such"]}, "model 'no/such'"),
        ({"models": ["smollm2-135m", "smollm2-135m"]}, "models: 'smollm2-135m' is named twice"),
        ({"models": []}, "no models given"),
        ({"models": ["smollm2-135m", ""]}, "models .*: give a name or a list of names"),
        ({"parameters": {"model": "x"}}, "the parameter model and several models: give one of them"),
        ({"parameters": {"limit": -1}}, "limit -1: give a whole number"),
        ({"names": "00_tuor"}, "unknown notebook '00_tuor'"),
        ({"profile": "papr"}, "unknown profile 'papr'"),
    ],
)
def test_mistakes_are_found_before_the_first_notebook(tmp_path, change, said):
    asked = {"names": "00_tour", "models": ["smollm2-135m", "smollm2-135m-cot"], "profile": "smoke"} | change
    with pytest.raises(UserError, match=said):
        runner.run_models(asked.pop("names"), asked.pop("models"), out=tmp_path / "out", progress=False, **asked)
    assert not (tmp_path / "out").exists()


def test_names_of_folders(tmp_path):
    assert folder_name("Qwen/Qwen3-8B") == "Qwen--Qwen3-8B"
    assert folder_name("org/name@main") == "org--name@main"
    assert folder_name("organism:seed=1,sharpness=9") == "organism_seed=1,sharpness=9"
    (tmp_path / "my model").mkdir()
    assert folder_name(str(tmp_path / "my model")) == "my_model"


def test_command(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["run", "00_tour", "--models", "smollm2-135m,no/such", "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert re.match("Error: .*no/such", capsys.readouterr().err.splitlines()[-1])
    assert not (tmp_path / "out").exists()
