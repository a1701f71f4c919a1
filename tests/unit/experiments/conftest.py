"""Models that most tests of experiments use, made once."""

import pytest

import depthlens as dl


@pytest.fixture(scope="session")
def organism():
    """An organism and its truth."""
    built = dl.load("organism:seed=2")
    return built, dl.organisms.truth(built.name)
