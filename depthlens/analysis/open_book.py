"""Knowledge and retrieval: the same questions closed-book and open-book, and which sublayers each needs.

A closed-book task asks what only the weights know. Its open-book twin asks the same documents in the same order with
the facts in the prompt. Everything is paired, document by document:

* `open_book_gain`: how much better the whole model scores open-book;
* `open_book_losses`: how much more a layer costs open-book than closed-book. A layer with a positive difference helps
  to find the answer in the prompt, a layer with a negative one helps to recall it. Paired t per layer, step-down maxT
  over layers (`depthlens.analysis.max_t`);
* `site_losses`: how the losses of single sublayers divide between attention and MLPs.

Limit: a model that knows the answer may use it although it could read it, so that an open book is not retrieval alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from depthlens.analysis import questions, stats
from depthlens.analysis.bootstrap import N_BOOT, draws, interval, ratio
from depthlens.analysis.interval_text import bounds
from depthlens.analysis.layer_profiles import THIRDS, profiles
from depthlens.analysis.max_t import max_t
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
        One row a metric that both have: metric, closed, opened, difference, ci_low, ci_high, p_value, n. It is
        described by one sentence a metric.

    Raises:
        UserError: the two have no metric in common, or other documents.
    """
    rows, lines = [], []
    for metric in _shared(result, closed, opened):
        without, with_book = (table[BASELINE].to_numpy() for table in _paired(result, closed, opened, metric))
        gain, low, high, p = stats.change(without, with_book)
        rows.append((metric, without.mean(), with_book.mean(), gain, low, high, p, len(without)))
        unit = " nats of the right answer" if metric == ANSWER_LOGPROB else f" of {metric}"
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
    without, with_book = (t[[BASELINE]].to_numpy() - t[conditions].to_numpy() for t in tables)  # [document, condition]
    gap = (with_book - without).T
    low, high, p = stats.paired_t(gap, float(np.ptp(np.concatenate([without, with_book]))))
    layers = result.docs.drop_duplicates("condition").set_index("condition")["layer"]
    table = pd.DataFrame({"condition": conditions, "layer": [layers[c] for c in conditions]})
    table = table.assign(closed=without.mean(0), opened=with_book.mean(0), difference=gap.mean(1), ci_low=low)
    table = table.assign(ci_high=high, p_value=p, p_adjusted=max_t(gap, symmetric=False), n=len(without))
    table = table.astype({"layer": "Int64"})
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


def site_losses(result: Result, *, seed: int = 0, n_boot: int = N_BOOT) -> DescribedTable:
    """How much of what single sublayers cost is attention's: by third of the layers and in all.

    The share is summed losses of attention over those of attention and MLPs; 95% percentile bootstrap over documents.

    Args:
        result: A sweep of ``attn`` and ``mlp`` with one metric a task.
        seed: Of the bootstrap.
        n_boot: Number of draws.

    Returns:
        One row a task that can be judged and third (and ``all``): task, third, attn and mlp (losses summed over layers,
        means over documents), share, ci_low, ci_high. No share where the losses do not add up to more than 0. It is
        described by one sentence a task.

    Raises:
        UserError: the result lacks one of the two sites.
    """
    names = [c for c in result.docs["condition"].unique() if c != BASELINE]
    of_site = {site: [c for c in names if c.endswith(f".{site}") and "+" not in c] for site in SITES}
    if missing := [site for site, conditions in of_site.items() if not conditions]:
        raise UserError(f"the result removes no {missing[0]}; sweep with ablate='attn,mlp'")
    rows, lines = [], []
    for pair in zip(*(profiles(result.select(conditions=of_site[site])) for site in SITES), strict=True):
        if pair[0].at_chance:
            continue
        label, n = pair[0].label, len(pair[0].base)
        counts = draws(n, n_boot, seed)
        means = [counts @ p.loss / counts.sum(1, keepdims=True) for p in pair]  # each of shape [draw, layer]
        for i, third in enumerate([*THIRDS, "all"]):
            inside = [p.thirds == i if third in THIRDS else slice(None) for p in pair]
            attn, mlp = (mean[:, layers].sum(1) for mean, layers in zip(means, inside, strict=True))
            share = ratio(attn, attn + mlp)
            low, high = map(float, interval(share, n, skewed=not pair[0].binary))
            rows.append((label, third, attn[0], mlp[0], share[0], low, high))
        if np.isnan(share[0]):
            lines.append(f"{label}: single sublayers cost nothing in sum, so that there is no share.")
        else:
            amount = f"**{share[0]:.0%}** [{low:.0%}, {high:.0%}]"
            lines.append(f"{label}: attention holds {amount} of what single sublayers cost, MLPs the rest.")
    table = pd.DataFrame(rows, columns=["task", "third", "attn", "mlp", "share", "ci_low", "ci_high"])
    return DescribedTable(table, lines, record_of("site_losses", result, bootstrap_seed=seed, n_boot=n_boot))


def _shared(result: Result, closed: str, opened: str) -> list[str]:
    first, second = (list(result.select(tasks=task).docs["metric"].unique()) for task in (closed, opened))
    if metrics := [metric for metric in first if metric in second]:
        return metrics
    raise UserError(f"tasks {closed} and {opened} have no metric in common; take the same protocol for both")


def _paired(result: Result, closed: str, opened: str, metric: str) -> list[pd.DataFrame]:
    """Scores of both tasks, each documents x conditions."""
    tasks = closed, opened
    return questions.paired(result, tasks, [result.scores(task, metric) for task in tasks])
