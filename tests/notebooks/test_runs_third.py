"""The claims, which ask the embedded model for everything."""

from __future__ import annotations

import notebook_runs
import pytest


@pytest.mark.slow
@pytest.mark.integration
class TestRuns(notebook_runs.Runs):
    NAMES = notebook_runs.CLAIMED
