"""Losses compared: of two tasks, of closed and open book; `depthlens.compare` compares models.

Everything is a difference of two means over units (`depthlens.analysis.numbers.means`): paired wherever both sides
have the same questions, with step-down maxT over conditions. Losses in nats are at most 1 a document.

* `critical_overlap`: which conditions are critical under two tasks, and which cost more under one.
* `open_book_gain`, `open_book_losses`: a closed-book task asks what only the weights know. Its open-book twin asks the
  same documents with the facts in the prompt. A layer with a positive difference helps to find the answer in the
  prompt, a layer with a negative one helps to recall it.

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
from depthlens.analysis.result.losses import Losses
from depthlens.analysis.result.results import Result
from depthlens.analysis.result.tables import DescribedTable
from depthlens.metrics import ANSWER_LOGPROB, metric_unit

ABOVE_FLOOR = "of the score above the floor"
BOOK = (
    "The facts in the prompt change the whole model's score by **{difference:+.2f}** [{ci_low:+.2f}, {ci_high:+.2f}] "
    "{unit} (n = {n})"
)


def critical_overlap(result: Result) -> DescribedTable:
    """Which conditions are critical under both of two tasks, and which are shown to cost more under one of them.

    That a condition is critical under one task alone does not show that the tasks differ. The difference of its two
    losses is tested instead, by step-down maxT over all conditions that both tasks have: of relative losses, ``loss /
    (baseline - floor)``, where both tasks have a floor, and in the metric's own unit where both have the same metric
    without one. The floor is what a broken model scores: chance among options, 0 for a written answer. Where the two
    differ, a difference has to show with the lower one for both, too: else equal answers would differ by their floors.

    Args:
        result: A sweep.

    Returns:
        In `table` one row a pair of tasks that can be judged: task, other, both (critical under both), more_task and
        more_other (shown to cost more there, and critical there), not_shown (critical under one alone, but no
        difference is shown), scale (what was compared; "" where the losses have no common scale, and no difference can
        be shown).
        Conditions are texts, ``none`` if empty. `describe` begins with the pair that differs most.

    Example:
        >>> dl.analysis.critical_overlap(both).table[["both", "more_task", "more_other"]]
          both more_task more_other
        0   L1        L2     L3, L4
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


def open_book_gain(result: Result, closed: str, opened: str) -> DescribedTable:
    """How much better the whole model scores open-book than closed-book.

    Args:
        result: A sweep of both tasks.
        closed: The closed-book task.
        opened: The open-book task.

    Returns:
        One row a metric that both have: metric, closed, opened (mean scores), difference (mean change), ci_low,
        ci_high, p_value, n. It is described by one sentence a metric.

    Raises:
        UserError: an unknown task, or two that were asked other documents.

    Example:
        >>> gain = dl.analysis.open_book_gain(book, "capitals", "capitals_open_book")
        >>> gain.table[["metric", "closed", "opened", "difference"]].round(2)
          metric  closed  opened  difference
        0    acc     0.6     0.9         0.3
    """
    rows = []
    metrics = [[key[2] for key in result.every_losses if key[1] == task] for task in (closed, opened)]
    for metric in (metric for metric in metrics[0] if metric in metrics[1]):
        without, with_book = result.losses(closed, metric).join(result.losses(opened, metric), every=True)
        change = with_book.gain_over(without) * with_book.sign
        means = {"closed": without.sign * without.base.mean(), "opened": with_book.sign * with_book.base.mean()}
        rows.append({"metric": metric, **means, "n": len(without.base)} | change.columns())
    units = {ANSWER_LOGPROB: "nats of the right answer, at most 1 a question"}
    lines = [
        BOOK.format(unit=units.get(row["metric"], f"of {row['metric']}"), **row)
        + ("." if row["p_value"] < ALPHA else ", not proven.")
        for row in rows
    ]
    columns = ["metric", "closed", "opened", "difference", *INTERVAL, "p_value", "n"]
    tasks = {"closed": closed, "opened": opened}
    return DescribedTable.of("open_book_gain", result, rows=rows, columns=columns, lines=lines, **tasks)


def open_book_losses(result: Result, closed: str, opened: str, metric: str = ANSWER_LOGPROB) -> DescribedTable:
    """How much more each condition costs open-book than closed-book.

    Args:
        result: A sweep of both tasks.
        closed: The closed-book task.
        opened: The open-book task.
        metric: A metric of both whose higher values are better.

    Returns:
        One row a condition: condition, layer, closed and opened (mean losses), difference (opened minus closed),
        ci_low, ci_high, p_value, p_adjusted (step-down maxT), n. It is described by two sentences: the layers that cost
        more open-book, and those that cost more closed-book.

    Raises:
        UserError: see `open_book_gain`; or the tasks do not have the metric in common.

    Example:
        >>> versus = dl.analysis.open_book_losses(book, "capitals", "capitals_open_book", metric="acc")
        >>> versus.table[["condition", "closed", "opened"]].round(2)
          condition  closed  opened
        0        L0     0.5     0.7
        1        L1     0.1     0.6
        2        L2     0.0     0.0
    """
    own, rival = result.losses(closed, metric).join(result.losses(opened, metric), every=True)
    names = [name for name in own.conditions if name in rival.conditions]
    own, rival = own.select(names), rival.select(names)
    gap = rival - own
    columns = {"closed": own.mean().value, "opened": rival.mean().value, **gap.columns(), "p_adjusted": max_t(gap)}
    layers = pd.Series(own.layers, dtype="Int64").replace(-1, pd.NA)
    table = pd.DataFrame({"condition": names, "layer": layers}).assign(**columns, n=len(own.base))
    sides = np.sign(table["difference"]) * (table["p_adjusted"] < ALPHA)
    more, less = (", ".join(table.loc[sides == side, "condition"]) or "none" for side in (1, -1))
    lines = [
        f"Layers that cost more open-book: {more}. The open book has more to lose, so that a layer which breaks the "
        "model costs more there, too.",
        f"Layers that cost more closed-book: {less}.",
    ]
    about = {"closed": closed, "opened": opened, "metric": metric}
    return DescribedTable.of("open_book_losses", result, rows=table, columns=list(table), lines=lines, **about)
