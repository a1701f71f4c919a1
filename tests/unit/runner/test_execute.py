"""The notebook runner, on throw-away notebooks that papermill really executes (no model, no torch)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from depthlens import paths
from depthlens.errors import UserError
from depthlens.paths import writable_folder
from depthlens.runner import execute, pages
from depthlens.runner.gallery import gallery, read_notebook
from depthlens.runner.parameters import declared, fit
from depthlens.tasks import harness

PARAMETERS = """
model = "organism"  # alias; smollm2-135m = the embedded one
tasks = ["capitals", "elements"]
limit: int | None = 5  # documents
threshold = 0.5
verbose = False
out = "runs/x"
""".strip()
FIGURE = "import matplotlib.pyplot as plt\nplt.figure(figsize=(3, 2)); plt.plot([0, 1], [1, 0]); plt.show()"


def code(source: str, *tags: str):
    return new_code_cell(textwrap.dedent(source), metadata={"tags": list(tags)} if tags else {})


def write(folder, name, *cells):
    nbformat.write(new_notebook(cells=list(cells)), folder / f"{name}.ipynb")


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """Three notebooks: one that tells its parameters, one that fails, one without parameters."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write(
        folder,
        "00_good",
        new_markdown_cell("Intro without heading"),
        new_markdown_cell("# Does *one* layer matter?\n\nSee [the study](https://arxiv.org/abs/2510.02091)."),
        code(PARAMETERS, "parameters"),
        code("import json, os, sys\nfrom IPython.display import Markdown, display"),
        code("display(Markdown(f'**{limit}** documents of `{model}`'))", "headline"),
        code(
            "print('SEEN', json.dumps([model, tasks, limit, threshold, verbose, out, sys.executable, "
            "os.getcwd(), os.environ.get('HF_HUB_OFFLINE')]))"
        ),
        code(FIGURE),
    )
    write(
        folder,
        "01_bad",
        new_markdown_cell("# Does it fail?"),
        code("limit = 5", "parameters"),
        code("print('kept')"),
        code("raise KeyError('no such\\nlayer')"),
        code("print('never')"),
    )
    write(folder, "02_plain", new_markdown_cell("# Plain?"), code("print('<b>7</b> layers')", "headline"))
    (folder / "profiles.yml").write_text(
        "smoke:\n  _all: {limit: 2}\n  _order: [02_plain, 00_good]\n  00_good: {model: smollm2-135m}\ndemo: {}\n"
    )
    monkeypatch.setattr(paths, "notebooks_dir", lambda: folder)
    return folder


def seen(folder) -> list:
    text = (folder / "00_good.ipynb").read_text()
    return json.loads(json.loads('"' + re.search(r'"SEEN (\[.*\])\\n"', text)[1] + '"'))


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
    assert 'alt="Figure: ' in page and "In [" not in page
    assert not list(tmp_path.rglob(".ipynb_checkpoints"))


def foreign_kernel(tmp_path):
    """A kernel registered as python3 that cannot start: what a user's own registration may look like."""
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "x", "language": "python"}')
    return tmp_path / "jupyter"


@pytest.mark.parametrize("page", ["index.html", "00_good.html"])
def test_pages_ask_nothing_of_the_network(suite, tmp_path, page):
    execute.run(["00_good"], out=tmp_path / "out", progress=False)
    text = (tmp_path / "out" / page).read_text()
    assert "<script" not in text and "@import" not in text and "<link" not in text and "url(" not in text
    assert re.findall(r"src=(?![\"']?data:)\S+", text) == []
    assert "default-src 'none'" in text and "text/html" not in text


def test_markdown_and_html_outputs_cannot_load_anything(suite, tmp_path):
    write(
        suite,
        "03_evil",
        new_markdown_cell(
            "# Evil?\n\n![x](https://example.com/x.png)\n\n<script src='https://example.com/x.js'></script>"
        ),
        code("from IPython.display import HTML\nHTML('<script>alert(1)</script><table><tr><td>7</td></tr></table>')"),
    )
    execute.run(["03_evil"], out=tmp_path / "out", progress=False)
    text = (tmp_path / "out" / "03_evil.html").read_text()
    assert "<script" not in text and "<td>7</td>" in text
    assert "img-src data:" in text  # the policy stops the remote image, which stays as its author wrote it


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
    assert len(lines) == 6 and lines[0] == "[1/3] 00_good: running 8 cells" and "failed after" in lines[3]


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


