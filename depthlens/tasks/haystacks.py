"""Prompts that hide a needle in a haystack and ask for it.

Sentences about invented people stand among paragraphs of prose, and the question has only the name in common with its
sentence, so that no copied phrase leads from one to the other (Wu et al. 2024, arXiv 2404.15574). The answer is a
phrase of several words. Other facts are in the haystack as well; two of these are asked and answered before the
question, so that small models know the form of an answer.

Limit: the prose has some 9,000 tokens. A longer haystack repeats its paragraphs in another order.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from random import Random
from typing import NamedTuple

from depthlens.paths import data_dir

N_OTHERS, N_EXAMPLES = 3, 2  # other facts in a haystack, and those of them that serve as answered examples
PROSE = ("encyclopaedic", "narrative", "dialogue", "instructions")  # kinds of the plain texts that read on


class Fact(NamedTuple):
    """A sentence for a haystack, and how it is asked for.

    Attributes:
        text: The sentence.
        answer: What is asked for, as it stands in the sentence.
        question: As asked.
        lead: What stands between the question and its answer: the opening words of the answer.
        who: Whom it is about.
    """

    text: str
    answer: str
    question: str
    lead: str
    who: str


@cache
def needles_file() -> dict:
    """The templates, answers and names of needles."""
    return tomllib.loads((data_dir() / "texts" / "needles.toml").read_text(encoding="utf-8"))


@cache
def paragraphs() -> tuple[tuple[str, ...], ...]:
    """The prose of haystacks: paragraphs of sentences, each with the white space before it."""
    files = [(data_dir() / "texts" / f"{name}.jsonl").read_text(encoding="utf-8") for name in ("haystack", "plain")]
    texts = [json.loads(line) for file in files for line in file.splitlines()]
    kept = [text["text"] for text in texts if text.get("kind", PROSE[0]) in PROSE]
    ends = re.compile(r'(?:(?<=[.!?])|(?<=[.!?]"))(?=\s["A-Z])')
    return tuple(tuple(ends.split(f"\n\n{text}")) for text in kept)


def facts(random: Random) -> list[Fact]:
    """The facts of one prompt; the first is the needle."""
    file, n = needles_file(), 1 + N_OTHERS
    templates = random.sample(file["needles"], n)
    names = zip(random.sample(file["first_names"], n), random.sample(file["last_names"], n), strict=True)
    return [natural(t, " ".join(name), random.choice(t["answers"])) for t, name in zip(templates, names, strict=True)]


def natural(template: dict, who: str, answer: str) -> Fact:
    """A fact of a template; of its answer, what stands before ``|`` opens the answer and is not asked for."""
    opening, _, rest = answer.rpartition(" | ")
    text = template["fact"].format(who=who, answer=f"{opening} {rest}".strip())
    lead = f"A: {template['lead'].format(who=who)} {opening}".strip()
    return Fact(text, rest, template["question"].format(who=who), lead, who)


def asked(chosen: Sequence[Fact]) -> str:
    """Examples with their answers, then the question about the needle."""
    examples = "".join(f"Q: {f.question}\n{f.lead} {f.answer}.\n\n" for f in chosen[1 : 1 + N_EXAMPLES])
    return f"{examples}Q: {chosen[0].question}\n{chosen[0].lead}"


def hay(random: Random) -> Iterator[str]:
    """Sentences without end, each with the white space before it."""
    while True:
        for paragraph in random.sample(paragraphs(), len(paragraphs())):
            yield from paragraph


def prompt(
    chosen: Sequence[Fact],
    random: Random,
    depth: float,
    room: int,
    count: Callable[[str], int],
    whole: Callable[[str], int],
) -> str:
    """The prompt with the needle at ``depth``, of at most ``room`` tokens and less by one sentence at most.

    Args:
        chosen: From `facts`.
        random: Draws the places of the other facts, then the hay.
        depth: 0 is the start of the haystack, 1 its end.
        room: Tokens; at least those of the prompt without hay.
        count: Tokens of a sentence.
        whole: Tokens of a prompt as the model reads it.
    """
    places = sorted([(depth, 0), *((random.random(), i) for i in range(1, 1 + N_OTHERS))], reverse=True)

    def put_together(sentences: list[str]) -> str:
        mixed = list(sentences)
        for place, i in places:  # from the back, so that the numbers of earlier sentences do not change
            mixed.insert(round(place * len(sentences)), f" {chosen[i].text}")
        return f"{''.join(mixed).strip()}\n\n{asked(chosen)}"

    sentences: list[str] = []
    n_tokens = whole(put_together([]))
    for sentence in hay(random):
        if n_tokens > room:
            break
        sentences.append(sentence)
        n_tokens += count(sentence)
    while sentences and whole(put_together(sentences)) > room:  # a sentence alone may have a token less
        sentences.pop()
    return put_together(sentences)
