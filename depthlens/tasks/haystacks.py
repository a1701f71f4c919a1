"""Prompts that hide a needle in a haystack and ask for it.

Two kinds. *natural*: sentences about invented people stand among paragraphs of prose, and the question has only the
name in common with its sentence, so that no copied phrase leads from one to the other (Wu et al. 2024, arXiv
2404.15574). The answer is a phrase of several words. *codes*: four-digit codes of things in generated sentences; the
question repeats the sentence up to the code, so that continuing the repeated text (induction) is enough to answer.

Both kinds have other facts in the haystack; two of these are asked and answered before the question, so that small
models know the form of an answer.

Limit: the prose has some 9,000 tokens. A longer haystack repeats its paragraphs in another order.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from random import Random

from depthlens.paths import data_dir

NATURAL, CODES = KINDS = ("natural", "codes")
N_OTHERS, N_EXAMPLES = 3, 2  # other facts in a haystack, and those of them that serve as answered examples
PROSE = ("encyclopaedic", "narrative", "dialogue", "instructions")  # kinds of the plain texts that read on


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


@dataclass(frozen=True)
class Facts:
    """What one prompt states and asks; the first fact is the needle.

    Attributes:
        facts: Sentences for the haystack.
        answers: What each fact is asked for, as it stands in the fact.
        questions: The question of each, as asked.
        leads: What stands between a question and its answer.
        about: What the needle is about, for `Needle.about`.
    """

    facts: tuple[str, ...]
    answers: tuple[str, ...]
    questions: tuple[str, ...]
    leads: tuple[str, ...]
    about: dict[str, str]

    @property
    def asked(self) -> str:
        """Examples with their answers, then the question about the needle."""
        examples = "".join(
            f"Q: {self.questions[i]}\n{self.leads[i]} {self.answers[i]}.\n\n" for i in range(1, 1 + N_EXAMPLES)
        )
        return f"{examples}Q: {self.questions[0]}\n{self.leads[0]}"


@cache
def needles_file() -> dict:
    """The templates, answers and names of natural needles."""
    return tomllib.loads((data_dir() / "texts" / "needles.toml").read_text(encoding="utf-8"))


@cache
def paragraphs() -> tuple[tuple[str, ...], ...]:
    """The prose of natural haystacks: paragraphs of sentences, each with the white space before it."""
    texts = [json.loads(line) for name in ("haystack", "plain") for line in _lines(name)]
    kept = [text["text"] for text in texts if text.get("kind", PROSE[0]) in PROSE]
    ends = re.compile(r'(?:(?<=[.!?])|(?<=[.!?]"))(?=\s["A-Z])')
    return tuple(tuple(ends.split(f"\n\n{text}")) for text in kept)


def _lines(name: str) -> list[str]:
    return (data_dir() / "texts" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()


def facts(kind: str, random: Random) -> Facts:
    """A needle and other facts of a kind."""
    return _natural(random) if kind == NATURAL else _codes(random)


def _natural(random: Random) -> Facts:
    file, n = needles_file(), 1 + N_OTHERS
    templates = random.sample(file["needles"], n)
    names = zip(random.sample(file["first_names"], n), random.sample(file["last_names"], n), strict=True)
    filled = [natural(t, " ".join(name), random.choice(t["answers"])) for t, name in zip(templates, names, strict=True)]
    stated, answers, asked, leads, who = zip(*filled, strict=True)
    return Facts(stated, answers, asked, leads, {"kind": NATURAL, "who": who[0]})


def natural(template: dict, who: str, answer: str) -> tuple[str, str, str, str, str]:
    """A natural needle: fact, answer, question, lead (with the opening words of the answer), and whom it is about."""
    opening, _, rest = answer.rpartition(" | ")
    fact = template["fact"].format(who=who, answer=f"{opening} {rest}".strip())
    return (
        fact,
        rest,
        template["question"].format(who=who),
        f"A: {template['lead'].format(who=who)} {opening}".strip(),
        who,
    )


def _codes(random: Random) -> Facts:
    things = random.sample(THINGS, 1 + N_OTHERS)
    codes = tuple(str(code) for code in random.sample(range(1000, 10000), 1 + N_OTHERS))
    stated = tuple(f"The code of the {thing} is {code}." for thing, code in zip(things, codes, strict=True))
    asked = tuple(f"What is the code of the {thing}?" for thing in things)
    leads = tuple(f"A: The code of the {thing} is" for thing in things)
    return Facts(stated, codes, asked, leads, {"kind": CODES, "thing": things[0]})


def hay(kind: str, random: Random) -> Iterator[str]:
    """Sentences without end, each with the white space before it."""
    while kind == CODES:
        sentence = f"{random.choice(WHO)} {random.choice(DID)} {random.choice(WHEN)}."
        yield f" {sentence[0].upper()}{sentence[1:]}"
    while True:
        for paragraph in random.sample(paragraphs(), len(paragraphs())):
            yield from paragraph


def prompt(
    kind: str,
    chosen: Facts,
    random: Random,
    depth: float,
    room: int,
    count: Callable[[str], int],
    whole: Callable[[str], int],
) -> str:
    """The prompt with the needle at ``depth``, of at most ``room`` tokens and less by one sentence at most.

    Args:
        kind: ``natural`` or ``codes``.
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
            mixed.insert(round(place * len(sentences)), f" {chosen.facts[i]}")
        return f"{''.join(mixed).strip()}\n\n{chosen.asked}"

    sentences: list[str] = []
    n_tokens = whole(put_together([]))
    for sentence in hay(kind, random):
        if n_tokens > room:
            break
        sentences.append(sentence)
        n_tokens += count(sentence)
    while sentences and whole(put_together(sentences)) > room:  # a sentence alone may have a token less
        sentences.pop()
    return put_together(sentences)
