"""The first half of the notebooks, each run once on the embedded model."""

from __future__ import annotations

import notebook_runs
import pytest

NAMES = notebook_runs.NAMES[:5]

pytestmark = [pytest.mark.slow, pytest.mark.integration]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return notebook_runs.run(NAMES, tmp_path_factory.mktemp("smoke"))


def test_all_run(report):
    notebook_runs.check_run(report, NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_has_figure_headline_and_result(report, name):
    notebook_runs.check_notebook(report, name)


def test_the_index_lists_them(report):
    notebook_runs.check_index(report, NAMES)
