"""Knowledge and retrieval: the same questions closed-book and open-book, and which sublayers each needs.

A closed-book task asks what only the weights know. Its open-book twin asks the same documents in the same order with
the facts in the prompt. Everything is paired, question by question, and nats are at most 1 a document
(`depthlens.analysis.stats.changes`):

* `open_book_gain`: how much better the whole model scores open-book;
* `open_book_losses`: how much more a layer costs open-book than closed-book. A layer with a positive difference helps
  to find the answer in the prompt, a layer with a negative one helps to recall it. Step-down maxT over layers;
* `site_losses`: how the losses of single sublayers divide between attention and MLPs.

Limit: a model that knows the answer may use it although it could read it, so that an open book is not retrieval alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from depthlens.analysis import questions, stats
from depthlens.analysis.interval_text import bounds
from depthlens.analysis.means import max_t
from depthlens.analysis.scores import THIRDS, layer_scores
from depthlens.analysis.stats import ALPHA, BASELINE
from depthlens.analysis.tables import DescribedTable, record_of
from depthlens.errors import UserError
from depthlens.metrics import ANSWER_LOGPROB

if TYPE_CHECKING:
    from depthlens.analysis.results import Result

SITES = ("attn", "mlp")


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
        UserError: the two have no metric in common, or other documents.
    """
    rows, lines = [], []
    for metric in _shared(result, closed, opened):
        without, with_book = (table[BASELINE].to_numpy() for table in _paired(result, closed, opened, metric))
        change = stats.changes(metric, with_book - without, questions.units(result, closed).to_numpy())
        gain, low, high, p = (float(x) for x in (change.value, *change.interval(), change.p()))
        rows.append((metric, without.mean(), with_book.mean(), gain, low, high, p, len(without)))
        unit = " nats of the right answer, at most 1 a question" if metric == ANSWER_LOGPROB else f" of {metric}"
        proven = "" if p < stats.ALPHA else ", not proven"
        amount = f"**{gain:+.2f}** {bounds(low, high, '+.2f')}{unit} (n = {len(without)}){proven}"
        lines.append(f"The facts in the prompt change the whole model's score by {amount}.")
    columns = ["metric", "closed", "opened", "difference", "ci_low", "ci_high", "p_value", "n"]
    record = record_of("open_book_gain", result, closed=closed, opened=opened)
    return DescribedTable(pd.DataFrame(rows, columns=columns), lines, record)


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
        UserError: see `open_book_gain`.
    """
    if metric not in _shared(result, closed, opened):
        raise UserError(f"tasks {closed} and {opened} have no metric {metric!r} in common; sweep with measure='both'")
    tables = _paired(result, closed, opened, metric)
    conditions = [c for c in tables[0] if c != BASELINE and c in tables[1]]
    units = questions.units(result, closed).to_numpy()
    losses = [t[[BASELINE]].to_numpy() - t[conditions].to_numpy() for t in tables]  # [document, condition]
    without, with_book = (stats.changes(metric, loss, units) for loss in losses)
    gap = with_book - without
    low, high = gap.interval()
    layers = result.docs.drop_duplicates("condition").set_index("condition")["layer"]
    table = pd.DataFrame({"condition": conditions, "layer": [layers[c] for c in conditions]})
    table = table.assign(closed=without.value, opened=with_book.value, difference=gap.value, ci_low=low, ci_high=high)
    table = table.assign(p_value=gap.p(), p_adjusted=max_t(gap), n=len(tables[0])).astype({"layer": "Int64"})
    record = record_of("open_book_losses", result, closed=closed, opened=opened, metric=metric)
    return DescribedTable(table, _serves(table), record)


def _serves(table: pd.DataFrame) -> list[str]:
    proven = table[table["p_adjusted"] < ALPHA]
    finding = ", ".join(proven.loc[proven["difference"] > 0, "condition"]) or "none"
    knowing = ", ".join(proven.loc[proven["difference"] < 0, "condition"]) or "none"
    return [
        f"Layers that cost more open-book: {finding}. The open book has more to lose, so that a layer which breaks the "
        "model costs more there, too.",
        f"Layers that cost more closed-book: {knowing}.",
    ]


def site_losses(result: Result) -> DescribedTable:
    """How much of what single sublayers cost is attention's: by third of the layers and in all.

    The share is summed losses of attention over those of attention and MLPs.

    Args:
        result: A sweep of ``attn`` and ``mlp`` with one metric a task.

    Returns:
        One row a task that can be judged and third (and ``all``): task, third, attn and mlp (losses summed over layers,
        means over documents), share, ci_low, ci_high. No share of fewer than 100 units, or where the losses are not
        shown to add up to more than 0. It is described by one sentence a task.

    Raises:
        UserError: the result lacks one of the two sites.
    """
    names = [c for c in result.docs["condition"].unique() if c != BASELINE]
    of_site = {site: [c for c in names if c.endswith(f".{site}") and "+" not in c] for site in SITES}
    if missing := [site for site, conditions in of_site.items() if not conditions]:
        raise UserError(f"the result removes no {missing[0]}; sweep with ablate='attn,mlp'")
    rows, lines = [], []
    for attn, mlp in zip(*(layer_scores(result.select(conditions=of_site[site])) for site in SITES), strict=True):
        if attn.at_chance:
            continue
        both = replace(attn, values=np.hstack([attn.values, mlp.values]), layers=np.r_[attn.layers, mlp.layers])
        of_attn = np.arange(len(both.layers)) < len(attn.layers)
        for i, third in enumerate([*THIRDS, "all"]):
            inside = np.flatnonzero(both.thirds == i if third in THIRDS else both.layers >= 0)
            part = replace(both, values=both.values[:, inside], layers=both.layers[inside])
            weights, share = of_attn[inside].astype(float), [np.nan] * 3
            if not part.unplaced:
                found = part.share(weights)
                share = [float(x) for x in (found.value, *found.interval())]
            losses = part.loss.mean(0)
            rows.append((attn.label, third, losses @ weights, losses @ (1 - weights), *share))
        if both.unplaced:
            lines.append(f"{attn.label}: {both.unplaced}, cannot judge what attention's share is.")
        else:
            amount = f"**{share[0]:.0%}** [{share[1]:.0%}, {share[2]:.0%}]"
            lines.append(f"{attn.label}: attention holds {amount} of what single sublayers cost, MLPs the rest.")
    table = pd.DataFrame(rows, columns=["task", "third", "attn", "mlp", "share", "ci_low", "ci_high"])
    return DescribedTable(table, lines, record_of("site_losses", result))


def _shared(result: Result, closed: str, opened: str) -> list[str]:
    first, second = (list(result.select(tasks=task).docs["metric"].unique()) for task in (closed, opened))
    if metrics := [metric for metric in first if metric in second]:
        return metrics
    raise UserError(f"tasks {closed} and {opened} have no metric in common; take the same protocol for both")


def _paired(result: Result, closed: str, opened: str, metric: str) -> list[pd.DataFrame]:
    """Scores of both tasks, each documents x conditions."""
    tasks = closed, opened
    return questions.paired(result, tasks, [result.scores(task, metric) for task in tasks])
