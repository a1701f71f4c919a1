"""The notebooks keep the conventions that make them rerunnable, and every one of them really runs."""

import ast
import io
import re
import tokenize

import gsm8k
import nbformat
import papermill
import pytest
import yaml
from refusals import refused

from depthlens import paths
from depthlens.ablations import Dims, expand
from depthlens.analysis.numbers.stats import SUMMARY_COLUMNS
from depthlens.analysis.result.results import DOCS_COLUMNS, Result
from depthlens.claims import CLAIMS, Verdicts
from depthlens.models import names
from depthlens.runner import execute, parameters
from depthlens.runner.notebook_files import read_notebook
from depthlens.runner.parameters import declared, read_profile
from depthlens.runner.session import NAMES as PARAMETERS
from depthlens.tasks import harness

EVERYWHERE = {"seed", "device", "dtype", "quantize", "out"}  # taken by every notebook, declared by none
MAX_CELLS, MAX_PARAMETERS = 24, 4
# what these notebooks remove one at a time, whole; the others choose
KNOWLEDGE = "02_knowledge_and_retrieval"
LAYERS = ("00_tour", "01_protocols", KNOWLEDGE, "03_reasoning", "08_geometry")
SWEPT = dict.fromkeys(LAYERS, "layers") | {"04_heads": "heads", "10_compression": "layers,layers@int4"}
NAMES = list(execute.suite())
NOTEBOOKS = {name: read_notebook(paths.notebooks_dir() / f"{name}.ipynb") for name in NAMES}
DEFAULTS = {name: declared(nb, name) for name, nb in NOTEBOOKS.items()}
PROFILES = paths.notebooks_dir() / "profiles.yml"
each = pytest.mark.parametrize("name", NAMES)


def code(nb: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def tagged(nb: nbformat.NotebookNode, tag: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in nb.cells if tag in cell.metadata.get("tags", [])]


@each
def test_file_title_sections_and_prose(name):
    nb = nbformat.read(paths.notebooks_dir() / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)
    nbformat.validate(nb)
    assert (nb.nbformat, nb.nbformat_minor, nb.metadata.kernelspec.name) == (4, 5, "python3")
    assert len({cell.id for cell in nb.cells}) == len(nb.cells) <= MAX_CELLS
    assert not [cell.id for cell in code(nb) if cell.outputs or cell.execution_count], "it carries a run's outputs"
    assert re.fullmatch(r"# [A-Z].*\?", nb.cells[0].source.splitlines()[0]), "the title is a question"
    prose = [cell.source for cell in nb.cells if cell.cell_type == "markdown"]
    headings = re.findall(r"^## (.+)$", "\n".join(prose), re.MULTILINE)
    assert headings[-2:] == ["When this does not hold", "Change it"]
    for text in prose:  # numbers are computed
        text = re.sub(r"`[^`]*`|\[[^]]*\]\([^)]*\)|\b[cC]laim C\d\b|95%", "", text)
        assert not re.search(r"\d", text), re.search(r".*[0-9].*", text)[0]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for cell in code(nb):  # logic lives in the package, but for a hook that shows how one is written by hand
        if "by-hand" in cell.metadata.get("tags", []):
            continue
        assert not [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, kinds)], cell.id


@each
def test_parameters_are_commented_literals_and_the_next_cell_checks_them(name, caplog):
    cells = code(NOTEBOOKS[name])
    (cell,) = tagged(NOTEBOOKS[name], "parameters")
    statements = ast.parse(cell.source).body
    for statement in statements:
        assert isinstance(statement, ast.Assign) and len(statement.targets) == 1, ast.unparse(statement)
        ast.literal_eval(statement.value)
    names = [statement.targets[0].id for statement in statements]
    # claims have tasks by role, and choose their documents
    assert "model" == names[0] and len({*names}) == len(names) <= MAX_PARAMETERS
    assert EVERYWHERE <= {*DEFAULTS[name]} - {*names}
    tokens = tokenize.generate_tokens(io.StringIO(cell.source).readline)
    commented = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    lines = [*range(1, len(statements) + 1)]
    assert [s.lineno for s in statements] == lines and commented == {*lines}, "one line each, with unit or meaning"
    found = papermill.inspect_notebook(str(paths.notebooks_dir() / f"{name}.ipynb"))
    assert list(found) == names
    assert caplog.text == ""  # it reads line by line, and says so where it cannot
    following = cells[[c.id for c in cells].index(cell.id) + 1]
    calls = [n for n in ast.walk(ast.parse(following.source)) if isinstance(n, ast.Call)]
    assert "dl.setup_notebook(globals())" in map(ast.unparse, calls)
    assert {*DEFAULTS[name]} <= PARAMETERS, "the set-up cell checks it"
    # whoever runs the set-up cell again has it check the parameters, and no other value of such a name
    nodes = (node for later in cells if later is not cell for node in ast.walk(ast.parse(later.source)))
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assert not stored & PARAMETERS


