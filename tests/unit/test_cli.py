"""The command line: what it passes on, what it prints, and how it ends. No model is loaded."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pandas as pd
import pytest

import depthlens as dl
from depthlens import cli
from depthlens.analysis.summary_text import summary_text
from depthlens.errors import UserError
from depthlens.models import names


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


DROPS = [0.1, 0.6, 0.2, 0.3, 0.4, 0.5, -0.1]  # accuracy lost without layer 0, 1, ...


class FakeResult:
    """As much of a Result as the command line reads: two layers and a metric at chance."""

    notes = ["hard acc is at chance: cannot judge (n = 50)", "capitals acc: 50 documents are too few"]
    record = {
        "tasks": {
            "capitals": {
                "metrics": {"acc": {"higher_is_better": True}, "loss": {"higher_is_better": False}},
                "skipped_metrics": {"f1": "has no value per document"},
            },
            "hard": {"metrics": {"acc": {"higher_is_better": True}}},
            "unsolved": {"metrics": {"pass": {"higher_is_better": True}}},
        }
    }
    baselines = pd.DataFrame(
        {
            "model": "m",
            "task": ["capitals", "capitals", "hard", "unsolved"],
            "metric": ["acc", "loss", "acc", "pass"],
            "n": 50,
            "baseline": [0.8, 1.5, 0.26, 0.0],
            "ci_low": [0.7, 1.0, 0.15, 0.0],
            "ci_high": [0.9, 2.0, 0.4, 0.1],
            "chance": [0.25, None, 0.25, None],  # a baseline of 0 is at chance whether chance is known or not
            "at_chance": [False, False, True, True],
        }
    )
    summary = pd.DataFrame(
        [
            ("capitals", "acc", "baseline", 0.8, 0.0),
            *(("capitals", "acc", f"L{i}", 0.8 - drop, -drop) for i, drop in enumerate(DROPS)),
            ("capitals", "loss", "baseline", 1.5, 0.0),
            ("capitals", "loss", "L8-11", 4.0, 2.5),
            ("capitals", "loss", "L3", 1.0, -0.5),
            ("hard", "acc", "baseline", 0.26, 0.0),
            ("hard", "acc", "L77", 0.1, -0.16),
        ],
        columns=["task", "metric", "condition", "value", "delta"],
    ).assign(ci_low=lambda d: d.delta - 0.1, ci_high=lambda d: d.delta + 0.1, p_adjusted=0.004)

    def save(self, out: Path, *, overwrite: bool) -> None:
        (out / "record.json").write_text(json.dumps(self.record))


@pytest.fixture
def sweeps(monkeypatch):
    """Stand in for depthlens.experiments.sweep; returns the calls it got."""
    calls = []

    def run_sweep(*args, **kwargs):
        calls.append((args, kwargs))
        if args[1] == ["missing"]:
            raise UserError("unknown task 'missing'; did you mean capitals?")
        if args[1] == ["stopped"]:
            raise KeyboardInterrupt
        return FakeResult()

    monkeypatch.setitem(sys.modules, "depthlens.experiments.sweep", types.SimpleNamespace(run_sweep=run_sweep))
    return calls


def test_version(capsys):
    code, out, _ = call(capsys, "--version")
    assert code == 0 and out == f"depthlens {dl.__version__}\n"


NAMES = {"device": "cpu", "quantize": "nf4", "offload": "disk", "donor": "organism:seed=2", "backend": "torch"}
TEXTS = {"system_instruction": "Be brief.", "think_end_token": "</think>", "dtype": "float32", "measure": "both"}
NUMBERS = {"limit": 50, "num_fewshot": 2, "batch_tokens": 900, "seed": 3}
DEFAULTS = dict.fromkeys(
    ("limit", "samples", "num_fewshot", "include_path", "batch_tokens", "system_instruction", "gen_kwargs")
    + ("think_end_token", "enable_thinking", "resample_prompts", "donor", "quantize", "offload")
) | {"backend": "torch", "apply_chat_template": False, "measure": "task", "seed": 0, "dtype": "auto"}
DEFAULTS |= {"device": "auto", "remote": False}


def test_sweep_passes_everything_on_and_records_the_command(sweeps, tmp_path, capsys):
    out = tmp_path / "out"
    values = NAMES | TEXTS | NUMBERS | {"include_path": str(tmp_path), "out": str(out)}
    options = [text for name, value in values.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    options += ["--gen-kwargs", "max_gen_toks=64,temperature=0.6,until=x", "--no-thinking", "--apply-chat-template"]
    options += ["--remote", "--resample-prompt", "One.", "--resample-prompt", "Two."]
    code, text, err = call(capsys, "sweep", "organism", "capitals", "hard", "--ablate", "layers", *options)
    assert (code, err) == (0, "loading organism and organism:seed=2 for capitals, hard ...\n")
    ((given, found),) = sweeps
    assert given == ("organism", ["capitals", "hard"], "layers")
    written = {"gen_kwargs": {"max_gen_toks": 64, "temperature": 0.6, "until": "x"}, "enable_thinking": False}
    flags = {"apply_chat_template": True, "remote": True, "resample_prompts": ["One.", "Two."]}
    assert found == DEFAULTS | NAMES | TEXTS | NUMBERS | written | flags | {"include_path": str(tmp_path)}
    assert text.splitlines()[-1].startswith("Wrote ") and str(out / "docs.parquet") in text.splitlines()[-1]
    command = json.loads((out / "record.json").read_text())["command"]
    assert command[:3] == ["depthlens", "sweep", "organism"] and command[-3:] == ["One.", "--resample-prompt", "Two."]


def test_sweep_defaults(sweeps, tmp_path, capsys):
    call(capsys, "sweep", "organism", "capitals", "--ablate", "L3,L5.H2", "--out", str(tmp_path))
    assert sweeps == [(("organism", ["capitals"], "L3,L5.H2"), DEFAULTS)]


def test_what_was_found_is_said():
    lines = summary_text(FakeResult()).splitlines()
    assert lines[0] == "capitals acc, 50 documents: baseline 0.800 [0.700, 0.900]"
    assert [line.split()[0] for line in lines[1:6]] == ["L1", "L5", "L4", "L3", "L2"]  # worst first, five of them
    assert lines[1] == "  L1  0.200  -0.600 [-0.700, -0.500]  adjusted p = 0.004"
    assert lines[6] == "" and lines[8].startswith("  L8-11  4.000  +2.500") and lines[9] == ""  # loss: up is worse
    text = "\n".join(lines)
    assert "Warning: hard acc is at chance (0.250)" in text and "cannot judge" in text and "L77" not in text
    assert "Warning: unsolved pass is at chance without any ablation: cannot judge" in lines and "nan" not in text
    assert lines[-3:] == [
        "",
        "Note: capitals acc: 50 documents are too few",  # the one at chance is told where its numbers would be
        "Note: capitals: metric f1 has no value per document and is left out",
    ]


def test_sweep_checks_the_output_folder_before_any_work(sweeps, tmp_path, capsys):
    (tmp_path / "file").write_text("precious")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/depthlens")):
        code, out, err = call(capsys, "sweep", "organism", "capitals", "--ablate", "layers", "--out", str(place))
        assert code == 2 and out == "" and err.startswith("Error: cannot write to ") and err.count("\n") == 1
    assert sweeps == []


def test_user_error_is_one_line_and_exit_code_2(sweeps, tmp_path, capsys):
    code, out, err = call(capsys, "sweep", "organism", "missing", "--ablate", "layers", "--out", str(tmp_path))
    told = "loading organism for missing ...\nError: unknown task 'missing'; did you mean capitals?\n"
    assert (code, out, err) == (2, "", told) and list(tmp_path.iterdir()) == []


def test_interrupted_sweep(sweeps, tmp_path, capsys):
    code, out, err = call(capsys, "sweep", "organism", "stopped", "--ablate", "layers", "--out", str(tmp_path))
    assert (code, out, err.splitlines()[1:]) == (130, "", ["Interrupted: nothing was computed yet"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sweep", "organism", "capitals", "--ablate", "layers", "--out", "OUT"], "loading organism for capitals"),
        (["run", "00_tuor", "--out", "OUT"], "reading 00_tuor"),
        (["run", "all", "--profile", "smoek", "--out", "OUT"], "reading all notebooks"),
        (["store", "list"], "reading the store STORE"),
        (["gallery", "OUT"], "reading the notebooks in OUT"),
    ],
)
def test_the_first_line_says_what_begins(sweeps, tmp_path, capsys, monkeypatch, arguments, said):
    arguments = [a.replace("OUT", str(tmp_path / "out")) for a in arguments]
    monkeypatch.setenv("DEPTHLENS_STORE", str(tmp_path / "store"))
    said = said.replace("OUT", str(tmp_path / "out")).replace("STORE", str(tmp_path / "store"))
    _, _, err = call(capsys, *arguments)
    assert err.splitlines()[0] == f"{said} ..."
    if arguments[0] in ("sweep", "run"):
        monkeypatch.setenv("DEPTHLENS_PROGRESS", "")  # so that what --json sets is taken back
        _, _, err = call(capsys, *arguments, "--json", *(["--overwrite"] if arguments[0] == "sweep" else []))
        assert json.loads(err.splitlines()[0])["status"] == said


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


def test_run_passes_parameters_as_pairs(runs, capsys, tmp_path):
    pairs = ["-p", "limit", "-1", "--profile", "smoke", "-p", "model", "a b"]
    code, out, err = call(capsys, "run", "00_tour", *pairs, "--out", str(tmp_path))
    assert (code, err, out) == (0, "reading 00_tour ...\n", f"Wrote {tmp_path / 'index.html'}\n")
    values = {"limit": "-1", "model": "a b"}
    assert runs.calls == [(["00_tour"], {"out": str(tmp_path), "profile": "smoke", "parameters": values})]


def test_run_tells_each_failed_notebook_in_one_line_and_has_the_demo_profile(runs, capsys, tmp_path):
    runs.report = types.SimpleNamespace(errors=["notebook 01, cell 4: KeyError: 'x'"], exit_code=1)
    code, out, err = call(capsys, "run", "all", "--out", str(tmp_path))
    assert code == 1 and err.splitlines()[1:] == ["Error: notebook 01, cell 4: KeyError: 'x'"] and "index.html" in out
    assert runs.calls == [(["all"], {"out": str(tmp_path), "profile": "demo", "parameters": {}})]


def test_models_prints_a_table(capsys, monkeypatch):
    rows = (names.Named("smollm2-135m", "a", "llama", "135M", "small"), names.Named("x", "b", "qwen3", "8B", "large"))
    monkeypatch.setattr(names, "NAMED", rows)
    code, out, _ = call(capsys, "models")
    assert code == 0
    assert out == (
        "alias         source  family  size  role\n"
        "smollm2-135m  a       llama   135M  small\n"
        "x             b       qwen3   8B    large\n"
    )
