"""Settings that every test needs before anything is imported."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["DEPTHLENS_STORE"] = "none"  # what a test computes is computed, not read from an earlier run

import pytest
import torch

CORES = torch.get_num_threads()


@pytest.fixture(autouse=True)
def threads(request):
    """One thread for tiny models: more only wait for each other, and on a shared machine for long."""
    torch.set_num_threads(CORES if request.node.get_closest_marker("integration") else 1)
