"""Which conditions are critical, found automatically, and how sure that is: `critical`, and in words.

A condition (a layer, a head, a block) is critical where its loss is significant after Holm's correction over all
conditions of its model, task and metric, and not below the metric's least (`Result.critical`). Two numbers say how
much hangs on the documents at hand. Documents are drawn with replacement, jointly for all conditions (Efron &
Tibshirani 1993, chapter 13), and on each resample everything is done anew:

* **stability**: the share of resamples in which the condition is critical again, by the same test (exact McNemar for
  0/1 scores, else paired t) and the same correction;
* the **rank** of its loss among all conditions (1: the largest, ties share the mean rank), with a 95% interval.

Limit: stability is no probability that the condition is critical. One whose p-value just makes it has a stability of
about one half, one far from the border near 1.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from scipy import stats as sps

from depthlens import arguments
from depthlens.analysis import stats
from depthlens.analysis.layer_profiles import draws
from depthlens.analysis.results import Result
from depthlens.analysis.stats import ALPHA, BASELINE, GROUP

N_BOOT = 500
COLUMNS = [
    *GROUP, "condition", "layer", "head", "n", "loss", "ci_low", "ci_high", "p_adjusted", "stability", "rank",
    "rank_low", "rank_high",
]  # fmt: skip
_SHOWN = 5  # conditions told in a sentence


def critical_stability(result: Result, *, alpha: float = ALPHA, n_boot: int = N_BOOT, seed: int = 0) -> pd.DataFrame:
    """Critical conditions of every model, task and metric, and how much that depends on the documents.

    Args:
        result: A sweep over any conditions.
        alpha: Level that ``p_adjusted`` has to stay below.
        n_boot: Number of resamples.
        seed: Of the resamples.

    Returns:
        One row a critical condition, by falling loss: ``COLUMNS``. ``loss`` is above 0 for worse, in the metric's
        unit, with its interval (that of `Result.summary`); the rest is defined above. Tasks at chance give no rows
        (and a warning that names them).

    Raises:
        UserError: an alpha outside 0 to 1, or no resamples.
    """
    arguments.result(result)
    arguments.whole("n_boot", n_boot, 1, fix="; 500 is usual")
    arguments.check(seed=seed)
    found = result.critical(alpha)
    keep = [*GROUP, "condition", "layer", "head", "n"]
    tables = []
    for key, rows in found.groupby(GROUP, sort=False):
        info = result.metric_info(*key[1:])
        sign = 1.0 if info["higher_is_better"] else -1.0
        loss, names, binary = _losses(result, key, sign)
        counts = draws(loss.shape[1], n_boot, seed)
        again, mean = _resampled(loss, counts, binary, alpha, float(info["least"]))
        rank = sps.rankdata(-mean, axis=1)
        at = [names.index(name) for name in rows["condition"]]
        ends = np.quantile(rank[1:, at], [0.025, 0.975], axis=0)
        low, high = (-sign * rows[c].to_numpy() for c in ("ci_low", "ci_high"))
        table = rows[keep].assign(loss=-sign * rows["delta"], ci_low=np.minimum(low, high))
        table = table.assign(ci_high=np.maximum(low, high), p_adjusted=rows["p_adjusted"])
        table = table.assign(stability=again[1:, at].mean(0), rank=rank[0, at], rank_low=ends[0], rank_high=ends[1])
        tables.append(table.sort_values("loss", ascending=False, kind="stable"))
    if not tables:
        return found[keep].reindex(columns=COLUMNS)
    return pd.concat(tables, ignore_index=True)[COLUMNS]


def critical_findings(result: Result, *, alpha: float = ALPHA, n_boot: int = N_BOOT, seed: int = 0) -> list[str]:
    """One sentence a model, task and metric: how many conditions are critical, and the costliest of them.

    Args:
        result: See `critical`.
        alpha: See `critical`.
        n_boot: See `critical`.
        seed: See `critical`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a task at chance has a sentence of its own
        found = critical_stability(result, alpha=alpha, n_boot=n_boot, seed=seed)
    several = result.docs["model"].nunique() > 1
    lines = []
    for base in result.baselines.itertuples():
        where = f"{base.model}, {base.task} {base.metric}" if several else f"{base.task} {base.metric}"
        if base.at_chance:
            lines.append(f"{where}: at chance, cannot judge (baseline {base.baseline:.2g}, n = {base.n}).")
            continue
        rows, docs = (_rows(table, (base.model, base.task, base.metric)) for table in (found, result.docs))
        total = docs["condition"].nunique() - 1
        told = "; ".join(_told(row, total) for row in rows.head(_SHOWN).itertuples())
        more = f"; and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
        said = f"{told}{more}" if len(rows) else "none is proven to cost anything"
        lines.append(f"{where}: **{len(rows)} of {total}** conditions critical (n = {base.n}): {said}.")
    return lines


