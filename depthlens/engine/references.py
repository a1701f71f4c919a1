"""What ``@mean`` and ``@resample`` put in the place of a part: named by its prompts, measured only where it is needed.

A store knows an answer by the prompts of its reference, so that nothing has to be measured to find it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from depthlens import backends
from depthlens.backends.torch import measure_means, sample
from depthlens.models import loading
from depthlens.store.answer_cache import digest

N_REFERENCE = 64  # prompts whose mean stands in for a part under @mean


class Reference:
    """What ``@mean`` and ``@resample`` put in place, known by its prompts; measured only where it is needed.

    Attributes:
        name: What it is, for the record.
        keys: Digest of the prompts, by mode.
    """

    def __init__(self, task: str, contexts: Sequence[Sequence[int]], prompt: Sequence[int] | None = None) -> None:
        self.contexts = contexts
        self.prompt = prompt
        self.name = f"{task}: contexts of the first {len(contexts)} requests"
        self.keys = {"mean": digest(list(contexts)), "resample": digest(prompt)}
        self._means: list[backends.Means] = []  # shared by all prompts: measured once

    def sampled(self, prompts: Sequence[Sequence[int]]) -> list[Reference]:
        """The same with each of the prompts of ``@resample``."""
        each = [Reference("", self.contexts, prompt) for prompt in prompts]
        for one in each:
            one.name, one._means = self.name, self._means
        return each

    def measure(self, lens: loading.Lens) -> backends.Means:
        if not self._means:
            self._means.append(measure_means(lens, self.contexts, self.name))
        return self._means[0] if self.prompt is None else sample(lens, self._means[0], self.prompt, self.name)


def of_task(name: str, requests: Sequence[Any]) -> Reference:
    """The reference of a task: the contexts of its first requests, each once."""
    return Reference(name, list(dict.fromkeys(q.context for q in requests))[:N_REFERENCE])
