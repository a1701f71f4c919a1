"""Notebooks that a model of ten layers can run."""

from __future__ import annotations

import notebook_runs
import pytest


@pytest.mark.slow
@pytest.mark.integration
class TestRuns(notebook_runs.Runs):
    NAMES = notebook_runs.SHALLOW
    MODELS = {"model": "smollm2-135m", "distilled": "smollm2-135m-cot"}
