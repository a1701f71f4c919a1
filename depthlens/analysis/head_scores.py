"""One number per attention head, with its interval, and what two or three kinds of numbers say together.

A score is a mean over cases (needles that were recalled, worked solutions). Its 95% interval is Student's t over the
cases, or the rule of three where all cases agree; where a score is tested against 0, heads are called critical after
Holm's correction over all heads tested (`depthlens.analysis.stats`). No torch in here: plots read these.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from depthlens.ablations import Head
from depthlens.analysis import result_folder, stats
from depthlens.errors import UserError
from depthlens.metrics import LEAST_NATS
from depthlens.paths import writable_folder

SCORES_FILE, RECORD_FILE = "heads.parquet", "record.json"
_CIRCUMSTANCES = ("depthlens", "git_commit", "platform", "python", "store", "time", "versions")  # of a record


@dataclass(frozen=True, eq=False)
class HeadScores:
    """One number per head.

    Attributes:
        name: What is measured, e.g. "copy-paste score".
        unit: "" or "nats".
        values: Shape [n_layers, n_heads]; NaN where a head was not measured.
        low: Lower ends of the 95% intervals. Shape [n_layers, n_heads].
        high: Upper ends. Shape [n_layers, n_heads].
        n: Cases that the values are means over.
        critical: Above 0 after Holm's correction and, in nats, at least `LEAST_NATS`, where tested. Shape
            [n_layers, n_heads].
        record: Model, task and settings: what is needed to repeat it.
    """

    name: str
    unit: str
    values: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    n: int
    critical: np.ndarray | None
    record: dict

    def __post_init__(self) -> None:
        if self.values.ndim != 2:
            raise UserError(f"scores of heads have shape {self.values.shape}; give [n_layers, n_heads]")
        for field in ("low", "high", "critical"):
            other = getattr(self, field)
            if other is not None and other.shape != self.values.shape:
                raise UserError(f"{field} has shape {other.shape}, the scores {self.values.shape}; give equal shapes")

    @classmethod
    def of_cases(
        cls, name: str, unit: str, cases: np.ndarray, record: dict, *, tested: bool, heads: list[Head] | None = None
    ) -> HeadScores:
        """Mean, interval and, if ``tested`` against 0, verdict per head.

        Args:
            name: What is measured.
            unit: "" or "nats".
            cases: Shape [case, n_layers, n_heads].
            record: See `HeadScores`.
            tested: Whether a head above 0 is to be called critical.
            heads: Heads that were measured; None for all. The others become NaN.
        """
        n, *shape = cases.shape
        flat = cases.reshape(n, -1).T.astype(float)  # [head, case]
        measured = np.ones(len(flat), dtype=bool)
        if heads is not None:
            measured[:] = False
            measured[[layer * shape[1] + head for layer, head in heads]] = True
        values, low, high = (np.full(len(flat), np.nan) for _ in range(3))
        chosen = flat[measured]
        low[measured], high[measured], p = stats.paired_t(chosen, float(np.ptp(chosen)))
        values[measured] = chosen.mean(1)
        critical = np.zeros(len(flat), dtype=bool)
        least = LEAST_NATS if unit == "nats" else 0.0
        critical[measured] = (stats.holm(p) < stats.ALPHA) & (values[measured] > least)
        grid = [x.reshape(shape) for x in (values, low, high, critical)]
        return cls(name, unit, *grid[:3], n, grid[3] if tested else None, record)

    def top(self, k: int) -> list[Head]:
        """The ``k`` highest heads as (layer, head), highest first; equal ones by layer and head.

        Raises:
            UserError: ``k`` is not a number of heads that there are.
        """
        measured = int(np.isfinite(self.values).sum())
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= measured:
            raise UserError(f"k {k!r}: give a whole number of heads from 1 to {measured}")
        order = np.argsort(-np.nan_to_num(self.values, nan=-np.inf), axis=None, kind="stable")[:k]
        return [(int(i) // self.values.shape[1], int(i) % self.values.shape[1]) for i in order]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row a head: layer, head, condition ("L9.H6"), value, low, high, critical (missing where not known)."""
        layer, head = (x.ravel() for x in np.indices(self.values.shape))
        table = pd.DataFrame({"layer": layer, "head": head})
        table["condition"] = [f"L{a}.H{b}" for a, b in zip(layer, head, strict=True)]
        table["value"] = self.values.ravel()
        for column in ("low", "high"):
            found = getattr(self, column)
            table[column] = np.nan if found is None else found.ravel()
        table["critical"] = pd.array([None] * len(table) if self.critical is None else self.critical.ravel(), "boolean")
        return table

    def save(self, out: str | Path, *, overwrite: bool = False) -> None:
        """Write the table and the record into folder ``out``.

        Args:
            out: A folder, made where there is none.
            overwrite: Replace what the folder holds. Without it, only the same scores are replaced.

        Raises:
            UserError: the folder cannot be written, or holds other scores or files of something else.
        """
        folder = writable_folder(out)
        if not overwrite:
            result_folder.refuse_other(folder, (SCORES_FILE, RECORD_FILE), self._differs)
        about = {"name": self.name, "unit": self.unit, "n": self.n, "record": self.record}
        about["known"] = [f for f in ("low", "high", "critical") if getattr(self, f) is not None]
        (folder / RECORD_FILE).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        self.frame.to_parquet(folder / SCORES_FILE, index=False)

    def _differs(self, about: dict) -> str:
        """In what scores that were saved differ from these; "" if in nothing."""
        old, new = about["record"], self.record
        model = [(r.get("model") or {}).get("fingerprint") for r in (old, new)]
        pairs = [("scores", about["name"], self.name), ("model fingerprint", *model)]
        keys = [key for key in (*old, *new) if key not in ("model", "baseline", *_CIRCUMSTANCES)]
        return result_folder.first_difference([*pairs, *((key, old.get(key), new.get(key)) for key in keys)])

    @classmethod
    def load(cls, out: str | Path) -> HeadScores:
        """Read a folder that `save` wrote.

        Raises:
            UserError: a file is missing.
        """
        folder = Path(out)
        for name in (SCORES_FILE, RECORD_FILE):
            if not (folder / name).is_file():
                raise UserError(f"{str(folder)!r} holds no {name}; give a folder that HeadScores.save wrote")
        about = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        table = pd.read_parquet(folder / SCORES_FILE)
        shape = (table["layer"].max() + 1, table["head"].max() + 1)
        grid = {f: table[f].to_numpy().astype(float).reshape(shape) for f in ("value", "low", "high")}
        low, high = (grid[f] if f in about["known"] else None for f in ("low", "high"))
        critical = table["critical"].to_numpy(dtype=bool).reshape(shape) if "critical" in about["known"] else None
        return cls(about["name"], about["unit"], grid["value"], low, high, about["n"], critical, about["record"])

    def __repr__(self) -> str:
        first = ", ".join(
            f"L{a}.H{b} {self.values[a, b]:.3g}" for a, b in self.top(min(5, int(np.isfinite(self.values).sum())))
        )
        return f"HeadScores({self.name}{', ' + self.unit if self.unit else ''}, n = {self.n}: {first}, ...)"


