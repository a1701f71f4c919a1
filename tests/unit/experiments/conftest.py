"""Models that most tests of experiments use, made once."""

import pytest
import tiny

import depthlens as dl


@pytest.fixture(scope="session")
def lens():
    return tiny.lens("llama-gqa", max_position_embeddings=4096)


@pytest.fixture(scope="session")
def organism():
    """An organism and its truth."""
    built = dl.load("organism:seed=2")
    return built, dl.organisms.truth(built.name)
