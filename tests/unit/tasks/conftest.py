"""A tiny model, the small tasks of `mini_tasks`, and what lm-eval's own `hf` model makes of them."""

import functools

import mini_tasks
import pytest
import tiny
from lm_evals import Noting, evaluate

from depthlens.tasks import harness


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's folder of lm-eval YAML files, with data beside them."""
    return mini_tasks.write(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("llama-gqa", max_position_embeddings=mini_tasks.CONTEXT)


@pytest.fixture
def load(folder):
    """Tasks afresh: lm-eval keeps instances on the task itself."""
    return lambda *names, **kwargs: harness.load_tasks(names, include_path=folder, **kwargs)


@pytest.fixture(scope="module")
def lm_evals_own(lens, folder):
    """What lm-eval's `hf` model reads, and what lm-eval says of each document, by task name."""

    @functools.cache
    def of(name):
        lm = Noting(lens)
        return lm, evaluate(lm, [name], folder)["samples"][name]

    return of
