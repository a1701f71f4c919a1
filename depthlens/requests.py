"""Requests to an engine and its answers, as token ids; no torch, no tasks."""

from __future__ import annotations

from dataclasses import dataclass


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
class GenerateRequest:
    """A request for the greedy text after a context, up to the first stop string.

    Attributes:
        context: Token ids.
        until: Stop strings.
        max_new_tokens: Greatest number of tokens to write.
    """

    context: tuple[int, ...]
    until: tuple[str, ...]
    max_new_tokens: int