def test_gallery_rebuilds_from_notebooks_alone(suite, tmp_path):
    out = tmp_path / "out"
    execute.run(["00_good", "01_bad"], out=out, progress=False)
    before = (out / "index.html").read_text()
    for path in [*out.glob("*.html"), out / "record.json"]:
        path.unlink()
    assert gallery(out) == out / "index.html"
    assert (out / "index.html").read_text() == before and (out / "01_bad.html").exists()


def test_the_index_opens_with_what_is_tagged_to_open_it(tmp_path):
    for name, tags in (("00_a", ()), ("01_b", ()), ("09_z", ("opening",))):
        write(tmp_path, name, new_markdown_cell(f"# Is it {name}?"), code("1", *tags))
    text = gallery(tmp_path).read_text()
    order = [text.index(f'href="{name}.html"') for name in ("09_z", "00_a", "01_b")]
    assert order == sorted(order)


def test_the_figure_on_the_index_is_the_one_tagged_to_open_it():
    figures = [code("1"), code("2", "opening")]
    for cell, png in zip(figures, ("Zmlyc3Q=", "c2Vjb25k"), strict=True):
        cell.outputs = [nbformat.v4.new_output("display_data", {"image/png": png})]
    assert pages.first_figure(new_notebook(cells=figures)) == "c2Vjb25k"
    assert pages.first_figure(new_notebook(cells=figures[:1])) == "Zmlyc3Q="


def test_gallery_lists_notebooks_that_others_ran(tmp_path):
    ran = code("print(1)")
    ran.execution_count = 1
    write(tmp_path, "theirs", new_markdown_cell("# Theirs?"), ran)
    write(tmp_path, "fresh", new_markdown_cell("# Fresh?"), code("print(1)"))
    text = gallery(tmp_path).read_text()
    assert "Theirs?" in text and "✓ ok" in text and "– not run" in text


def test_second_run_keeps_earlier_notebooks_in_the_index(suite, tmp_path):
    execute.run(["02_plain"], out=tmp_path / "out", progress=False)
    execute.run(["01_bad"], out=tmp_path / "out", progress=False)
    index = (tmp_path / "out" / "index.html").read_text()
    assert "Plain?" in index and "Does it fail?" in index


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["00_goood"]}, r"unknown notebook '00_goood'; did you mean 00_good\?"),
        ({"names": ["all", "00_good"]}, "'all' stands alone"),
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
        ({"tasks": "[capitals, capitals]"}, "task 'capitals' is named twice"),
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
    assert paths.embedded_names() == set(harness.task_manager(["capitals"]).all_tasks)


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("demo: {00_good: {limt: 3}}", "profile demo of .*profiles.yml: .*no parameter|'limt'"),
        ("demo: {00_good: {limit: many}}", "profile demo of .*profiles.yml: parameter limit = 'many'"),
        ("demo: {_all: {nothing: 3}}", "profile demo of .*profiles.yml: .*'nothing'"),
        ("demo: {00_god: {limit: 3}}", "unknown notebook '00_god'.*profiles.yml"),
        ("demo: {_order: [00_god]}", "unknown notebook '00_god'.*profiles.yml"),
        ("demo: [1", "profiles.yml is not YAML"),
        ("demo: 3", "profiles.yml must map"),
    ],
)
def test_bad_profiles_name_their_file(suite, tmp_path, content, message):
    (suite / "profiles.yml").write_text(content)
    with pytest.raises(UserError, match=message):
        execute.run(["00_good"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parameter_none_of_the_selected_declares_though_others_do(suite, tmp_path):
    with pytest.raises(UserError, match="no selected notebook has a parameter 'limit'; 02_plain declares: none"):
        execute.run(["02_plain"], out=tmp_path / "out", parameters={"limit": "3"})


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


@pytest.mark.parametrize(("make", "message"), [(False, "no folder"), (True, "no notebooks in")])
def test_gallery_of_nothing(tmp_path, make, message):
    if make:
        (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match=message):
        gallery(tmp_path / "x")


def test_empty_suite(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "notebooks_dir", lambda: tmp_path)
    with pytest.raises(UserError, match="no notebooks in"):
        execute.run("all", out=tmp_path / "out")


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


def test_notebooks_without_cell_ids_are_read_quietly(tmp_path, recwarn):
    raw = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {},
        "cells": [{"cell_type": "markdown", "metadata": {}, "source": "# Q?"}],
    }
    (tmp_path / "x.ipynb").write_text(json.dumps(raw))
    assert read_notebook(tmp_path / "x.ipynb").cells[0].id == "cell-0" and not recwarn.list
