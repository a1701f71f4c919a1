"""Needles: answers that stand in the prompt, with the tokens where they stand.

Two sources. *Written here*: a haystack of plain sentences by a seeded generator, in which codes of things stand
("The code of the boat is 4711."); one is asked for, and two questions about others before it show how to answer, so
that small models recall some. *Any lm-eval task* whose answer stands in its prompt (key-value retrieval, open book).

A needle is the tokens of the answer, spaces left out, and every place in the context where the answer stands by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from depthlens import arguments
from depthlens.errors import UserError
from depthlens.requests import LoglikelihoodRequest
from depthlens.tasks import harness, token_spans
from depthlens.tasks.answer_logprob import Answers
from depthlens.tasks.encoding import Encoder

THINGS = """
    anchor basket blanket bottle bucket button carpet clock compass curtain drum feather flag flute hat helmet jacket
    jar kettle key kite knife lantern letter medal needle pillow pipe plate pot ring rope saddle scarf shield shoe spoon
    stamp stove sword ticket towel trumpet umbrella vase violin wallet whistle
""".split()
WHO = (
    """
    the baker|a tall woman|the old sailor|her brother|the teacher|a small boy|our neighbour|the young doctor|his aunt|
    the gardener|a tired farmer|the painter|my cousin|the night guard|a quiet girl|the driver
""".strip()
    .replace("\n    ", "")
    .split("|")
)
DID = (
    """
    walked along the shore|sang an old song|waited for the rain to stop|told a long story|looked at the grey sky|
    cleaned the windows|fed the ducks|slept in the shade|wrote about the journey|planted some beans|
    listened to the wind|lost the way home|made a pot of soup|counted the birds|opened the heavy gate|swept the yard
""".strip()
    .replace("\n    ", "")
    .split("|")
)
WHEN = (
    """
    in the morning|before the market opened|late at night|on the way to town|after the harvest|while the others talked|
    without a word|as the sun went down|near the old mill|for a whole hour|once more|with great care
""".strip()
    .replace("\n    ", "")
    .split("|")
)
N_OTHERS, N_EXAMPLES = 3, 2  # other codes in a haystack, and those that are asked for and answered as examples


@dataclass(frozen=True)
class Needle:
    """An answer and where it stands in its prompt.

    Attributes:
        request: Prompt and answer.
        steps: Indices, in the answer's tokens, of those that the needle is made of.
        places: Positions in the context where the needle's tokens stand.
        about: What it is: task and document, or depth and context length.
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
    """The needle of an answer in its context; None where the answer stands nowhere in it."""
    places = [p for start, end in token_spans.words(text.context, answer) for p in text.positions(start, end)]
    n = len(text.request.context)
    start = text.continuation.index(answer) + len(text.context)
    steps = [p - n for p in text.positions(start, start + len(answer)) if p >= n]
    if not places or not steps:
        return None
    return Needle(text.request, tuple(steps), tuple(sorted(set(places))), about)


