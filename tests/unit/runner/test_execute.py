"""The notebook runner, on throw-away notebooks that papermill really executes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell
from notebook_suite import code, seen, write

from depthlens import paths
from depthlens.errors import UserError
from depthlens.paths import locked, writable_folder
from depthlens.runner import execute
from depthlens.runner.index import gallery

pytestmark = pytest.mark.slow


def test_run_writes_notebook_page_record_and_index(suite, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MPLBACKEND", "Agg")  # would keep figures out of the notebook if the kernel saw it
    monkeypatch.setenv("JUPYTER_PATH", str(foreign_kernel(tmp_path)))
    out = tmp_path / "out"
    report = execute.run(
        ["00_good", "02_plain.ipynb"],
        out=out,
        profile="smoke",
        parameters={"threshold": "1e-3", "tasks": "[elements, kv_retrieval_4]"},
    )
    assert report.exit_code == 0 and [n.status for n in report.notebooks] == ["ok", "ok"]
    assert seen(out) == [
        "smollm2-135m",
        ["elements", "kv_retrieval_4"],
        2,
        0.001,
        False,
        str(out / "00_good"),
        sys.executable,
        os.getcwd(),
        "1",
    ]
    assert sorted(p.name for p in out.iterdir()) == [
        "00_good.html",
        "00_good.ipynb",
        "02_plain.html",
        "02_plain.ipynb",
        "index.html",
        "record.json",
    ]
    record = json.loads((out / "record.json").read_text())
    assert record["profile"] == "smoke" and record["versions"]["papermill"] and record["started"]
    assert record["notebooks"][0]["parameters"]["limit"] == 2
    assert record["notebooks"][0]["headline"] == "**2** documents of `smollm2-135m`"
    assert record["notebooks"][1]["headline"] == "<b>7</b> layers"

    index = (out / "index.html").read_text()
    assert "Does one layer matter?" in index and "Plain?" in index
    assert "<strong>2</strong> documents of <code>smollm2-135m</code>" in index
    assert "&lt;b&gt;7&lt;/b&gt; layers" in index
    assert index.count('src="data:image/png;base64,iVBOR') == 1 and 'href="00_good.html"' in index
    assert "profile smoke" in index and "✓ ok" in index
    page = (out / "00_good.html").read_text()
    assert "Parameters of this run" in page and 'src="data:image/png;base64,iVBOR' in page
    assert 'alt="Does one layer matter? 2 documents of smollm2-135m"' in page and "In [" not in page
    assert not list(tmp_path.rglob(".ipynb_checkpoints"))


def foreign_kernel(tmp_path):
    """A kernel registered as python3 that cannot start: what a user's own registration may look like."""
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "x", "language": "python"}')
    return tmp_path / "jupyter"


def test_defaults_without_profile(suite, tmp_path):
    report = execute.run(["00_good"], out=tmp_path / "out", profile=None, progress=False)
    assert report.notebooks[0].parameters == {"out": str(tmp_path / "out" / "00_good")}
    assert seen(tmp_path / "out")[:5] == ["organism", ["capitals", "elements"], 5, 0.5, False]


def test_user_values_win_and_go_to_those_that_declare_them(suite, tmp_path):
    report = execute.run(
        "all",
        out=tmp_path / "out",
        profile="smoke",
        parameters={"model": "organism:seed=2", "out": "here", "limit": "null"},
        progress=False,
    )
    assert [n.name for n in report.notebooks] == ["02_plain", "00_good"]  # the profile's order
    assert report.notebooks[0].parameters == {}
    assert report.notebooks[1].parameters == {"model": "organism:seed=2", "limit": None, "out": "here"}


def test_failing_notebook_is_told_in_one_line_and_does_not_stop_the_others(suite, tmp_path, capfd):
    report = execute.run("all", out=tmp_path / "out")
    assert report.exit_code == 1 and [n.status for n in report.notebooks] == ["ok", "failed", "ok"]
    assert report.errors == ["notebook 01_bad, cell 4: KeyError: 'no such\\nlayer'"]
    assert report.notebooks[1].cell == 4
    partial = nbformat.read(tmp_path / "out" / "01_bad.ipynb", as_version=4)
    assert partial.cells[2].outputs[0].text == "kept\n" and not partial.cells[4].outputs
    assert "Not finished:" in (tmp_path / "out" / "01_bad.html").read_text()
    index = (tmp_path / "out" / "index.html").read_text()
    assert "✗ failed" in index and "01_bad, cell 4" in index and "1 not finished" in index
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 7 and lines[0].startswith("writing findings to ")
    assert lines[1] == "[1/3] 00_good: running 8 cells" and "failed after" in lines[4]


def test_values_that_a_notebook_does_not_declare_are_told(suite, tmp_path, capfd):
    execute.run(["00_good", "02_plain"], out=tmp_path / "out", parameters={"limit": "3", "threshold": "0.1"})
    said = capfd.readouterr().err.splitlines()
    assert said[1] == "leaving limit, threshold out of 02_plain, which has no such parameter ..."
    assert not any("out of 00_good" in line for line in said)


