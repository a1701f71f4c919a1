"""Lists of heads: the roles of heads, what two lists share, and what lists miss of heads that are known to matter."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy

from depthlens import arguments
from depthlens.ablations import AnyHead, Head, heads_of
from depthlens.analysis.heads.scores import HeadScores
from depthlens.analysis.numbers.stats import ALPHA
from depthlens.errors import UserError

COPIES, NEEDED = 0.1, 0.1  # score, nats per token


def head_roles(
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

    A removal costs something where its loss is significant (step-down maxT) and at least ``needed``. A loss that is not
    significant does not show that a removal costs nothing: look at the intervals, and at n.

    Args:
        copying: `depthlens.retrieval_scores` with ``method="copy_paste"``.
        alone: The same with ``method="exact"``: loss when this head is removed.
        together: The same with ``given_removed`` = the copying heads: loss when this one is removed after all others;
            None leaves backups and decoys in one role, "attends but is not needed alone".
        copies: Copy-paste score from which on a head counts as copying (0.1 in Wu et al. 2024).
        needed: Loss in nats per token from which on a head counts as needed.

    Returns:
        One row a head: layer, head, condition, copy, alone, together (NaN where not tested), role.

    Raises:
        UserError: scores of different shapes.

    Example:
        >>> roles = dl.analysis.head_roles(copying, scores, copies=0.5)
        >>> roles.query("role != 'neither'")[["condition", "role"]]
          condition                  role
        9     L2.H1  copies and is needed
    """
    table = copying.frame[["layer", "head", "condition"]].assign(copy=copying.frame["value"])
    costs = {}
    for name, scores in (("alone", alone), ("together", together)):
        if scores is None:
            table[name], costs[name] = np.nan, False
            continue
        if scores.values.shape != copying.values.shape:
            raise UserError(f"{name} has shape {scores.values.shape}, the copy-paste scores {copying.values.shape}")
        table[name] = scores.frame["value"]
        costs[name] = (table[name] >= needed) & scores.frame["critical"].astype(bool)
    copy = table["copy"] >= copies
    joint = copy & costs["together"]
    single = costs["alone"] & (~joint | (table["alone"] >= table["together"] / 2))
    idle = "attends but is not needed" + (" alone" if together is None else "")
    roles = ["copies and is needed", "needed only together", idle, "needed but does not copy"]
    return table.assign(role=np.select([copy & single, joint, copy, single], roles, "neither"))


def compare_with_truth(named: dict[str, Collection[AnyHead]], true: Collection[AnyHead]) -> pd.DataFrame:
    """What each method of finding heads misses and names wrongly, where the heads that matter are known.

    Args:
        named: Heads by method.
        true: Heads that matter.

    Returns:
        One row a method: named, missed, wrong (as "L2.H1, L2.H3", or "none").

    Example:
        >>> true = dl.organisms.truth("organism").needed("one_hop")
        >>> dl.analysis.compare_with_truth({"copying": copying.top(1), "removal": scores.top(2)}, true)
                        named missed wrong
        copying         L2.H1  L1.H2  none
        removal  L1.H2, L2.H1   none  none
    """
    known = set(heads_of("true", [*true]))
    lists = pd.Series({method: set(heads_of(method, [*heads])) for method, heads in named.items()}, dtype=object)
    wrong = lists.map(lambda heads: heads - known)
    table = pd.DataFrame({"named": lists, "missed": lists.map(known.difference), "wrong": wrong})
    return table.map(lambda heads: ", ".join(map(str, sorted(heads))) or "none")


def both_tops(a: HeadScores, b: HeadScores, k: int) -> tuple[list[Head], list[Head], np.ndarray]:
    """The first ``k`` heads by each of two scores, among the heads that have both, and which heads these are.

    Raises:
        UserError: scores of different shapes, or a ``k`` that does not fit the heads that have both.
    """
    if a.values.shape != b.values.shape:
        raise UserError(f"scores have shapes {a.values.shape} and {b.values.shape}; give two of one model")
    both = a.frame["value"].notna() & b.frame["value"].notna()
    n = int(both.sum())
    k = arguments.whole("k", k, 1, max(n - 1, 1), fix=f" ({n} heads have both scores)")
    first, second = (replace(s, frame=s.frame[both]).top(k) for s in (a, b))
    return first, second, both.to_numpy().reshape(a.values.shape)


class Overlap(NamedTuple):
    """How many heads two lists have in common, how many two random lists have, and how often at least as many."""

    n: int
    expected: float
    p_value: float

    def __str__(self) -> str:
        amount = "more than" if self.p_value < ALPHA else "no more than"
        said = f"{self.n} {'head' if self.n == 1 else 'heads'} in common, {amount} as many random heads of each layer"
        return f"{said} explain ({self.expected:.2g} expected, p = {self.p_value:.2g})"


def overlap(a: Collection[Head], b: Collection[Head], n_heads: Sequence[int]) -> Overlap:
    """Compare two lists of heads of one model with random lists that have as many heads in each layer.

    In a layer of h heads, of which one list has x and the other y, the number in common is then hypergeometric. The
    layers are independent, so that the distribution of the sum is the convolution, and p is exact.

    Args:
        a: Heads.
        b: Others.
        n_heads: The heads of each layer that could be on a list.
    """
    common = len({*a} & {*b})
    counts = [np.bincount([layer for layer, _ in heads], minlength=len(n_heads)) for heads in (a, b)]
    chances = np.ones(1)  # of 0, 1, 2 .. heads in common
    for size, *of_lists in zip(n_heads, *counts, strict=True):
        if min(of_lists):
            chances = np.convolve(chances, scipy.stats.hypergeom.pmf(np.arange(min(of_lists) + 1), size, *of_lists))
    expected, p = float(np.arange(len(chances)) @ chances), float(min(1.0, chances[common:].sum()))
    return Overlap(common, expected, p)
