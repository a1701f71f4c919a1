"""The folder of a sweep: the same sweep may go on in it, another one and foreign files are never written over."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import pytest
import tiny
import torch

from depthlens import cli
from depthlens.analysis.results import Result
from depthlens.errors import UserError
from depthlens.experiments.sweep import condition_sweep

TASK = "organism_one_hop"


@pytest.fixture
def sweep(capsys, tmp_path):
    """Run the command line on one folder: exit code and the last line that was told."""

    def run(*flags, model="organism", tasks=(TASK,), ablate="L1,L2", limit=2, out=tmp_path / "out"):
        given = ["sweep", model, *tasks, "--ablate", ablate, "--limit", limit, "--out", out, *flags]
        with pytest.raises(SystemExit) as ended:
            cli.main(list(map(str, given)))
        printed = capsys.readouterr()
        return ended.value.code, (printed.out + printed.err).splitlines()[-1]

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder that a sweep wrote."""
    torch.set_num_threads(1)  # as in the tests: the weights of an organism hang on it in their last bits
    folder = tmp_path_factory.mktemp("sweep") / "out"
    with pytest.raises(SystemExit) as ended:
        cli.main(f"sweep organism {TASK} --ablate L1,L2 --limit 2 --out {folder}".split())
    assert ended.value.code == 0
    return folder


@pytest.fixture
def out(made, tmp_path):
    return shutil.copytree(made, tmp_path / "out")


def state(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_sweep_goes_on_in_its_folder(sweep, out):
    before = Result.load(out)
    code, line = sweep(ablate="L2,L1")
    assert code == 0, line
    after = Result.load(out)
    assert set(after.docs["condition"]) == set(before.docs["condition"]) and len(after.docs) == len(before.docs)
    assert sorted(state(out)) == ["docs.parquet", "questions.parquet", "record.json", "summary.parquet"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "organism:seed=2"}, "model organism, not organism:seed=2"),
        ({"tasks": ("organism_two_hop",)}, f"tasks {TASK}, not organism_two_hop"),
        ({"ablate": "L1"}, "conditions L1, L2, baseline, not L1, baseline"),
        ({"limit": 3}, "limit 2, not 3"),
        ({"flags": ("--seed", 1)}, "seed 0, not 1"),
        ({"flags": ("--measure", "both")}, "measure task, not both"),
        ({"flags": ("--num-fewshot", 1)}, "num_fewshot 0, not 1"),
        ({"flags": ("--dtype", "bfloat16")}, "dtype float32, not bfloat16"),
        ({"flags": ("--backend", "nnsight")}, "backend torch, not nnsight"),
        ({"flags": ("--system-instruction", "Be brief.")}, "system_instruction None, not Be brief."),
        ({"flags": ("--donor", "organism:seed=2")}, "donor None, not organism:seed=2"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_another_sweep_is_refused_before_anything_is_loaded(sweep, out, monkeypatch, changes, said):
    monkeypatch.setattr("depthlens.experiments.sweep.run_sweep", lambda *a, **k: pytest.fail("the sweep runs"))
    before, changes = state(out), dict(changes)
    code, line = sweep(*changes.pop("flags", ()), **changes)
    assert code == 2 and line.startswith(f"Error: {str(out)!r} holds another result ({said}"), line
    assert line.endswith("name another folder, or replace it (--overwrite, in Python overwrite=True)")
    assert state(out) == before


def test_overwrite_replaces_and_other_files_do_no_harm(sweep, out):
    (out / "notes.txt").write_text("mine")
    assert sweep("--overwrite", limit=3)[0] == 0
    assert json.loads((out / "record.json").read_text())["limit"] == 3 and (out / "notes.txt").read_text() == "mine"


def test_what_only_the_result_can_tell_is_seen_before_it_is_written(sweep, out):
    path = out / "record.json"
    record = json.loads(path.read_text())
    record["model"]["fingerprint"] = "0" * 32  # other weights under the same name
    path.write_text(json.dumps(record))
    before = state(out)
    code, line = sweep()
    assert code == 2 and f"(model fingerprint {'0' * 32}, not " in line
    assert state(out) == before


@pytest.mark.parametrize(
    ("name", "text"),
    [("record.json", '{"profile": "demo"}'), ("record.json", "[1, 2]"), ("docs.parquet", "my notes")],
)
def test_files_of_something_else_are_not_written_over(sweep, tmp_path, name, text):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(text)
    code, line = sweep()
    assert code == 2 and line.startswith(f"Error: {str(out)!r} holds a {name} of something else; name another folder")
    assert state(out) == {name: text.encode()}


@pytest.mark.slow
def test_a_second_process_is_refused_the_folder_and_a_dead_one_leaves_it_free(sweep, tmp_path):
    asked = {"model": "x", "tasks": [], "ablate": "L1"}
    holder = (
        "import sys, time; from depthlens.analysis.result_folder import claimed\n"
        f"with claimed(sys.argv[1], {asked!r}, overwrite=False): print('held', flush=True); time.sleep(60)"
    )
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", holder, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        code, line = sweep()
        assert code == 2 and line.startswith(f"Error: another process is writing to {str(out)!r} now; wait for its end")
    finally:
        process.kill()
        process.wait()
    time.sleep(0.1)
    assert sweep()[0] == 0
    assert sorted(state(out)) == ["docs.parquet", "questions.parquet", "record.json", "summary.parquet"]


@pytest.fixture(scope="module")
def result():
    lens = tiny.lens("llama-gqa", max_position_embeddings=2048)
    return condition_sweep(lens, ["capitals_continuation", "kv_retrieval_4"], "L1,L2", limit=2, progress=False)


def test_save_refuses_another_result_and_takes_the_same(result, tmp_path):
    result.save(tmp_path)
    result.save(tmp_path)
    for other in (result.select(tasks="kv_retrieval_4"), result.select(conditions=["L1"])):
        with pytest.raises(UserError, match="holds another result .*replace it"):
            other.save(tmp_path)
    docs = result.docs[result.docs["metric"] == "acc"]  # the record does not tell the two apart
    with pytest.raises(UserError, match="rows of documents, not"):
        Result(docs, result.record).save(tmp_path)
    result.select(conditions=["L1"]).save(tmp_path, overwrite=True)
    assert len(Result.load(tmp_path).docs) < len(result.docs)
