"""The notebooks keep the conventions that make them rerunnable, and every one of them really runs."""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize

import gsm8k
import nbformat
import notebook_runs
import papermill
import pytest
import tiny
import yaml
from lm_eval.tasks import TaskManager

from depthlens import paths
from depthlens.ablations import Dims
from depthlens.analysis.results import Result
from depthlens.errors import UserError
from depthlens.models import registry
from depthlens.runner import execute, parameters
from depthlens.runner.notebook_files import read_notebook
from depthlens.runner.parameters import Profiles, declared

COMMON = {"model", "tasks", "limit", "num_fewshot", "seed", "device", "dtype", "out"}
PROFILES = ("smoke", "demo", "scorecard", "paper", "paper-qwen3", "paper-r1-llama", "paper-r1-qwen")
MAX_CELLS = 40
# what these notebooks remove one at a time, whole; the others choose
LAYERS = ("00_tour", "01_protocols", "02_knowledge_and_retrieval", "03_reasoning", "08_geometry", "09_claims")
SWEPT = dict.fromkeys(LAYERS, "layers") | {"04_heads": "heads"}
# 09 names its tasks by role
ROLES = ("letters", "continuation", "generation", "retrieval", "text", "reasoning", "copying", "reasoning_choice")
NAMES = execute.notebook_names()
each = pytest.mark.parametrize("name", NAMES)


def notebook(name: str) -> nbformat.NotebookNode:
    return read_notebook(paths.notebooks_dir() / f"{name}.ipynb")


def code(nb: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def tagged(nb: nbformat.NotebookNode, tag: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in nb.cells if tag in cell.metadata.get("tags", [])]


def profiles() -> Profiles:
    defaults = {name: declared(notebook(name), name) for name in NAMES}
    return Profiles(paths.notebooks_dir() / "profiles.yml", defaults)


@functools.cache
def known_tasks() -> set[str]:
    return set(TaskManager(include_path=str(paths.tasks_dir())).all_tasks)


def test_the_first_notebooks_are_there():
    assert NAMES[:2] == ["00_tour", "01_protocols"]


@each
def test_title_is_a_question(name):
    first = notebook(name).cells[0]
    assert first.cell_type == "markdown" and re.fullmatch(r"# [A-Z].*\?", first.source.splitlines()[0])


@each
def test_file_is_clean(name):
    nb = nbformat.read(paths.notebooks_dir() / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)
    nbformat.validate(nb)
    assert (nb.nbformat, nb.nbformat_minor) == (4, 5)
    assert nb.metadata.kernelspec.name == "python3"
    assert len(nb.cells) <= MAX_CELLS
    assert len({cell.id for cell in nb.cells}) == len(nb.cells)
    for cell in code(nb):
        assert cell.outputs == [] and cell.execution_count is None, f"{cell.id} carries a run's outputs"


@each
def test_parameters_are_commented_literals(name):
    (cell,) = tagged(notebook(name), "parameters")
    statements = ast.parse(cell.source).body
    names = []
    for statement in statements:
        assert isinstance(statement, ast.Assign) and len(statement.targets) == 1, ast.unparse(statement)
        ast.literal_eval(statement.value)
        names.append(statement.targets[0].id)
    by_role = set(ROLES) <= set(names)
    assert COMMON - ({"tasks"} if by_role else set()) <= set(names) and len(set(names)) == len(names)
    tokens = tokenize.generate_tokens(io.StringIO(cell.source).readline)
    commented = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    assert [s.lineno for s in statements] == list(range(1, len(statements) + 1)), "one line each"
    assert commented == {s.lineno for s in statements}, "a comment with unit or meaning on each line"


@each
def test_papermill_finds_every_parameter(name, caplog):
    found = papermill.inspect_notebook(str(paths.notebooks_dir() / f"{name}.ipynb"))
    assert list(found) == list(declared(notebook(name), name))
    assert caplog.text == ""  # it reads line by line, and says so where it cannot


@each
def test_next_cell_checks_every_parameter(name):
    cells = code(notebook(name))
    (parameters,) = tagged(notebook(name), "parameters")
    following = cells[[cell.id for cell in cells].index(parameters.id) + 1]
    calls = [n for n in ast.walk(ast.parse(following.source)) if isinstance(n, ast.Call)]
    (start,) = [call for call in calls if ast.unparse(call.func) == "dl.setup_notebook"]
    given = [ast.unparse(a) for a in start.args] + [k.arg for k in start.keywords]
    assert set(given) == set(declared(notebook(name), name))
    assert all(ast.unparse(k.value) == k.arg for k in start.keywords), "passed on as they are"


@each
def test_logic_lives_in_the_package(name):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for cell in code(notebook(name)):
        found = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, kinds)]
        assert not found, f"cell {cell.id} defines something"


