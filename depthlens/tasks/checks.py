"""Tasks, tried before a model is loaded: their settings, and the scoring of the first documents by made-up answers.

So a function or template that raises is reported now and not after hours.
"""

from __future__ import annotations

from typing import Any

from depthlens.errors import UserError, blaming
from depthlens.progress import quiet
from depthlens.requests import LoglikelihoodAnswer
from depthlens.tasks import document_choice
from depthlens.tasks.document_choice import Samples
from depthlens.tasks.prepared_task import Prepared, build_requests

N_REHEARSED = 3  # documents that are scored with made-up answers


def check(name: str, task: Any, limit: int | None = None, samples: Samples | None = None) -> None:
    """Score the first documents with made-up answers: first the reference answer, then an empty one.

    Few-shot examples are drawn, so their seed has to be set again after it.

    Args:
        name: Task name.
        task: A loaded task.
        limit: Number of documents, from the first on; None: all.
        samples: Which documents, see `document_choice.chosen`; None: all.

    Raises:
        UserError: prompts cannot be made, the task's functions raise, a generation option is not supported, or no
            metric of the task has a value per document.
    """
    from depthlens.tasks.encoding import check_generation  # slow to import

    if task.OUTPUT_TYPE == "generate_until":
        check_generation(name, task.config.generation_kwargs or {})
    chosen = document_choice.chosen(name, task, limit, samples)
    some = range(N_REHEARSED) if chosen is None else chosen[:N_REHEARSED]
    with blaming(f"task {name}: its prompts cannot be made", "correct its YAML file or its documents"), quiet():
        build_requests(task, some)
    instances = task.instances
    for instance in instances:
        if instance.request_type == "generate_until":
            check_generation(name, instance.args[1])
    prepared = Prepared(name, task, task.OUTPUT_TYPE, [], [1] * len(instances))
    with quiet():
        values = [list(prepared.score(answers)) for answers in _made_up_answers(task)]
    if not values[-1]:
        skipped = ", ".join(prepared.skipped) or "none"
        raise UserError(f"task {name}: no metric has a value per document ({skipped})")


def _made_up_answers(task: Any) -> list[list[Any]]:
    if task.OUTPUT_TYPE != "generate_until":
        return [[LoglikelihoodAnswer(-1.0 - i.idx, False) for i in task.instances]]
    texts = [str(task.doc_to_target(i.doc)) for i in task.instances]
    return [texts, [""] * len(texts)]
