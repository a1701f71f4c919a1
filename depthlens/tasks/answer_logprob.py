"""The likelihood of a task's reference answers: one continuous score per document for every kind of task.

Accuracy is too coarse for the effect of one head on a few documents, and writing text is slow. ``answer_logprob`` is
log p(reference answer | prompt) in nats, teacher-forced, with the task's own prompt. The reference answer is the
correct option of a multiple-choice task, the continuation of a cloze task, and the reference text of a written task
(for worked problems such as GSM8K the whole solution), after the task's ``target_delimiter`` as in its examples.

``token_logprob`` is the same divided by the number of the answer's tokens, in nats per token. It compares what a
removal costs on answers of different lengths: with equal damage per token, ``answer_logprob`` loses 60 times as much on
an answer of 60 tokens as on one of 1.

Limits: both measure how likely the model finds this wording, and not whether the model would find the answer by itself.
Long answers weigh more than short ones in ``answer_logprob``. In ``token_logprob`` the tokens that any model predicts
(the rest of a word, the form of a solution) dilute those that carry the answer, the more of them there are.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from depthlens.errors import UserError
from depthlens.metrics import ANSWER_LOGPROB, MIN_NATS, TOKEN_LOGPROB
from depthlens.models.lens import Lens
from depthlens.progress import quiet
from depthlens.requests import LoglikelihoodAnswer
from depthlens.tasks.prepared_task import Prepared, Score, by_document, warn_of_cuts

if TYPE_CHECKING:  # slow to import
    from lm_eval.api.instance import Instance


class Answers(Prepared):
    """A prepared task whose reference answers are scored, one for each document.

    ``chat`` says whether the task was prepared with a chat template, and ``metric`` is one of
    `depthlens.metrics.LOGPROBS`.

    Attributes:
        pairs: Prompt and answer as text, by document, as they are encoded.

    Raises:
        UserError: the task has no reference answer (perplexity tasks), or one that is not among its options.
    """

    written = False

    def __init__(self, lens: Lens, prepared: Prepared, *, chat: bool = False, metric: str = ANSWER_LOGPROB) -> None:
        from depthlens.tasks.encoding import Encoder  # slow to import

        encoder, name, task = Encoder(lens), prepared.name, copy.copy(prepared.task)
        groups, between = by_document(task.instances), delimiter(task, chat=chat)
        self.metric = metric
        self.pairs = {doc_id: reference_pair(prepared, group, between) for doc_id, group in groups.items()}
        with quiet():
            requests = [[encoder.pair(name, *pair)] for pair in self.pairs.values()]
        task._instances = [group[0] for group in groups.values()]
        super().__init__(name, task, requests, encoder.cut, asked=prepared.asked)
        if not any(prepared.cut):  # else `harness.prepare` has warned
            warn_of_cuts(name, self.cut, encoder.max_length)

    def score(self, answers: Sequence[LoglikelihoodAnswer]) -> list[Score]:
        """Values in nats, or nats per token, with the reference answer as the response."""
        return [
            Score(
                self.metric,
                instance.doc_id,
                answer.logprob / (len(request.continuation) if self.metric == TOKEN_LOGPROB else 1),
                self.pairs[instance.doc_id][1].strip(),
            )
            for instance, (request,), answer in zip(self.task.instances, self.by_instance, answers, strict=True)
        ]

    def describe(self, docs: pd.DataFrame) -> dict[str, Any]:
        """The task's entry in a record; see `prepared_task.Prepared.describe`."""
        info = {"higher_is_better": True, "chance": None, "floor": None, "binary": False, "min_effect": MIN_NATS}
        if self.metric == TOKEN_LOGPROB:
            lengths = [len(request.continuation) for (request,) in self.by_instance]
            info["mean_tokens"] = sum(lengths) / len(lengths)
        return super().describe(docs.iloc[:0]) | {"metrics": {self.metric: info}}


def delimiter(task: Any, *, chat: bool) -> str:
    """What stands between a prompt and its answer; in a chat the template separates the two, as in lm-eval."""
    return "" if chat and not task.config.gen_prefix else task.config.target_delimiter


def reference_pair(prepared: Prepared, group: list[Instance], before_answer: str) -> tuple[str, str]:
    """Context and reference answer of one document as text.

    Args:
        prepared: Its task.
        group: The document's instances, one an option.
        before_answer: The `delimiter` of written answers.

    Raises:
        UserError: there is no reference answer, or it is not among the options.
    """
    task, doc, kind = prepared.task, group[0].doc, prepared.output_type
    if kind == "loglikelihood":
        return group[0].args
    if kind == "multiple_choice":
        gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        gold = gold[0] if isinstance(gold, list) else gold
        choices = task.doc_to_choice(doc)
        index = choices.index(gold) if isinstance(gold, str) and gold in choices else gold
        if not isinstance(index, int) or not 0 <= index < len(choices):
            raise UserError(f"task {prepared.name}: answer {gold!r} of document {group[0].doc_id} is not an option")
        return group[index].args
    target = written_answer(task, doc) if kind == "generate_until" else None
    if target is None:
        fault = f"document {group[0].doc_id} has no reference answer"
        raise UserError(f"task {prepared.name}: {fault}; {ANSWER_LOGPROB} needs one")
    return group[0].args[0], before_answer + target


def written_answer(task: Any, doc: Any) -> str | None:
    """The reference answer of a document of a written task; None where it has none."""
    target = task.doc_to_target(doc)
    target = target[0] if isinstance(target, list) and target else target
    return target if isinstance(target, str) and target.strip() else None
