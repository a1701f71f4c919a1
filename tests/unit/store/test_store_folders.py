"""Which folders and URLs are stores, and the commands that show them."""

import re
from pathlib import Path

import fsspec
import pytest
import tiny
import torch
from stores import CHOICE, WRITTEN, counts, parts, run

from depthlens.analysis.result.results import Result
from depthlens.models import fingerprint
from depthlens.store import parts as store_parts
from depthlens.store.parts import open_store


@pytest.fixture(scope="module")
def alone(lens) -> Result:
    return run(lens, None)


def test_which_store(tmp_path, monkeypatch):
    assert open_store(None) is open_store("None") is open_store("NONE") is None
    monkeypatch.setenv(store_parts.ENVIRONMENT, str(tmp_path / "named"))
    assert open_store().location == str(tmp_path / "named")
    monkeypatch.setenv(store_parts.ENVIRONMENT, "none")
    assert open_store() is None
    monkeypatch.delenv(store_parts.ENVIRONMENT)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert open_store().location == str(tmp_path / "data" / "depthlens" / "answers")
    assert open_store(tmp_path / "named").location == str(tmp_path / "named")


def test_a_url(lens, alone):
    first = run(lens, "memory://results/one")
    second = run(lens, "memory://results/one")
    assert counts(second)[1] == 0 and second.docs.equals(alone.docs) and first.docs.equals(alone.docs)
    name, *_ = files = fsspec.filesystem("memory").find("/results/one")
    assert all(f.endswith(".parquet") and "/." not in f for f in files)
    with fsspec.open(f"memory:/{name}", "wb") as file:
        file.write(b"torn")
    assert counts(run(lens, "memory://results/one"))[1] > 0
    assert counts(run(lens, "memory://results/one"))[1] == 0


@pytest.fixture
def at(lens, tmp_path) -> Path:
    run(lens, tmp_path / "s")
    return tmp_path / "s"


def test_list(at, call):
    code, out, _ = call("store", "list", "--store", at)
    head, *rows, _, total = out.splitlines()
    columns = "key task model dtype device backend method parts rows bytes written".split()
    assert code == 0 and head.split() == columns
    assert [row.split()[1:3] for row in rows] == [[task, "tiny-llama-gqa"] for task in sorted([CHOICE, WRITTEN])]
    assert re.fullmatch(rf"2 entries, [\d.]+ MB in {at}", total)


def test_a_folder_that_is_not_there_is_not_made(tmp_path, call):
    nowhere = tmp_path / "typo"
    code, out, _ = call("store", "list", "--store", nowhere)
    assert (code, out) == (0, f"there is no store yet\n\n0 entries, 0.0 MB in {nowhere}\n")
    assert call("store", "show", "a", "--store", nowhere)[0] == 2
    assert call("store", "prune", "--where", "rows > 0", "--store", nowhere)[0] == 0
    assert not nowhere.exists()
    assert call("store", "list", "--store", __file__)[0] == 2  # a file is no store that may come


def test_prune(lens, at, call):
    def prune(where: str, *more: str) -> tuple[str, int]:
        code, out, _ = call("store", "prune", "--where", where, *more, "--store", at)
        assert code == 0
        return out.splitlines()[-1], len(parts(at))

    n = len(parts(at))
    assert prune(f"task == '{CHOICE}'", "--dry-run")[0].startswith("would delete 1 parts") and len(parts(at)) == n
    assert prune(f"task == '{CHOICE}' and time < '2026-01-01'")[1] == n
    assert prune(f"task == '{CHOICE}' and model == 'tiny-llama-gqa' and time > '2026-01-01'")[1] == n - 1
    assert prune("rows > 0")[1] == 0
    assert counts(run(lens, at))[0] == 0


def test_precision_flags_of_parts_are_in_the_settings(monkeypatch):
    lens = tiny.lens("llama-gqa")

    def matmul():
        return fingerprint.settings(lens.model.generation_config, lens.tokenizer, None)["matmul"]

    usual = matmul()
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    assert matmul() != usual
    monkeypatch.delenv("ONEDNN_DEFAULT_FPMATH_MODE")
    flags = torch.backends.mkldnn.matmul
    flags.fp32_precision = "bf16"  # torch then refuses to say one precision for all
    try:
        assert "'mkldnn': 'bf16'" in matmul()
    finally:
        flags.fp32_precision = "none"
    assert matmul() == usual
