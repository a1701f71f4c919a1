"""Needles: answers that occur in their prompt, with the positions of their tokens.

There are two sources. `written_needles` hides facts in haystacks and asks for one (`depthlens.tasks.haystacks`).
`task_needles` takes any lm-eval task whose answers occur in its prompts (key-value retrieval, open book).

A needle is the tokens of the answer without spaces, and every place in the context where the answer occurs as a word.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from depthlens import arguments
from depthlens.errors import UserError
from depthlens.models.lens import Lens, one_thread
from depthlens.requests import LoglikelihoodRequest
from depthlens.tasks import harness, haystacks, token_spans
from depthlens.tasks.answer_logprob import Answers
from depthlens.tasks.document_choice import Samples
from depthlens.tasks.prepared_task import identity

log = logging.getLogger(__name__)

RESERVE = 16  # tokens of the model's context that a prompt leaves free for the answer


@dataclass(frozen=True)
class Needle:
    """An answer and its positions in its prompt.

    Attributes:
        request: Prompt and answer.
        steps: Indices of the needle's tokens among the tokens of the answer.
        places: Positions of the needle's tokens in the context.
        about: Task, document and its hash (`depthlens.tasks.prepared_task.identity`), or depth, context length and
            whom it is about.
        sentence: Positions of the sentence that states the answer; empty where it is not known.
        question: Positions of the question; empty where it is not known.
    """

    request: LoglikelihoodRequest
    steps: tuple[int, ...]
    places: tuple[int, ...]
    about: dict[str, Any] = field(default_factory=dict, hash=False)
    sentence: tuple[int, ...] = ()
    question: tuple[int, ...] = ()

    @property
    def gold(self) -> tuple[int, ...]:
        """Positions that hold what is asked for: the sentence, or the answer alone where no sentence is known."""
        return self.sentence or self.places

    @property
    def queries(self) -> tuple[int, ...]:
        """Positions that ask: the question, or the last of the context where no question is known."""
        return self.question or (len(self.request.context) - 1,)

    @property
    def asked(self) -> list[int]:
        """Positions that predict the needle's tokens, in ``context + continuation``."""
        return [len(self.request.context) - 1 + step for step in self.steps]

    @property
    def targets(self) -> list[int]:
        """The needle's tokens."""
        return [self.request.continuation[step] for step in self.steps]


def find(text: token_spans.Text, answer: str, about: dict[str, Any]) -> Needle | None:
    """The needle of an answer in its context; None where the answer does not occur in it."""
    spans = token_spans.occurrences(text.context, answer)
    places = [position for start, end in spans for position in text.positions(start, end)]
    n = len(text.request.context)
    start = text.continuation.index(answer) + len(text.context)
    steps = [p - n for p in text.positions(start, start + len(answer)) if p >= n]
    if not places or not steps:
        return None
    return Needle(text.request, tuple(steps), tuple(sorted(set(places))), about)


@one_thread
def task_needles(
    lens: Lens,
    tasks: str | Sequence[str],
    *,
    limit: int | None = None,
    samples: Samples | None = None,
    num_fewshot: int | None = None,
    include_path: str | Path | None = None,
    seed: int = 0,
) -> list[Needle]:
    """Needles of lm-eval tasks: their reference answers, where they occur in the prompts.

    Args:
        lens: The model that reads them.
        tasks: One lm-eval task (or group) or several.
        limit: Number of documents of each task, from the first on; None: all.
        samples: Which documents, instead of ``limit``; see `depthlens.tasks.document_choice.chosen`.
        num_fewshot: Worked examples before each question; None: what the task says.
        include_path: Folder with more lm-eval YAML files.
        seed: Seed of the choice of examples.

    Raises:
        UserError: unknown task, or tasks whose answers do not occur in their prompts.
    """
    from depthlens.tasks.encoding import Encoder  # slow to import

    arguments.loaded(lens)
    which: dict[str, Any] = {"limit": arguments.documents(limit), "samples": samples}
    names = arguments.names("tasks", tasks, "kv_retrieval_4")
    loaded = harness.load_tasks(names, include_path=include_path, num_fewshot=num_fewshot, seed=seed, **which)
    needles: list[Needle | None] = []
    encoder = Encoder(lens)
    for prepared in harness.prepare(lens, loaded, **which):
        for doc_id, (context, answer) in Answers(lens, prepared).pairs.items():
            text = token_spans.align(lens, f"task {prepared.name}", context, answer, encoder)
            about = {"task": prepared.name, "doc_id": doc_id}
            about["doc_hash"] = identity(prepared.task, prepared.docs[doc_id])
            needles.append(find(text, answer.strip(), about))
    if not any(needles):
        fault = f"no answer of {len(needles)} documents is in its prompt"
        raise UserError(f"tasks {', '.join(names)}: {fault}; retrieval needs one that is")
    return [needle for needle in needles if needle]