@each
def test_sections_and_headline(name):
    nb = notebook(name)
    headings = re.findall(r"^## (.+)$", "\n".join(c.source for c in nb.cells if c.cell_type == "markdown"), re.M)
    assert headings[:2] == ["Parameters", "Set-up"]
    assert headings.index("Result") < headings.index("When this does not hold") < headings.index("Recap")
    (headline,) = tagged(nb, "headline")
    assert headline.cell_type == "code"
    assert nb.cells[-1].cell_type == "code", "the recap is computed"


@each
def test_prose_states_no_number_that_code_computes(name):
    for cell in notebook(name).cells:
        if cell.cell_type != "markdown":
            continue
        prose = re.sub(r"`[^`]*`|\[[^]]*\]\([^)]*\)|\bclaim C\d\b|\bClaim C\d\b|95%", "", cell.source)
        assert not re.search(r"\d", prose), f"cell {cell.id}: {re.search(r'.*[0-9].*', prose)[0]}"


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_name_what_exists(profile):
    """Values for undeclared parameters and of a wrong type are refused by `Profiles` itself."""
    aliases = {row["alias"] for row in registry.table()}
    for name, values in profiles().values(profile).items():
        values = declared(notebook(name), name) | values
        assert values["model"] in aliases
        named = [values["tasks"]] if "tasks" in values else [values[role] for role in ROLES]
        assert all(tasks and set(tasks) <= known_tasks() for tasks in named)
        assert values["out"] is None, "depthlens run chooses the folder"


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_and_defaults_fit_a_model_of_any_size(profile):
    """Whatever a profile says is allowed, and names parts that models of few layers and heads have, too."""
    for name, values in profiles().values(profile).items():
        values = declared(notebook(name), name) | values
        parameters.check(**values)
        for n_layers in (1, 4, 12):
            parameters.check_parts(values, Dims(n_layers, 1, 1, 32, 32))


@pytest.fixture(scope="module")
def four_layers(tmp_path_factory):
    return str(tiny.save(tmp_path_factory.mktemp("model"), "llama-gqa", num_hidden_layers=4))


@pytest.mark.parametrize("profile", ["smoke", "demo"])
def test_a_profile_takes_a_model_of_ones_own(four_layers, tmp_path, profile):
    prepared = execute.prepare("all", out=tmp_path, profile=profile, parameters={"model": four_layers})
    assert [run.name for run in prepared.report.notebooks] == [name for name in NAMES if name != "07_distillation"]
    (line,) = prepared.left_out
    assert "07_distillation: distilled " in line and line.endswith(": -p distilled NAME")
    both = {"model": four_layers, "distilled": f"{four_layers}/"}
    assert "07_distillation" in execute.prepare("all", out=tmp_path, profile=profile, parameters=both).sources


