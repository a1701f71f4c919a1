"""The folder of throw-away notebooks that the runner's tests share."""

import notebook_suite
import pytest

from depthlens import paths


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """The runner's suite is that of `notebook_suite`."""
    folder = notebook_suite.make(tmp_path / "notebooks")
    monkeypatch.setattr(paths, "notebooks_dir", lambda: folder)
    return folder
