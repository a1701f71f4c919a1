"""Public names: found on first use, known to `dir`, and each of them listed in docs/api.md."""

from __future__ import annotations

import copy
import operator
import re
from pathlib import Path

import pytest
import tiny

import depthlens as dl

SPACES = ("analysis", "backends", "claims", "organisms", "plots", "runner", "tasks")
NAMES = [f"dl.{name}" for name in dl.__all__] + [
    f"dl.{space}.{name}" for space in SPACES for name in getattr(dl, space).__all__
]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_there_and_documented(name):
    *path, last = name.split(".")[1:]
    owner = getattr(dl, path[0]) if path else dl
    assert getattr(owner, last) is not None and last in dir(owner)
    assert f"`{name}`" in PAGE.read_text() or f"`{name}(" in PAGE.read_text()


def test_the_page_lists_nothing_else():
    listed = set(re.findall(r"^\| `(dl\.[\w.]+)", PAGE.read_text(), re.MULTILINE))
    assert listed <= {*NAMES} and len(listed) > 60


@pytest.mark.parametrize(
    ("name", "meant"),
    [("sweep", "dl.condition_sweep"), ("layer_sweeps", "layer_sweep"), ("activation_patching", "dl.patch")],
)
def test_a_guessed_name_is_answered_with_the_name_here(name, meant):
    with pytest.raises(AttributeError, match=f"depthlens has no '{name}'; did you mean {meant}"):
        getattr(dl, name)
    with pytest.raises(AttributeError, match="has no 'qzx'$"):
        dl.qzx  # noqa: B018


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("run_with_cache", "lens.bridge.run_with_cache"),
        ("generate", "dl.generate"),
        ("cfg", "lens.dims"),
        ("brige", "bridge"),
    ],
)
def test_a_guessed_name_of_a_lens_is_answered_too(name, meant):
    lens = tiny.lens("llama-mha")
    with pytest.raises(AttributeError, match=f"a Lens has no '{name}'; did you mean {re.escape(meant)}"):
        getattr(lens, name)
    assert not hasattr(lens, "qzx") and copy.copy(lens).name == lens.name


def test_what_other_tools_names_are_answered_with_exists():
    other = dl.errors
    for here in (*other.OF_PACKAGE, *other.OF_LENS):
        for name in re.findall(r"dl\.([\w.]+)", here):
            assert operator.attrgetter(name)(dl)
    of_lens = {name for here in other.OF_LENS for name in re.findall(r"lens\.(\w+)", here)}
    lens = tiny.lens("llama-mha")
    assert all(name in dir(type(lens)) or hasattr(lens, name) for name in of_lens)
