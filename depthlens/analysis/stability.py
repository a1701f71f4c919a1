"""Which conditions are critical, found automatically, and how sure that is.

A condition (a layer, a head, a block) is critical where its loss is significant by step-down maxT over all conditions
of its model, task and metric (`depthlens.analysis.max_t`), and above the metric's ``min_effect`` (`Result.critical`).
Two numbers say how much depends on the documents at hand. Documents are drawn with replacement, jointly for all
conditions (Efron & Tibshirani 1993, chapter 13):

* **stability**: the share of resamples in which the condition's statistic passes the threshold of the last step of the
  sample's own test, and its loss ``min_effect``, again;
* the **rank** of its loss among all conditions (1: the largest, ties share the mean rank), with a 95% interval that is
  made of simultaneous intervals for its differences from all others (`rank_intervals`).

Limit: stability is no probability that the condition is critical. One whose p-value is just below the level has a
stability of about one half, one far below it near 1.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy

from depthlens import arguments
from depthlens.analysis import stats
from depthlens.analysis.bootstrap import draws, ratio
from depthlens.analysis.depth import removed_parts
from depthlens.analysis.interval_text import bounds
from depthlens.analysis.max_t import threshold
from depthlens.analysis.stats import ALPHA, GROUP
from depthlens.analysis.tables import DescribedTable, record_of

if TYPE_CHECKING:
    from depthlens.analysis.results import Result

N_BOOT = 500
COLUMNS = [
    *GROUP, "condition", "layer", "head", "n", "loss", "ci_low", "ci_high", "p_adjusted", "stability", "rank",
    "rank_low", "rank_high",
]  # fmt: skip
_MOST_DESCRIBED = 5  # conditions in a sentence


def critical_stability(result: Result, *, alpha: float = ALPHA, n_boot: int = N_BOOT, seed: int = 0) -> DescribedTable:
    """Critical conditions of every model, task and metric, and how much that depends on the documents.

    Args:
        result: A sweep over any conditions.
        alpha: Level that ``p_adjusted`` has to stay below.
        n_boot: Number of resamples.
        seed: Of the resamples.

    Returns:
        One row a critical condition, by falling loss: ``COLUMNS``. ``loss`` is above 0 for worse, in the metric's
        unit, with its interval (that of `Result.summary`); the rest is defined above. Tasks at chance give no rows.
        It is described by one sentence a model, task and metric.

    Raises:
        UserError: an alpha outside 0 to 1, or no resamples.
    """
    arguments.result(result)
    n_boot = arguments.whole("n_boot", n_boot, 1, fix="; 500 is usual")
    seed = arguments.check(seed=seed)["seed"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what is at chance has a sentence below
        critical = result.critical(alpha)
    losses = result.losses().drop(columns=["ci_low", "ci_high"])
    losses = losses.rename(columns={"loss_low": "ci_low", "loss_high": "ci_high"})
    several = result.docs["model"].nunique() > 1
    tables, lines = [], []
    for base in result.baselines.itertuples():
        key = [base.model, base.task, base.metric]
        where = f"{base.model}, {base.task} {base.metric}" if several else f"{base.task} {base.metric}"
        if base.at_chance:
            lines.append(f"{where}: at chance, cannot judge (baseline {base.baseline:.2g}, n = {base.n}).")
            continue
        of_group = losses[(losses[GROUP] == key).all(axis=1)]
        names = critical.loc[(critical[GROUP] == key).all(axis=1), "condition"]
        table = of_group[of_group["condition"].isin(names)]
        if len(table):
            min_effect = float(result.metric_info(base.task, base.metric)["min_effect"])
            by_document = result.document_losses(base.task, base.metric, base.model)
            binary = stats.is_binary(result.scores(base.task, base.metric, base.model))
            counts = draws(len(by_document), n_boot, seed)
            again, mean = critical_in_resamples(by_document.to_numpy().T, counts, binary, alpha, min_effect)
            at = by_document.columns.get_indexer(table["condition"])
            low, high = rank_intervals(mean, at)
            rank = scipy.stats.rankdata(-mean[0])[at]
            table = table.assign(stability=again[1:, at].mean(0), rank=rank, rank_low=low, rank_high=high)
            table = table.sort_values("loss", ascending=False, kind="stable")
            tables.append(table)
        lines.append(f"{where}: {_sentence(table, list(of_group.condition), base.n)}.")
    table = pd.concat(tables, ignore_index=True) if tables else losses.head(0)
    record = record_of("critical_stability", result, alpha=alpha, n_boot=n_boot, bootstrap_seed=seed)
    return DescribedTable(table.reindex(columns=COLUMNS), lines, record)


def _sentence(table: pd.DataFrame, conditions: list[str], n: int) -> str:
    n_conditions = len(conditions)
    described = "; ".join(_cost(row, n_conditions) for row in table.head(_MOST_DESCRIBED).itertuples())
    if len(table) > _MOST_DESCRIBED:
        described += f"; and {len(table) - _MOST_DESCRIBED} more"
    count = f"**{len(table)} of {n_conditions}** {removed_parts(conditions)} critical (n = {n})"
    return f"{count}: {described or 'none is proven to cost anything'}"


def _cost(row: Any, n_conditions: int) -> str:
    return (
        f"{row.condition} costs {row.loss:.2g} {bounds(row.ci_low, row.ci_high, '.2g')}, critical in "
        f"{row.stability:.0%} of resamples, rank {row.rank:g} [{row.rank_low:g}, {row.rank_high:g}] of {n_conditions}"
    )


def critical_in_resamples(
    loss: np.ndarray, counts: np.ndarray, symmetric: bool, alpha: float, min_effect: float
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each condition is critical in each resample, and its mean loss there. Shapes [draw, condition].

    Args:
        loss: Shape [condition, document].
        counts: How often each document is drawn. Shape [draw, document].
        symmetric: Whether the losses are those of a 0/1 metric; see `depthlens.analysis.max_t.max_t`.
        alpha: Level of the adjusted p-values.
        min_effect: Mean losses up to this do not count.
    """
    n = loss.shape[1]
    needed = threshold(loss, symmetric=symmetric, alpha=alpha)
    mean = counts @ loss.T / n
    rms = np.sqrt(counts @ np.square(loss).T / n)
    passes = (n * mean > needed * rms) & (mean > min_effect)
    if symmetric:  # where few documents change, the others' sums do not say what a condition's own chance is
        passes &= _mcnemar(loss, counts) < alpha
    return passes, mean


