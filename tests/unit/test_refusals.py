"""What users get wrong, by the tables of `tests/refusals`: one line that names the value and the fix, nothing written.

Commands go through the real command line and calls through the real functions, both on real (tiny) models. Library log
handlers are pointed at the captured standard error first, so that a warning which a user would see counts as a second
line. The tests' type checker is off meanwhile: no user has one.
"""

import logging
import re
import sys
import types

import pytest
import tiny
from refusals import calls, commands, refused, rules

import depthlens as dl
from depthlens import arguments
from depthlens.store import parts

pytestmark = pytest.mark.slow

TASK = commands.TASK
# a line says what is allowed, or what to do
FIX = re.compile(r"; |: give |: write |did you mean|must be|has \d+ examples")


@pytest.fixture
def places(tmp_path, saved):
    """Folders and files that rows of the tables name in braces."""
    made = {name: tmp_path / name for name in ("tmp", "foreign", "kept", "page")}
    for folder in made.values():
        folder.mkdir()
    (tmp_path / "file").write_text("precious")
    (made["foreign"] / "notes.txt").write_text("mine")
    (made["page"] / "index.html").write_text("<title>Mine</title>")
    parts.open_store(str(made["kept"]))
    made |= {name: tmp_path / name for name in ("file", "out")}
    return {name: str(place) for name, place in made.items()} | {"model": saved(max_position_embeddings=4096)}


def filled(value, places):
    return re.sub(r"\{(\w+)\}", lambda m: places[m[1]], value) if isinstance(value, str) else value


@pytest.fixture
def refused_command(call, unchecked, places, tmp_path, monkeypatch):
    """Run a command that must be refused: returns its one line; nothing may be written."""
    monkeypatch.chdir(tmp_path / "tmp")
    monkeypatch.setenv(parts.ENVIRONMENT, "none")  # what --store sets is taken back

    def run(arguments) -> str:
        for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
            for handler in getattr(logger, "handlers", []):
                if type(handler) is logging.StreamHandler:
                    monkeypatch.setattr(handler, "stream", sys.stderr)
        code, printed, told = call(*(filled(a, places) for a in arguments))
        assert code == 2 and printed == "", (code, printed, told)
        errors = [line for line in told.splitlines() if not line.endswith(" ...")]  # what is begun is told, too
        assert len(errors) == 1 and errors[0].startswith("Error: "), told
        assert (tmp_path / "file").read_text() == "precious"
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
        assert not list((tmp_path / "tmp").iterdir())
        return errors[0].removeprefix("Error: ")

    return run


def told(line: str, said: str) -> None:
    assert said in line, line
    assert FIX.search(line) or "cannot be loaded: " in line, f"no way out: {line}"  # transformers says what it wants
    assert len(line) < 700 or "xxx" in line, f"too long: {line}"


def rows(table):
    """Parameters of a test."""
    return [pytest.param(*row, id=f"{i:03} {row[-1][:60]}") for i, row in enumerate(table)]


@pytest.mark.parametrize(("name", "value", "said"), rows(rules.RULES))
def test_rule(name, value, said):
    told(refused("", arguments.check, **{name: value}), said)


@pytest.mark.parametrize(("arguments", "said"), rows(commands.COMMANDS))
def test_command(refused_command, arguments, said):
    told(refused_command(arguments), said)


@pytest.fixture(scope="module")
def made():
    """What calls are given: loaded models and results."""
    lens, organism = tiny.lens("llama-gqa", max_position_embeddings=4096), dl.load("organism")
    made = types.SimpleNamespace(lens=lens, organism=organism, windowed=tiny.lens("mistral", sliding_window=8))
    options = {"limit": 4, "progress": False}
    made.result = dl.layer_sweep(organism, calls.ONE, **options)
    made.heads = dl.head_sweep(organism, calls.ONE, layers=[2], **options)
    made.scores = dl.retrieval_scores(organism, calls.ONE, **options)
    return made


@pytest.mark.parametrize(("do", "said"), rows(calls.CALLS))
def test_call(made, unchecked, tmp_path, do, said):
    made.tmp = tmp_path
    told(refused("", do, made), said)
    assert list(tmp_path.iterdir()) == []
