"""The house: imports go down a table, modules are short, processes import what they use, names are listed."""

import ast
import graphlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import depthlens as dl

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "depthlens"
PARTS = {path: path.relative_to(ROOT).with_suffix("").parts for path in PACKAGE.rglob("*.py")}
MODULES = {".".join(parts).removesuffix(".__init__"): path for path, parts in PARTS.items()}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
TOP_MODULES, MODULE_LINES, BODY_LINES, TEST_LINES = 12, 500, 60, 400


def rows():
    """The table: for each line of it its packages, and what they must not import."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text[text.index("| package | subject |") :].split("\n\n")[0].splitlines()[2:]
    for line in table:
        names, _, forbidden = (cell.strip() for cell in line.strip("|").split("|"))
        yield re.findall(r"`(\w+)`", names), set(re.findall(r"\w+", forbidden)) & {*KNOWN, "torch"}


KNOWN = {name.split(".")[1] for name in MODULES if "." in name}
TABLE = list(rows())
FLOOR = {name: floor for floor, (names, _) in enumerate(TABLE) for name in names}
FORBIDDEN = {name: forbidden for names, forbidden in TABLE for name in names}


# their methods import what shows or draws a finding when it is shown
SHOW = {f"depthlens.analysis.result.{module}" for module in ("results", "findings")}


def imports(name, *, typing=False):
    """Modules of depthlens that a module imports; with ``typing`` those for annotations alone, too."""

    def walk(node):
        for child in ast.iter_child_nodes(node):
            if name in SHOW and isinstance(child, ast.FunctionDef):
                continue
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING" and not typing:
                continue
            yield child
            yield from walk(child)

    for node in walk(TREES[name]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "depthlens":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)


ASKS = "depthlens.claims.sweeps"  # the one module of claims that asks a model


def test_every_package_is_in_the_table():
    assert set(FLOOR) == KNOWN


def test_imports_go_down_the_table():
    wrong = []
    for name in MODULES:
        for other in imports(name, typing=True):
            if "." not in name or "." not in other:
                continue
            here, there = name.split(".")[1], other.split(".")[1]
            forbidden = FORBIDDEN[here] if name != ASKS else {"engine", "backends", "organisms", "store"}
            if here != there and (FLOOR[there] < FLOOR[here] or there in forbidden):
                wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_folders_of_the_analysis_import_folders_above_them_only():
    """For annotations, too; what shows or draws a finding is imported when it is shown."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \|", text[text.index("| folder |") : text.index("| question |")], re.MULTILINE)
    rank_of = {name: listed.index(name.split(".")[2]) for name in MODULES if name.startswith("depthlens.analysis.")}
    assert {name.split(".")[2] for name in rank_of} == {*listed}
    for name in rank_of:
        later = [other for other in imports(name, typing=name not in SHOW) if rank_of.get(other, 0) > rank_of[name]]
        assert not later, f"{name} imports {later}"
    outside = [other for name in rank_of if "numbers" in name for other in imports(name) if "analysis" not in other]
    assert {*outside} <= {"depthlens.errors", "depthlens.metrics"}


def test_no_module_imports_itself_by_way_of_others():
    graph = {name: {other for other in imports(name) if other != name} for name in MODULES if "." in name}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the modules of the circle


def test_modules_and_functions_are_short():
    assert len(list(PACKAGE.glob("*.py"))) <= TOP_MODULES  # ten modules, __init__ and __main__
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    long = [f"{name}: {n} lines" for name, n in lines.items() if n > MODULE_LINES]
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if body and (n := body[-1].end_lineno - body[0].lineno + 1) > BODY_LINES:
                    long.append(f"{name}.{node.name}: {n} lines")
    tests = [path for path in (ROOT / "tests").rglob("*.py") if len(path.read_text().splitlines()) > TEST_LINES]
    assert long + [str(path.relative_to(ROOT)) for path in tests] == []


def test_what_needs_no_model_imports_no_torch_and_importing_depthlens_has_no_effects():
    light = ("depthlens.analysis", "depthlens.claims", "depthlens.plots")
    names = [name for name in sorted(MODULES) if name.startswith(light) and name != ASKS]
    names += [f"depthlens.runner.{name}" for name in ("execute", "pages", "parameters")]
    program = f"""
import atexit, gc, sys, time, warnings
before = gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), atexit._ncallbacks(), list(warnings.filters)
import depthlens
after = gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), atexit._ncallbacks(), list(warnings.filters)
assert before == after
assert not {{"torch", "transformers", "matplotlib", "pandas", "numpy"}} & set(sys.modules)
import {", ".join(names)}
assert not {{"torch", "transformers", "lm_eval"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


SPACES = ("claims", "organisms", "runner", "tasks")
NAMES = [f"dl.{name}" for name in dl.__all__] + [
    f"dl.{space}.{name}" for space in SPACES for name in getattr(dl, space).__all__
]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"


def test_the_page_lists_the_public_names_and_nothing_else():
    listed = set(re.findall(r"^\| `(dl\.[\w.]+)", PAGE.read_text(), re.MULTILINE))
    assert listed == {*NAMES} and 40 < len(listed) <= 75


PEERS = "import torch; from transformers import AutoModelForCausalLM, AutoTokenizer"
OURS = {"depthlens", "lazy_loader", "jaxtyping", "xxhash", "platformdirs", "psutil", "safetensors", "scipy"}
TABLES = {"numpy", "pandas", "pyarrow", "fsspec", "dateutil", "pytz", "six", "cloudpickle", "zstandard"}
COMMANDS = {"typer", "click", "rich", "shellingham", "annotated_doc", "markdown_it", "mdurl", "pygments", "colorama"}
COMMANDS |= {"pydantic", "pydantic_core", "annotated_types", "typing_inspection"}  # of typer
COMMANDS |= {"numpy", "tqdm", "depthlens", "lazy_loader", "platformdirs", "typing_extensions", "filelock"}
RUN = """
from depthlens import cli
try:
    cli.main({arguments!r})
except SystemExit:
    pass
"""
LIST = """
import json, sys
print(json.dumps(sorted(sys.modules)))
"""


def imported(*codes: str) -> list[set[str]]:
    """Every module that a process has imported after each step."""
    program = "".join(code + LIST for code in codes)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return [set(json.loads(line)) for line in done.stdout.splitlines()[-len(codes) :]]


def packages(modules: set[str]) -> set[str]:
    """Packages that are not of Python; extension modules that Cython makes names for are not counted."""
    found = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names
    return {name for name in found if not name.startswith(("_", "google", "cython_runtime"))}


def test_looking_up_a_sweep_imports_little_more_than_transformers():
    peers, found = imported(PEERS, "import depthlens as dl; dl.load; dl.layer_sweep")
    assert packages(found) - packages(peers) <= OURS | TABLES
    assert not {"transformers.modeling_utils", "torch._dynamo", "torch.distributed.tensor", "scipy.stats"} & found


@pytest.mark.parametrize(("arguments", "allowed"), [
    (["--help"], set()), (["models"], set()), (["store", "list"], TABLES | {"xxhash"}),
])  # fmt: skip
def test_commands_that_need_no_model_import_no_library_of_models(arguments, allowed):
    (found,) = imported(RUN.format(arguments=arguments))
    assert packages(found) <= COMMANDS | allowed