@one_thread
def written_needles(
    lens: Lens,
    n_needles: int = 2,
    depths: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    context_lengths: Sequence[int] = (256, 512),
    seed: int = 0,
) -> list[Needle]:
    """Needles in haystacks that are written for the purpose.

    Args:
        lens: The model that reads them.
        n_needles: Needles for every depth and context length.
        depths: Place of the needle: 0 is the start of the haystack, 1 its end.
        context_lengths: Tokens of a prompt, to within one sentence. Where the facts alone take more, or the model reads
            fewer, the nearest length that fits is taken, and a warning says so.
        seed: Seed of the haystacks, facts and answers.

    Raises:
        UserError: a number that is not allowed, a model that cannot read the facts alone, or a
            tokenizer that does not know English words.
    """
    from depthlens.tasks.encoding import Encoder  # slow to import

    arguments.loaded(lens)
    n_needles = arguments.whole("n_needles", n_needles, 1)
    seed = arguments.check(seed=seed)["seed"]
    depths = [arguments.number("depths", depth, 0, 1) for depth in depths]
    context_lengths = [arguments.whole("context_lengths", n, 1, of=" of tokens") for n in context_lengths]
    if lens.tokenizer.unk_token_id in lens.tokenizer("The code is 4711", add_special_tokens=False).input_ids:
        raise UserError(f"the tokenizer of {lens.name} does not know English words; give tasks= in its own language")
    encoder = Encoder(lens)

    @functools.cache
    def count(sentence: str) -> int:
        return len(lens.tokenizer(sentence, add_special_tokens=False).input_ids)

    def drawn(length: int, depth: float, i: int) -> tuple[Random, list[haystacks.Fact]]:
        random = Random(f"needle natural {seed} {length} {depth} {i}")
        return random, haystacks.facts(random)

    def whole(prompt: str) -> int:
        return len(encoder.tok_encode(prompt))

    every = (drawn(*case)[1] for case in product(context_lengths, depths, range(n_needles)))
    shortest = max(whole(f"{' '.join(f.text for f in facts)}\n\n{haystacks.asked(facts)}") for facts in every)
    needles = []
    for length, depth, i in product(_fitting(lens, context_lengths, shortest), depths, range(n_needles)):
        random, facts = drawn(length, depth, i)
        prompt, fact = haystacks.prompt(facts, random, depth, length, count, whole), facts[0]
        text = token_spans.align(lens, "needle", prompt, f" {fact.answer}", encoder)
        needle = find(text, fact.answer, {"depth": depth, "context_length": length, "who": fact.who})
        assert needle is not None, "the prompt contains the fact with the answer"
        spans = (prompt.index(fact.text), fact.text), (prompt.rindex(fact.question), fact.question)
        sentence, question = (tuple(text.positions(start, start + len(part))) for start, part in spans)
        needles.append(replace(needle, sentence=sentence, question=question))
    return needles


def _fitting(lens: Lens, lengths: Sequence[int], shortest: int) -> list[int]:
    """The lengths that a model reads, and that hold the facts; the nearest one in place of any other."""
    longest = lens.max_length - RESERVE
    about = f"{lens.name} reads {longest + RESERVE} tokens, and a prompt without hay has up to {shortest}"
    if shortest > longest:
        raise UserError(f"{about}: no needle fits; give tasks= with shorter prompts, or another model")
    fitting = list(dict.fromkeys(min(max(length, shortest), longest) for length in lengths))
    if fitting != list(lengths):
        log.warning("context_lengths %s: %s; %s instead", list(lengths), about, fitting)
    return fitting
