"""Knowledge against retrieval: the same questions with and without a book, and which sublayers each needs.

A closed-book task asks what only the weights know; its open-book twin asks the same documents in the same order with
the facts in the prompt. Everything is paired, document by document:

* `book_worth`: what the book adds to the whole model;
* `beyond`: what a layer costs the open book beyond what it costs the closed one. Positive: it serves the finding;
  negative: the knowing. Paired t per layer, Holm over layers (`depthlens.analysis.stats`);
* `site_losses`: how the losses of single sublayers divide between attention and MLPs.

Limit: a model that knows the answer may use it although it could read it, so that an open book is not retrieval alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from depthlens.analysis import stats
from depthlens.analysis.depth import loss_by_third
from depthlens.analysis.layer_profiles import N_BOOT, THIRDS, change, draws, interval, profiles, ratio
from depthlens.analysis.results import Result
from depthlens.analysis.stats import ALPHA, BASELINE
from depthlens.errors import UserError
from depthlens.metrics import ANSWER_LOGPROB

SITES = ("attn", "mlp")


def book_worth(result: Result, closed: str, opened: str) -> pd.DataFrame:
    """What the book adds to the whole model's scores.

    Args:
        result: A sweep of both tasks.
        closed: The task without a book.
        opened: The task with it.

    Returns:
        One row a metric that both have: metric, closed, opened, difference, ci_low, ci_high, p_value, n.

    Raises:
        UserError: the two have no metric in common, or other documents.
    """
    rows = []
    for metric in _shared(result, closed, opened):
        one, other = (_matrix(result, task, metric) for task in (closed, opened))
        _same_documents(one, other, closed, opened)
        a, b = one[BASELINE].to_numpy(), other[BASELINE].to_numpy()
        rows.append((metric, a.mean(), b.mean(), *change(a, b), len(a)))
    columns = ["metric", "closed", "opened", "difference", "ci_low", "ci_high", "p_value", "n"]
    return pd.DataFrame(rows, columns=columns)


def beyond(result: Result, closed: str, opened: str, metric: str = ANSWER_LOGPROB) -> pd.DataFrame:
    """What each condition costs the open book beyond what it costs the closed one.

    Args:
        result: A sweep of both tasks.
        closed: The task without a book.
        opened: The task with it.
        metric: A metric of both whose higher values are better.

    Returns:
        One row a condition: condition, layer, closed and opened (mean losses), difference (opened minus closed),
        ci_low, ci_high, p_value, p_adjusted (Holm), n.

    Raises:
        UserError: see `book_worth`.
    """
    if metric not in _shared(result, closed, opened):
        raise UserError(f"tasks {closed} and {opened} have no metric {metric!r} in common; sweep with measure='both'")
    one, other = (_matrix(result, task, metric) for task in (closed, opened))
    _same_documents(one, other, closed, opened)
    conditions = [c for c in one if c != BASELINE and c in other]
    a, b = (m[[BASELINE]].to_numpy() - m[conditions].to_numpy() for m in (one, other))  # [document, condition]
    gap = (b - a).T
    low, high, p = stats.paired_t(gap, float(np.ptp(np.concatenate([a, b]))))
    layers = result.docs.drop_duplicates("condition").set_index("condition")["layer"]
    table = pd.DataFrame({"condition": conditions, "layer": [layers[c] for c in conditions]})
    table = table.assign(closed=a.mean(0), opened=b.mean(0), difference=gap.mean(1), ci_low=low, ci_high=high)
    return table.assign(p_value=p, p_adjusted=stats.holm(p), n=len(a)).astype({"layer": "Int64"})


def site_losses(result: Result, *, seed: int = 0, n_boot: int = N_BOOT) -> pd.DataFrame:
    """How much of what single sublayers cost is attention's: by third of the layers and in all.

    The share is summed losses of attention over those of attention and MLPs; 95% percentile bootstrap over documents.

    Args:
        result: A sweep of ``attn`` and ``mlp`` with one metric a task.
        seed: Of the bootstrap.
        n_boot: Number of draws.

    Returns:
        One row a task that can be judged and third (and ``all``): task, third, attn and mlp (losses summed over layers,
        means over documents), share, ci_low, ci_high. No share where the losses do not add up to more than nothing.

    Raises:
        UserError: the result lacks one of the two sites.
    """
    names = [c for c in result.docs["condition"].unique() if c != BASELINE]
    of = {site: [c for c in names if c.endswith(f".{site}") and "+" not in c] for site in SITES}
    if missing := [site for site, found in of.items() if not found]:
        raise UserError(f"the result removes no {missing[0]}; sweep with ablate='attn,mlp'")
    rows = []
    both = [profiles(result.select(conditions=of[site])) for site in SITES]
    for attn, mlp in zip(*both, strict=True):
        if attn.at_chance:
            continue
        counts = draws(len(attn.base), n_boot, seed)
        # means over documents, each of shape [draw, layer]
        sums = [counts @ p.loss / counts.sum(1, keepdims=True) for p in (attn, mlp)]
        for third, name in enumerate([*THIRDS, "all"]):
            inside = [p.thirds == third if third < len(THIRDS) else slice(None) for p in (attn, mlp)]
            a, m = (s[:, i].sum(1) for s, i in zip(sums, inside, strict=True))
            share = ratio(a, a + m)
            low, high = interval(share, len(attn.base))
            rows.append((attn.label, name, a[0], m[0], share[0], float(low), float(high)))
    return pd.DataFrame(rows, columns=["task", "third", "attn", "mlp", "share", "ci_low", "ci_high"])


def findings(scores: Result, *, seed: int = 0) -> list[str]:
    """One sentence a task: how much of its losses lies in the first third of the layers (claim C3)."""
    shares = loss_by_third(scores, scale="importance", seed=seed)
    lines = []
    for row in shares[shares["third"] == THIRDS[0]].itertuples():
        amount = f"**{row.loss:.0%}** [{row.ci_low:.0%}, {row.ci_high:.0%}]"
        way = "more than half" if row.ci_low > 0.5 else "less than half" if row.ci_high < 0.5 else "not provably half"
        lines.append(f"{row.task}: the first third of the layers holds {amount} of its losses, {way}.")
    return lines


def book_findings(book: pd.DataFrame, versus: pd.DataFrame) -> list[str]:
    """What the book adds, and which layers serve the finding or the knowing."""
    lines = []
    for row in book.itertuples():
        unit = " nats of the right answer" if row.metric == ANSWER_LOGPROB else f" of {row.metric}"
        sure = "" if row.ci_low > 0 or row.ci_high < 0 else ", not proven"
        amount = f"**{row.difference:+.2f}** [{row.ci_low:+.2f}, {row.ci_high:+.2f}]"
        lines.append(f"The book changes the whole model's score by {amount}{unit} (n = {row.n}){sure}.")
    proven = versus[versus["p_adjusted"] < ALPHA]
    for name, rows in (("finding", proven[proven["difference"] > 0]), ("knowing", proven[proven["difference"] < 0])):
        worse = "with the book than without" if name == "finding" else "without the book than with it"
        told = ", ".join(rows["condition"]) or "none"
        lines.append(f"Layers that cost more {worse} (they serve the {name}): {told}.")
    return lines


def site_findings(shares: pd.DataFrame) -> list[str]:
    """One sentence a task: attention's share of what single sublayers cost."""
    lines = []
    for row in shares[shares["third"] == "all"].itertuples():
        if np.isnan(row.share):
            lines.append(f"{row.task}: single sublayers cost nothing in sum, so that there is no share.")
            continue
        amount = f"**{row.share:.0%}** [{row.ci_low:.0%}, {row.ci_high:.0%}]"
        lines.append(f"{row.task}: attention holds {amount} of what single sublayers cost, MLPs the rest.")
    return lines


def _shared(result: Result, closed: str, opened: str) -> list[str]:
    found = [list(dict.fromkeys(result.select(tasks=task).docs["metric"])) for task in (closed, opened)]
    metrics = [m for m in found[0] if m in found[1]]
    if not metrics:
        raise UserError(f"tasks {closed} and {opened} have no metric in common; take the same protocol for both")
    return metrics


def _matrix(result: Result, task: str, metric: str) -> pd.DataFrame:
    """Scores, documents by conditions."""
    docs = result.docs[(result.docs["task"] == task) & (result.docs["metric"] == metric)]
    return docs.pivot(index="doc_id", columns="condition", values="value")[list(dict.fromkeys(docs["condition"]))]


def _same_documents(one: pd.DataFrame, other: pd.DataFrame, closed: str, opened: str) -> None:
    ids: Sequence[Sequence[int]] = [list(one.index), list(other.index)]
    if ids[0] != ids[1]:
        raise UserError(f"tasks {closed} and {opened} were asked other documents; give both the same limit")