def task_needles(
    lens: Any,
    tasks: str | Sequence[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: str | Path | None = None,
    seed: int = 0,
) -> list[Needle]:
    """Needles of lm-eval tasks: their reference answers, where they are in the prompts.

    Args:
        lens: The model that reads them.
        tasks: One lm-eval task (or group) or several.
        limit: First so many documents; None for all.
        num_fewshot: Worked examples before each question; None keeps what the task says.
        include_path: Folder with more lm-eval YAML files.
        seed: Seed of the choice of examples.

    Raises:
        UserError: unknown task, or one whose answers stand in no prompt.
    """
    arguments.loaded(lens)
    most = arguments.documents(limit)
    names = arguments.names("tasks", tasks, "kv_retrieval_4")
    loaded = harness.load_tasks(names, include_path=include_path, num_fewshot=num_fewshot, seed=seed, limit=most)
    found: list[Needle] = []
    n_docs = 0
    encoder = Encoder(lens)
    for prepared in harness.prepare(lens, loaded, limit=most):
        for doc_id, (context, answer) in Answers(lens, prepared).pairs.items():
            n_docs += 1
            text = token_spans.align(lens, f"task {prepared.name}", context, answer, encoder)
            needle = find(text, answer.strip(), {"task": prepared.name, "doc_id": doc_id})
            found += [needle] if needle else []
    if not found:
        raise UserError(
            f"tasks {', '.join(names)}: no answer of {n_docs} documents is in its prompt; retrieval needs one that is"
        )
    return found


def written_needles(
    lens: Any,
    n_needles: int = 2,
    depths: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    context_lengths: Sequence[int] = (256, 512),
    seed: int = 0,
) -> list[Needle]:
    """Needles in haystacks written here.

    Args:
        lens: The model that reads them.
        n_needles: Needles for every depth and context length.
        depths: Where the needle stands: 0 at the start of the haystack, 1 at its end.
        context_lengths: Tokens of a prompt, to within one sentence.
        seed: Of the haystacks, things and codes.

    Raises:
        UserError: a number that cannot be, a length that does not fit the model or is too short, or a tokenizer that
            does not know English words.
    """
    arguments.loaded(lens)
    arguments.whole("n_needles", n_needles, 1)
    arguments.check(seed=seed)
    for name, several in (("depths", depths), ("context_lengths", context_lengths)):
        if not isinstance(several, Sequence) or isinstance(several, str) or not several:
            raise UserError(f"{name} {several!r}: give a list of numbers, at least one")
    for depth in depths:
        arguments.number("depths", depth, 0, 1, fix=": 0 is the start of the haystack, 1 its end")
    for length in context_lengths:
        arguments.whole("context_lengths", length, 1, of=" of tokens")
    encoder = Encoder(lens)
    if lens.tokenizer.unk_token_id in (known := lens.tokenizer("The code is 4711", add_special_tokens=False).input_ids):
        raise UserError(f"{lens.name} reads {len(known)} words of English as unknown; give tasks=, in its own language")
    needles = []
    for length in context_lengths:
        for depth in depths:
            for i in range(n_needles):
                random = Random(f"needle {seed} {length} {depth} {i}")
                prompt, code, key = _prompt(lens, encoder, random, depth, length)
                about = {"depth": depth, "context_length": length, "thing": key}
                needle = find(token_spans.align(lens, "needle", prompt, f" {code}", encoder), code, about)
                needles.append(needle)
    return needles


def _prompt(lens: Any, encoder: Encoder, random: Random, depth: float, length: int) -> tuple[str, str, str]:
    """A prompt of about ``length`` tokens, the code that should follow, and the thing whose code it is."""
    things = random.sample(THINGS, 1 + N_OTHERS)
    codes = [str(code) for code in random.sample(range(1000, 10000), 1 + N_OTHERS)]
    facts = [f"The code of the {thing} is {code}." for thing, code in zip(things, codes, strict=True)]
    asked = [f"Q: What is the code of the {thing}?\nA: The code of the {thing} is" for thing in things]
    examples = "".join(f"{asked[i]} {codes[i]}.\n\n" for i in range(1, 1 + N_EXAMPLES))

    def put_together(hay: list[str]) -> str:
        places = [(depth, 0), *((random_place, i) for i, random_place in enumerate(others, 1))]
        sentences = list(hay)
        for place, i in sorted(places, reverse=True):  # from the back, so that earlier places keep their numbers
            sentences.insert(round(place * len(hay)), facts[i])
        return f"{' '.join(sentences)}\n\n{examples}{asked[0]}"

    others = [random.random() for _ in range(N_OTHERS)]
    most = lens.model.config.max_position_embeddings
    shortest = len(encoder.tok_encode(put_together([])))
    if not shortest <= length <= most - 16:
        fault = f"context length {length}: {lens.name} reads {most} tokens and a prompt without hay has {shortest}"
        raise UserError(f"{fault}; give {shortest} to {most - 16}")
    hay: list[str] = []
    n_tokens = shortest
    while n_tokens <= length:
        sentence = f"{random.choice(WHO)} {random.choice(DID)} {random.choice(WHEN)}."
        hay.append(sentence[0].upper() + sentence[1:])
        n_tokens += len(lens.tokenizer(f" {hay[-1]}", add_special_tokens=False).input_ids)
    while len(encoder.tok_encode(put_together(hay))) > length:  # a sentence alone may count a token less
        hay.pop()
    return put_together(hay), codes[0], things[0]