@each
def test_the_answer_comes_first_and_what_else_can_be_changed_is_told(name):
    """Title, parameters, set-up, and then what the run found, with its picture; in the tour first a number to guess."""
    nb = NOTEBOOKS[name]
    tags = [cell.metadata.get("tags", []) for cell in nb.cells]
    assert tags[:3] == [[], ["parameters"], []] and "dl.setup_notebook(globals())" in nb.cells[2].source
    answer = next(cell for cell in code(nb)[2:] if "study.fold(" not in cell.source or name != "00_tour")
    assert "headline" in answer.metadata.tags, "no other result stands before the answer"
    pictures = tagged(nb, "picture") + tagged(nb, "opening")
    assert len(pictures) == 1 and ("plot(" in answer.source or nb.cells[4] in pictures)
    own = re.findall(r'study\.get\(\s*"(\w+)"', "\n".join(cell.source for cell in code(nb)))
    told = re.findall(r"`(\w+)`", nb.cells[-1].source)
    assert {*own} - {"out"} <= {*told}, "it is told below `Change it`"


def test_a_parameter_that_a_notebook_neither_declares_nor_asks_for_is_refused(tmp_path):
    given = {"gen_kwargs": {"max_gen_toks": 8}}  # 00 writes nothing
    refused("unknown parameter 'gen_kwargs'", execute.prepare, "00_tour", out=tmp_path, parameters=given)
    (run,) = execute.prepare("00_tour", out=tmp_path, parameters={"device": "cpu", "num_fewshot": "1"}).notebooks
    assert run.parameters == {"device": "cpu", "num_fewshot": 1, "out": str(tmp_path / "00_tour")}


@pytest.mark.parametrize("profile", yaml.safe_load((paths.notebooks_dir() / "profiles.yml").read_text()))
def test_profiles_name_what_exists_and_fit_a_model_of_any_size(profile):
    """Undeclared parameters are refused by `read_profile` itself."""
    aliases = {row.alias for row in names.NAMED}
    for name, own in read_profile(PROFILES, profile, DEFAULTS)[0].items():
        values = DEFAULTS[name] | own
        assert values["model"] in aliases and values["out"] is None, "depthlens run chooses the folder"
        tasks = parameters.named(values, parameters.TASKS)
        harness.task_manager(sorted({*tasks}))
        given = {name: value for name, value in values.items() if value is not None}
        parameters.check({name: value for name, value in given.items() if name not in parameters.MODELS})
        for n_layers in (1, 4, 12):
            parameters.check_parts(values, Dims(n_layers, 1, 1, 32, 32))


@pytest.fixture(scope="module")
def models(saved):
    """A tiny model and its twin, by the parameters that name them."""
    size = {"num_hidden_layers": 4, "max_position_embeddings": 8192}
    return {"model": saved(**size), "distilled": saved(moved=True, **size)}


@pytest.mark.parametrize("profile", ["smoke", "demo"])
def test_a_profile_takes_a_model_of_ones_own(models, tmp_path, profile):
    prepared = execute.prepare("all", out=tmp_path, profile=profile, parameters={"model": models["model"]})
    assert [run.name for run in prepared.notebooks] == NAMES
    (pair,) = execute.prepare("07_distillation", out=tmp_path, profile=profile, parameters=models).notebooks
    cut = "[:4]" if profile == "smoke" else ""  # first layers alone
    assert {name: pair.parameters[name] for name in models} == {name: folder + cut for name, folder in models.items()}


def test_make_demo_runs_notebooks_that_conclude_something(tmp_path):
    """09 is asked for claims that likelihoods decide; README and CONTRIBUTING name the notebooks that run."""
    root = paths.notebooks_dir().parent
    (typed,) = re.findall(r"depthlens run (.+) --out runs/demo", (root / "Makefile").read_text())
    *chosen, _, profile = typed.split()
    prepared = execute.prepare(chosen, out=tmp_path, profile=profile)
    assert [run.name for run in prepared.notebooks] == ["11_one_prompt", "00_tour", "01_protocols", "09_claims"]
    for page in ("README.md", "CONTRIBUTING.md"):
        line = re.search(r"^.*make demo.*$", (root / page).read_text(), re.MULTILINE)[0]
        assert all(name[:2] in line for name in chosen), page


