"""One number per attention head, with its interval.

A score is a mean over cases (needles that were recalled, worked solutions) with a 95% interval over these
(`depthlens.analysis.means`). Where a score is tested against 0, heads are called critical by step-down maxT over all
heads tested, of cases that are clipped to [-1, 1]. No torch in here: plots read these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from depthlens import arguments
from depthlens.ablations import Head
from depthlens.analysis import displays
from depthlens.analysis.means import ALPHA, max_t, mean
from depthlens.analysis.result_folder import RECORD_FILE
from depthlens.analysis.saving import Contents, Saveable
from depthlens.errors import UserError
from depthlens.metrics import MIN_NATS

SCORES_FILE = "heads.parquet"
_ARRAYS = ("low", "high", "critical", "spread")
N_SHOWN = 10  # highest heads that a notebook shows
_NEXT = "next: top(k) has the highest heads, dl.plots.head_map(scores) draws all, dl.removal_curve(...) removes them"
N_VARIED = 10  # highest heads whose spread over tokens `describe` speaks of


@dataclass(frozen=True, eq=False)
class HeadScores(Saveable):
    """One number per head.

    Attributes:
        name: What is measured, e.g. "copy-paste score".
        unit: "", or one that begins with "nats" (`depthlens.metrics.loss_unit`).
        values: Shape [n_layers, n_heads]; NaN where a head was not measured.
        low: Lower bounds of the 95% intervals; NaN for one case. Shape [n_layers, n_heads].
        high: Upper bounds. Shape [n_layers, n_heads].
        n: Cases that the values are means over.
        critical: Above 0 by step-down maxT and, in nats, at least `MIN_NATS`, where tested. Shape [n_layers, n_heads].
        record: Model, task and settings: what is needed to repeat it.
        spread: Standard deviation over the tokens of one case, mean over the cases with several; NaN where no case has.
            None where a case is not a mean over tokens. Shape [n_layers, n_heads].
    """

    TABLES: ClassVar[tuple[str, ...]] = (SCORES_FILE,)

    name: str
    unit: str
    values: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    n: int
    critical: np.ndarray | None
    record: dict
    spread: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2:
            raise UserError(f"scores of heads have shape {self.values.shape}; give [n_layers, n_heads]")
        for field in _ARRAYS:
            array = getattr(self, field)
            if array is not None and array.shape != self.values.shape:
                raise UserError(f"{field} has shape {array.shape}, the scores {self.values.shape}; give equal shapes")
        super().__post_init__()

    @classmethod
    def of_cases(
        cls,
        name: str,
        unit: str,
        cases: np.ndarray,
        record: dict,
        *,
        tested: bool,
        heads: list[Head] | None = None,
        bounded: bool = False,
        units: Sequence[str] | pd.Series | None = None,
    ) -> HeadScores:
        """Mean, interval and, if ``tested`` against 0, verdict per head.

        Args:
            name: What is measured.
            unit: See `HeadScores`.
            cases: Shape [case, n_layers, n_heads].
            record: See `HeadScores`.
            tested: Whether a head above 0 is to be called critical.
            heads: Heads that were measured; None for all. The others become NaN.
            bounded: Whether a score is from 0 to 1, such as a share of attention.
            units: See `depthlens.analysis.means.mean`.
        """
        n, *shape = cases.shape
        at = tuple(np.transpose(heads) if heads is not None else np.indices(shape).reshape(2, -1))
        by_head = cases[:, at[0], at[1]]  # [case, head]
        values, low, high = (np.full(shape, np.nan) for _ in range(3))
        found = mean(by_head, units, bounded=bounded)
        ends = np.clip(found.interval(), 0.0, 1.0) if bounded else found.interval()
        values[at], (low[at], high[at]) = found.value, ends
        critical = np.zeros(shape, dtype=bool)
        if tested:
            p = max_t(mean(np.clip(by_head, -1, 1), units))
            critical[at] = (p < ALPHA) & (found.value > (MIN_NATS if unit.startswith("nats") else 0.0))
        return cls(name, unit, values, low, high, n, critical if tested else None, record)

    @classmethod
    def of_tokens(
        cls, name: str, unit: str, cases: Sequence[np.ndarray], record: dict, *, bounded: bool = False
    ) -> HeadScores:
        """Like `of_cases`, where each case is a mean over its tokens; ``spread`` says how much these differ.

        Args:
            name: What is measured.
            unit: "", "nats" or "logits".
            cases: Each of shape [token, n_layers, n_heads].
            record: See `HeadScores`.
            bounded: See `of_cases`.
        """
        means = np.stack([case.mean(0) for case in cases])
        scores = cls.of_cases(name, unit, means, record, tested=False, bounded=bounded)
        several = [case.std(0) for case in cases if len(case) > 1]
        return replace(scores, spread=np.mean(several, axis=0) if several else np.full_like(scores.values, np.nan))

    def top(self, k: int) -> list[Head]:
        """The ``k`` highest heads as (layer, head), highest first; equal ones by layer and head.

        Raises:
            UserError: ``k`` is not a number of heads that there are.
        """
        k = arguments.whole("k", k, 1, self._n_measured, of=" of heads")
        order = np.argsort(-np.nan_to_num(self.values, nan=-np.inf), axis=None, kind="stable")[:k]
        return [(int(i) // self.values.shape[1], int(i) % self.values.shape[1]) for i in order]

    @property
    def frame(self) -> pd.DataFrame:
        """One row a head: layer, head, condition ("L9.H6"), value, low, high, critical, spread."""
        layer, head = (x.ravel() for x in np.indices(self.values.shape))
        table = pd.DataFrame({"layer": layer, "head": head})
        table["condition"] = [f"L{a}.H{b}" for a, b in zip(layer, head, strict=True)]
        table["value"] = self.values.ravel()
        for column in ("low", "high", "spread"):
            numbers = getattr(self, column)
            table[column] = np.nan if numbers is None else numbers.ravel()
        critical = pd.array([None] * len(table) if self.critical is None else self.critical.ravel(), "boolean")
        table.insert(table.columns.get_loc("spread"), "critical", critical)
        return table

    def describe(self) -> list[str]:
        """How the scores are spread over the heads, and over the tokens of a case where that is known."""
        (layer, head), *_ = self.top(1)
        value = f"{self.values[layer, head]:.2f}"
        if self.low is not None and self.high is not None and np.isfinite(self.low[layer, head]):
            value += f" [{self.low[layer, head]:.2f}, {self.high[layer, head]:.2f}]"
        unit = f" {self.unit}" if self.unit else ""
        n_measured = self._n_measured
        tested = "" if self.critical is None else f"**{int(self.critical.sum())} of {n_measured}** heads are critical; "
        return [
            f"{self.name}: {tested}the highest of {n_measured} heads is L{layer}.H{head} with {value}{unit}, the "
            f"median head has {np.nanmedian(self.values):.3f} (n = {self.n}).",
            *self._varies(n_measured),
        ]

    def _varies(self, n_measured: int) -> list[str]:
        """How much the highest heads vary over the tokens of a case."""
        highest = tuple(np.transpose(self.top(min(N_VARIED, n_measured))))
        if self.spread is None or not np.isfinite(self.spread[highest]).all():
            return []
        return [
            f"{self.name}: from token to token of one case the {len(highest[0])} highest heads vary on average by "
            f"{self.spread[highest].mean():.2f} (standard deviation) around {self.values[highest].mean():.2f}."
        ]

    def contents(self) -> Contents:
        """What is to be written; see `depthlens.analysis.saving.Saveable`."""
        return Contents({SCORES_FILE: self.frame}, {RECORD_FILE: {"kind": "HeadScores", **self.entry()}})

    @classmethod
    def from_contents(cls, contents: Contents) -> HeadScores:
        """The scores that were written; see `depthlens.analysis.saving.Saveable`."""
        return cls.from_frame(contents.tables[SCORES_FILE], contents.records[RECORD_FILE])

    def entry(self) -> dict[str, Any]:
        """What is written besides `frame`: name, unit, n, the arrays that are known, and the record."""
        known = [field for field in _ARRAYS if getattr(self, field) is not None]
        return {"name": self.name, "unit": self.unit, "n": self.n, "known": known, "record": self.record}

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, entry: dict[str, Any]) -> HeadScores:
        """The scores of a `frame` and an `entry`."""
        shape = (frame["layer"].max() + 1, frame["head"].max() + 1)

        def grid(name: str) -> np.ndarray:
            return frame[name].to_numpy(dtype=float, na_value=np.nan).reshape(shape)

        arrays = {name: grid(name) if name in entry["known"] else None for name in ("low", "high", "spread")}
        critical = frame["critical"].to_numpy(dtype=bool).reshape(shape) if "critical" in entry["known"] else None
        return cls(
            entry["name"],
            entry["unit"],
            grid("value"),
            **arrays,
            n=entry["n"],
            critical=critical,
            record=entry["record"],
        )

    def __repr__(self) -> str:
        first = ", ".join(f"L{a}.H{b} {self.values[a, b]:.3g}" for a, b in self._highest(5)) or "no head was measured"
        return f"HeadScores({self.name}{', ' + self.unit if self.unit else ''}, n = {self.n}: {first}, ...)"

    def _repr_html_(self) -> str:
        unit = f" in {self.unit}" if self.unit else ""
        highest = self._highest(N_SHOWN)
        head = f"{self.name}{unit}: the {len(highest)} highest of {self._n_measured} heads (n = {self.n})"
        table = self.frame.set_index(["layer", "head"]).loc[highest].dropna(axis=1, how="all").round(3)
        return displays.as_html(head, table, [_NEXT] if highest else [])

    @property
    def _n_measured(self) -> int:
        return int(np.isfinite(self.values).sum())

    def _highest(self, k: int) -> list[Head]:
        """Up to ``k`` of the highest heads."""
        return self.top(min(k, self._n_measured)) if self._n_measured else []


KINDS = ("computed", "copied", "text", "contrast", "normalised")


@dataclass(frozen=True, eq=False, repr=False)
class ReasoningScores(Saveable):
    """Loss per token, in nats, that removing a head causes on three kinds of tokens of worked solutions.

    Attributes:
        computed: On numbers that occur nowhere before.
        copied: On numbers that occur in the question or earlier in the solution.
        text: On everything else.
        contrast: Computed minus copied, over the solutions that have both.
        normalised: The same with each loss in units of the whole model's surprisal on tokens of that kind.
        record: What all five share.
    """

    TABLES: ClassVar[tuple[str, ...]] = tuple(f"{kind}.parquet" for kind in KINDS)

    computed: HeadScores
    copied: HeadScores
    text: HeadScores
    contrast: HeadScores
    normalised: HeadScores
    record: dict[str, Any]

    @property
    def kinds(self) -> dict[str, HeadScores]:
        """The five scores by name."""
        return {kind: getattr(self, kind) for kind in KINDS}

    def __repr__(self) -> str:
        return "\n".join(f"{kind}: {scores!r}" for kind, scores in self.kinds.items())

    def describe(self) -> list[str]:
        """How each kind of scores is spread over the heads: one sentence each."""
        return [sentence for scores in self.kinds.values() for sentence in scores.describe()]

    def contents(self) -> Contents:
        """What is to be written; see `depthlens.analysis.saving.Saveable`."""
        entries = {kind: scores.entry() for kind, scores in self.kinds.items()}
        record = {"kind": "ReasoningScores", "scores": entries, "record": self.record}
        return Contents({f"{kind}.parquet": scores.frame for kind, scores in self.kinds.items()}, {RECORD_FILE: record})

    @classmethod
    def from_contents(cls, contents: Contents) -> ReasoningScores:
        """The scores that were written; see `depthlens.analysis.saving.Saveable`."""
        record = contents.records[RECORD_FILE]
        scores = {
            kind: HeadScores.from_frame(contents.tables[f"{kind}.parquet"], record["scores"][kind]) for kind in KINDS
        }
        return cls(**scores, record=record["record"])
