"""How a 95% interval is written in a sentence, in one way for all."""

from __future__ import annotations


def bounds(low: float, high: float, spec: str = ".2f") -> str:
    """``[0.10, 0.30]``; ``spec`` is of both numbers, as in a format string."""
    return f"[{low:{spec}}, {high:{spec}}]"
