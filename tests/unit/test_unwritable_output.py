"""Standard output that cannot be written to: one line, the results, and an exit code that says so."""

from __future__ import annotations

import os
import sys
import types

import pytest
from made_results import capitals_and_elements

from depthlens import cli


def closed_pipe() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize(
    ("opened", "reason"),
    [
        pytest.param(
            lambda: os.open("/dev/full", os.O_WRONLY),
            "No space left on device",
            marks=pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is full"),
        ),
        (closed_pipe, "Broken pipe"),
    ],
)
def test_standard_output_that_cannot_be_written_is_one_line_and_the_results_are_kept(
    tmp_path, capsys, monkeypatch, opened, reason
):
    result = capitals_and_elements()
    stand_in = types.SimpleNamespace(run_sweep=lambda *args, **options: result)
    monkeypatch.setitem(sys.modules, "depthlens.experiments.sweep", stand_in)
    for command in (
        ["sweep", "organism", "capitals", "--ablate", "L3", "--out", str(tmp_path)],
        ["--help"],
        ["models"],
    ):
        with monkeypatch.context() as patch, os.fdopen(opened(), "w") as output:
            patch.setattr(sys, "stdout", output)
            patch.setattr(sys, "stderr", sys.stderr)  # typer changes both at a closed pipe
            with pytest.raises(SystemExit) as ended:
                cli.main(command)
        assert ended.value.code == 74
        told = capsys.readouterr().err.splitlines()
        assert told[-1] == f"Error: standard output: {reason}; files that were written are kept"
        assert len(told) == 1 + (command[0] == "sweep")
    assert type(result).load(tmp_path).docs.equals(result.docs)
