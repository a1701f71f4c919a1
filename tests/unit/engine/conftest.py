"""Tests that go over the kernels of tree attention."""

import pytest

from depthlens.engine.attention_choice import ENVIRONMENT


@pytest.fixture(params=["chosen", "flex-eager"])
def kernel(request, monkeypatch):
    """The kernel that a CPU gets, and the block mask that a GPU may get (not compiled, which takes half a minute)."""
    if request.param == "chosen":
        monkeypatch.delenv(ENVIRONMENT, raising=False)
    else:
        monkeypatch.setenv(ENVIRONMENT, request.param)
    return request.param
