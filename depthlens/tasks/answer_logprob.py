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
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from depthlens.engine.engine import Engine
from depthlens.errors import UserError
from depthlens.metrics import ANSWER_LOGPROB, MIN_NATS, TOKEN_LOGPROB
from depthlens.models.lens import Lens
from depthlens.progress import quiet
from depthlens.requests import LoglikelihoodAnswer
from depthlens.tasks import truncation
from depthlens.tasks.prepared_task import Prepared, Score, by_document

if TYPE_CHECKING:  # slow to import
    from lm_eval.api.instance import Instance


class Answers:
    """The reference answers of a prepared task; runs and scores like `prepared_task.Prepared`.

    ``chat`` says whether the task was prepared with a chat template, and ``metric`` is one of
    `depthlens.metrics.LOGPROBS`.

    Attributes:
        name: Task name.
        output_type: ``loglikelihood``, whatever the task's own.
        requests: One per document.
        asked: See `prepared_task.Prepared`.
        member: The same.
        texts: The answers by document.
        pairs: Prompt and answer as text, by document, as they are encoded.
        cut: Tokens cut from the left of each prompt, because prompt and answer are longer than the model reads.

    Raises:
        UserError: the task has no reference answer (perplexity tasks), or one that is not among its options.
    """

    output_type = "loglikelihood"

    def __init__(self, lens: Lens, prepared: Prepared, *, chat: bool = False, metric: str = ANSWER_LOGPROB) -> None:
        from depthlens.tasks.encoding import Encoder  # slow to import

        self.metric = metric
        self.name = prepared.name
        self.prepared = prepared
        self.asked = prepared.asked
        self.member = prepared.member
        self.skipped: dict[str, str] = {}
        before_answer = delimiter(prepared.task, chat=chat)
        self.texts: dict[int, str] = {}
        self.pairs: dict[int, tuple[str, str]] = {}
        encoder = Encoder(lens)
        for doc_id, group in by_document(prepared.task.instances).items():
            context, answer = reference_pair(prepared, group, before_answer)
            self.texts[doc_id] = answer.strip()
            self.pairs[doc_id] = context, answer
        with quiet():
            self.requests = [encoder.pair(self.name, *pair) for pair in self.pairs.values()]
        self.cut = encoder.cut
        if not any(prepared.cut):  # else `harness.prepare` has warned
            truncation.warn(self.name, self.cut, encoder.max_length)

    def part(self, documents: Collection[int]) -> Answers:
        """The same answers of some of the documents, by number."""
        part = copy.copy(self)
        part.prepared = self.prepared.part(documents)
        part.asked = part.prepared.asked
        part.requests = [q for doc_id, q in zip(self.texts, self.requests, strict=True) if doc_id in documents]
        part.texts = {doc_id: text for doc_id, text in self.texts.items() if doc_id in documents}
        part.pairs = {doc_id: pair for doc_id, pair in self.pairs.items() if doc_id in documents}
        return part

    def run(self, engine: Engine, conditions: Sequence[Any]) -> list[list[LoglikelihoodAnswer]]:
        """Answers of the engine, indexed [condition][document]."""
        return engine.loglikelihood(self.requests, conditions, desc=f"{self.name} {self.metric}")

    def score(self, answers: Sequence[LoglikelihoodAnswer]) -> Iterator[Score]:
        """Values in nats, or nats per token, with the reference answer as the response."""
        for (doc_id, text), request, answer in zip(self.texts.items(), self.requests, answers, strict=True):
            n_tokens = len(request.continuation) if self.metric == TOKEN_LOGPROB else 1
            yield Score(self.metric, doc_id, answer.logprob / n_tokens, text)

    def describe(self, docs: pd.DataFrame) -> dict[str, Any]:
        """The task's entry in a record; see `prepared_task.Prepared.describe`."""
        about = self.prepared.describe(docs.iloc[:0])
        info = {"higher_is_better": True, "chance": None, "floor": None, "binary": False, "min_effect": MIN_NATS}
        if self.metric == TOKEN_LOGPROB:
            info["mean_tokens"] = sum(len(q.continuation) for q in self.requests) / len(self.requests)
        return about | truncation.counted(self.cut) | {"metrics": {self.metric: info}}


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
    task, doc, kind, name = prepared.task, group[0].doc, prepared.output_type, prepared.name
    if kind == "loglikelihood":
        return group[0].args
    if kind == "multiple_choice":
        gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        gold = gold[0] if isinstance(gold, list) else gold
        choices = task.doc_to_choice(doc)
        index = choices.index(gold) if isinstance(gold, str) and gold in choices else gold
        if not isinstance(index, int) or not 0 <= index < len(choices):
            raise UserError(f"task {name}: answer {gold!r} of document {group[0].doc_id} is not an option")
        return group[index].args
    if kind != "generate_until":
        raise UserError(f"task {name} ({kind}) has no reference answers; {ANSWER_LOGPROB} needs some")
    if (target := written_answer(task, doc)) is None:
        fault = f"document {group[0].doc_id} has no reference answer"
        raise UserError(f"task {name}: {fault}; {ANSWER_LOGPROB} needs one")
    return group[0].args[0], before_answer + target


def written_answer(task: Any, doc: Any) -> str | None:
    """The reference answer of a document of a written task; None where it has none."""
    target = task.doc_to_target(doc)
    target = target[0] if isinstance(target, list) and target else target
    return target if isinstance(target, str) and target.strip() else None