def _told(row: tuple, total: int) -> str:
    return (
        f"{row.condition} costs {row.loss:.2g} [{row.ci_low:.2g}, {row.ci_high:.2g}], critical in "
        f"{row.stability:.0%} of resamples, rank {row.rank:g} [{row.rank_low:g}, {row.rank_high:g}] of {total}"
    )


def _rows(table: pd.DataFrame, key: tuple) -> pd.DataFrame:
    return table[(table[GROUP] == pd.Series(key, index=GROUP)).all(axis=1)]


def _losses(result: Result, key: tuple, sign: float) -> tuple[np.ndarray, list[str], bool]:
    """Loss of every condition on every document [condition, document], their names, and whether scores are 0 or 1."""
    docs = _rows(result.docs, key)
    values = docs.pivot(index="condition", columns="doc_id", values="value")
    others = values.drop(index=BASELINE)
    loss = sign * (values.loc[BASELINE].to_numpy() - others.to_numpy())
    return loss, list(others.index), stats.is_binary(docs["value"])


def _resampled(
    loss: np.ndarray, counts: np.ndarray, binary: bool, alpha: float, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each condition is critical in each resample, and its mean loss there. Shapes [draw, condition].

    Args:
        loss: Shape [condition, document].
        counts: How often each document is drawn. Shape [draw, document].
        binary: Whether scores are 0 or 1.
        alpha: Level of the adjusted p-values.
        least: Mean losses up to this do not count.
    """
    n = loss.shape[1]
    mean = counts @ loss.T / n
    p = _mcnemar(loss, counts) if binary else _paired_t(loss, counts, mean)
    order = np.argsort(p, axis=1, kind="stable")
    # Holm, a row at a time, as `stats.holm`
    steps = np.maximum.accumulate(np.take_along_axis(p, order, 1) * np.arange(p.shape[1], 0, -1), axis=1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(1.0, steps), 1)
    return (adjusted < alpha) & (mean > least), mean


def _mcnemar(loss: np.ndarray, counts: np.ndarray) -> np.ndarray:
    lost, gained = (np.rint(counts @ (sign * loss == 1).T.astype(float)).astype(int) for sign in (1, -1))
    # few pairs of counts occur, and their p-values are dear
    pairs, at = np.unique(lost * (loss.shape[1] + 1) + gained, return_inverse=True)
    return stats.mcnemar_p(*np.divmod(pairs, loss.shape[1] + 1))[at].reshape(lost.shape)


def _paired_t(loss: np.ndarray, counts: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """As `stats.paired_t`, for every resample."""
    n = loss.shape[1]
    if n < 2:
        return np.ones_like(mean)
    middle = loss.mean(1, keepdims=True)  # squares of what is far from 0 would lose their digits
    spread = np.maximum(counts @ np.square(loss - middle).T - n * np.square(mean - middle.T), 0)
    varies = spread > (1e-9 * np.ptp(loss)) ** 2
    t = np.divide(mean, np.sqrt(spread / (n - 1) / n), out=np.zeros_like(mean), where=varies)
    return np.where(varies, 2 * sps.t.sf(np.abs(t), n - 1), np.where(mean == 0, 1.0, 2.0 ** (1 - n)))
