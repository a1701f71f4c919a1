"""Figures in pages: words, tooltips without a script, and numbers to download."""

from __future__ import annotations

import base64
import html
import re

from nbformat.v4 import new_markdown_cell, new_notebook, new_output
from notebook_suite import code

from depthlens import paths
from depthlens.plots.figure_data import MIME
from depthlens.runner import pages

PNG = "iVBORw0KGgo="
ABOUT = {"title": "tiny <model>", "csv": "x,y\n0,1\n", "points": [[0.25, 0.5, "L0: accuracy 0.5 & more"]]}


def notebook(about, found="- **L3** costs most.\n- And more."):
    figure, headline = code("fig"), code("say", "headline")
    data = {"image/png": PNG, "text/html": "<p>hides it</p>"} | ({MIME: about} if about else {})
    figure.outputs = [new_output("display_data", data, metadata={"image/png": {"width": 400, "height": 200}})]
    headline.outputs = [new_output("display_data", {"text/markdown": found})]
    return new_notebook(cells=[new_markdown_cell("# Q?\n\n## Result"), figure, headline])


def page(about, *found):
    return pages.notebook_page(notebook(about, *found), "x")


def test_a_figure_has_words_points_and_numbers():
    text = page(ABOUT)
    assert 'alt="tiny &lt;model&gt;. Result: L3 costs most."' in text and "hides it" not in text
    (circle,) = re.findall(r"<circle[^>]*><title>[^<]*</title></circle>", text)
    assert 'cx="100.0" cy="100.0"' in circle and "L0: accuracy 0.5 &amp; more" in circle
    name, data = re.search(r'download="([^"]+)" href="data:text/csv;base64,([^"]+)"', text).groups()
    assert name == "x-1.csv" and base64.b64decode(data).decode() == ABOUT["csv"]
    assert "<script" not in text


def test_figures_of_the_site_are_those_of_pages():
    """docs/conf.py dresses tutorials, whose titles stay; Sphinx takes the HTML as it is, in the site's own colours."""
    tutorial = notebook(ABOUT)
    pages.dress_figures(tutorial, "x")
    ((kind, shown),) = tutorial.cells[1].outputs[0].data.items()
    assert kind == "text/html" and 'alt="tiny &lt;model&gt;. Result: L3' in shown and 'download="x-1.csv"' in shown
    assert "<title>L0: accuracy 0.5 &amp; more</title>" in shown and "<script" not in shown
    assert tutorial.cells[0].source.startswith("# Q?")
    css = (paths.data_dir().parent / "docs" / "_static" / "site.css").read_text()
    assert all(f".plot {part} {{" in css for part in ("svg", "circle", "img", "figcaption"))


def test_a_picture_of_another_library_is_only_described():
    text = page(None)
    assert 'alt="Result: L3 costs most."' in text and "<circle" not in text and "text/csv" not in text


def test_the_page_opens_with_what_was_found_and_folds_the_rest():
    text = page(None)
    order = [text.index(part) for part in ("<strong>L3</strong> costs most", "More of what it found", 'id="Result"')]
    assert order == sorted(order) and text.count("<h1") == 1


def test_code_is_folded_but_for_the_parameters_of_the_run():
    cells = [code("a = 1", "parameters"), code("a = 2", "injected-parameters"), code("print(a)")]
    text = pages.notebook_page(new_notebook(cells=cells), "x")
    assert re.findall(r"<details class=\"code\"( open)?", text) == ["", " open", ""]
    assert "<summary>Parameters of this run" in text


def test_a_page_names_models_documents_and_the_command_that_runs_it_again():
    about = {"status": "ok", "error": None, "seconds": 1.0, "profile": "demo", "git_commit": "0123456789abcdef-dirty"}
    about |= {"platform": "Linux-6-x86_64"}
    about |= {"parameters": {"model": "m", "limit": 5}, "given": {"limit": 5, "tasks": ["a", "b"], "model": "m"}}
    notebook = new_notebook(cells=[code('model = "n"\nnum_fewshot = 2\nlimit = 3', "parameters")])
    notebook.metadata["depthlens"] = about
    text = html.unescape(pages.notebook_page(notebook, "x"))
    assert "m · 5 documents a task, 2-shot" in text and "<code>012345678-dirty</code>" in text
    assert "Linux-6-x86_64" in text
    assert "depthlens run x --profile demo --out runs/x -p limit 5 -p tasks '[a, b]' -p model m" in text


def paths_on(out):
    """What a page of a notebook with these results says of a path in its output."""
    cell = code("say")
    cell.outputs = [new_output("stream", text="see /tmp/run/x/docs.parquet and x")]
    notebook = new_notebook(cells=[cell])
    notebook.metadata["depthlens"] = {"status": "ok", "error": None, "seconds": 1.0, "parameters": {"out": out}}
    return pages.notebook_page(notebook, "x")


def test_paths_are_those_beside_the_page():
    assert "see x/docs.parquet and x" in paths_on("/tmp/run/x")
    for out in ("x", "/x", "s", "/tmp/run/mine", "runs/x", None):
        assert "see /tmp/run/x/docs.parquet and x" in paths_on(out), out


def test_a_wide_table_scrolls_in_a_frame_that_the_keyboard_reaches():
    cell = code("table")
    cell.outputs = [new_output("display_data", {"text/html": "<table><tr><th></th><td>7</td></tr></table>"})]
    text = pages.notebook_page(new_notebook(cells=[cell]), "x")
    assert '<div class="frame" tabindex="0" role="group" aria-label="table"><table' in text
    assert "<th></th>" not in text and "<td>7</td>" in text