@pytest.mark.parametrize(
    ("name", "own", "said"),
    [
        ("00_tour", {"ways": ["layers", "L6"]}, "ways ['layers', 'L6']: condition L6: layer 6 does not exist; layers"),
        ("02_knowledge_and_retrieval", {"ways": ["atn"]}, "ways ['atn']: condition 'atn': cannot read 'atn'"),
        ("04_heads", {"layers": [3, 4]}, "layers [3, 4]: condition L4: layer 4 does not exist; layers are 0..3"),
        ("04_heads", {"layers": "layers:0"}, "layers 'layers:0': size '0' in 'layers:0'"),
        ("07_distillation", {}, "distilled 'smollm2-135m-cot' is no twin of model"),
        ("09_claims", {"views": ["layers", "L2.H9"]}, "head 9 does not exist; heads are 0..3"),
    ],
)
def test_parts_that_the_model_does_not_have_are_told_before_the_first_cell(four_layers, tmp_path, name, own, said):
    with pytest.raises(UserError) as told:
        execute.run(name, out=tmp_path / "out", profile="smoke", parameters={"model": four_layers, **own})
    assert f"notebook {name}: " in str(told.value) and said in str(told.value) and "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


def test_every_profile_is_checked():
    content = yaml.safe_load((paths.notebooks_dir() / "profiles.yml").read_text())
    assert set(content) == set(PROFILES)


@pytest.mark.slow
@pytest.mark.integration
def test_a_second_run_reads_what_the_first_computed(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPTHLENS_STORE", str(tmp_path / "store"))
    model = notebook_runs.shallow(tmp_path / "model", "smollm2-135m")
    rows = []
    for limit in (2, 2, 3):
        parameters = {"model": model, "limit": limit}
        report = execute.run("00_tour", out=tmp_path, profile="smoke", parameters=parameters, progress=False)
        assert report.errors == []
        stored = Result.load(tmp_path / "00_tour").record["store"]
        rows.append((stored["rows_read"], stored["rows_computed"]))
    first, second, third = rows
    total = sum(first)  # some of it was computed by earlier cells, and read in this one
    assert first[1] > total / 2 and second == (total, 0)
    assert sum(third) == total * 3 // 2 and third[1] < total / 2 + 1  # one document more


@pytest.mark.slow
def test_reasoning_takes_a_written_task_of_ones_own_alone(tmp_path):
    """Documents of GSM8K on a random model: it solves none, and every sentence says so."""
    gsm8k.write_task(
        tmp_path,
        "gsm8k_local",
        generation_kwargs={"until": ["Question:"], "do_sample": False, "max_gen_toks": 6},
        metric_list=[{"metric": "exact_match", "regexes_to_ignore": ["(?s).*#### "]}],
    )
    parameters = {
        "model": str(tiny.save(tmp_path / "model", "llama-gqa", max_position_embeddings=4096)),
        **{"tasks": ["gsm8k_local"], "knowledge": [], "include_path": str(tmp_path), "limit": 2, "num_fewshot": 0},
    }
    report = execute.run("03_reasoning", out=tmp_path / "out", profile=None, parameters=parameters, progress=False)
    assert report.errors == []
    (run,) = report.notebooks
    assert "gsm8k_local exact_match: at chance, cannot judge" in run.headline
    assert "gsm8k_local answer_logprob: losses and gains of all layers may cancel, cannot judge" in run.headline
    assert "solves none of 2 problems" in run.headline


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("limit", 0, "limit 0: give a whole number of documents, at least 1"),
        ("tasks", ["capital"], "unknown task 'capital'; did you mean"),
    ],
)
def test_bad_value_stops_in_the_first_cells_with_one_line(tmp_path, parameter, value, message):
    """As papermill runs a notebook, without the checks that `depthlens run` makes before a kernel starts."""
    source, target = paths.notebooks_dir() / "00_tour.ipynb", tmp_path / "tour.ipynb"
    with pytest.raises(papermill.PapermillExecutionError) as raised:
        papermill.execute_notebook(source, target, parameters={parameter: value}, progress_bar=False)
    error = raised.value
    assert error.ename == "UserError" and message in error.evalue and "\n" not in error.evalue
    cells = code(nbformat.read(target, as_version=4))
    ran = [cell for cell in cells if cell.execution_count and "colab" not in cell.metadata.get("tags", [])]
    assert len(ran) <= 3, "parameters, injected parameters, set-up"
