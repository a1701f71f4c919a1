"""Prompts of organisms with the positions that matter, which `depthlens.organisms.language` draws as texts."""

from dataclasses import dataclass

from depthlens.organisms import language
from depthlens.organisms.language import BOS, QA, SEP, vocabulary


@dataclass(frozen=True)
class Prompt:
    """A question with its answer and the positions that matter (in ``tokens``, which start with ``<bos>``).

    Attributes:
        text: The prompt as lm-eval gives it, without ``<bos>``.
        tokens: Token ids; the last two are ``QA`` or ``QB`` and the word that is asked about.
        answer: The word that should come next.
        answer_at: Position of the answer in its fact: what a copying head attends to.
        bridge_at: Position of the middle of the chain in its first fact (for ``one_hop`` the same as ``answer_at``).
    """

    text: str
    tokens: tuple[int, ...]
    answer: str
    answer_at: int
    bridge_at: int

    @property
    def answer_id(self) -> int:
        """Token id of the answer."""
        return self.tokens[self.answer_at]


def read(text: str) -> Prompt:
    """Find answer and positions in the text of a prompt.

    Raises:
        KeyError: a word that the language lacks, or of which no fact is told.
    """
    tokens = [BOS, *text.split()]
    # a fact ends with SEP: the token two before it leads to the token one before it
    facts = {tokens[i - 2]: i - 1 for i, token in enumerate(tokens) if token == SEP and i > 2}
    bridge_at = facts[tokens[-1]]
    answer_at = bridge_at if tokens[-2] == QA else facts[tokens[bridge_at]]
    return Prompt(text, tuple(vocabulary()[t] for t in tokens), tokens[answer_at], answer_at, bridge_at)


def sample(n: int, task: str, **options) -> list[Prompt]:
    """Prompts as `language.sample` draws them."""
    return [read(text) for text in language.sample(n, task, **options)]
