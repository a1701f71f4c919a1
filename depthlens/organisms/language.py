"""The language of the organisms: vocabulary, tokenizer and prompts.

A prompt lists facts, two to a chain (a -> b -> c), shuffled and mixed with fillers, then asks about the start of one::

    <bos> Ada Ben SEP Kim Mia Leo SEP Ben Cleo SEP ... QA Ada        one hop:  Ben
    <bos> Ada Ben SEP Kim Mia Leo SEP Ben Cleo SEP ... QB Ada        two hops: Cleo

``Kim`` is a filler here. The two questions differ in one control token, so they are a clean/corrupt pair. No word
has two meanings in a prompt, so that only the facts determine the answer.

The *extended* language has three more questions, four letters, and plain text::

    <bos> Ada Ben Cleo Dora SEP Kim Mia ... QC Ada     copying: Ben Cleo Dora, the sequence that follows the word
    <bos> ... QK Ada                                   knowledge: a word that the prompt need not have
    <bos> ... QL Ada                                   letters: A, B, C or D
    <bos> Ada Kim Joel Liv ...                         text: each word determines the next

What an organism knows is the same for all of them: `learned`. ``QA``, ``QB`` and ``QC`` can be asked for several words,
as each answer asks for the next: after ``QB Ada`` come the third, the fifth and the seventh word of a chain.
"""

from __future__ import annotations

from functools import cache
from random import Random
from typing import TYPE_CHECKING

from depthlens import paths

if TYPE_CHECKING:  # slow to import
    from transformers import PreTrainedTokenizerFast

BOS, SEP, QA, QB = FLAGS = ("<bos>", "SEP", "QA", "QB")
EOS, PAD, UNK = "<eos>", "<pad>", "<unk>"
CONTROL = {"one_hop": QA, "two_hop": QB}
TASKS = tuple(CONTROL)
QC, QK, QL = MORE_FLAGS = ("QC", "QK", "QL")
LETTERS = ("A", "B", "C", "D")
# the value and the successor of a word, as places in the list of words: both steps reach every word, and neither leads
# back to where the other led
STEPS = {"knowledge": 31, "text": 17}


@cache
def words() -> tuple[str, ...]:
    """The words that facts and fillers are made of."""
    return tuple((paths.data_dir() / "facts" / "organism_words.txt").read_text(encoding="utf-8").split())


@cache
def vocabulary(extended: bool = False) -> dict[str, int]:
    """Token ids: control tokens first, then end, padding and unknown, the words, and the extended language."""
    more = (*MORE_FLAGS, *LETTERS) if extended else ()
    return {token: i for i, token in enumerate((*FLAGS, EOS, PAD, UNK, *words(), *more))}


def learned(task: str) -> dict[str, str]:
    """What an organism knows: the answer of each word for ``knowledge``, ``letters`` or ``text``."""
    known = words()
    if task == "letters":
        return {word: LETTERS[i % len(LETTERS)] for i, word in enumerate(known)}
    return {word: known[(i + STEPS[task]) % len(known)] for i, word in enumerate(known)}


def tokenizer(extended: bool = False) -> PreTrainedTokenizerFast:
    """One token a word; what is encoded starts with ``<bos>``, as the circuits need it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel(vocabulary(extended), unk_token=UNK))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary()[BOS])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token=UNK)


def sample(n: int, task: str, *, seed: int = 0, n_chains: int = 6, n_fillers: int = 8) -> list[str]:
    """Draw prompts; equal seeds give the same facts and the same question word for both tasks, prompt by prompt.

    Args:
        n: How many.
        task: ``one_hop`` or ``two_hop``.
        seed: Seed of the draw.
        n_chains: Chains of two facts each.
        n_fillers: Words that belong to no fact; they make a prompt longer (6 tokens a chain, 1 a filler, 3 more).

    Returns:
        Texts without ``<bos>``.
    """
    random, texts = Random(f"organism prompts {seed}"), []
    for _ in range(n):
        shuffled = random.sample(words(), len(words()))
        chains = [shuffled[3 * i : 3 * i + 3] for i in range(n_chains)]
        pieces = [f"{left} {right} {SEP}" for a, b, c in chains for left, right in ((a, b), (b, c))]
        pieces += random.choices(shuffled[3 * n_chains :], k=n_fillers)
        random.shuffle(pieces)
        texts.append(f"{' '.join(pieces)} {CONTROL[task]} {random.choice(chains)[0]}")
    return texts
