"""One number per attention head, with its interval.

A score is a mean over cases (needles that were recalled, worked solutions) with a 95% interval over these
(`depthlens.analysis.numbers.means`). Where a score is tested against 0, heads are called critical by step-down maxT
over all heads tested, of cases that are clipped to [-1, 1]. No torch in here: plots read these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from depthlens import arguments
from depthlens.ablations import Head
from depthlens.analysis.numbers.means import ALPHA, CHANGES, UNLIMITED, Mean, in_top, max_t, mean
from depthlens.analysis.numbers.words import estimate
from depthlens.analysis.result.findings import Finding
from depthlens.metrics import MIN_NATS

N_SHOWN = 10  # highest heads that a notebook shows


@dataclass(frozen=True, eq=False, repr=False)
class HeadScores(Finding):
    """One number per head.

    Attributes:
        name: What is measured, e.g. "copy-paste score".
        unit: "", or one that begins with "nats" (`depthlens.metrics.loss_unit`).
        frame: One row a head: layer, head, condition ("L9.H6"); value (NaN where the head was not measured); low, high
            (95% interval; NaN for one case); critical (above 0 by step-down maxT and, in nats, at least `MIN_NATS`; NA
            where it was not tested); in_top (how stable the ranking is: share of bootstrap draws of cases in which
            the head is among the `N_SHOWN` highest; NaN where that is not known).
        n: Cases that the values are means over.
        record: Model, task and settings: what is needed to repeat it.

    Example:
        >>> copying.top(1)
        [L2.H1]
        >>> copying.values.shape
        (6, 4)
    """

    FILES: ClassVar[dict[str, str]] = {"frame": "heads.parquet"}
    NEXT: ClassVar[str] = "next: top(k) has the highest heads, plot() draws all, dl.removal_curve(...) removes them"

    name: str
    unit: str
    frame: pd.DataFrame
    n: int
    record: dict[str, Any]

    @classmethod
    def of_cases(
        cls,
        name: str,
        unit: str,
        cases: np.ndarray,
        record: dict[str, Any],
        *,
        tested: bool,
        heads: Sequence[tuple[int, int]] | None = None,
        limits: tuple[float, float] = UNLIMITED,
    ) -> HeadScores:
        """Mean, interval and, if ``tested`` against 0, verdict per head.

        Args:
            name: What is measured.
            unit: See `HeadScores`.
            cases: Shape [case, n_layers, n_heads].
            record: See `HeadScores`.
            tested: Whether a head above 0 is to be called critical.
            heads: Heads that were measured; None for all.
            limits: The least and the greatest that a score can be, such as 0 and 1 of a share of attention.
        """
        n, *shape = cases.shape
        at = list(np.ndindex(*shape)) if heads is None else heads
        by_head = cases[:, *np.transpose(at)]  # [case, head]
        found = mean(by_head, limits=limits)
        least = MIN_NATS if unit.startswith("nats") else 0.0
        critical = (max_t(mean(np.clip(by_head, *CHANGES))) < ALPHA) & (found.value > least) if tested else None
        return cls.of_mean(name, unit, found, at, shape, n, record, critical)

    @classmethod
    def of_mean(
        cls,
        name: str,
        unit: str,
        found: Mean,
        heads: Sequence[tuple[int, int]],
        shape: Sequence[int],
        n: int,
        record: dict[str, Any],
        critical: np.ndarray | None,
    ) -> HeadScores:
        """Value and interval of some heads; the others were not measured.

        Args:
            name: What is measured.
            unit: See `HeadScores`.
            found: One value a head.
            heads: The heads.
            shape: Layers, and heads of each.
            n: See `HeadScores`.
            record: See `HeadScores`.
            critical: Whether each head is shown to be above 0; None where it was not tested. Shape [head].
        """
        every = pd.MultiIndex.from_product(map(range, shape), names=["layer", "head"])
        low, high = found.interval()
        measured = pd.DataFrame({"value": found.value, "low": low, "high": high}, pd.MultiIndex.from_tuples(heads))
        measured["in_top"] = in_top(found, min(N_SHOWN, len(measured)))
        frame = measured.reindex(every).astype(float)
        verdicts = pd.Series(critical, measured.index, dtype="boolean")
        frame["critical"] = verdicts.reindex(every, fill_value=pd.NA if critical is None else False)
        frame.insert(0, "condition", [f"L{layer}.H{head}" for layer, head in every])
        return cls(name, unit, frame.reset_index(), n, record)

    def grid(self, column: str) -> np.ndarray:
        """A column of numbers of ``frame``. Shape [n_layers, n_heads]."""
        shape = self.frame["layer"].max() + 1, self.frame["head"].max() + 1
        return self.frame[column].to_numpy(dtype=float, na_value=np.nan).reshape(shape)

    @property
    def values(self) -> np.ndarray:
        """The scores; NaN where a head was not measured. Shape [n_layers, n_heads]."""
        return self.grid("value")

    @property
    def critical(self) -> np.ndarray | None:
        """Which heads are critical; None where that was not tested. Shape [n_layers, n_heads]."""
        return None if self.frame["critical"].isna().any() else self.grid("critical").astype(bool)

    def highest(self, k: int = N_SHOWN) -> pd.DataFrame:
        """The rows of up to ``k`` of the highest heads, highest first; equal ones by layer and head."""
        return self.frame.dropna(subset="value").sort_values("value", ascending=False, kind="stable")[:k]

    def top(self, k: int) -> list[Head]:
        """The ``k`` highest heads, highest first; equal ones by layer and head.

        Raises:
            UserError: ``k`` is not a number of heads that there are.
        """
        k = arguments.whole("k", k, 1, int(self.frame["value"].count()), of=" of heads")
        return [Head(int(layer), int(head)) for layer, head in self.highest(k)[["layer", "head"]].to_numpy()]

    def describe(self) -> list[str]:
        """How the scores are spread over the heads, in one sentence."""
        (row,), value = self.highest(1).itertuples(), self.frame["value"]
        unit = f" {self.unit}" if self.unit else ""
        tested = "" if self.critical is None else f"**{self.critical.sum()} of {value.count()}** heads are critical; "
        return [
            f"{self.name}: {tested}the highest of {value.count()} heads is {row.condition} with "
            f"{estimate(row.value, row.low, row.high)}{unit}, the median head has {value.median():.3f} (n = {self.n})."
        ]

    def display(self) -> tuple[str, pd.DataFrame, list[str]]:
        """What is shown: the highest heads."""
        rows, unit = self.highest(), f" in {self.unit}" if self.unit else ""
        head = f"{self.name}{unit}: the {len(rows)} highest of {self.frame['value'].count()} heads (n = {self.n})"
        return head, rows.drop(columns=["layer", "head"]).dropna(axis=1, how="all"), []
