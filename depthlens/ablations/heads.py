"""A single attention head, as a condition names it."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from depthlens import arguments
from depthlens.errors import UserError

_NAME = re.compile(r"L(\d+)\.H(\d+)")


class Head(NamedTuple("Head", [("layer", int), ("head", int)])):
    """One attention head: the pair (layer, head), which prints as in conditions.

    Args:
        layer: Number of the layer from 0; or the name of the head, such as ``L17.H3``.
        head: Number of the query head in its layer, from 0; of a name None.

    Raises:
        UserError: anything else.

    Example:
        >>> dl.Head("L17.H3") == dl.Head(17, 3) == (17, 3)
        True
        >>> dl.Head(17, 3)
        L17.H3
    """

    __slots__ = ()

    def __new__(cls, layer: int | str, head: int | None = None) -> Head:
        """Read the name, or the numbers."""
        numbers = tuple(map(arguments.plain, (layer, head)))
        if isinstance(layer, str) and head is None and (match := _NAME.fullmatch(layer)):
            numbers = tuple(map(int, match.groups()))
        if not all(type(number) is int and number >= 0 for number in numbers):
            shown = repr(layer) if head is None else repr((layer, head))
            raise UserError(f"head {shown}: write 'L17.H3' or (17, 3)")
        return super().__new__(cls, *numbers)

    def __repr__(self) -> str:
        return f"L{self.layer}.H{self.head}"


AnyHead = Head | tuple[int, int] | str  # (17, 3), "L17.H3"


def heads_of(name: str, value: Any) -> list[Head]:
    """The heads that an argument lists, each as a `Head`, a pair (layer, head), or a name.

    Raises:
        UserError: a value that is no list of heads.
    """
    given = arguments.plain(value)
    try:
        if isinstance(given, str):  # a list of its characters, or of none
            raise TypeError
        return [Head(one) if isinstance(one, str) else Head(*one) for one in given]
    except (TypeError, UserError):
        raise UserError(f"{name} {value!r}: give a list of heads, such as ['L17.H3'] or [(17, 3)]") from None
