"""Pages of executed notebooks and the index over them, made of outputs that were written by hand."""

import base64
import html
import json
import re

import pytest
from nbformat.v4 import new_markdown_cell, new_notebook, new_output
from notebook_suite import code, write

from depthlens import paths
from depthlens.errors import UserError
from depthlens.plots.theme import MIME
from depthlens.runner import pages
from depthlens.runner.index import gallery
from depthlens.runner.notebook_files import read_notebook

PNG = "iVBORw0KGgo="
ABOUT = {"title": "tiny <model>", "csv": "x,y\n0,1\n", "points": [[0.25, 0.5, "L0: accuracy 0.5 & more"]]}


def shown(source, data, *tags, **metadata):
    """A code cell with one output."""
    cell = code(source, *tags)
    cell.outputs = [new_output("display_data", data, metadata=metadata)]
    return cell


def notebook(about=None):
    """A figure, with what a plot says of it, and a finding of two lines."""
    data = {"image/png": PNG, "text/html": "<p>hides it</p>"} | ({MIME: about} if about else {})
    figure = shown("fig", data, **{"image/png": {"width": 400, "height": 200}})
    found = shown("say", {"text/markdown": "- **L3** costs most.\n- And more."}, "headline")
    return new_notebook(cells=[new_markdown_cell("# Q?\n\n## Result"), figure, found])


def test_a_figure_has_words_points_and_numbers():
    """On pages, and on the site, where docs/conf.py dresses the figures of tutorials, whose titles stay."""
    tutorial = notebook(ABOUT)
    pages.dress_figures(tutorial, "x")
    for text in (pages.notebook_page(notebook(ABOUT), "x"), tutorial.cells[1].outputs[0].data["text/html"]):
        assert 'alt="tiny &lt;model&gt;. Result: L3 costs most."' in text and "hides it" not in text
        (circle,) = re.findall(r"<circle[^>]*><title>[^<]*</title></circle>", text)
        assert 'cx="100.0" cy="100.0"' in circle and "L0: accuracy 0.5 &amp; more" in circle
        name, data = re.search(r'download="([^"]+)" href="data:text/csv;base64,([^"]+)"', text).groups()
        assert name == "x-1.csv" and base64.b64decode(data).decode() == ABOUT["csv"] and "<script" not in text
    assert tutorial.cells[0].source.startswith("# Q?")
    css = (paths.data_dir().parent / "docs" / "_static" / "site.css").read_text()
    assert all(f".plot {part} {{" in css for part in ("svg", "circle", "img", "figcaption"))


def test_a_page_opens_with_what_was_found_and_only_describes_figures_of_other_libraries():
    text = pages.notebook_page(notebook(), "x")
    order = [text.index(part) for part in ("<strong>L3</strong> costs most", "More of what it found", 'id="Result"')]
    assert order == sorted(order) and text.count("<h1") == 1
    assert 'alt="Result: L3 costs most."' in text and "<circle" not in text and "text/csv" not in text


def test_code_is_folded_but_for_the_parameters_of_the_run():
    cells = [code("a = 1", "parameters"), code("a = 2", "injected-parameters"), code("print(a)")]
    text = pages.notebook_page(new_notebook(cells=cells), "x")
    assert re.findall(r"<details class=\"code\"( open)?", text) == ["", " open", ""]
    assert "<summary>Parameters of this run" in text


def test_a_page_names_models_documents_and_the_command_that_runs_it_again():
    nb = new_notebook(cells=[code('model = "n"\nnum_fewshot = 2\nlimit = 3', "parameters")])
    nb.metadata["depthlens"] = {
        **{"status": "ok", "error": None, "seconds": 1.0, "profile": "demo", "git_commit": "0123456789abcdef-dirty"},
        **{"platform": "Linux-6-x86_64", "parameters": {"model": "m", "limit": 5}},
        "given": {"limit": 5, "tasks": ["a", "b"], "model": "m"},
    }
    text = html.unescape(pages.notebook_page(nb, "x"))
    for part in ("m · 5 documents a task, 2-shot", "<code>012345678-dirty</code>", "Linux-6-x86_64"):
        assert part in text
    assert "depthlens run x --profile demo --out runs/x -p limit 5 -p tasks '[a, b]' -p model m" in text


@pytest.mark.parametrize("out", ["/tmp/run/x", "x", "/x", "s", "/tmp/run/mine", "runs/x", None])
def test_paths_are_those_beside_the_page(out):
    nb = new_notebook(cells=[shown("say", {"text/plain": "see /tmp/run/x/docs.parquet and x"})])
    nb.metadata["depthlens"] = {"status": "ok", "error": None, "seconds": 1.0, "parameters": {"out": out}}
    beside = "x/docs.parquet" if out == "/tmp/run/x" else "/tmp/run/x/docs.parquet"
    assert f"see {beside} and x" in pages.notebook_page(nb, "x")


def test_a_wide_table_scrolls_in_a_frame_that_the_keyboard_reaches():
    cell = shown("table", {"text/html": "<table><tr><th></th><td>7</td></tr></table>"})
    text = pages.notebook_page(new_notebook(cells=[cell]), "x")
    assert '<div class="frame" tabindex="0" role="group" aria-label="table"><table' in text
    assert "<th></th>" not in text and "<td>7</td>" in text


def test_the_index_opens_with_what_is_tagged_and_lists_what_others_ran(tmp_path):
    for name, tags in (("00_a", ()), ("01_b", ()), ("09_z", ("opening",))):
        write(tmp_path, name, new_markdown_cell(f"# Is it {name}?"), code("1", *tags))
    ran = code("print(1)")
    ran.execution_count = 1
    write(tmp_path, "01_b", new_markdown_cell("# Theirs?"), ran)
    text = gallery(tmp_path).read_text()
    order = [text.index(f'href="{name}.html"') for name in ("09_z", "00_a", "01_b")]
    assert order == sorted(order) and "Theirs?" in text
    assert text.count("✓ ok") == 1 and text.count("– not run") == 2


def test_the_figure_on_the_index_is_the_one_tagged_to_open_it():
    figures = [shown("1", {"image/png": "Zmlyc3Q="}), shown("2", {"image/png": "c2Vjb25k"}, "opening")]
    assert pages.first_figure(new_notebook(cells=figures)) == "c2Vjb25k"
    assert pages.first_figure(new_notebook(cells=figures[:1])) == "Zmlyc3Q="


def test_notebooks_without_cell_ids_are_read_quietly(tmp_path, recwarn):
    cell = {"cell_type": "markdown", "metadata": {}, "source": "# Q?"}
    raw = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]}
    (tmp_path / "x.ipynb").write_text(json.dumps(raw))
    assert read_notebook(tmp_path / "x.ipynb").cells[0].id == "cell-0" and not recwarn.list


@pytest.mark.parametrize(
    "text", ["3", "[]", '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [3]}', None]
)
def test_what_is_no_notebook_is_named(tmp_path, text):
    (tmp_path / "x.ipynb").mkdir() if text is None else (tmp_path / "x.ipynb").write_text(text)
    with pytest.raises(UserError, match="x.ipynb' is not a notebook"):
        gallery(tmp_path)


def test_a_gallery_of_nothing_is_refused(tmp_path):
    for folder, said in ((tmp_path / "x", "no folder"), (tmp_path, "no notebooks in")):
        with pytest.raises(UserError, match=said):
            gallery(folder)
