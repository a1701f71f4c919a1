"""A tiny model, the small tasks of `mini_tasks`, and what lm-eval's own `hf` model makes of them."""

import functools

import lm_eval
import mini_tasks
import pytest
import tiny
from lm_eval.models.huggingface import HFLM

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


class Noting(HFLM):
    """lm-eval's model, one row at a time, that notes what it feeds the network."""

    def __init__(self, lens, **options):
        super().__init__(pretrained=lens.model, tokenizer=lens.tokenizer, batch_size=1, logits_cache=False, **options)
        self.read, self.written = [], []

    def _model_call(self, inps, *args, **kwargs):
        self.read.append(tuple(inps[0].tolist()))
        return super()._model_call(inps, *args, **kwargs)

    def _model_generate(self, context, max_length, stop, **kwargs):
        self.written.append((tuple(context[0].tolist()), tuple(stop), max_length - context.shape[1]))
        return super()._model_generate(context, max_length, stop, **kwargs)


@pytest.fixture
def noting():
    """The class of lm-eval's model that notes what it reads."""
    return Noting


@pytest.fixture(scope="module")
def lm_evals_own(lens, folder):
    """What lm-eval's `hf` model reads, and what lm-eval says of each document, by task name."""

    @functools.cache
    def evaluate(name):
        lm, manager = Noting(lens), harness.task_manager([name], str(folder))
        options = {"fewshot_random_seed": 0, "bootstrap_iters": 0}
        return lm, lm_eval.simple_evaluate(lm, tasks=[name], task_manager=manager, **options)["samples"][name]

    return evaluate
