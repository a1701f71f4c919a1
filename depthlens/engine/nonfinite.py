"""Numbers that are not finite stop a sweep; they would spread silently into means.

Overflow (float16, now and then bfloat16) and broken weights give NaN or infinite log-probabilities. Answers are looked
at as they come, which costs nothing.
"""

from __future__ import annotations

from depthlens.ablations import Condition
from depthlens.errors import UserError
from depthlens.models.lens import Lens


def not_finite(lens: Lens, condition: Condition) -> UserError:
    """The error for an answer that is not finite."""
    fix = "use dtype=float32, or get its weights again" if lens.dtype.itemsize < 4 else "get its weights again"
    fault = f"model {lens.name!r} gives numbers that are not finite under {condition}"
    return UserError(f"{fault} ({str(lens.dtype).removeprefix('torch.')}); {fix}")
