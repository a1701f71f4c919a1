"""Which documents of a task are run, and which stand before them as worked examples.

Run are the first so many, some by number, or all. Choosing heads on one half of the documents and testing them on the
other needs both halves by number (``samples="0::2"`` and ``samples="1::2"``). Numbers are those of lm-eval's evaluation
split, whichever are chosen.

lm-eval draws the examples, and keeps the evaluated document out where ``fewshot_split`` names the test split. Elsewhere
(a task with a test split only, one that is evaluated on its validation split, a question that stands in two splits) it
would show a question and its answer before asking it. Such an example is replaced by the next document of those that
examples are drawn from. All other examples are lm-eval's, so that every prompt without a replaced one is token for
token what lm-eval makes.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from depthlens import arguments
from depthlens.errors import UserError

_seeded = threading.RLock()

Some = str | Sequence[int]  # a slice as text, or numbers
Samples = Some | Mapping[str, Some]  # the same for all tasks, or by task


def check(limit: int | None, samples: Samples | None) -> None:
    """Check both options.

    Raises:
        UserError: both are given, or one is of the wrong kind.
    """
    arguments.check(limit=limit, samples=samples)
    if limit is not None and samples is not None:
        raise UserError(f"limit {limit} and samples {recorded(samples)!r} both choose documents; give one of them")


def chosen(name: str, task: Any, limit: int | None, samples: Samples | None) -> Sequence[int]:
    """Numbers of the documents of a task that are run, rising.

    Args:
        name: Name of the task.
        task: A loaded task, whose number of documents bounds the choice.
        limit: The first so many; more than there are mean all.
        samples: Numbers, or a slice as text as in Python (``"0:100:2"``, ``"1::2"``, ``"-50:"``), for all tasks or by
            task; a task that a mapping does not name keeps all documents.

    Raises:
        UserError: a document that the task does not have, or a slice without documents.
    """
    every = range(len(task.eval_docs))
    some = samples.get(name) if isinstance(samples, Mapping) else samples
    if some is None:
        return every[:limit]
    numbers = every[arguments.slice_of(some)] if isinstance(some, str) else sorted(map(int, some))
    if not numbers or numbers[-1] not in every:
        raise UserError(
            f"samples {recorded(some)!r}: task {name} has documents 0..{len(every) - 1}; give some of these"
        )
    return numbers


def recorded(samples: Samples | None) -> Any:
    """The choice for a record: a slice as text, numbers as a list."""
    if samples is None or isinstance(samples, str):
        return samples
    if isinstance(samples, Mapping):
        return {name: recorded(some) for name, some in samples.items()}
    if isinstance(samples, range):
        return f"{samples.start}:{samples.stop}:{samples.step}"
    return sorted(int(number) for number in samples)


def set_examples(name: str, task: Any, num_fewshot: int | None) -> None:
    """Set how many examples there are; None: what the task says.

    Raises:
        UserError: the task is fixed at 0 examples.
    """
    fixed = task.config.num_fewshot
    if num_fewshot and fixed == 0:
        raise UserError(f"task {name} is fixed at 0 examples in its YAML file; leave num_fewshot out")
    n_examples = (fixed or 0) if num_fewshot is None else num_fewshot
    task.set_config(key="num_fewshot", value=n_examples)
    task.depthlens_replaced = set()
    if n_examples and hasattr(task, "sampler"):
        _keep_apart(name, task)


def _keep_apart(name: str, task: Any) -> None:
    """Let no prompt of a task hold the document that it asks."""
    draw, build = task.sampler.sample, task.fewshot_context
    asked: Any = None

    def context(doc: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal asked
        asked = doc
        return build(doc, *args, **kwargs)

    def sample(n: int, **about: Any) -> list[Any]:
        examples = list(draw(n, **about))
        if not any(_same(task, example, asked) for example in examples):
            return examples
        others = (doc for doc in task.sampler.fewshot_docs() if doc not in examples and not _same(task, doc, asked))
        replaced = [next(others, None) if _same(task, example, asked) else example for example in examples]
        if not (examples := [example for example in replaced if example is not None]):
            fault = f"task {name} has no example beside a document that it asks"
            raise UserError(f"num_fewshot {n}: {fault}; name a fewshot_split of other documents")
        task.depthlens_replaced.add(str(asked))
        return examples

    task.sampler.sample, task.fewshot_context = sample, context


def _same(task: Any, one: Any, other: Any) -> bool:
    """Whether two documents ask the same and have the same answer, whatever else they say."""
    reads = (task.doc_to_text, task.doc_to_target, *([task.doc_to_choice] if task.config.doc_to_choice else []))
    return one == other or all(read(one) == read(other) for read in reads)


@contextmanager
def lm_evals_seeds() -> Iterator[None]:
    """Within the context `random`, NumPy and torch draw as lm-eval's ``simple_evaluate`` has them; then as before it.

    Functions of tasks draw from them (GPQA's shuffles the options), and so does lm-eval for names that it does not use.
    The states are those of the process, so that one thread at a time is within the context.
    """
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    with _seeded, torch.random.fork_rng(devices=[]):
        python, numpy = random.getstate(), np.random.get_state()
        random.seed(DEFAULT_RANDOM_SEED)
        np.random.seed(DEFAULT_OTHER_SEED)
        torch.default_generator.manual_seed(DEFAULT_OTHER_SEED)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
