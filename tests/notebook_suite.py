"""Throw-away notebooks that papermill really executes: no model, no torch."""

import json
import re
import textwrap
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PARAMETERS = """
model = "organism"  # alias; smollm2-135m = the embedded one
tasks = ["capitals", "elements"]
limit: int | None = 5  # documents
threshold = 0.5
verbose = False
out = "runs/x"
""".strip()
# what a notebook says of its values and of its process
SEEN = "model, tasks, limit, threshold, verbose, out, sys.executable, os.getcwd(), os.environ.get('HF_HUB_OFFLINE')"
FIGURE = "import matplotlib.pyplot as plt\nplt.figure(figsize=(3, 2)); plt.plot([0, 1], [1, 0]); plt.show()"


def code(source: str, *tags: str) -> nbformat.NotebookNode:
    """A code cell."""
    return new_code_cell(textwrap.dedent(source), metadata={"tags": list(tags)} if tags else {})


def write(folder: Path, name: str, *cells: nbformat.NotebookNode) -> None:
    """Write a notebook."""
    nbformat.write(new_notebook(cells=list(cells)), folder / f"{name}.ipynb")


def make(folder: Path) -> Path:
    """Three notebooks: one that prints its parameters, one that fails, one without parameters; and their profiles."""
    folder.mkdir()
    good = [
        new_markdown_cell("Intro without heading"),
        new_markdown_cell("# Does *one* layer matter?\n\nSee [the study](https://arxiv.org/abs/2510.02091)."),
        code(PARAMETERS, "parameters"),
        code("import json, os, sys\nfrom IPython.display import Markdown, display"),
        code("display(Markdown(f'**{limit}** documents of `{model}`'))", "headline"),
        code(f"print('SEEN', json.dumps([{SEEN}]))"),
    ]
    write(folder, "00_good", *good, code(FIGURE))
    fails = [code("print('kept')"), code("raise KeyError('no such\\nlayer')"), code("print('never')")]
    write(folder, "01_bad", new_markdown_cell("# Does it fail?"), code("limit = 5", "parameters"), *fails)
    write(folder, "02_plain", new_markdown_cell("# Plain?"), code("print('<b>7</b> layers')", "headline"))
    (folder / "profiles.yml").write_text("smoke:\n  _all: {limit: 2}\n  00_good: {model: smollm2-135m}\ndemo: {}\n")
    return folder


def seen(folder: Path) -> list:
    """What ``00_good`` printed in a folder of executed notebooks."""
    text = (folder / "00_good.ipynb").read_text()
    return json.loads(json.loads('"' + re.search(r'"SEEN (\[.*\])\\n"', text)[1] + '"'))
