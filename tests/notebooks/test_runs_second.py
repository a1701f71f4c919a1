"""Notebooks on heads that find and compute something: each is run once on the embedded model."""

from __future__ import annotations

import notebook_runs
import pytest


@pytest.mark.slow
@pytest.mark.integration
class TestRuns(notebook_runs.Runs):
    NAMES = notebook_runs.HEADS
