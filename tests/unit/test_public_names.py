"""Public names of the package: found on first use, known to `dir`, and imported without side effects."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys

import pytest

import depthlens as dl


@pytest.mark.parametrize("name", sorted({*dl.__all__, *dl._MODULES}))
def test_every_public_name_is_there(name):
    assert getattr(dl, name) is not None and name in dir(dl)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'depthlens' has no attribute 'layer_sweeps'"):
        dl.layer_sweeps  # noqa: B018


def test_import_is_light():
    code = "import sys, depthlens; print(sorted({'torch', 'transformers', 'matplotlib', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_garbage_collector_is_left_as_it_was(monkeypatch):
    seen = []

    def broken(name):
        seen.append(gc.isenabled())
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", broken)
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            with pytest.raises(ImportError):
                dl._module("sweep")
            assert gc.isenabled() is enabled
        finally:
            gc.enable()
    assert seen == [False, False]
