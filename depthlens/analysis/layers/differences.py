"""Losses compared: of two tasks, of closed and open book; `depthlens.compare` compares models.

Everything is a difference of two means over units (`depthlens.analysis.numbers.means`): paired wherever both sides
have the same questions, with step-down maxT over conditions. Losses in nats are at most 1 a document.

* `critical_overlap`: which conditions are critical under two tasks, and which cost more under one.
* `open_book`: a closed-book task asks what only the weights know. Its open-book twin asks the same documents with the
  facts in the prompt. A layer with a positive difference helps to find the answer in the prompt, a layer with a
  negative one helps to recall it.

Limits: a task that scores higher has more to lose, so that a difference in the metric's own unit may only
say so. Shares (of the score above the floor or of all losses, the centre of mass) are free of that where damage is in
proportion to the score. A model that knows the answer may use it although it could read it, so that an open book is
not retrieval alone.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from depthlens.analysis.layers.depth import INTERVAL, critical_by_task
from depthlens.analysis.numbers.means import ALPHA, max_t
from depthlens.analysis.numbers.stats import BASELINE
from depthlens.analysis.result.losses import Losses
from depthlens.analysis.result.profiles import one_model
from depthlens.analysis.result.results import Result
from depthlens.analysis.result.tables import DescribedTable
from depthlens.errors import UserError
from depthlens.metrics import ANSWER_LOGPROB, metric_unit

ABOVE_FLOOR = "of the score above the floor"
BOOKS = ("closed", "opened")
OF_BOOKS = [
    "metric", "condition", "layer", *BOOKS, "difference", *INTERVAL, "p_value", "p_adjusted", "n",
]  # fmt: skip
BOOK = (
    "The facts in the prompt change the whole model's score by **{difference:+.2f}** [{ci_low:+.2f}, {ci_high:+.2f}] "
    "{unit} (n = {n})"
)


def critical_overlap(result: Result) -> DescribedTable:
    """Which conditions are critical under both of two tasks, and more; see `depthlens.Result.critical_overlap`.

    That a condition is critical under one task alone does not show that the tasks differ. The difference of its two
    losses is tested instead, by step-down maxT over all conditions that both tasks have: of relative losses, ``loss /
    (baseline - floor)``, where both tasks have a floor, and in the metric's own unit where both have the same metric
    without one. The floor is what a broken model scores: chance among options, 0 for a written answer. Where the two
    differ, a difference has to show with the lower one for both, too: else equal answers would differ by their floors.
    """
    rows, by_label = [], {losses.label: losses for losses in result.every_losses.values()}
    pairs = list(itertools.combinations(critical_by_task(result).items(), 2))
    for (task, a), (other, b) in pairs:
        own, rival = by_label[task], by_label[other]
        names = [name for name in own.conditions if name in rival.conditions]
        sides, scale = _shown_sides(own.select(names), rival.select(names), len(pairs))
        side = dict(zip(names, sides, strict=True))
        more, less = [c for c in a if side.get(c) == 1], [c for c in b if side.get(c) == -1]
        alone = [*(c for c in a if c not in b), *(c for c in b if c not in a)]
        kinds = [c for c in a if c in b], more, less, [c for c in alone if c not in (*more, *less)]
        rows.append((len(more) + len(less), task, other, *(", ".join(kind) or "none" for kind in kinds), scale))
    columns = ["n", "task", "other", "both", "more_task", "more_other", "not_shown", "scale"]
    table = pd.DataFrame(rows, columns=columns)
    lines = [_more_in_words(row) for row in table.sort_values("n", ascending=False, kind="stable").itertuples()]
    lines = lines or ["Fewer than two tasks can be judged, so no two can be compared."]
    return DescribedTable.of("critical_overlap", result, rows=table, columns=columns[1:], lines=lines)


def _more_in_words(row: Any) -> str:
    sides = (row.task, row.other, row.more_task), (row.other, row.task, row.more_other)
    told = [f"{one} loses more than {other} without **{parts}**" for one, other, parts in sides if parts != "none"]
    return f"{'; '.join(told) or f'No removal is shown to cost {row.task} and {row.other} unequally'}."


def _shown_sides(a: Losses, b: Losses, n_pairs: int) -> tuple[np.ndarray, str]:
    """1 for each condition that is shown to cost more in the first, -1 in the second, else 0; and the scale."""
    if a.floor is not None and b.floor is not None:
        scale, lower = ABOVE_FLOOR, min(a.floor, b.floor)
        floors = dict.fromkeys([(a.floor, b.floor), (lower, lower)])
        gaps = [replace(a, floor=x).relative() - replace(b, floor=y).relative() for x, y in floors]
    elif a.metric == b.metric:
        scale, gaps = metric_unit(a.metric) or f"of {a.metric}", [a - b]
    else:
        return np.zeros(len(a.layers)), ""
    sides = np.array([np.sign(gap.value) * (n_pairs * max_t(gap) < ALPHA) for gap in gaps])  # [floors, condition]
    return np.where((sides == sides[0]).all(0), sides[0], 0), scale


def open_book(result: Result, closed: str, opened: str) -> DescribedTable:
    """See `depthlens.Result.open_book`."""
    one_model(result)
    every = {(of.task, of.metric): of for of in result.select(tasks=[closed, opened]).every_losses.values()}
    metrics = [metric for task, metric in every if task == closed and (opened, metric) in every]
    if not metrics:
        raise UserError(f"{closed} and {opened} have no metric in common; measure='answer_logprob' gives both one")
    tables, lines = [], []
    for metric in metrics:
        whole = every[closed, metric].join(every[opened, metric], every=True)
        names = [name for name in whole[0].conditions if name in whole[1].conditions]
        parts, change = [of.select(names) for of in whole], (whole[1].gain_over(whole[0]) * whole[0].sign).columns()
        gap = parts[1] - parts[0]
        means = (np.r_[of.sign * of.base.mean(), of.mean().value] for of in parts)
        numbers = dict(zip(BOOKS, means, strict=True))
        numbers |= {name: np.r_[change[name], of_parts] for name, of_parts in gap.columns().items()}
        table = pd.DataFrame({"condition": [BASELINE, *names], **numbers, "p_adjusted": np.r_[np.nan, max_t(gap)]})
        layers = pd.Series([-1, *parts[0].layers], dtype="Int64").replace(-1, pd.NA)
        tables.append(table.assign(metric=metric, layer=layers, n=len(parts[0].base)))
        unit = "nats of the right answer, at most 1 a question" if metric == ANSWER_LOGPROB else f"of {metric}"
        proven = "." if change["p_value"] < ALPHA else ", not proven."
        lines.append(BOOK.format(unit=unit, **tables[-1].iloc[0]) + proven)
        sides = np.sign(table["difference"]) * (table["p_adjusted"] < ALPHA)
        more, less = (", ".join(table.loc[sides == side, "condition"]) or "none" for side in (1, -1))
        lines += [f"{metric}: layers that cost more open-book: {more}; closed-book: {less}."] * bool(names)
    about = {"closed": closed, "opened": opened}
    return DescribedTable.of("open_book", result, rows=pd.concat(tables), columns=OF_BOOKS, lines=lines, **about)
