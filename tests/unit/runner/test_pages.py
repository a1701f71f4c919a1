"""Pages of executed notebooks and the index over them, made of outputs that were written by hand."""

import html
import re
from base64 import b64decode
from urllib.parse import unquote

from nbformat.v4 import new_markdown_cell, new_notebook, new_output
from notebook_suite import code, write

from depthlens.look import MIME
from depthlens.runner.notebook_files import Executed
from depthlens.runner.pages import gallery, notebook_page

PNG = "iVBORw0KGgo="
ABOUT = {"title": "tiny <model>", "csv": "x,y\n0,1\n", "svg": "<svg>é</svg>"}


def shown(source, data, *tags, **metadata):
    """A code cell with one output."""
    cell = code(source, *tags)
    cell.outputs = [new_output("display_data", data, metadata=metadata)]
    return cell


def notebook(about=None, between=8):
    """A figure, with what a plot says of it, and after some cells a finding of two lines."""
    data = {"image/png": PNG} | ({MIME: about} if about else {})
    figure = shown("fig", data, **{"image/png": {"width": 400, "height": 200}})
    found = shown("say", {"text/markdown": "- **L3** costs most.\n- And more."}, "headline")
    cells = [new_markdown_cell("# Q?\n\n## Result"), figure, *[new_markdown_cell("...")] * between, found]
    return new_notebook(cells=cells)


def page(nb):
    return notebook_page(Executed("x", nb))


def test_a_figure_is_svg_with_its_title_its_size_and_its_numbers():
    text = page(notebook(ABOUT))
    assert b64decode(re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', text)[1]).decode() == ABOUT["svg"]
    assert PNG not in text
    assert 'alt="tiny &lt;model&gt;"' in text and 'width="400"' in text and 'height="200"' in text
    name, data = re.search(r'download="([^"]+)" href="data:text/csv;charset=utf-8,([^"]+)"', text).groups()
    assert name.startswith("x-") and unquote(data) == ABOUT["csv"]


def test_a_page_opens_with_what_was_found_and_only_describes_figures_of_other_libraries():
    text = page(notebook())
    order = [text.index(part) for part in ("<strong>L3</strong> costs most", "More of what it found", 'id="Result"')]
    assert order == sorted(order) and text.count("<h1") == 1
    assert page(notebook(between=0)).count("costs most") == 1, "its answer comes first by itself"
    assert (
        text.count("costs most") == 2
        and 'alt="Q?"' in text
        and "text/csv" not in text
        and f"data:image/png;base64,{PNG}" in text
    )


def test_a_page_names_models_documents_and_the_command_that_runs_it_again():
    nb = new_notebook(cells=[code('model = "n"\nnum_fewshot = 2\nlimit = 3', "parameters")])
    about = {"status": "ok", "error": None, "seconds": 1.0, "profile": "demo", "platform": "Linux-6-x86_64"}
    about |= {"git_commit": "0123456789" * 4 + "-dirty", "source": "x", "parameters": {"model": "m", "limit": 5}}
    nb.metadata["depthlens"] = about | {"given": {"limit": 5, "tasks": ["a", "b"], "model": "m"}}
    text = html.unescape(page(nb))
    for part in ("m · limit 5, num_fewshot 2 · profile demo", "commit 012345678-dirty", "Linux-6-x86_64"):
        assert part in text
    assert "depthlens run x --profile demo -p limit 5 -p tasks '[a, b]' -p model m --out runs/x" in text


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
    assert "c2Vjb25k" in Executed("x", new_notebook(cells=figures)).picture
    assert "Zmlyc3Q=" in Executed("x", new_notebook(cells=figures[:1])).picture
    table = shown("3", {"text/html": "<table></table>"}, "opening")
    assert Executed("x", new_notebook(cells=[*figures[:1], table])).picture == "<table></table>"


def test_the_bar_of_an_interrupted_cell_is_one_log():
    cell = code("work()")
    cell.outputs = [new_output("stream", name="stderr", text=f"\r{i} rows") for i in range(9)]
    text = page(new_notebook(cells=[new_markdown_cell("# Q?"), cell]))
    assert text.count("<summary>Log") == 1 and "8 rows" in text and "7 rows" not in text
