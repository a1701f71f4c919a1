"""Commands and snippets of README and docs as they are written there, one after another in one folder.

A new line there fails here until it is run, or listed with the reason why it is not. Times are those of two cores.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import yaml

import depthlens as dl
from depthlens import paths
from depthlens.ablations import Dims, expand

pytestmark = [pytest.mark.slow, pytest.mark.integration]

ROOT = paths.data_dir().parent
PAGES = [ROOT / page for page in ("README.md", "docs/guide.md", "docs/python.md", "docs/store.md")]
PAGES += sorted((ROOT / "docs/howto").glob("*.md"))  # their Python is run by tests/unit/test_howto_doctests.py
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
LINES = [
    line.split("  #")[0].strip() for kind, text in BLOCKS if not kind for line in text.splitlines() if line.strip()
]
SNIPPETS = [text for kind, text in BLOCKS if kind == "python"]

# what a line begins with: what is printed, and what it took
RUN = {
    # 0.5 s; tests have no hub
    "depthlens sweep Qwen/Qwen3-8B capitals_continuation ": "is not in the local cache and HF_HUB_OFFLINE=1",
    "depthlens sweep path/to/folder kv_retrieval_4 ": "Wrote ",  # 18 s
    "depthlens run 00_tour -p model path/to/folder ": "Wrote ",  # 27 s
    "depthlens gallery runs/mine_notebooks": "Wrote ",  # 4 s
    "depthlens sweep path/to/folder capitals_continuation --ablate layers --limit 8 ": "Wrote ",  # 5 s
    "depthlens sweep path/to/folder capitals_continuation --ablate layers --quantize int8 ": "Wrote ",  # 9 s
    "depthlens sweep path/to/folder capitals_continuation --ablate layers@int4 ": "Wrote ",  # 8 s
    "depthlens store list": "entries, ",  # 1 s
    "depthlens store show KEY/TASK": '"conditions"',  # 1 s
    "depthlens store verify": " parts, 0 damaged",  # 1 s
    "depthlens store prune --task NAME": "deleted ",  # 1 s
    "depthlens sweep smollm2-135m colours ": "Wrote ",  # 6 s
    "depthlens sweep smollm2-135m-cot colours ": "Wrote ",  # 7 s
    "depthlens compare runs/colours ": "Wrote ",  # 5 s
    "depthlens run 01_protocols ": "Wrote ",  # 43 s
    "depthlens plan smollm2-135m ": "Here: about ",  # 10 s
    "depthlens race path/to/folder ": "Wrote ",  # 15 s
    "depthlens run 00_tour --profile demo --plan": "Here: about ",  # 20 s
    "papermill notebooks/00_tour.ipynb ": "Executing: 100%",  # 30 s
    "depthlens sweep smollm2-135m capitals_continuation --ablate layers --limit 20 --workers 2 ": "Wrote ",  # 30 s
    "depthlens sweep smollm2-135m capitals_continuation --ablate layers --limit 20 --out ": "Wrote ",  # 8 s
    "depthlens export path/to/folder ": "Wrote ",  # 6 s
    "python -m depthlens.lm_eval_model run ": "|capitals_continuation|",  # 6 s
}
NOT_RUN = {
    "make demo": "installs, and runs three notebooks (minutes)",
    "make test": "runs this",
    "pipx install .": "downloads 2 GB; make wheel tests the wheel that it installs",
    "uv tool install .": "as pipx",
    "uvx --from . depthlens models": "as pipx",
    "docker build ": "needs Docker and registries",
    "docker run ": "needs the image",
    "depthlens sweep path/to/r1 ": "needs a reasoning model",
    "depthlens sweep Qwen/Qwen3-8B mmlu ": "needs a cluster with GPUs",
    "depthlens sweep llama-3.1-8b ": "needs GPUs; test_reproduction.py parses it",
    "depthlens sweep deepseek-r1-llama-70b ": "needs several GPUs; test_reproduction.py parses it",
    "depthlens run 04_heads --workers 2 ": "takes minutes; tests/unit/cluster runs sweeps on workers",
    "depthlens compare runs/step1000 ": "needs three checkpoints; test_compare.py has made-up ones",
}


def test_every_command_is_run_or_says_why_not():
    beginnings = [*RUN, *NOT_RUN]
    assert [line for line in LINES if not any(line.startswith(b) for b in beginnings)] == []
    assert [b for b in beginnings if not any(line.startswith(b) for line in LINES)] == []


def test_the_table_of_conditions_is_the_grammar():
    (table,) = re.findall(r"^\| text \| what is removed \|\n\|---\|---\|\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    rows = [row.strip("|\n ").split(" | ", 1) for row in table.splitlines()]
    dims = Dims(n_layers=16, n_heads=4, n_kv_heads=2, d_model=8, d_head=2, n_experts=(32,) * 16)
    for texts, _ in rows:
        for text in re.findall(r"`(.+?)`", texts):
            (condition,) = expand(text, dims)[1:]
            assert str(condition) == text
    said = {text: what for text, what in rows}
    assert "is its input plus that mean" in next(what for text, what in said.items() if "`L12@mean`" in text)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """The reader's folder: a model of their own, the notebooks, and the task of the guide."""
    folder = tmp_path_factory.mktemp("docs")
    tiny.save(folder / "path" / "to" / "folder", "llama-gqa", num_hidden_layers=12, max_position_embeddings=4096)
    (folder / "notebooks").symlink_to(paths.notebooks_dir())
    (task,) = (text for kind, text in BLOCKS if kind == "yaml")
    name, example = re.match(r"# (\S+); .*\n# (\{.*\})", task).groups()
    (folder / name).parent.mkdir()
    (folder / name).write_text(task)
    data = folder / yaml.safe_load(task)["dataset_kwargs"]["data_files"]["test"]
    data.write_text("\n".join(json.dumps(json.loads(example) | {"answer": i % 3}) for i in range(6)))
    return folder