@pytest.mark.parametrize(("name", "own", "said"), [
    ("05_retrieval_heads", {"draws": 0}, "draws 0: lists of heads are compared with random ones; give at least 10"),
])  # fmt: skip
def test_what_notebooks_cannot_use_is_told_before_the_first_cell(models, tmp_path, name, own, said):
    parameters = {"model": models["model"], **own}
    told = refused(f"notebook {name}: ", execute.prepare, name, out=tmp_path, profile="smoke", parameters=parameters)
    assert said in told


# -- every notebook runs --


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One for all notebooks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPTHLENS_STORE", str(tmp_path_factory.mktemp("store")))
        yield


@pytest.fixture(scope="module")
def report(models, store, tmp_path_factory):
    """All notebooks, run once on the tiny model: every cell runs, and headlines say that nothing can be judged."""
    return execute.run("all", out=tmp_path_factory.mktemp("smoke"), profile="smoke", parameters=models, progress=False)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """The same on the embedded models of the profile, which recall needles and calculate."""
    return execute.run("all", out=tmp_path_factory.mktemp("embedded"), profile="smoke", progress=False)


@pytest.mark.slow
@pytest.mark.integration
@each
@pytest.mark.parametrize("which", ["report", pytest.param("embedded", marks=pytest.mark.nightly)])
def test_a_notebook_runs_and_has_figure_headline_and_result(request, which, name):
    report = request.getfixturevalue(which)
    (run,) = [run for run in report.notebooks if run.name == name]
    assert (run.status, run.error) == ("ok", None) and run.parameters["out"] == str(report.out / name)
    nb = nbformat.read(report.out / f"{name}.ipynb", as_version=4)
    assert [cell.execution_count for cell in code(nb)] == [*range(1, len(code(nb)) + 1)]
    outputs = [output for cell in code(nb) for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs) or name == "09_claims"  # a table
    given = DEFAULTS[name] | run.parameters
    assert f"{given['model']} float32 on" in "".join(o.text for o in outputs if o.output_type == "stream")
    # every claim has its line; 11 is about a prompt, and sweeps a task below
    in_headline = [claim.id for claim in CLAIMS] if name == "09_claims" else given.get("tasks") or ["Copenhagen"]
    assert all(text in run.headline for text in in_headline)
    if name == "09_claims":
        assert {*Verdicts.load(report.out / name / "verdicts").states} == {claim.id for claim in CLAIMS}
    else:
        check_result(Result.load(report.out / name), name, given)


def check_result(result: Result, name: str, given: dict) -> None:
    assert list(result.docs.columns) == [*DOCS_COLUMNS, "parsed", "complete", "margin"]
    assert list(result.summary.columns) == SUMMARY_COLUMNS
    conditions = result.record["conditions"]
    if name in SWEPT:
        dims = Dims(**result.record["model"]["dims"])
        # 04 can be told to remove heads of some layers only
        chosen = {a.layer for c in expand(given.get("layers") or "layers", dims) for a in c.ablations}
        wanted = [c for c in expand(SWEPT[name], dims) if all(a.layer in chosen for a in c.ablations)]
        assert conditions == [*map(str, wanted)]
    counted = result.docs.groupby(["task", "metric"])[["condition", "doc_id"]].nunique()
    assert (counted["condition"] == len(conditions)).all() and len(conditions) > 1
    # in 06 one half of the documents chooses heads, and the other is what they are removed on
    n_docs = given["limit"] // 2 if name == "06_reasoning_heads" else given["limit"]
    assert (counted["doc_id"] == n_docs).all()


@pytest.mark.slow
@pytest.mark.integration
def test_the_index_lists_what_they_found(report):
    index = (report.out / "index.html").read_text()
    for run in report.notebooks:
        assert f'href="{run.name}.html"' in index
        page = (report.out / f"{run.name}.html").read_text()
        assert not re.search(r"</summary>\s*</details>", page), "what is to be folded stands open below an empty fold"
    assert index.count('class="depthlens-scorecard"') == 1, "the verdicts are a table there"
    assert index.count("data:image/png;base64,") == len(NAMES) - 2 and "No headline result" not in index


@pytest.mark.slow
def test_reasoning_takes_a_written_task_of_ones_own_alone(models, tmp_path):
    """Documents of GSM8K on a random model, which solves none."""
    gsm8k.write_task(tmp_path, "gsm8k_local", generation_kwargs={"until": ["\n\n"], "max_gen_toks": 6})
    values = {"model": models["model"], "tasks": ["gsm8k_local"], "knowledge": [], "include_path": str(tmp_path)}
    values |= {"limit": 2, "num_fewshot": 0}
    report = execute.run("03_reasoning", out=tmp_path / "out", parameters=values, progress=False)
    assert report.errors == []
    assert "exact_match,flexible-extract: not shown to be above chance (" in report.notebooks[0].headline
