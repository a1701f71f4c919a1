"""Notebooks that are run in the smoke profile, and what their results, pages and index have to hold.

Three files of tests each run a third of the work, so that two processes can share it. Notebooks that need a model
with abilities run on the embedded one, and the others on its first layers, in a tenth of the time.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import ClassVar

import nbformat
import pytest

from depthlens import paths
from depthlens.ablations import Dims, expand
from depthlens.analysis.results import DOCS_COLUMNS, Result
from depthlens.analysis.stats import SUMMARY_COLUMNS
from depthlens.claims import CLAIMS
from depthlens.models import loading
from depthlens.runner import execute
from depthlens.runner.notebook_files import read_notebook
from depthlens.runner.parameters import declared
from depthlens.runner.report import RunReport

NAMES = execute.notebook_names()
# what these notebooks remove one at a time, whole; the others choose
LAYERS = ("00_tour", "01_protocols", "02_knowledge_and_retrieval", "03_reasoning", "08_geometry", "09_claims")
# these find heads that recall needles and copy, which the first layers alone cannot
HEADS, CLAIMED = ["05_retrieval_heads", "06_reasoning_heads"], ["09_claims"]
SHALLOW = [name for name in NAMES if name not in HEADS + CLAIMED]
N_LAYERS = 10
SWEPT = dict.fromkeys(LAYERS, "layers") | {"04_heads": "heads", "10_compression": "layers,layers@int4"}


class Runs:
    """Notebooks that are executed once, and what they leave behind.

    Attributes:
        NAMES: Which.
        MODELS: Parameters that name models, and the embedded models whose first layers they get; else the profile's.
    """

    NAMES: ClassVar[list[str]]
    MODELS: ClassVar[dict[str, str]] = {}

    @pytest.fixture(scope="class")
    @classmethod
    def report(cls, tmp_path_factory):
        out, folder = tmp_path_factory.mktemp("smoke"), tmp_path_factory.mktemp("models")
        models = {parameter: shallow(folder / parameter, name) for parameter, name in cls.MODELS.items()}
        return execute.run(cls.NAMES, out=out, profile="smoke", parameters=models, progress=False)

    def test_all_run(self, report):
        check_run(report, self.NAMES)

    def test_each_has_figure_headline_and_result(self, report):
        for name in self.NAMES:
            check_notebook(report, name)

    def test_the_index_lists_them(self, report):
        check_index(report, self.NAMES)


def shallow(folder: Path, name: str) -> str:
    """Save the first layers of an embedded model."""
    lens = loading.load(name)
    lens.model.model.layers = lens.model.model.layers[:N_LAYERS]
    lens.model.config.num_hidden_layers = N_LAYERS
    lens.model.save_pretrained(folder)
    lens.tokenizer.save_pretrained(folder)
    return str(folder)


def check_run(report: RunReport, names: list[str]) -> None:
    assert report.errors == [] and report.exit_code == 0
    assert [run.name for run in report.notebooks] == names
    for run in report.notebooks:
        assert run.status == "ok"
        assert run.parameters["out"] == str(report.out.resolve() / run.name)


def check_notebook(report: RunReport, name: str) -> None:
    """It ran through, and has a figure, a headline and a result."""
    nb = nbformat.read(report.out / f"{name}.ipynb", as_version=4)
    cells = [cell for cell in nb.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in cells]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)

    (run,) = [run for run in report.notebooks if run.name == name]
    given = declared(read_notebook(paths.notebooks_dir() / f"{name}.ipynb"), name) | run.parameters
    assert f"{given['model']} float32 on" in "".join(o.text for o in outputs if o.output_type == "stream")
    if "tasks" in given:
        assert all(task in run.headline for task in given["tasks"])
    else:  # every claim has its line
        assert all(claim.id in run.headline for claim in CLAIMS)

    result = Result.load(report.out / name)
    assert list(result.docs.columns) == [*DOCS_COLUMNS, "parsed", "complete"]
    assert list(result.summary.columns) == SUMMARY_COLUMNS
    conditions = result.record["conditions"]
    if name in SWEPT:
        dims = Dims(**result.record["model"]["dims"])
        # 04 can be told to remove heads of some layers only
        chosen = {a.layer for c in expand(given.get("layers") or "layers", dims) for a in c.ablations}
        wanted = [c for c in expand(SWEPT[name], dims) if all(a.layer in chosen for a in c.ablations)]
        assert conditions == [str(c) for c in wanted]
    counted = result.docs.groupby(["task", "metric"])[["condition", "doc_id"]].nunique()
    assert (counted["condition"] == len(conditions)).all() and len(conditions) > 1
    # in 06 one half of the documents chooses heads, and the other is what they are removed on
    n_docs = given["limit"] // 2 if name == "06_reasoning_heads" else given["limit"]
    assert (counted["doc_id"] == n_docs).all()


def check_index(report: RunReport, names: list[str]) -> None:
    index = (report.out / "index.html").read_text()
    for run in report.notebooks:
        assert f'href="{run.name}.html"' in index and run.question in html.unescape(index)
        page = (report.out / f"{run.name}.html").read_text()
        assert not re.search(r"</summary>\s*</details>", page), "what is to be folded stands open below an empty fold"
    pictures, tables = index.count("data:image/png;base64,"), index.count('class="depthlens-scorecard"')
    assert tables == ("09_claims" in names), "the verdicts are a table there"
    assert pictures + tables == len(names) and "No headline result" not in index
