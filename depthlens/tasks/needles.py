"""Needles: answers that occur in their prompt, with the positions of their tokens.

There are two sources. `task_needles` takes any lm-eval task whose answers occur in its prompts (key-value retrieval,
open book). `written_needles` hides facts in haystacks and asks for one: sentences about invented people stand among
paragraphs of prose, and the question has only the name in common with its sentence, so that no copied phrase leads from
one to the other (Wu et al. 2024, arXiv 2404.15574). The answer is a phrase of several words. Other facts are in the
haystack as well; two of these are asked and answered before the question, so that small models know the form of an
answer.

A needle is the tokens of the answer without spaces, and every place in the context where the answer occurs as a word.

Limit: the prose has some 9,000 tokens. A longer haystack repeats its paragraphs in another order.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, product
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from depthlens import arguments
from depthlens.errors import UserError
from depthlens.models.lens import Lens, one_thread
from depthlens.paths import data_dir
from depthlens.requests import LoglikelihoodRequest
from depthlens.tasks import harness
from depthlens.tasks.measures import Answers, Text, align
from depthlens.tasks.prepared_task import identity

if TYPE_CHECKING:  # slow to import
    from depthlens.tasks.encoding import Encoder

log = logging.getLogger(__name__)

RESERVE = 16  # tokens of the model's context that a prompt leaves free for the answer
N_OTHERS, N_EXAMPLES = 3, 2  # other facts in a haystack, and those of them that serve as answered examples
PROSE = ("encyclopaedic", "narrative", "dialogue", "instructions")  # kinds of the plain texts that read on


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

    Example:
        >>> needle = needles[0]
        >>> lens.tokenizer.decode(needle.targets)
        'Sara'
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


def find(text: Text, answer: str, about: dict[str, Any]) -> Needle | None:
    """The needle of an answer in its context; None where the answer does not occur in it."""
    # not as a part of a longer word or number
    before = r"(?<!\w)(?<!\d[.,])" if answer[:1].isalnum() else ""
    after = r"(?!\w)(?![.,]\d)" if answer[-1:].isalnum() else ""
    found = re.finditer(before + re.escape(answer) + after, text.context)
    places = [position for match in found for position in text.positions(*match.span())]
    n = len(text.request.context)
    start = text.continuation.index(answer) + len(text.context)
    steps = [p - n for p in text.positions(start, start + len(answer)) if p >= n]
    if not places or not steps:
        return None
    return Needle(text.request, tuple(steps), tuple(sorted(set(places))), about)


@one_thread
def task_needles(lens: Lens, tasks: str | Sequence[str], **options: Any) -> list[Needle]:
    """Needles of lm-eval tasks: their reference answers, where they occur in the prompts.

    Args:
        lens: The model that reads them.
        tasks: One lm-eval task (or group) or several.
        options: limit, samples, num_fewshot, include_path and seed, as `depthlens.load_tasks` takes them.

    Raises:
        UserError: unknown task, or tasks whose answers do not occur in their prompts.

    Example:
        >>> needles = dl.tasks.task_needles(lens, "organism_one_hop", limit=4)
        >>> len(needles)
        4
    """
    loaded = harness.load_tasks(tasks, **options)
    needles: list[Needle | None] = []
    for prepared in harness.prepare(lens, loaded, limit=options.get("limit"), samples=options.get("samples")):
        for doc_id, (context, answer) in Answers(prepared).pairs.items():
            about = {"task": prepared.name, "doc_id": doc_id}
            about["doc_hash"] = identity(prepared.task, prepared.docs[doc_id])
            needles.append(find(align(prepared.encoder, prepared.name, context, answer), answer.strip(), about))
    if not any(needles):
        fault = f"no answer of {len(needles)} documents is in its prompt"
        raise UserError(f"tasks {', '.join(loaded)}: {fault}; retrieval needs one that is")
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
        context_lengths: Tokens of a prompt, to within one sentence. Where the model reads fewer, as many as it reads;
            where the facts alone take more, they stand without hay. A warning says so.
        seed: Seed of the haystacks, facts and answers.

    Raises:
        UserError: a number that is not allowed, a model that cannot read the facts alone, or a
            tokenizer that does not know English words.

    Example:
        >>> needles = dl.tasks.written_needles(base, n_needles=1, depths=[0.5], context_lengths=[512])
        >>> len(needles)
        1
    """
    from depthlens.tasks.encoding import Encoder  # slow to import

    n_needles = arguments.whole("n_needles", n_needles, 1)
    seed = arguments.check(seed=seed)["seed"]
    depths = [arguments.number("depths", depth, 0, 1) for depth in depths]
    context_lengths = [arguments.whole("context_lengths", n, 1, of=" of tokens") for n in context_lengths]
    if lens.tokenizer.unk_token_id in lens.tokenizer("The code is 4711", add_special_tokens=False).input_ids:
        raise UserError(f"the tokenizer of {lens.name} does not know English words; give tasks= in its own language")
    encoder = Encoder(lens)
    # each sentence of the hay is encoded once for all needles
    size = functools.cache(lambda text: len(encoder.tokenizer(text, add_special_tokens=False).input_ids))
    needles = []
    fitting = list(dict.fromkeys(min(length, lens.max_length - RESERVE) for length in context_lengths))
    for length, depth, i in product(fitting, depths, range(n_needles)):
        random = Random(f"needle natural {seed} {length} {depth} {i}")
        chosen = facts(random)
        prompt, fact = haystack(chosen, random, depth, length, encoder, size), chosen[0]
        text = align(encoder, "needle", prompt, f" {fact.answer}")
        needle = find(text, fact.answer, {"depth": depth, "context_length": length, "who": fact.who})
        assert needle is not None, "the prompt contains the fact with the answer"
        spans = (prompt.index(fact.text), fact.text), (prompt.rindex(fact.question), fact.question)
        sentence, question = (tuple(text.positions(start, start + len(part))) for start, part in spans)
        needles.append(replace(needle, sentence=sentence, question=question))
    sizes = [len(needle.request.context) for needle in needles]
    wanted = [needle.about["context_length"] for needle in needles]
    if fitting != context_lengths or any(size > length for size, length in zip(sizes, wanted, strict=True)):
        told = f"{lens.name} reads {lens.max_length} tokens, and facts are not cut"
        log.warning("context_lengths %s: prompts have %d to %d; %s", context_lengths, min(sizes), max(sizes), told)
    return needles


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


