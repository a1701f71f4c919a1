"""What users get wrong: how a refusal is tried, and tables with a row for each rule and each place where one is asked.

`tests/unit/test_refusals.py` runs every row, which says what is done and a part of the one line that must be told.
"""

from collections.abc import Callable
from typing import Any

import pytest

from depthlens.errors import UserError


def refused(said: str, do: Callable, /, *given: Any, **options: Any) -> str:
    """Call a function that must refuse; returns the one line, in which a pattern is found (any line for no pattern)."""
    with pytest.raises(UserError, match=said or None) as raised:
        do(*given, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)
