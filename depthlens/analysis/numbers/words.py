"""Numbers in sentences: how those of results are written, in one way for all, and how those of a text are read.

Limit: English, and of numbers in words those up to "twenty" and the tens; "twenty-five" is two words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal

# 1,234.50; a comma or full stop that no digit follows ends the sentence; 7th and A4 are not quantities
NUMBER = re.compile(r"(?<!\w)(?<!\d[.,])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")
ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split()
ONES += "sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
WORDS = {w: Decimal(i) for i, w in enumerate(ONES)} | {w: Decimal(10 * i) for i, w in enumerate(TENS, 2)}
WORDS |= {"once": Decimal(1), "twice": Decimal(2), "half": Decimal(2), "dozen": Decimal(12), "hundred": Decimal(100)}

# of a whole model by which no removal can be judged: it guesses, or there are too few questions to tell
NOT_ABOVE_CHANCE = "not shown to be above chance"


def not_above_chance(n_questions: int) -> str:
    """That a whole model is not shown to be above chance, and by how many questions it is not."""
    return f"{NOT_ABOVE_CHANCE} ({n_questions} question{'s'[: n_questions != 1]})"


def bounds(low: float, high: float, spec: str = ".2f") -> str:
    """The ends of a 95% interval: ``[0.10, 0.30]``; ``spec`` is of both numbers, as in a format string."""
    return f"[{low:{spec}}, {high:{spec}}]"


def estimate(value: float, low: float, high: float, spec: str = ".2f") -> str:
    """A number with its 95% interval: ``0.20 [0.10, 0.30]``; without one, as of a single case, the number alone."""
    return f"{value:{spec}} {bounds(low, high, spec)}" if low == low else f"{value:{spec}}"


def plain(sentence: str) -> str:
    """A sentence without the marks of Markdown that make a part of it bold, for terminals."""
    return sentence.replace("**", "")


def numbers(text: str) -> Iterator[tuple[int, int, Decimal]]:
    """Start, end and value of every number written in digits."""
    for match in NUMBER.finditer(text):
        yield *match.span(), Decimal(match.group().replace(",", ""))