def _mcnemar(loss: np.ndarray, counts: np.ndarray) -> np.ndarray:
    lost, gained = (np.rint(counts @ (sign * loss == 1).T.astype(float)).astype(int) for sign in (1, -1))
    # few pairs of counts occur, and computing a p-value takes long
    pairs, at = np.unique(lost * (loss.shape[1] + 1) + gained, return_inverse=True)
    return stats.mcnemar_p(*np.divmod(pairs, loss.shape[1] + 1))[at].reshape(lost.shape)


def rank_intervals(means: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95% intervals for the ranks of conditions by their mean loss, 1 being the largest.

    A condition's rank is at least 1 and the number of conditions that are shown to be larger, and at most the number
    that are not shown to be smaller. Shown is what simultaneous intervals of its differences from all others say:
    studentized bootstrap, with the largest statistic over the others (Mogstad, Romano, Shaikh & Wilhelm 2024, Review of
    Economic Studies 91:476-518). Bootstrapping ranks themselves is not valid, because noise spreads them.

    Args:
        means: Mean losses, of the sample and then of bootstrap draws. Shape [1 + n_boot, n_conditions].
        at: Conditions whose ranks are asked for.

    Returns:
        Lowest and highest ranks. Shapes [len(at)].
    """
    low, high = np.ones(len(at)), np.full(len(at), float(means.shape[1]))
    for i, j in enumerate(at):
        gap = means[:, [j]] - np.delete(means, j, axis=1)
        centred = gap[1:] - gap[0]
        spread = centred.std(axis=0)
        if not (spread > 0).any():
            continue
        most = np.nanquantile(np.nanmax(np.abs(ratio(centred, spread)), axis=1), 1 - ALPHA)
        bound = most * spread
        low[i] += (gap[0] < -bound).sum()
        high[i] -= (gap[0] > bound).sum()
    return low, high
