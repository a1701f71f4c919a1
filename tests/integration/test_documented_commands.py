"""Commands and snippets of README and docs as they are written there, one after another in one folder.

They run in this process, on a tiny model wherever the page names the embedded one, but for three real ones: a script,
papermill and ``python -m``. A new line there fails here until it is run, or listed with the reason why it is not.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import transplants
import yaml

import depthlens as dl
from depthlens import paths
from depthlens.ablations import Dims, expand

pytestmark = [pytest.mark.slow, pytest.mark.integration]

ROOT = paths.data_dir().parent
PAGES = [ROOT / "README.md", *(ROOT / f"docs/{page}.md" for page in ("installing", "guide", "python", "store"))]
PAGES += sorted((ROOT / "docs/howto").glob("*.md"))  # their Python is run by tests/unit/test_howto_doctests.py
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
TYPED = [line for kind, text in BLOCKS if not kind for line in text.splitlines() if line.strip()]
LINES = [line.split("  #")[0].strip() for line in TYPED]
SNIPPETS = [text for kind, text in BLOCKS if kind == "python"]

TINY = dict.fromkeys(("smollm2-135m", "smollm2-135m-direct"), "path/to/folder")
TINY["smollm2-135m-cot"] = "trained/further"
# what a line begins with, and what is printed
RUN = {
    "depthlens sweep Qwen/Qwen3-8B capitals_continuation ": "cannot be loaded: We couldn't connect to",
    "depthlens sweep path/to/folder kv_retrieval_4 ": "Wrote ",
    "depthlens sweep path/to/folder capitals_continuation --ablate layers --limit 8 ": "Wrote ",
    "depthlens sweep path/to/folder capitals_continuation --ablate layers --quantize int8 ": "Wrote ",
    "depthlens sweep path/to/folder capitals_continuation --ablate layers@int4 ": "Wrote ",
    "depthlens store list": "entries, ",
    "depthlens store show KEY/TASK": '"conditions"',
    "depthlens store prune --where ": "deleted ",
    "depthlens sweep smollm2-135m colours ": "Wrote ",
    "depthlens sweep smollm2-135m-cot colours ": "Wrote ",
    "depthlens compare runs/colours ": "Wrote ",
    "depthlens sweep smollm2-135m capitals_continuation --ablate layers --limit 20 --plan": "Here: about ",
    "depthlens sweep smollm2-135m capitals_continuation --ablate layers --limit 20 --out ": "Wrote ",
    "depthlens export path/to/folder ": "Wrote ",
    "depthlens gallery runs/mine_notebooks": "Wrote ",
}
PROCESSES = {
    "depthlens sweep path/to/folder capitals_continuation --ablate layers --limit 8 ": "Wrote ",
    "papermill notebooks/00_tour.ipynb ": "Executing: 100%",
    "python -m depthlens.lm_eval_model run ": "|capitals_continuation|",
}
NOT_RUN = {
    "depthlens run 00_tour -p model path/to/folder ": "tests/notebooks runs it",
    "depthlens run 01_protocols ": "tests/notebooks runs it",
    "pipx install .": "downloads 2 GB; make wheel tests the wheel that it installs",
    "uv tool install .": "as pipx",
    "uvx --from . depthlens models": "as pipx",
    "docker build ": "needs Docker and registries",
    "docker run ": "needs the image",
    "depthlens sweep path/to/r1 ": "needs a reasoning model",
    "depthlens sweep Qwen/Qwen3-8B mmlu ": "needs a cluster with GPUs",
    "depthlens sweep llama-3.1-8b ": "needs GPUs; test_reproduction.py parses it",
    "depthlens sweep deepseek-r1-llama-70b ": "needs several GPUs; test_reproduction.py parses it",
    "depthlens sweep smollm2-135m capitals_continuation --ablate layers --limit 20 --workers 2 ": "as the next one",
    "depthlens run 04_heads --workers 2 ": "takes minutes; tests/unit/cluster runs sweeps on workers",
    "git clone ": "needs a network",
    "python benchmarks/real_data.py ": "needs clones; tests/unit/tasks/test_real_data.py has made-up ones",
    "depthlens sweep smollm2-135m arc_easy ": "as the one before",
    "depthlens compare --from-logs ": "needs logs of others; tests/unit/runner/test_logs.py has lm-eval write some",
    "depthlens compare runs/step1000 ": "needs three checkpoints; test_compare.py has made-up ones",
}


def test_every_command_is_run_or_says_why_not():
    beginnings = {*RUN, *PROCESSES, *NOT_RUN}
    assert [line for line in LINES if not any(line.startswith(b) for b in beginnings)] == []
    assert [b for b in beginnings if not any(line.startswith(b) for line in LINES)] == []


def test_the_table_of_conditions_is_the_grammar():
    (table,) = re.findall(r"^\| text \| what is removed \|\n\|---\|---\|\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    rows = [row.strip("|\n ").split(" | ", 1) for row in table.splitlines()]
    dims = Dims(n_layers=16, n_heads=4, n_kv_heads=2, d_model=8, d_head=2)
    for texts, _ in rows:
        for text in re.findall(r"`(.+?)`", texts):
            (condition,) = expand(text, dims)[1:]
            assert str(condition) == text
    assert "the block is not repeated" in next(what for text, what in rows if "`L8-14x2`" in text)
    assert "is its input plus that mean" in next(what for text, what in rows if "`L12@mean`" in text)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """The reader's folder: models of their own, the notebooks, the task of the guide, and a store."""
    folder = tmp_path_factory.mktemp("docs")
    lens = tiny.lens("llama-gqa", num_hidden_layers=14, max_position_embeddings=4096)
    for name, one in (("path/to/folder", lens), ("trained/further", transplants.other(lens))):
        tiny.save(folder / name, one)
    (folder / "notebooks").symlink_to(paths.notebooks_dir())
    shutil.copytree(folder / "notebooks", folder / "runs" / "mine_notebooks")
    (task,) = (text for kind, text in BLOCKS if kind == "yaml" and "has lines such as" in text)  # a file, by its name
    name, example = re.match(r"# (\S+); .*\n# (\{.*\})", task).groups()
    (folder / name).parent.mkdir()
    (folder / name).write_text(task)
    data = folder / yaml.safe_load(task)["dataset_kwargs"]["data_files"]["test"]
    data.write_text("\n".join(json.dumps(json.loads(example) | {"answer": i % 3}) for i in range(6)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DEPTHLENS_STORE", str(folder / "store"))  # a page repeats what another has computed
        patch.setenv("MPLBACKEND", "Agg")
        yield folder


def line_of(beginning: str) -> str:
    """The command on its page, on a tiny model of those of the reader's folder."""
    line = next(line for line in LINES if line.startswith(beginning))
    return re.sub(r"smollm2-135m(-cot)?\b", lambda m: TINY[m[0]], line)


def check(line: str, desk: Path, code: int, told: str, wanted: str) -> None:
    assert wanted in told and "Traceback" not in told, told
    assert code == (2 if "Qwen" in line else 0), told
    if "--out " in line and code == 0:
        written = "config.json" if line.startswith("depthlens export") else "record.json"
        assert (desk / line.split("--out ")[1] / written).is_file()


@pytest.mark.parametrize("beginning", RUN)
def test_command(call, unchecked, desk, beginning):
    line = line_of(beginning)
    if "KEY/TASK" in line or "NAME" in line:
        _, listed, _ = call("store", "list")  # what the reader sees
        first = next(row.split() for row in listed.splitlines() if "capitals_continuation" in row)
        line = line.replace("KEY/TASK", "/".join(first[:2])).replace("NAME", first[1])
    code, *printed = call(*shlex.split(line)[1:])
    check(line, desk, code, "".join(printed), RUN[beginning])


@pytest.mark.parametrize("beginning", PROCESSES)
def test_process(desk, beginning):
    line = line_of(beginning)
    own = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {k: v for k, v in os.environ.items() if k != "DEPTHLENS_PROGRESS"} | own
    done = subprocess.run(shlex.split(line), capture_output=True, text=True, cwd=desk, env=environment)
    told = done.stdout + done.stderr
    check(line, desk, done.returncode, told, PROCESSES[beginning])
    assert ("loading lm-eval and its tasks ..." in told) == ("lm_eval_model" in line)
    if line.startswith("papermill"):
        assert "Unable to parse" not in told and "unknown parameter" not in told, told


@pytest.mark.parametrize("model", ["tiny", pytest.param("embedded", marks=pytest.mark.nightly)])
def test_snippets(desk, unchecked, model):
    """One after another: they share names. A tiny model recalls no needle and has no accuracy to lose."""
    names = {"dl": dl}
    shutil.rmtree(desk / "runs" / "layers", ignore_errors=True)  # the other model's, which is not replaced
    for number, source in enumerate(SNIPPETS):
        if model == "tiny" and ("retrieval_scores" in source or "greedy_removal" in source):
            continue
        if model == "tiny":
            source = re.sub(r'"(smollm2-135m[\w-]*)"', lambda m: f'"{TINY[m[1]]}"', source)
            source = source.replace('"L23"', '"L13"')  # it has 14 layers
        exec(compile(source, f"snippet {number}", "exec"), names)


@pytest.mark.nightly
def test_the_readme_prints_what_it_says(tmp_path, monkeypatch, capsys):
    """To the digit, on the embedded model; where nothing stands at the end of a line, white space is no difference."""
    monkeypatch.chdir(tmp_path)
    pairs = re.findall(r"^```python\n(.*?)^```\n+```text\n(.*?)^```$", PAGES[0].read_text(), re.MULTILINE | re.DOTALL)
    names: dict = {}
    for source, said in pairs:
        capsys.readouterr()
        exec(compile(source, "README.md", "exec"), names)
        assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == said.splitlines()
    assert len(pairs) == 2 and (tmp_path / "what_breaks.html").is_file()
