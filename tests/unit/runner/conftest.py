"""The folder of throw-away notebooks that the runner's tests share."""

import notebook_suite
import pytest

from depthlens import paths


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """The runner's suite is that of `notebook_suite`; a test may add to it."""
    folder = notebook_suite.make(tmp_path_factory.mktemp("suite") / "notebooks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "notebooks_dir", lambda: folder)
        yield folder