@functools.cache
def needles_file() -> dict:
    """The templates, answers and names of needles."""
    return tomllib.loads((data_dir() / "texts" / "needles.toml").read_text(encoding="utf-8"))


@functools.cache
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


def haystack(
    chosen: Sequence[Fact], random: Random, depth: float, room: int, encoder: Encoder, size: Callable[[str], int]
) -> str:
    """The prompt with the needle at ``depth``, of at most ``room`` tokens and less by one sentence at most.

    Args:
        chosen: From `facts`.
        random: Draws the places of the other facts, then the hay.
        depth: 0 is the start of the haystack, 1 its end.
        room: Tokens; where the prompt without hay has more, it is that one.
        encoder: Of the model.
        size: Tokens of a sentence.

    Raises:
        UserError: a model that cannot read the prompt without hay.
    """
    examples = "".join(f"Q: {f.question}\n{f.lead} {f.answer}.\n\n" for f in chosen[1 : 1 + N_EXAMPLES])
    places = sorted([(depth, 0), *((random.random(), i) for i in range(1, 1 + N_OTHERS))], reverse=True)

    def put_together(sentences: list[str]) -> str:
        mixed = list(sentences)
        for place, i in places:  # from the back, so that the numbers of earlier sentences do not change
            mixed.insert(round(place * len(sentences)), f" {chosen[i].text}")
        return f"{''.join(mixed).strip()}\n\n{examples}Q: {chosen[0].question}\n{chosen[0].lead}"

    sentences: list[str] = []
    n_tokens = len(encoder.tok_encode(put_together([])))
    if n_tokens > (longest := encoder.lens.max_length) - RESERVE:
        about = f"{encoder.lens.name} reads {longest} tokens, and a prompt without hay has {n_tokens}"
        raise UserError(f"{about}: no needle fits; give tasks= with shorter prompts, or another model")
    # without end: all paragraphs, again and again in another order
    hay = (part for _ in count() for paragraph in random.sample(paragraphs(), len(paragraphs())) for part in paragraph)
    for sentence in hay:
        if n_tokens > room:
            break
        sentences.append(sentence)
        n_tokens += size(sentence)
    # a sentence alone may have a token less
    while sentences and len(encoder.tok_encode(put_together(sentences))) > room:
        sentences.pop()
    return put_together(sentences)
