"""What a notebook shows: bars outside standard error, errors in one line, objects as short HTML, public names."""

import re

import nbformat
import numpy as np
import pandas as pd
import pytest
import tiny
from made_results import capitals_and_elements, head_scores
from nbclient import NotebookClient

from depthlens import progress
from depthlens.analysis.result.tables import DescribedTable

BAR = """
from depthlens import progress
with progress.Bar(total=3, desc="<task>", unit="row") as bar:
    bar.update(1); bar.update(2)
"""
FAILS = """
def inner():
    raise errors.UserError("limit -3: give a number")
from depthlens import errors
inner()
"""
LOADS = """
from depthlens import progress
with progress.working("loading a <model>"):
    pass
"""
START = "import depthlens as dl\nmodel, tasks = {model!r}, ['capitals']\nlens = dl.setup_notebook(globals()).lens"
# also after modules were imported, which puts them among the attributes of their package
COMPLETES = """
import depthlens.plots.layers, depthlens.analysis.result.results
shell = get_ipython()
shell.Completer.use_jedi = False
for space in ("dl", "dl.claims", "dl.organisms"):
    offered = [text[1:] for text in shell.Completer.complete(line_buffer=space + ".")[1] if text.startswith(".")]
    print(space, sorted(offered) == sorted(eval(space).__all__) == dir(eval(space)))
call = "dl.head_sweep(lens, 'capitals', "
print("options", {"num_fewshot=", "method="} <= {*shell.Completer.complete(line_buffer=call)[1]})
"""
STOPS = "raise errors.Interrupted('3 of 8 rows are kept in <store>')"


def outputs(cells, monkeypatch) -> list[list[dict]]:
    """What each cell shows when a kernel runs them as a person would."""
    monkeypatch.delenv(progress.ENVIRONMENT, raising=False)
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(nb, timeout=60, allow_errors=True, kernel_name="python3").execute()
    return [cell.outputs for cell in nb.cells]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """One kernel: bars and errors, what a set-up cell shows, completion, and at last the same bar under a run."""
    folder = tmp_path_factory.mktemp("kernel")
    model = str(tiny.save(folder / "model", "llama-gqa"))
    under_a_run = f"import os\nos.environ[{progress.ENVIRONMENT!r}] = 'bars'"
    with pytest.MonkeyPatch.context() as patch:
        cells = [BAR, FAILS, STOPS, LOADS, START.format(model=model), COMPLETES, under_a_run + LOADS, BAR]
        return outputs(cells, patch)


def test_a_kernel_shows_bars_beside_standard_error_and_errors_in_one_line(kernel):
    bar, (failed,), (stopped,), loads, *_, silent, under_a_run = kernel
    assert {output.name for output in (*bar, *loads)} == {"stdout"}
    texts = ("".join(output.text for output in outputs) for outputs in (bar, loads))
    shown = [text.split("\r")[-1].strip() for text in texts]  # each state takes the place of the one before
    assert shown[0].startswith("<task>: 100%") and "3/3" in shown[0]
    assert shown[1] == "loading a <model>: 00:00"
    assert failed.traceback == ["UserError: limit -3: give a number"] and failed.ename == "UserError"
    assert stopped.traceback == ["Interrupted: 3 of 8 rows are kept in <store>"] and not silent
    assert {output.name for output in under_a_run} == {"stderr"}


def test_the_set_up_cell_does_not_ask_for_ipywidgets_and_completion_offers_public_names_alone(kernel):
    *_, shown, completed, _, _ = kernel
    texts = [str(output.get("data", output.get("text"))) for output in shown]
    assert any("fingerprint" in text for text in texts) and not any("ipywidgets" in text for text in texts)
    offered = "".join(output.text for output in completed)  # a kernel may send it in pieces
    assert offered.splitlines() == ["dl True", "dl.claims True", "dl.organisms True", "options True"]


def test_html_is_short_and_texts_stay_texts():
    scores = head_scores(np.random.default_rng(0).random((40, 64)), "copy <score>", "nats", n=3)
    table = pd.DataFrame({"head": [f"<L{i}>" for i in range(500)], "value": 1 / 3})
    empty = DescribedTable(pd.DataFrame({"task": []}), ["No task can be <judged>."], {})
    shown = {"copy &lt;score&gt; in nats: the 10 highest of 2560 heads": scores}
    shown |= {"440 more rows in .table": DescribedTable(table, ["All are equal."], {})}
    shown |= {"<p>No task can be &lt;judged&gt;.</p>": empty, "result.plot() draws it</p>": capitals_and_elements()}
    for text, one in shown.items():
        page = one._repr_html_()
        assert text in page and len(page) < 10_000 and not re.search("<(score|L0|judged)", page)
    assert "0 highest of 0 heads" in head_scores(np.full((2, 2), np.nan), "score")._repr_html_()
