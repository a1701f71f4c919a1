"""Losses of closed and open book compared; `depthlens.compare` compares models.

A closed-book task asks what only the weights know. Its open-book twin asks the same documents with the facts in the
prompt. A layer with a positive difference helps to find the answer in the prompt, a layer with a negative one helps to
recall it. Differences are paired by question, with step-down maxT over conditions. Losses in nats are at most 1 a
document.

Limits: a task that scores higher has more to lose, so that a difference in the metric's own unit may only say so. A
model that knows the answer may use it although it could read it, so that an open book is not retrieval alone.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from depthlens.analysis.layers.depth import INTERVAL
from depthlens.analysis.numbers.means import ALPHA, max_t
from depthlens.analysis.numbers.stats import BASELINE
from depthlens.analysis.result.profiles import one_model
from depthlens.analysis.result.results import Result
from depthlens.analysis.result.tables import DescribedTable
from depthlens.errors import UserError
from depthlens.metrics import ANSWER_LOGPROB

BOOKS = ("closed", "opened")
OF_BOOKS = [
    "metric", "condition", "layer", *BOOKS, "difference", *INTERVAL, "p_value", "p_adjusted", "n",
]  # fmt: skip
BOOK = (
    "The facts in the prompt change the whole model's score by **{difference:+.2f}** [{ci_low:+.2f}, {ci_high:+.2f}] "
    "{unit} (n = {n})"
)


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
