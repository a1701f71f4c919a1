"""How a 95% interval is written in a sentence, in one way for all."""

from __future__ import annotations

import math

TOO_FEW = "[too few differ for an interval]"


def bounds(low: float, high: float, spec: str = ".2f") -> str:
    """``[0.10, 0.30]``; or, where no interval is given, that too few documents differ for one.

    Args:
        low: Lower bound; NaN where no interval is given (`depthlens.analysis.stats.FEWEST`).
        high: Upper bound.
        spec: Of both numbers, as in a format string.
    """
    if math.isnan(low) or math.isnan(high):
        return TOO_FEW
    return f"[{low:{spec}}, {high:{spec}}]"
