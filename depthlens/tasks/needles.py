"""Needles: answers that occur in their prompt, with the positions of their tokens.

There are two sources. `written_needles` makes haystacks: plain sentences from a seeded generator with codes of things
among them ("The code of the boat is 4711."). The prompt asks for one code, after two questions about other codes with
their answers, so that small models recall some. `task_needles` takes any lm-eval task whose answers occur in its
prompts (key-value retrieval, open book).

A needle is the tokens of the answer without spaces, and every place in the context where the answer occurs as a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from depthlens import arguments
from depthlens.errors import UserError
from depthlens.models.lens import Lens
from depthlens.requests import LoglikelihoodRequest
from depthlens.tasks import harness, token_spans
from depthlens.tasks.answer_logprob import Answers
from depthlens.tasks.document_choice import Samples
from depthlens.tasks.encoding import Encoder


def _phrases(text: str) -> list[str]:
    return text.strip().replace("\n    ", "").split("|")


THINGS = """
    anchor basket blanket bottle bucket button carpet clock compass curtain drum feather flag flute hat helmet jacket
    jar kettle key kite knife lantern letter medal needle pillow pipe plate pot ring rope saddle scarf shield shoe spoon
    stamp stove sword ticket towel trumpet umbrella vase violin wallet whistle
""".split()
WHO = _phrases("""
    the baker|a tall woman|the old sailor|her brother|the teacher|a small boy|our neighbour|the young doctor|his aunt|
    the gardener|a tired farmer|the painter|my cousin|the night guard|a quiet girl|the driver
""")
DID = _phrases("""
    walked along the shore|sang an old song|waited for the rain to stop|told a long story|looked at the grey sky|
    cleaned the windows|fed the ducks|slept in the shade|wrote about the journey|planted some beans|
    listened to the wind|lost the way home|made a pot of soup|counted the birds|opened the heavy gate|swept the yard
""")
WHEN = _phrases("""
    in the morning|before the market opened|late at night|on the way to town|after the harvest|while the others talked|
    without a word|as the sun went down|near the old mill|for a whole hour|once more|with great care
