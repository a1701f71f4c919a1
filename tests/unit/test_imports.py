"""A process imports what it uses: nothing of quantisers, adapters, workers, tasks, statistics or figures until then."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

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


def imported(code: str) -> set[str]:
    """Every module that a process has imported at the end."""
    done = subprocess.run([sys.executable, "-c", code + LIST], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def packages(modules: set[str]) -> set[str]:
    """Packages that are not of Python; extension modules that Cython makes names for are not counted."""
    found = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names
    return {name for name in found if not name.startswith(("_", "google", "cython_runtime"))}


def test_looking_up_a_sweep_imports_little_more_than_transformers():
    peers, found = imported(PEERS), imported(f"{PEERS}; import depthlens as dl; dl.load; dl.layer_sweep\n")
    assert packages(found) - packages(peers) <= OURS | TABLES
    assert not {"transformers.modeling_utils", "torch._dynamo", "torch.distributed.tensor", "scipy.stats"} & found


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [(["--help"], set()), (["models"], set()), (["store", "list"], TABLES | {"xxhash"})],
)
def test_commands_that_need_no_model_import_no_library_of_models(arguments, allowed):
    found = packages(imported(RUN.format(arguments=arguments)))
    assert found <= COMMANDS | allowed
