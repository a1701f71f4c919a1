"""A table that was made from results, with what it says and how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import pandas as pd

from depthlens.analysis.result.findings import Finding
from depthlens.analysis.result.results import Result

_OF_RESULT = ("model", "seed", "limit", "samples", "measure")  # entries of a sweep's record that a table keeps


@dataclass(frozen=True, eq=False, repr=False)
class DescribedTable(Finding):
    """A table of numbers, the sentences that it supports, and the settings needed to repeat it.

    Attributes:
        table: The numbers. The function that made it lists the columns.
        sentences: What they say; see `describe`.
        record: Model, tasks and settings.

    Example:
        >>> found = both.centre_of_mass()
        >>> sentences = found.describe()
        >>> found.record["made_by"]
        'centre_of_mass'
    """

    table: pd.DataFrame
    sentences: Sequence[str]
    record: dict[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", self.table.reset_index(drop=True))
        super().__post_init__()

    @classmethod
    def of(
        cls, made_by: str, *results: Result, rows: Any, columns: Sequence[str], lines: Sequence[str], **settings: Any
    ) -> Self:
        """A table with the record of how it was made.

        Args:
            made_by: The function that made it.
            results: What it was made from.
            rows: Of the table: anything that pandas makes one of.
            columns: Of the table, in order.
            lines: What it says; see `describe`.
            settings: More entries of the record.
        """
        sources = [
            {key: result.record[key] for key in _OF_RESULT if key in result.record}
            | {"tasks": sorted(set(result.docs["task"]))}
            for result in results
        ]
        record = {"made_by": made_by, "made_from": sources, **settings}
        return cls(pd.DataFrame(rows, columns=list(columns)), lines, record)


def joined(tables: Sequence[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    """Tables below one another, with these columns; one without rows where there are no tables."""
    return pd.concat(tables, ignore_index=True)[list(columns)] if tables else pd.DataFrame(columns=list(columns))