@pytest.fixture(scope="module")
def shell(desk):
    """Run a line in that folder, with what is in braces filled in; a store of one's own keeps the answers."""
    own = {"DEPTHLENS_STORE": str(desk / "store"), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {k: v for k, v in os.environ.items() if k != "DEPTHLENS_PROGRESS"} | own | {"PATH": path}

    def run(line: str) -> subprocess.CompletedProcess:
        return subprocess.run(shlex.split(line), capture_output=True, text=True, cwd=desk, env=environment)

    return run


@pytest.mark.parametrize("beginning", RUN)
def test_command(shell, desk, beginning):
    (line,) = (line for line in LINES if line.startswith(beginning))
    if "KEY/TASK" in line or "NAME" in line:
        first = shell("depthlens store list").stdout.splitlines()[1].split()  # what the reader sees there
        line = line.replace("KEY/TASK", "/".join(first[:2])).replace("NAME", first[1])
    done = shell(line)
    told = done.stdout + done.stderr
    assert RUN[beginning] in told and "Traceback" not in told, told
    assert done.returncode == (2 if "Qwen" in line else 0), told
    if line.startswith("papermill"):
        assert "Unable to parse" not in told and "unknown parameter" not in told, told
        assert (desk / "tour.ipynb").is_file()
    if "--out " in line and done.returncode == 0:
        written = "config.json" if line.startswith("depthlens export") else "record.json"
        assert (desk / line.split("--out ")[1] / written).is_file()


@pytest.fixture(scope="module")
def names():
    """What the snippets share."""
    return {"dl": dl}


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
# up to 75 s each on one thread; several times as much where others use the core, so that no bound is tested
def test_snippet(names, desk, monkeypatch, number):
    monkeypatch.chdir(desk)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("DEPTHLENS_STORE", str(desk / "store"))  # a page repeats what another has computed
    began = time.monotonic()
    exec(compile(SNIPPETS[number], f"snippet {number}", "exec"), names)
    print(f"snippet {number}: {time.monotonic() - began:.0f} s")
