"""The command line: what it passes on, what it prints, and how it ends. No model is loaded."""

import json
import os
import subprocess
import sys
import types

import made_results
import pytest

import depthlens as dl
from depthlens import arguments
from depthlens.models import names


@pytest.fixture
def sweeps(monkeypatch):
    """Stand in for depthlens.experiments.sweep; returns the calls it got."""
    calls = []

    def run_by_name(*args, **kwargs):
        calls.append((args, kwargs))
        if args[1] == ["stopped"]:
            raise KeyboardInterrupt
        return made_results.capitals_and_elements()

    monkeypatch.setitem(sys.modules, "depthlens.experiments.sweep", types.SimpleNamespace(run_by_name=run_by_name))
    return calls


def test_version(call):
    code, out, _ = call("--version")
    assert code == 0 and out == f"depthlens {dl.__version__}\n"
    command = [sys.executable, "-m", "depthlens", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == out


NAMES = {"device": "cpu", "quantize": "nf4", "offload": "disk", "donor": "organism:seed=2", "backend": "torch"}
TEXTS = {"system_instruction": "Be brief.", "think_end_token": "</think>", "dtype": "float32", "measure": "both"}
NUMBERS = {"limit": 50, "num_fewshot": 2, "batch_tokens": 900, "seed": 3}
DEFAULTS = {name: option.default for name, option in arguments.COMMANDS.items()}
del DEFAULTS["progress"]  # which is no option of commands


def test_sweep_passes_everything_on_and_records_the_command(sweeps, tmp_path, call):
    out = tmp_path / "out"
    values = NAMES | TEXTS | NUMBERS | {"include_path": str(tmp_path), "out": str(out)}
    options = [text for name, value in values.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    options += ["--gen-kwargs", "max_gen_toks=64,temperature=0.6,until=x", "--no-thinking", "--apply-chat-template"]
    options += ["--remote", "--resample-prompt", "One.", "--resample-prompt", "Two."]
    code, text, err = call("sweep", "organism", "capitals", "hard", "--ablate", "layers", *options)
    assert (code, err) == (0, "loading organism and organism:seed=2 for capitals, hard ...\n")
    ((given, found),) = sweeps
    assert given == ("organism", ["capitals", "hard"], "layers")
    written = {"gen_kwargs": {"max_gen_toks": 64, "temperature": 0.6, "until": "x"}, "enable_thinking": False}
    flags = {"apply_chat_template": True, "remote": True, "resample_prompts": ["One.", "Two."]}
    assert found == DEFAULTS | NAMES | TEXTS | NUMBERS | written | flags | {"include_path": str(tmp_path)}
    assert text.splitlines()[-1].startswith("Wrote ") and str(out / "docs.parquet") in text.splitlines()[-1]
    command = json.loads((out / "record.json").read_text())["command"]
    assert command[:3] == ["depthlens", "sweep", "organism"] and command[-3:] == ["One.", "--resample-prompt", "Two."]


def test_sweep_defaults(sweeps, tmp_path, call):
    call("sweep", "organism", "capitals", "--ablate", "L3,L5.H2", "--out", str(tmp_path))
    assert sweeps == [(("organism", ["capitals"], "L3,L5.H2"), DEFAULTS)]


def test_interrupted_sweep(sweeps, tmp_path, call):
    code, out, err = call("sweep", "organism", "stopped", "--ablate", "layers", "--out", str(tmp_path))
    assert (code, out, err.splitlines()[1:]) == (130, "", ["Interrupted: run the same again to go on"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("typed", "said"), [
    (["sweep", "organism", "capitals", "--ablate", "layers", "--out", "OUT"], "loading organism for capitals"),
    (["run", "00_tuor", "--out", "OUT"], "reading 00_tuor"), (["store", "list"], "reading the store STORE"),
    (["gallery", "OUT"], "reading the notebooks in OUT"),
])  # fmt: skip
def test_the_first_line_says_what_begins(sweeps, tmp_path, call, monkeypatch, typed, said):
    typed = [text.replace("OUT", str(tmp_path / "out")) for text in typed]
    monkeypatch.setenv("DEPTHLENS_STORE", str(tmp_path / "store"))
    said = said.replace("OUT", str(tmp_path / "out")).replace("STORE", str(tmp_path / "store"))
    _, _, err = call(*typed)
    assert err.splitlines()[0] == f"{said} ..."


@pytest.fixture
def runs(monkeypatch):
    """Stand in for runner.run; returns the calls it got and lets a test set how it ended."""
    from depthlens.runner import execute

    state = types.SimpleNamespace(calls=[], report=types.SimpleNamespace(errors=[], exit_code=0))

    def run(names, **kwargs):
        state.calls.append((names, kwargs))
        return state.report

    monkeypatch.setattr(execute, "run", run)
    return state


def test_run_passes_parameters_as_pairs(runs, call, tmp_path):
    pairs = ["-p", "limit", "-1", "--profile", "smoke", "-p", "model", "a b"]
    code, out, err = call("run", "00_tour", *pairs, "--out", str(tmp_path))
    assert (code, err, out) == (0, "reading 00_tour ...\n", f"Wrote {tmp_path / 'index.html'}\n")
    given = {"profile": "smoke", "parameters": {"limit": "-1", "model": "a b"}}
    assert runs.calls == [(["00_tour"], {"out": str(tmp_path)} | given)]


def test_run_tells_each_failed_notebook_in_one_line_and_has_no_profile_unless_one_is_named(runs, call, tmp_path):
    runs.report = types.SimpleNamespace(errors=["notebook 01, cell 4: KeyError: 'x'"], exit_code=1)
    code, out, err = call("run", "all", "--out", str(tmp_path))
    assert code == 1 and err.splitlines()[1:] == ["Error: notebook 01, cell 4: KeyError: 'x'"] and "index.html" in out
    ((names, options),) = runs.calls
    assert names == ["all"] and (options["profile"], options["parameters"]) == (None, {})


def test_models_prints_a_table(call):
    code, out, _ = call("models")
    head, *rows = out.splitlines()
    assert code == 0 and head.split() == ["alias", "source", "family", "size", "role"]
    assert rows[0].split()[0] == "smollm2-135m" and len(rows) == len(names.NAMED)


def test_a_reader_that_has_enough_ends_a_command_in_silence(monkeypatch, call):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", closed)
        assert call("models") == (74, "", "")