def test_user_error_in_a_notebook_is_told_plainly(suite, tmp_path):
    source = "from depthlens.errors import UserError\nraise UserError('limit = 0: must be at least 1')"
    write(suite, "03_check", new_markdown_cell("# Checked?"), code(source))
    report = execute.run(["03_check"], out=tmp_path / "out", progress=False)
    assert report.errors == ["notebook 03_check, cell 2: limit = 0: must be at least 1"]


def test_expected_exception_is_no_failure(suite, tmp_path):
    write(suite, "03_demo", new_markdown_cell("# Refused?"), code("1 / 0", "raises-exception"), code("print(2)"))
    assert execute.run(["03_demo"], out=tmp_path / "out", progress=False).exit_code == 0


def test_dead_kernel_is_told_in_one_line(suite, tmp_path, capfd):
    write(
        suite,
        "03_dies",
        new_markdown_cell("# Dies?"),
        code("print('before')"),
        code("import os; os._exit(9)"),
    )
    report = execute.run(["03_dies", "02_plain"], out=tmp_path / "out", progress=False)
    assert report.errors == ["notebook 03_dies, cell 3: its kernel died (often: out of memory)"]
    assert [n.status for n in report.notebooks] == ["failed", "ok"]
    assert "before" in (tmp_path / "out" / "03_dies.html").read_text()
    assert capfd.readouterr().err == ""


def test_ctrl_c_keeps_what_was_done(suite, tmp_path):
    write(
        suite,
        "03_slow",
        new_markdown_cell("# Slow?"),
        code("print('begun')"),
        code("import time; time.sleep(120)"),
    )
    out = tmp_path / "out"
    program = (
        "import pathlib, signal, sys; from depthlens import paths, cli; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "  # jobs in the background of a script ignore it
        f"paths.notebooks_dir = lambda: pathlib.Path({str(suite)!r}); "
        f"cli.main(['run', '02_plain', '03_slow', '00_good', '--out', {str(out)!r}])"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if (out / "03_slow.ipynb").exists() and "begun" in (out / "03_slow.ipynb").read_text():
            break
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "Interrupted: kept what was done; run the same again to go on"
    assert "Traceback" not in err
    record = json.loads((out / "record.json").read_text())
    assert [n["status"] for n in record["notebooks"]] == ["ok", "interrupted", "not run"]
    index = (out / "index.html").read_text()
    assert "interrupted in cell 3" in index and "✓ ok" in index and "begun" in (out / "03_slow.html").read_text()


def test_two_runs_do_not_write_to_one_folder(suite, tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match="another process is writing to .*; wait for its end"):
        execute.run("02_plain", out=tmp_path, progress=False)
    assert execute.run("02_plain", out=tmp_path, progress=False).exit_code == 0


def test_a_notebook_is_named_as_the_shell_completes_it(suite, tmp_path):
    (suite / "02_plain.ipynb").rename(suite / "04_plain.ipynb")
    given = [str(suite / "04_plain.ipynb"), "04_plain", "04_plain.ipynb"]
    report = execute.run(given, out=tmp_path / "out", progress=False)
    assert [n.name for n in report.notebooks] == ["04_plain"]
    copy = tmp_path / "04_plain.ipynb"
    copy.write_bytes((suite / "04_plain.ipynb").read_bytes())
    assert execute.run([str(copy)], out=tmp_path / "out", progress=False).exit_code == 0
    copy.write_text(copy.read_text().replace("<b>7</b>", "<b>8</b>"))
    with pytest.raises(
        UserError, match="is not the suite's own 04_plain; give the name 04_plain, or run this file with"
    ):
        execute.run([str(copy)], out=tmp_path / "out")
    for wrong in ("notebooks/04_plan.ipynb", "04_plain.md"):
        with pytest.raises(UserError, match="unknown notebook '04_pla"):
            execute.run([wrong], out=tmp_path / "out")


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/depthlens"])
def test_unusable_output_folder(suite, tmp_path, place):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="cannot write to .*; name a folder"):
        execute.run(["02_plain"], out=tmp_path / place)
    with pytest.raises(UserError, match="cannot write to"):
        writable_folder(tmp_path / place)
    assert (tmp_path / "file").read_text() == "precious"


def test_broken_notebooks_are_named(suite, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "broken.ipynb").write_text("{")
    with pytest.raises(UserError, match="broken.ipynb' is not a notebook"):
        execute.run(["02_plain"], out=out)
    with pytest.raises(UserError, match="broken.ipynb' is not a notebook"):
        gallery(out)
    assert [p.name for p in out.iterdir()] == ["broken.ipynb"]


def test_empty_suite(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "notebooks_dir", lambda: tmp_path)
    with pytest.raises(UserError, match="no notebooks in"):
        execute.run("all", out=tmp_path / "out")