@dataclass(frozen=True, eq=False, repr=False)
class ReasoningScores:
    """Loss per token, in nats, that removing a head causes on three kinds of tokens of worked solutions.

    Attributes:
        computed: On numbers that stand nowhere before.
        copied: On numbers that stand in the question or earlier in the solution.
        text: On everything else.
        contrast: Computed minus copied, over the solutions that have both.
        record: What all four share.
    """

    computed: HeadScores
    copied: HeadScores
    text: HeadScores
    contrast: HeadScores
    record: dict

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {getattr(self, name)!r}" for name in ("computed", "copied", "text", "contrast"))


COPIES, NEEDED = 0.1, 0.1  # score, nats per token
ROLES = {
    (True, True, False): "copies and is needed",
    (True, True, True): "copies and is needed",
    (True, False, True): "needed only together",
    (True, False, False): "attends but is not needed",
    (False, True, False): "needed but does not copy",
    (False, False, False): "neither",
}


def roles(
    copying: HeadScores,
    alone: HeadScores,
    together: HeadScores | None = None,
    *,
    copies: float = COPIES,
    needed: float = NEEDED,
) -> pd.DataFrame:
    """What each head is for a task, from what it attends to and what its removal costs, alone and with others.

    - *copies and is needed*: high copy-paste score, and its removal costs something;
    - *needed only together*: high score, and its removal costs something when the other copying heads are gone, but
      alone less than half of that: a backup, or what has one;
    - *attends but is not needed*: high score, and neither removal costs anything: a decoy;
    - *needed but does not copy*: low score, yet its removal costs something: it does other work for the task;
    - *neither*.

    A removal costs something where its loss is significant (Holm) and at least ``needed``. Costing nothing is not
    proven by a loss that is not significant: look at the intervals, and at n.

    Args:
        copying: `depthlens.retrieval_scores` with ``method="copy_paste"``.
        alone: The same with ``method="exact"``: loss when this head is removed.
        together: The same with ``among`` = the copying heads: loss when this one is removed after all others; None
            leaves backups and decoys in one role, "attends but is not needed alone".
        copies: Copy-paste score from which on a head counts as copying (0.1 in Wu et al. 2024).
        needed: Loss in nats per token from which on a head counts as needed.

    Returns:
        One row a head: layer, head, condition, copy, alone, together (NaN where not tested), role.

    Raises:
        UserError: scores of different shapes, or losses that were not tested.
    """
    for name, scores in (("alone", alone), ("together", together)):
        if scores is not None and scores.values.shape != copying.values.shape:
            raise UserError(f"{name} has shape {scores.values.shape}, the copy-paste scores {copying.values.shape}")
        if scores is not None and scores.critical is None:
            raise UserError(f"{name} ({scores.name}) was not tested; give losses, e.g. method='exact'")
    table = copying.frame[["layer", "head", "condition"]].assign(
        copy=copying.values.ravel(), alone=alone.values.ravel()
    )
    table["together"] = np.nan if together is None else together.values.ravel()
    copy = table["copy"] >= copies
    single = (table["alone"] >= needed) & alone.critical.ravel()
    joint = copy & (table["together"] >= needed)
    if together is not None:
        joint &= together.critical.ravel()
    single &= ~joint | (table["alone"] >= table["together"] / 2)
    table["role"] = [ROLES[key] for key in zip(copy, single, joint, strict=True)]
    if together is None:
        table["role"] = table["role"].replace(ROLES[True, False, False], f"{ROLES[True, False, False]} alone")
    return table


def judged(named: dict[str, Collection[Head]], true: Collection[Head]) -> pd.DataFrame:
    """Heads that methods name, against those that are known to matter: what each method misses and names wrongly.

    Args:
        named: Heads by method.
        true: Heads that matter.

    Returns:
        One row a method: named, missed, wrong (as "L2.H1, L2.H3", or "none").
    """
    known = set(true)
    rows = {
        method: {"named": set(heads), "missed": known - set(heads), "wrong": set(heads) - known}
        for method, heads in named.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.map(lambda heads: ", ".join(f"L{a}.H{b}" for a, b in sorted(heads)) or "none")
