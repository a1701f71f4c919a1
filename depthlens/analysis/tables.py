"""A table of numbers together with what it says in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from depthlens.analysis import displays
from depthlens.analysis.saving import Saveable

if TYPE_CHECKING:
    from depthlens.analysis.results import Result

_OF_RESULT = ("model", "seed", "limit", "samples", "measure")  # entries of a sweep's record that a table keeps


@dataclass(frozen=True, eq=False, repr=False)
class DescribedTable(Saveable):
    """A table of numbers, the sentences that it supports, and the settings needed to repeat it.

    Attributes:
        table: The numbers. The function that made it lists the columns.
        sentences: What they say; see `describe`.
        record: Model, tasks and settings.
    """

    table: pd.DataFrame
    sentences: Sequence[str]
    record: dict[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", self.table.reset_index(drop=True))
        super().__post_init__()

    def describe(self) -> list[str]:
        """What the numbers say, one sentence each."""
        return list(self.sentences)

    def __repr__(self) -> str:
        return displays.as_text("", *self._shown())

    def _repr_html_(self) -> str:
        return displays.as_html("", *self._shown())

    def _shown(self) -> tuple[pd.DataFrame, list[str]]:
        if not len(self.table):
            return self.table, list(self.sentences) or ["none"]
        return displays.cut(self.table.round(3), ".table; describe() says it in words")


def record_of(made_by: str, *results: Result, **settings: Any) -> dict[str, Any]:
    """The record of a table: the function that made it, what it was made from, and its settings."""
    sources = [
        {key: result.record[key] for key in _OF_RESULT if key in result.record}
        | {"tasks": sorted(set(result.docs["task"]))}
        for result in results
    ]
    return {"made_by": made_by, "made_from": sources, **settings}
