"""Prompts that are longer than the model reads: a warning before anything is computed, and counts for the record.

lm-eval cuts them from the left, so that the end of the prompt and the answer stay. The instruction and the few-shot
examples are lost first.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

log = logging.getLogger(__name__)


def counted(cut: Sequence[int]) -> dict[str, int]:
    """For the record of a task: how many prompts were cut, and the most tokens that one lost."""
    return {"n_truncated": sum(n > 0 for n in cut), "max_tokens_cut": max(cut, default=0)}


def warn(name: str, cut: Sequence[int], max_length: int) -> None:
    """Log in one line that prompts are cut.

    Args:
        name: Task name.
        cut: Tokens that each prompt loses.
        max_length: Tokens that the model reads.
    """
    if n_cut := sum(n > 0 for n in cut):
        log.warning(
            "task %s: %d of %d prompts are longer than the model reads (%d tokens) and lose up to %d tokens at their "
            "left end, as in lm-eval; give fewer examples, or a model that reads more",
            *(name, n_cut, len(cut), max_length, max(cut)),
        )