""")
N_OTHERS, N_EXAMPLES = 3, 2  # other codes in a haystack, and those of them that serve as answered examples
RESERVE = 16  # tokens of the model's context that a prompt leaves free for the answer


@dataclass(frozen=True)
class Needle:
    """An answer and its positions in its prompt.

    Attributes:
        request: Prompt and answer.
        steps: Indices of the needle's tokens among the tokens of the answer.
        places: Positions of the needle's tokens in the context.
        about: Task and document, or depth, context length and thing.
    """

    request: LoglikelihoodRequest
    steps: tuple[int, ...]
    places: tuple[int, ...]
    about: dict[str, Any] = field(default_factory=dict, hash=False)

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
    arguments.loaded(lens)
    which: dict[str, Any] = {"limit": arguments.documents(limit), "samples": samples}
    names = arguments.names("tasks", tasks, "kv_retrieval_4")
    loaded = harness.load_tasks(names, include_path=include_path, num_fewshot=num_fewshot, seed=seed, **which)
    needles: list[Needle | None] = []
    encoder = Encoder(lens)
    for prepared in harness.prepare(lens, loaded, **which):
        for doc_id, (context, answer) in Answers(lens, prepared).pairs.items():
            text = token_spans.align(lens, f"task {prepared.name}", context, answer, encoder)
            needles.append(find(text, answer.strip(), {"task": prepared.name, "doc_id": doc_id}))
    if not any(needles):
        fault = f"no answer of {len(needles)} documents is in its prompt"
        raise UserError(f"tasks {', '.join(names)}: {fault}; retrieval needs one that is")
    return [needle for needle in needles if needle]


def written_needles(
    lens: Lens,
    n_needles: int = 2,
    depths: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    context_lengths: Sequence[int] = (256, 512),
    seed: int = 0,
) -> list[Needle]:
    """Needles in generated haystacks.

    Args:
        lens: The model that reads them.
        n_needles: Needles for every depth and context length.
        depths: Place of the needle: 0 is the start of the haystack, 1 its end.
        context_lengths: Tokens of a prompt, to within one sentence.
        seed: Seed of the haystacks, things and codes.

    Raises:
        UserError: a number that is not allowed, a length that does not fit the model or is too short, or a tokenizer
            that does not know English words.
    """
    arguments.loaded(lens)
    arguments.whole("n_needles", n_needles, 1)
    arguments.check(seed=seed)
    for name, numbers in (("depths", depths), ("context_lengths", context_lengths)):
        if not isinstance(numbers, Sequence) or isinstance(numbers, str) or not numbers:
            raise UserError(f"{name} {numbers!r}: give a list of numbers, at least one")
    for depth in depths:
        arguments.number("depths", depth, 0, 1, fix=": 0 is the start of the haystack, 1 its end")
    for length in context_lengths:
        arguments.whole("context_lengths", length, 1, of=" of tokens")
    encoder = Encoder(lens)
    if lens.tokenizer.unk_token_id in lens.tokenizer("The code is 4711", add_special_tokens=False).input_ids:
        raise UserError(f"the tokenizer of {lens.name} does not know English words; give tasks= in its own language")
    needles = []
    for length, depth, i in product(context_lengths, depths, range(n_needles)):
        random = Random(f"needle {seed} {length} {depth} {i}")
        prompt, code, thing = _prompt(lens, encoder, random, depth, length)
        about = {"depth": depth, "context_length": length, "thing": thing}
        needle = find(token_spans.align(lens, "needle", prompt, f" {code}", encoder), code, about)
        assert needle is not None, "the prompt contains the fact with the code"
        needles.append(needle)
    return needles


def _prompt(lens: Lens, encoder: Encoder, random: Random, depth: float, length: int) -> tuple[str, str, str]:
    """A prompt of about ``length`` tokens, the code that should follow, and the thing with this code."""
    things = random.sample(THINGS, 1 + N_OTHERS)
    codes = [str(code) for code in random.sample(range(1000, 10000), 1 + N_OTHERS)]
    facts = [f"The code of the {thing} is {code}." for thing, code in zip(things, codes, strict=True)]
    asked = [f"Q: What is the code of the {thing}?\nA: The code of the {thing} is" for thing in things]
    examples = "".join(f"{asked[i]} {codes[i]}.\n\n" for i in range(1, 1 + N_EXAMPLES))

    places = sorted([(depth, 0), *((random.random(), i) for i in range(1, 1 + N_OTHERS))], reverse=True)

    def put_together(hay: list[str]) -> str:
        sentences = list(hay)
        for place, i in places:  # from the back, so that the numbers of earlier sentences do not change
            sentences.insert(round(place * len(hay)), facts[i])
        return f"{' '.join(sentences)}\n\n{examples}{asked[0]}"

    longest = lens.model.config.max_position_embeddings
    shortest = len(encoder.tok_encode(put_together([])))
    if not shortest <= length <= longest - RESERVE:
        fault = f"context length {length}: {lens.name} reads {longest} tokens and a prompt without hay has {shortest}"
        raise UserError(f"{fault}; give {shortest} to {longest - RESERVE}")
    hay: list[str] = []
    n_tokens = shortest
    while n_tokens <= length:
        sentence = f"{random.choice(WHO)} {random.choice(DID)} {random.choice(WHEN)}."
        hay.append(sentence[0].upper() + sentence[1:])
        n_tokens += len(lens.tokenizer(f" {hay[-1]}", add_special_tokens=False).input_ids)
    while len(encoder.tok_encode(put_together(hay))) > length:  # a sentence alone may have a token less
        hay.pop()
    return put_together(hay), codes[0], things[0]
