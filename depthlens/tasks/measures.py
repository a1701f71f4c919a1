"""What is measured beside the metrics of tasks: reference answers, and text that a model goes on with by itself.

Reference answers have a likelihood, one continuous score per document of any task, and tokens. Behind these: documents
that take no part in what is scored, for ``@mean`` and ``@resample``.

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

The texts of ``@mean`` and the prompts of ``@resample`` are the prompts of documents that are not evaluated, with their
reference answers. Documents of the few-shot, training and validation splits come first, then those of the evaluation
split that are not evaluated, the last one first. A document whose text equals one that is evaluated is left out.

A text of ``@mean`` has no worked examples before it: a mean over the evaluated prompts would hold what is asked of the
model, and one over prompts with examples is a mean of examples (92% of the text of GSM8K with five of them). A prompt
of ``@resample`` has as many examples as those that are scored, because each position gets what the same position of the
prompt has: a prompt of another form would put a question where an example is.

Free text is a continuation of plain text. No answer is right or wrong here. Two numbers say whether it holds together:

* ``repetition`` = 1 - distinct 4-grams of tokens / 4-grams (seq-rep-4 of Welleck et al. 2020, arXiv 1908.04319): 0
  where nothing recurs, towards 1 where the model turns in a loop. A text of fewer than four tokens repeats nothing.
* ``nats_per_token`` = -log p(text | prompt) of the **whole** model, over the number of tokens: the logarithm of the
  perplexity of what was written. Where nothing was written it is that of the end-of-text token.

Limits: a loop is easy to expect, so that ``nats_per_token`` can fall while ``repetition`` rises: read the two together.
Greedy decoding repeats more than sampling does, also with nothing removed. What the whole model expects is no judgement
of truth or style, and texts that the whole model wrote itself have the advantage that it chose every token.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from depthlens.ablations import parse_condition
from depthlens.engine.references import Reference
from depthlens.errors import UserError, blaming
from depthlens.metrics import ANSWER_LOGPROB, MIN_NATS, TOKEN_LOGPROB
from depthlens.models.lens import Lens
from depthlens.progress import quiet
from depthlens.requests import GenerateRequest, LoglikelihoodAnswer, LoglikelihoodRequest
from depthlens.tasks.prepared_task import FIX, Prepared, Score, by_document, instances_of, question, warn_of_cuts

if TYPE_CHECKING:  # slow to import
    from lm_eval.api.instance import Instance

    from depthlens.tasks.encoding import Encoder

MOST, FEWEST = 64, 8  # texts of a reference
NAME, REPETITION, SURPRISAL = "free_text", "repetition", "nats_per_token"
_INFO = {"higher_is_better": False, "chance": None, "floor": None}


class Answers(Prepared):
    """A prepared task whose reference answers are scored, one for each document.

    ``metric`` is one of `depthlens.metrics.LOGPROBS`.

    Attributes:
        pairs: Prompt and answer as text, by document, as they are encoded.

    Raises:
        UserError: a document has no reference answer (and none of a perplexity task has one).
    """

    written = False

    def __init__(self, prepared: Prepared, metric: str = ANSWER_LOGPROB) -> None:
        vars(self).update(vars(prepared))
        groups = by_document(prepared.task.instances)
        self.metric, self.task = metric, copy.copy(prepared.task)
        self.pairs = {doc_id: reference_pair(prepared, group) for doc_id, group in groups.items()}
        for doc_id, (_, answer) in self.pairs.items():
            if not answer or prepared.output_type == "loglikelihood_rolling":
                fault = f"document {doc_id} has no reference answer"
                raise UserError(f"task {self.name}: {fault}; {ANSWER_LOGPROB} needs one")
        self.by_instance = [[request] for request in self.encoder.pairs(self.name, self.pairs.values())]
        self.task._instances, self.cut = [group[0] for group in groups.values()], self.encoder.cut
        self.merged = len(self.encoder.merged)
        if not any(prepared.cut):  # else `harness.prepare` has warned
            warn_of_cuts(self.name, self.cut, self.encoder.max_length)

    def score(self, answers: Sequence[LoglikelihoodAnswer]) -> list[Score]:
        """Values in nats, or nats per token, with the reference answer as the response."""
        found = []
        for doc_id, (request,), answer in zip(self.docs, self.by_instance, answers, strict=True):
            n = len(request.continuation) if self.metric == TOKEN_LOGPROB else 1
            found.append(Score(self.metric, doc_id, answer.logprob / n, self.pairs[doc_id][1].strip()))
        return found

    def describe(self, docs: pd.DataFrame) -> dict[str, Any]:
        """The task's entry in a record; see `prepared_task.Prepared.describe`."""
        info = _INFO | {"higher_is_better": True, "min_effect": MIN_NATS}
        return super().describe(docs.iloc[:0]) | {"metrics": {self.metric: info}}


