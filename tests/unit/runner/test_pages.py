"""The pages of executed notebooks and the index over them."""

from __future__ import annotations

import json
import re

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell, new_notebook
from notebook_suite import code, write

from depthlens.errors import UserError
from depthlens.runner import execute, pages
from depthlens.runner.index import gallery
from depthlens.runner.notebook_files import read_notebook


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


@pytest.mark.parametrize(("make", "message"), [(False, "no folder"), (True, "no notebooks in")])
def test_gallery_of_nothing(tmp_path, make, message):
    if make:
        (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match=message):
        gallery(tmp_path / "x")


def test_notebooks_without_cell_ids_are_read_quietly(tmp_path, recwarn):
    raw = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {},
        "cells": [{"cell_type": "markdown", "metadata": {}, "source": "# Q?"}],
    }
    (tmp_path / "x.ipynb").write_text(json.dumps(raw))
    assert read_notebook(tmp_path / "x.ipynb").cells[0].id == "cell-0" and not recwarn.list


@pytest.mark.parametrize("text", ["3", "[]", '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [3]}'])
def test_json_that_is_no_notebook_is_named(tmp_path, text):
    (tmp_path / "x.ipynb").write_text(text)
    with pytest.raises(UserError, match="x.ipynb' is not a notebook"):
        read_notebook(tmp_path / "x.ipynb")


def test_a_folder_with_the_name_of_a_notebook_is_named(tmp_path):
    (tmp_path / "x.ipynb").mkdir()
    with pytest.raises(UserError, match="x.ipynb' is not a notebook"):
        gallery(tmp_path)
