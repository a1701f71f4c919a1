"""What a run of notebooks is said to cost is what it then computes, and planning stores nothing."""

from __future__ import annotations

import re

import notebook_suite
import pytest
import stores
import tiny

from depthlens import cli, runner
from depthlens.store import inspection, parts

PARAMETERS = {"limit": 3, "num_fewshot": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.save(tmp_path_factory.mktemp("models") / "first", "llama-gqa", max_position_embeddings=4096))


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPTHLENS_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def plan(model, names="00_tour", **changes):
    values = PARAMETERS | {"model": model} | changes
    return runner.plan_run(names, profile=None, parameters=values, progress=False)


@pytest.mark.slow
def test_the_rows_of_a_plan_are_those_that_a_run_computes(model, store, tmp_path):
    planned = plan(model)
    assert planned.stopped == [] and stores.parts(store) == []
    (row,) = planned.plan.table.to_dict("records")
    assert row["notebook"] == "00_tour" and row["calls"] >= 2 and row["flops"] > 0
    assert planned.plan.seconds > 0 and planned.plan.peak_bytes > 0
    values = PARAMETERS | {"model": model}
    done = runner.run("00_tour", out=tmp_path / "out", profile=None, parameters=values, progress=False)
    assert done.errors == []
    assert row["rows"] == inspection.contents(parts.open_store(str(store)))["rows"].sum()
    again = plan(model)
    assert again.plan.table["rows"].sum() == 0 and again.plan.table["known"].sum() >= row["rows"]
    assert again.plan.describe()[0] == "The store has every answer: nothing is computed."


@pytest.mark.slow
def test_the_command_names_a_cell_that_stops_and_writes_nothing(tmp_path, monkeypatch, capsys):
    """This model's context is too short for the prompts; that is found in its kernel."""
    short = str(tiny.save(tmp_path / "short", "llama-gqa", max_position_embeddings=2))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "00_tour", "--plan", "--models", short, "-p", "limit", "2", "-p", "num_fewshot", "0"])
    said = capsys.readouterr().out
    assert stop.value.code == 0
    assert said.startswith(f"{short}\n") and "00_tour" in said
    assert re.search(r"^Not counted: 00_tour, cell \d+: .+", said, re.MULTILINE)
    assert list((tmp_path / "here").iterdir()) == []


def test_a_dead_kernel_is_told_in_one_line_and_does_not_stop_the_next_notebook(suite):
    notebook_suite.write(suite, "03_dies", notebook_suite.code("import os; os._exit(9)"))
    planned = runner.plan_run(["03_dies", "02_plain"], profile=None, progress=False)
    assert planned.stopped == ["03_dies: its kernel died (often: out of memory)"]
    assert list(planned.plan.table["notebook"]) == ["03_dies", "02_plain"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["00_tour"], "no --out"),
        (["00_tuor", "--plan"], "00_tuor"),
        (["00_tour", "--plan", "-p", "limit", "-1"], "limit -1"),
        (["00_tour", "--plan", "--models", "smollm2-135m,no/such"], "model 'no/such'"),
    ],
)
def test_mistakes_are_one_line(typed, said, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", *typed])
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("Error: ") and said in error