def reference_pair(prepared: Prepared, group: list[Instance]) -> tuple[str, str]:
    """Context and reference answer of one document as text; "" where there is no context, or no answer.

    Args:
        prepared: Its task.
        group: The document's instances, one an option.
    """
    task, first, kind = prepared.task, group[0], prepared.output_type
    if kind == "loglikelihood":
        return first.args
    if kind == "loglikelihood_rolling":
        return "", first.args[0]
    _, answers, options = question(task, first.doc)
    if kind == "multiple_choice":
        return group[options.index(answers[0])].args if answers and answers[0] in options else ("", "")
    answer = answers[0] if answers else ""
    if not isinstance(answer, str) or not answer.strip():
        return first.args[0], ""
    # in a chat the template separates the two, as in lm-eval
    separated = prepared.prompts["apply_chat_template"] and not task.config.gen_prefix
    return first.args[0], ("" if separated else task.config.target_delimiter) + answer


@dataclass(frozen=True)
class Text:
    """A context and a continuation, as characters and as tokens.

    The token ids are lm-eval's (`encoding`), and the characters of each come from the tokenizer's own offset mapping. A
    token belongs to a span if it contains a character of it that is not white space, because tokenizers differ in
    whether the space before a word is a token, a part of the next token, or left out of its offsets.

    Attributes:
        context: Characters before the continuation.
        continuation: Characters that follow.
        request: The tokens of both, as a request to the engine.
        offsets: Start and end of each token in ``context + continuation``; (0, 0) for tokens without characters.
    """

    context: str
    continuation: str
    request: LoglikelihoodRequest
    offsets: tuple[tuple[int, int], ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        """The token ids of context and continuation."""
        return (*self.request.context, *self.request.continuation)

    def positions(self, start: int, end: int) -> list[int]:
        """Positions of the tokens that contain a character of ``[start, end)`` other than white space."""
        text = self.context + self.continuation
        overlaps = ((i, max(a, start), min(b, end)) for i, (a, b) in enumerate(self.offsets))
        return [i for i, a, b in overlaps if a < b and text[a:b].strip()]


def align(encoder: Encoder, name: str, context: str, continuation: str) -> Text:
    """Encode a context with its continuation as lm-eval does, and find the characters of every token.

    Args:
        encoder: Of the model.
        name: Task of the text, for messages.
        context: Not empty.
        continuation: Not empty.

    Raises:
        UserError: the tokenizer encodes context and continuation in another way than lm-eval does.
    """
    (request,) = encoder.pairs(name, [(context, continuation)])
    encoded = encoder.tokenizer(context + continuation, return_offsets_mapping=True, add_special_tokens=False)
    ids, offsets = tuple(encoded.input_ids), list(encoded.offset_mapping)
    tokens = (*request.context, *request.continuation)
    n = min(len(ids), len(tokens))  # lm-eval adds <bos> in front, or cuts the left to the model's length
    if ids[-n:] != tokens[-n:]:
        fault = f"the tokenizer of {encoder.lens.name} encodes a text in two ways"
        raise UserError(f"task {name}: {fault}; its spans cannot be found")
    return Text(context, continuation, request, tuple([(0, 0)] * (len(tokens) - n) + offsets[-n:]))


def reference_of(prepared: Prepared) -> Reference:
    """The reference of a task and the documents that are evaluated, see the module.

    Raises:
        UserError: fewer than 8 documents are left.
    """
    requests: list[Any] = []
    for instance, pair in _others(prepared, "@mean", FEWEST, MOST):
        encoder = prepared.encoder
        requests += encoder.pairs(prepared.name, [pair]) if all(pair) else encoder.encode([instance])[0]
    texts = [(request.context, getattr(request, "continuation", ())) for request in requests]
    return Reference(f"{prepared.name}: documents that are not evaluated, without examples", texts)


def prompts_of_others(prepared: Prepared, n: int, *, seed: int = 0) -> list[str]:
    """Prompts of documents that are not evaluated, with examples as the task has them and their reference answers.

    Args:
        prepared: The task and the documents that are evaluated.
        n: How many.
        seed: Of the choice of examples.

    Raises:
        UserError: fewer documents are left.
    """
    tokenizer = prepared.encoder.tokenizer
    prepared.task.set_fewshot_seed(seed=seed)
    found = _others(prepared, "@resample", n, n, prepared.task.config.num_fewshot or 0)
    texts = ["".join(pair) for _, pair in found]
    if tokenizer("a").input_ids[0] == tokenizer.bos_token_id:  # what a chat template begins with would be there twice
        texts = [text.removeprefix(tokenizer.bos_token) for text in texts]
    return texts


def _others(
    prepared: Prepared, what: str, fewest: int, most: int, n_examples: int = 0
) -> list[tuple[Instance, tuple[str, str]]]:
    """Documents that are not evaluated, each of another text: first instance, prompt and answer.

    A document that is among its own examples is left out.

    Raises:
        UserError: fewer than ``fewest``, which ``what`` needs.
    """
    task, found = prepared.task, []
    seen = set(zip(prepared.asked["question"], prepared.asked["reference"], strict=True))
    with blaming(f"task {prepared.name}: its prompts cannot be made", FIX), quiet():
        for doc in _candidates(prepared):
            text, answers, _ = question(task, doc)
            if (asked := (text, " | ".join(map(str, answers)))) in seen:
                continue
            seen.add(asked)
            group = instances_of(task, 0, doc, n_examples, **prepared.prompts)
            if n_examples and text and group[0].args[0].count(text) > 1:
                continue
            found.append((group[0], reference_pair(prepared, group)))
            if len(found) == most:
                return found
    if len(found) < fewest:
        fix = f"lower limit, use a task with a training split, or ablate without {what}"
        fault = f"{what} needs {fewest} documents that are not evaluated, and {len(found)} are left"
        raise UserError(f"task {prepared.name}: {fault}; {fix}")
    return found


def _candidates(prepared: Prepared) -> Iterator[Any]:
    """Documents that may be used."""
    task, config, shots = prepared.task, prepared.task.config, prepared.task.fewshot_cfg
    evaluated = config.test_split if task.has_test_docs() else config.validation_split
    # examples that are written in another way may lack what the task's own templates ask for
    alike = all(getattr(shots, t) == getattr(config, t) for t in ("doc_to_text", "doc_to_target", "doc_to_choice"))
    if alike and (shots.split not in (None, evaluated) or (shots.split is None and shots.samples is not None)):
        yield from task.fewshot_docs()
    if config.training_split not in (None, evaluated):
        yield from task.training_docs()
    if config.validation_split not in (None, evaluated):
        yield from task.validation_docs()
    # from the end: documents are evaluated from the first on, so that another number of them has the same reference
    docs, run = task.eval_docs, prepared.docs
    yield from (docs[i] for i in reversed(range(len(docs))) if i not in run)


def repetition(tokens: Sequence[int], n: int = 4) -> float:
    """1 - distinct n-grams / n-grams of tokens; 0 for fewer than n tokens."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclass
class FreeText:
    """Prompts to continue, which run and score like `depthlens.tasks.prepared_task.Prepared`.

    Attributes:
        lens: The model, whose tokenizer counts the tokens.
        prompts: Token ids that every text begins with.
        max_new_tokens: Longest continuation.
    """

    lens: Lens
    prompts: Sequence[tuple[int, ...]]
    max_new_tokens: int
    name: str = NAME
    written: bool = True
    skipped: dict[str, str] = field(default_factory=dict)
    member: None = None

    @property
    def requests(self) -> list[GenerateRequest]:
        """One for each prompt; only the end-of-text token stops a text."""
        return [GenerateRequest(prompt, (), self.max_new_tokens) for prompt in self.prompts]

    @property
    def asked(self) -> pd.DataFrame:
        """The prompts; see `depthlens.analysis.result.questions`."""
        from lm_eval.utils import hash_string  # slow to import

        texts = [self.lens.tokenizer.decode(list(prompt)) for prompt in self.prompts]
        table = {"task": self.name, "doc_id": range(len(texts)), "question": texts, "reference": "", "choices": None}
        return pd.DataFrame(table).assign(doc_hash=[hash_string(text) for text in texts])

    def run(self, engine: Any, conditions: Sequence[Any]) -> list[list[tuple[str, tuple[int, ...], float]]]:
        """Text, its tokens and its nats per token under the whole model, indexed [condition][prompt]."""
        written = engine.generate_until(self.requests, conditions, desc=self.name)
        tokens = [[tuple(self.lens.tokenizer(t, add_special_tokens=False).input_ids) for t in row] for row in written]
        end = (int(self.lens.tokenizer.eos_token_id),)
        pairs = [(prompt, ids or end) for row in tokens for prompt, ids in zip(self.prompts, row, strict=True)]
        asked = [LoglikelihoodRequest(*pair) for pair in pairs]
        (answers,) = engine.loglikelihood(asked, [parse_condition("baseline")], desc=f"{self.name} {SURPRISAL}")
        nats = iter([-a.logprob / len(q.continuation) for q, a in zip(asked, answers, strict=True)])
        return [list(zip(texts, ids, nats, strict=False)) for texts, ids in zip(written, tokens, strict=True)]

    def score(self, answers: Sequence[tuple[str, tuple[int, ...], float]]) -> Iterator[Score]:
        """Both numbers of every text; an empty one was not parsed."""
        for doc_id, (text, tokens, nats) in enumerate(answers):
            parsed = bool(text.strip())
            yield Score(REPETITION, doc_id, repetition(tokens), text, parsed)
            yield Score(SURPRISAL, doc_id, nats, text, parsed)

    def describe(self, docs: pd.DataFrame) -> dict[str, Any]:
        """The entry of a record; see `depthlens.tasks.prepared_task.Prepared.describe`."""
        effects = {REPETITION: 0.05, SURPRISAL: MIN_NATS}  # a smaller change is not called an effect, however sure
        return {
            "version": 1,
            "num_fewshot": 0,
            "n_docs": len(self.prompts),
            "max_new_tokens": self.max_new_tokens,
            "output_type": "generate_until",
            "metrics": {metric: _INFO | {"min_effect": least} for metric, least in effects.items()},
            "skipped_metrics": {},
        }
