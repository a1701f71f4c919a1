"""Requests to an engine and its answers, as token ids; no torch, no tasks.

The text of a request (`repr`) is its address in a store.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class LoglikelihoodRequest:
    """A request for log p(continuation | context); both are token ids and neither is empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        """Tokens that the model reads: it predicts the last token of the continuation and never reads it."""
        return (*self.context, *self.continuation)[:-1]


@dataclass(frozen=True)
class LoglikelihoodAnswer:
    """Answer to a `LoglikelihoodRequest`: sum of log-probabilities in nats, and whether greedy decoding writes it."""

    logprob: float
    is_greedy: bool


@dataclass(frozen=True)
class Sampling:
    """How the tokens of a text are drawn; the names and the meanings are those of transformers.

    Attributes:
        temperature: Logits are divided by it; above 0.
        top_p: Only the likeliest tokens whose probabilities add up to it.
        top_k: Only so many tokens; 0: all.
        min_p: Only tokens at least so likely as this share of the likeliest one's probability.
        seed: Of all texts.
        draw: Which of several texts after the same prompt (lm-eval's ``repeats``).
    """

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    draw: int = 0


@dataclass(frozen=True)
class GenerateRequest:
    """A request for the text after a context, up to the first stop string.

    Attributes:
        context: Token ids.
        until: Stop strings.
        max_new_tokens: Greatest number of tokens to write.
        sampling: How tokens are drawn; None: the likeliest token is written.
        think_end: Text that ends what a model thinks: stop strings count behind it, and only what follows is the
            answer. None: all of the text is.
        right: The reference answer, for a plan alone; None says nothing.
    """

    context: tuple[int, ...]
    until: tuple[str, ...]
    max_new_tokens: int
    sampling: Sampling | None = None
    think_end: str | None = None
    right: str | None = field(default=None, compare=False, repr=False)


class WrittenAnswer(str):
    """Answer to a `GenerateRequest`: the text.

    Attributes:
        complete: Whether the text ended by itself or at a stop string, and not because it had as many tokens as were
            allowed; None where a store of an older version does not say it.
    """

    complete: bool | None

    def __new__(cls, text: str, complete: bool | None = None) -> WrittenAnswer:
        answer = super().__new__(cls, text)
        answer.complete = complete
        return answer
