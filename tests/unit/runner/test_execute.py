"""The notebook runner, on throw-away notebooks that papermill really executes: three once, and a few special cases."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell
from notebook_suite import code, seen, write
from refusals import refused

from depthlens.errors import UserError
from depthlens.paths import locked
from depthlens.runner import execute
from depthlens.runner.pages import gallery

pytestmark = pytest.mark.slow

OUTPUTS = "from IPython.display import HTML\nHTML('<script>alert(1)</script><table><tr><td>7</td></tr></table>')"


def statuses(out):
    """Status of each card by the name of its notebook."""
    cards = re.findall(r"<article.*?</article>", (out / "index.html").read_text(), re.DOTALL)
    return {re.search(r"· (\w+)</p>", c)[1]: re.search(r'class="status [\w-]+">. ([\w ]+)<', c)[1] for c in cards}


@pytest.fixture(scope="module")
def done(suite, tmp_path_factory):
    """Three notebooks that were run once: the report, and what was said meanwhile."""
    root = tmp_path_factory.mktemp("done")
    spec = root / "jupyter" / "kernels" / "python3"  # cannot start: what a user's own registration may look like
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "x", "language": "python"}')
    values = {"threshold": "1e-3", "tasks": "[elements, kv_retrieval_4]"}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("MPLBACKEND", "Agg")  # would keep figures out of the notebook if the kernel saw it
        patch.setenv("JUPYTER_PATH", str(root / "jupyter"))
        names = ["00_good", "01_bad", "02_plain.ipynb"]
        report = execute.run(names, out=root / "out", profile="smoke", parameters=values)
    return SimpleNamespace(report=report, out=root / "out", said=said.getvalue().splitlines())


@pytest.fixture
def out(done, tmp_path):
    """A copy of what that run wrote."""
    return shutil.copytree(done.out, tmp_path / "out")


def test_a_run_writes_notebooks_pages_a_record_and_an_index(done):
    values = ["smollm2-135m", ["elements", "kv_retrieval_4"], 2, 0.001, False, str(done.out / "00_good")]
    assert seen(done.out) == [*values, sys.executable, os.getcwd(), "1"]
    pages = [f"{name}.{ending}" for name in ("00_good", "01_bad", "02_plain") for ending in ("html", "ipynb")]
    assert sorted(p.name for p in done.out.iterdir()) == [*pages, "index.html", "record.json"]
    record = json.loads((done.out / "record.json").read_text())
    assert record["profile"] == "smoke" and record["versions"]["papermill"] and record["time"]
    assert record["notebooks"][0]["parameters"]["limit"] == 2
    assert record["notebooks"][0]["headline"] == "**2** documents of `smollm2-135m`"
    assert record["notebooks"][2]["headline"] == "<b>7</b> layers"
    text = (done.out / "index.html").read_text()
    assert "Does one layer matter?" in text and "<strong>2</strong> documents of <code>smollm2-135m</code>" in text
    assert text.count('src="data:image/png;base64,iVBOR') == 1 and 'href="00_good.html"' in text
    page = (done.out / "00_good.html").read_text()
    assert 'src="data:image/png;base64,iVBOR' in page and 'alt="Does one layer matter?"' in page
    begun = [line for line in done.said if "cell" not in line]
    assert begun == ["[1/3] 00_good ...", "[2/3] 01_bad ...", "[3/3] 02_plain ..."]
    assert done.said[done.said.index(begun[2]) + 1 :] == ["[3/3] 02_plain, cell 2 of 2 ..."], "without a terminal"


def test_a_notebook_that_fails_is_one_line_and_does_not_stop_the_others(done):
    assert done.report.exit_code == 1 and [n.status for n in done.report.notebooks] == ["ok", "failed", "ok"]
    assert done.report.errors == ["notebook 01_bad, cell 5: KeyError: 'no such\\nlayer'"]
    partial = nbformat.read(done.out / "01_bad.ipynb", as_version=4)
    assert partial.cells[3].outputs[0].text == "kept\n" and not partial.cells[5].outputs
    assert "Not finished:" in (done.out / "01_bad.html").read_text()
    index = (done.out / "index.html").read_text()
    assert "✗ failed" in index and "01_bad, cell 5" in index and "3 notebooks, 1 not finished" in index


@pytest.mark.parametrize("page", ["index.html", "00_good.html"])
def test_pages_ask_nothing_of_the_network(done, page):
    text = (done.out / page).read_text()
    assert not [part for part in ("<script", "@import", "<link", "url(", "text/html") if part in text]
    assert re.findall(r"src=(?![\"']?data:)\S+", text) == [] and "default-src 'none'" in text


def test_the_gallery_is_made_of_notebooks_alone(out):
    before = (out / "index.html").read_text().replace("depthlens: out", "")
    for path in [*out.glob("*.html"), out / "record.json"]:
        path.unlink()
    assert gallery(out) == out / "index.html" and (out / "01_bad.html").exists()
    assert (out / "index.html").read_text().replace("depthlens: out", "") == before


def test_special_cases_in_a_folder_that_has_results(suite, out, capfd):
    """A mistake that the notebook finds, an exception that is expected, scripts, and a kernel that dies."""
    raises = "from depthlens.errors import UserError\nraise UserError('limit = 0: must be at least 1')"
    write(suite, "03_check", new_markdown_cell("# Checked?"), code(raises))
    evil = "# Evil?\n\n![x](https://example.com/x.png)\n\n<script src='https://example.com/x.js'></script>"
    write(suite, "04_odd", new_markdown_cell(evil), code("1 / 0", "raises-exception"), code(OUTPUTS))
    write(suite, "05_dies", new_markdown_cell("# Dies?"), code("print('before')"), code("import os; os._exit(9)"))
    report = execute.run(["03_check", "05_dies", "04_odd"], out=out, progress=False)
    wrong = "notebook 03_check, cell 2: limit = 0: must be at least 1"
    assert report.errors == [wrong, "notebook 05_dies, cell 3: its kernel died (often: out of memory)"]
    assert [n.status for n in report.notebooks] == ["failed", "failed", "ok"] and capfd.readouterr().err == ""
    assert "before" in (out / "05_dies.html").read_text()
    page = (out / "04_odd.html").read_text()
    assert "<td>7</td>" in page
    assert "default-src 'none'" in page and "img-src data:" in page  # the policy stops scripts and the remote image
    assert list(statuses(out).values()) == ["ok", "failed", "ok", "failed", "ok", "failed"]


# jobs in the background of a script ignore an interrupt
RUN = """
import pathlib, signal, sys; from depthlens import paths, cli
signal.signal(signal.SIGINT, signal.default_int_handler); paths.notebooks_dir = lambda: pathlib.Path(sys.argv[1])
cli.main(['run', '08_slow', '02_plain', '--out', sys.argv[2]])
"""


def test_ctrl_c_keeps_what_was_done(suite, tmp_path):
    slow = code("import time; time.sleep(120)")
    write(suite, "08_slow", new_markdown_cell("# Slow?"), code("print('begun')"), slow)
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", RUN, str(suite), str(out)], stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if (out / "08_slow.ipynb").exists() and "begun" in (out / "08_slow.ipynb").read_text():
            break
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert err.splitlines()[-1] == "Interrupted: kept what was done; run the same again to go on"
    record = json.loads((out / "record.json").read_text())
    assert [n["status"] for n in record["notebooks"]] == ["interrupted", "not run"]
    text = (out / "index.html").read_text()
    assert "08_slow, cell 3: interrupted" in text and "02_plain" not in text
    assert "begun" in (out / "08_slow.html").read_text()


def test_values_of_the_caller_win_over_the_profile_and_over_defaults(suite, tmp_path):
    given = {"model": "organism:seed=2", "out": "here", "limit": "null"}
    first, _, plain, *_ = execute.prepare("all", out=tmp_path, profile="smoke", parameters=given).notebooks
    assert (first.name, first.parameters) == ("00_good", {"model": "organism:seed=2", "limit": None, "out": "here"})
    assert (plain.name, plain.parameters) == ("02_plain", {})


def test_without_a_profile_the_notebooks_own_values_hold_and_a_profile_is_for_files_of_ones_own_too(suite, tmp_path):
    (suite / "profiles.yml").write_text("demo: {_all: {limit: 9}}\n")
    write(tmp_path, "mine", new_markdown_cell("# Mine?"), code("limit = 3", "parameters"))
    names = ["00_good", str(tmp_path / "mine.ipynb")]
    for profile, given in ((None, {}), ("demo", {"limit": 9})):
        good, own = execute.prepare(names, out=tmp_path / "out", **({"profile": profile} if profile else {})).notebooks
        assert good.parameters == given | {"out": str(tmp_path / "out" / "00_good")} and own.parameters == given


def test_a_notebook_is_named_as_the_shell_completes_it_and_a_file_is_run_itself(suite, tmp_path):
    given = ["02_plain", "elsewhere/02_plain.ipynb"]
    assert [n.name for n in execute.prepare(given, out=tmp_path).notebooks] == ["02_plain"]
    write(tmp_path, "mine", new_markdown_cell("# Mine?"), code("limit = 3", "parameters"))
    given = [str(tmp_path / "mine.ipynb"), str(suite / "02_plain.ipynb")]
    own, plain = execute.prepare(given, out=tmp_path / "out", parameters={"limit": "4"}).notebooks
    assert plain.source == "02_plain"
    assert (own.source, own.parameters) == (str(tmp_path / "mine.ipynb"), {"limit": 4})
    write(tmp_path, "00_good", code("limit = 3", "parameters"))
    mine, good = (str(tmp_path / f"{name}.ipynb") for name in ("mine", "00_good"))
    wrong = {"unknown notebook '02": ["02_plain.md"], "be replaced": [mine], "to one file": ["00_good", good]}
    for told, given in wrong.items():
        refused(told, execute.prepare, given, out=tmp_path)


def test_a_folder_that_another_run_writes_or_with_a_broken_notebook_is_refused(suite, tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match="another process is writing to .*; wait for its end"):
        execute.run("02_plain", out=tmp_path, progress=False)
    (tmp_path / "broken.ipynb").write_text("{")
    for said in ("broken.ipynb' is not a notebook", "index.html' is another page and would be replaced"):
        before = sorted(tmp_path.iterdir())
        refused(said, execute.run, ["02_plain"], out=tmp_path)
        refused(said, gallery, tmp_path)
        assert sorted(tmp_path.iterdir()) == before
        (tmp_path / "index.html").write_text("<title>Mine</title>")
