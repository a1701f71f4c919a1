"""Public names: found on first use, known to `dir`, and each of them listed in docs/api.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="No depthlens attribute layer_sweeps"):
        dl.layer_sweeps  # noqa: B018
