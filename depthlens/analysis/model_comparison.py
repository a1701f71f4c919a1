"""Two models under the same sweep: where in depth removing a layer costs the one more than the other.

Made for a base model and what distillation made of it (claim C6). `compare_models` compares their losses by layer, by
depth third and by the centre of mass. Everything is paired: both models answer the same documents, and the difference
of differences ``(base whole - base without layer) - (distilled whole - distilled without layer)`` is taken document by
document.

Method, per layer:

* **0/1 metrics**. The paired value is a whole number from -2 to 2. Its interval is Bonett and Price's [1] (Wald, with
  one document added that goes each way), read with Student's t: unlike the plain t interval it never has zero width,
  and it keeps its coverage where few documents change. In simulations with known truth (12 to 100 documents) it covers
  in at least 94% of samples; the plain t interval falls to 84%. The test is the exact sign-flip test over documents,
  computed from two binomials and not by drawing; it is McNemar's where all changes are of size 1.
* **Other metrics**. Paired t interval and test.
* **Correction**: step-down maxT, over the layers of one task and metric (`depthlens.analysis.max_t`).

Thirds and centres are percentile bootstraps over documents, drawn jointly for both models
(`depthlens.analysis.bootstrap`).

Limit: a model that scores higher has more to lose, so that a difference in the metric's own unit may only say so.
Shares (``scale="above_chance"``, ``scale="importance"``, the centre of mass) are free of that.

Reference: [1] Bonett, Price 2012, Journal of Educational and Behavioral Statistics 37:479-488.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy

from depthlens.analysis import stats
from depthlens.analysis.bootstrap import N_BOOT, interval
from depthlens.analysis.depth import centre, third_losses
from depthlens.analysis.interval_text import bounds
from depthlens.analysis.layer_profiles import THIRDS, Profile, drawn, paired_profiles
from depthlens.analysis.max_t import max_t
from depthlens.analysis.stats import ALPHA
from depthlens.analysis.tables import DescribedTable, record_of

if TYPE_CHECKING:
    from depthlens.analysis.results import Result

Pairs = list[tuple[Profile, Profile]]


@dataclass(frozen=True, eq=False, repr=False)
class ModelComparison(DescribedTable):
    """Losses of two models by layer, by depth third and by their centre of mass.

    Attributes:
        table: One row a task and layer, see `layer_differences`.
        sentences: See `describe`.
        record: Models, tasks and settings.
        thirds: One row a task that both models can be judged on, and third: task, third, base, distilled, difference
            (base minus distilled), ci_low, ci_high.
        centres: One row a task: task, n, base, distilled (centres as a share of depth, see
            `depthlens.analysis.depth.centre`), shift (distilled minus base, above 0 where the losses moved deeper),
            ci_low, ci_high, unplaced (why there is none: "MODEL: at chance"; "" if there is one).
    """

    thirds: pd.DataFrame
    centres: pd.DataFrame


def compare_models(
    base: Result, distilled: Result, *, scale: str = "importance", seed: int = 0, n_boot: int = N_BOOT
) -> ModelComparison:
    """Compare the losses of two models under the same layer sweep.

    Args:
        base: A layer sweep of one model.
        distilled: The same sweep of the other: same tasks, metrics, documents, conditions and settings.
        scale: Of ``thirds``: ``score``, ``above_chance`` or ``importance``; see `depthlens.analysis.depth`.
        seed: Of the bootstraps.
        n_boot: Number of draws.

    Returns:
        The comparison. Its sentences say, for every task, what the whole models score, which layers cost one model
        more, and where in depth the losses moved (on the scale of ``importance``).

    Raises:
        UserError: the sweeps differ or are not layer sweeps, or the scale does not fit a metric.
    """
    pairs = paired_profiles(base, distilled)
    layers = layer_differences(base, distilled)
    centres = _centres(pairs, seed, n_boot)
    shares = _thirds(pairs, "importance", seed, n_boot)
    thirds = shares if scale == "importance" else _thirds(pairs, scale, seed, n_boot)
    lines = [line for pair in pairs for line in _sentences(*pair, layers, shares, centres)]
    record = record_of("compare_models", base, distilled, scale=scale, bootstrap_seed=seed, n_boot=n_boot)
    return ModelComparison(layers, lines, record, thirds, centres)


def layer_differences(base: Result, distilled: Result) -> pd.DataFrame:
    """Loss of base minus loss of distilled for every removed layer: above 0 the base loses more.

    Args:
        base: See `compare_models`.
        distilled: See `compare_models`.

    Returns:
        One row a task and layer: task, layer, n, base, distilled (their losses), difference, ci_low, ci_high, p_value,
        p_adjusted, proven (by step-down maxT, and above the metric's ``min_effect``), at_chance (the names of
        models with nothing to lose; no test there).

    Raises:
        UserError: see `compare_models`.
    """
    tables = []
    for a, b in paired_profiles(base, distilled):
        gap, low, high, p, p_adjusted = paired_gaps(a, b)
        at_chance = ", ".join(x.model for x in (a, b) if x.at_chance)
        columns = {"task": a.label, "layer": a.layers, "n": len(gap), "base": a.loss.mean(0)}
        columns |= {"distilled": b.loss.mean(0), "difference": gap.mean(0), "ci_low": low, "ci_high": high}
        table = pd.DataFrame(columns)
        table["p_value"], table["p_adjusted"] = (np.nan, np.nan) if at_chance else (p, p_adjusted)
        min_effect = base.metric_info(a.task, a.metric)["min_effect"]
        table["proven"] = (table["p_adjusted"] < ALPHA) & (table["difference"].abs() > min_effect)
        tables.append(table.assign(at_chance=at_chance))
    return pd.concat(tables, ignore_index=True)


def _thirds(pairs: Pairs, scale: str, seed: int, n_boot: int) -> pd.DataFrame:
    rows = []
    for pair in pairs:
        if any(p.unusable(scale) for p in pair):
            continue
        means = drawn(pair, seed=seed, n_boot=n_boot)
        a, b = (third_losses(p, *m, scale) for p, m in zip(pair, means, strict=True))
        low, high = interval(a - b, len(pair[0].documents), skewed=not pair[0].binary)
        rows += [(pair[0].label, *row) for row in zip(THIRDS, a[0], b[0], (a - b)[0], low, high, strict=True)]
    return pd.DataFrame(rows, columns=["task", "third", "base", "distilled", "difference", "ci_low", "ci_high"])


def _centres(pairs: Pairs, seed: int, n_boot: int) -> pd.DataFrame:
    rows = []
    for pair in pairs:
        n = len(pair[0].documents)
        a, b = (centre(p, m[0]) for p, m in zip(pair, drawn(pair, seed=seed, n_boot=n_boot), strict=True))
        values = [np.nan if p.unplaced else c[0] for p, c in zip(pair, (a, b), strict=True)]
        why = "; ".join(f"{p.model}: {p.unplaced}" for p in pair if p.unplaced)
        shift = (np.nan,) * 3 if why else ((b - a)[0], *map(float, interval(b - a, n, skewed=not pair[0].binary)))
        rows.append((pair[0].label, n, *values, *shift, why))
    columns = ["task", "n", "base", "distilled", "shift", "ci_low", "ci_high", "unplaced"]
    return pd.DataFrame(rows, columns=columns)


def _sentences(a: Profile, b: Profile, layers: pd.DataFrame, thirds: pd.DataFrame, centres: pd.DataFrame) -> list[str]:
    table = layers[layers["task"] == a.label]
    own, rival = (x.sign * x.base for x in (a, b))
    delta, low, high, p = stats.change(own, rival)
    scores = f"{b.model} scores {rival.mean():.2f} and {a.model} {own.mean():.2f} with nothing removed"
    more = f"; {(b if a.sign * delta > 0 else a).model} has more to lose, so compare shares" if p < ALPHA else ""
    gap = f"{delta:+.2f} {bounds(low, high, '+.2f')} (p = {p:.2g}, n = {len(a.base)})"
    lines = [f"{a.label}: {scores}, {gap}{more}."]
    if at_chance := table["at_chance"].iloc[0]:
        return [*lines, f"{a.label}: {at_chance} at chance, cannot judge which layers matter to one model more."]
    lines += [f"{a.label}: {_layers(table, name, sign)}." for name, sign in ((b.model, -1), (a.model, 1))]
    row = centres.set_index("task").loc[a.label]
    if row["unplaced"]:
        return [*lines, f"{a.label}: {row['unplaced']}, cannot judge whether the losses moved in depth."]
    lines.append(f"{a.label}: {_shift(row, a, b)}.")
    return lines + [f"{a.label}: {_third(r, a, b)}." for r in thirds[thirds["task"] == a.label].itertuples()]


def _layers(table: pd.DataFrame, model: str, sign: int) -> str:
    """Which layers cost one model more: the losses differ by base minus distilled, times ``sign``."""
    way = table.assign(more=sign * table["difference"]).sort_values("more", ascending=False, kind="stable")
    low, high = ("ci_low", "ci_high") if sign > 0 else ("ci_high", "ci_low")
    top = way.iloc[0]
    most = f"L{top['layer']}, {top['more']:+.2f} {bounds(sign * top[low], sign * top[high], '+.2f')}"
    most += f", p_adjusted = {top['p_adjusted']:.2g}"
    proven = way[way["proven"] & (way["more"] > 0)]
    if not len(proven):
        return f"no layer is proven to cost {model} more (largest difference: {most})"
    names = ", ".join(f"L{layer}" for layer in sorted(proven["layer"]))
    return f"**{len(proven)} of {len(table)}** layers cost {model} more ({names}; most {most})"


def _shift(row: pd.Series, a: Profile, b: Profile) -> str:
    gap = f"{row['shift']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
    places = f"from {row['base']:.2f} of depth in {a.model} to {row['distilled']:.2f} in {b.model}"
    if row["ci_low"] > 0 or row["ci_high"] < 0:
        way = "deeper" if row["shift"] > 0 else "towards the first layers"
        return f"the centre of the losses moved **{way}**, {places}: {gap}"
    return f"no proven move of the centre of the losses, {places}: {gap}"


def _third(row: Any, a: Profile, b: Profile) -> str:
    gap = f"{-row.difference:+.2f} [{-row.ci_high:+.2f}, {-row.ci_low:+.2f}]"
    sure = "" if row.ci_low > 0 or row.ci_high < 0 else ", no proven change"
    return (
        f"the {row.third} holds {row.distilled:.2f} of all loss in {b.model}, {row.base:.2f} in {a.model}: {gap}{sure}"
    )


def paired_gaps(a: Profile, b: Profile) -> tuple[np.ndarray, ...]:
    """How much more each condition costs ``a`` than ``b``, on the same documents in the same order.

    Returns:
        Differences of shape [document, condition]; lower and upper ends of the means' intervals, p-values, and those of
        step-down maxT, each of shape [condition].
    """
    gap, binary = a.loss - b.loss, a.binary and b.binary
    if binary:
        low, high, p = whole_number_test(gap)
    else:
        low, high, p = stats.paired_t(gap.T, float(np.ptp(a.loss) + np.ptp(b.loss)))
    return gap, low, high, p, max_t(gap.T, symmetric=binary)


def whole_number_test(gap: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interval and exact sign-flip p-value for each column of whole numbers from -2 to 2. Shapes [layer].

    No interval where fewer than `depthlens.analysis.stats.FEWEST` documents differ; see there. Student's interval has
    half an imaginary document that differs by one either way, so that none has zero width. Bonett and Price (2012,
    J. Educ. Behav. Stat. 37:479-488) take two, which cover in up to 99% here, and this in 94% to 97.5% from 30
    documents on.
    """
    n = len(gap) + 0.5
    mean = gap.sum(0) / n
    half = scipy.stats.t.ppf((1 + stats.LEVEL) / 2, n - 1) * np.sqrt(((np.square(gap).sum(0) + 0.5) / n - mean**2) / n)
    ends = np.where((gap != 0).sum(0) >= stats.FEWEST, [mean - half, mean + half], np.nan)
    sizes = ((np.abs(gap) == 1).sum(0), (np.abs(gap) == 2).sum(0), np.abs(gap.sum(0)).astype(int))
    return *ends, np.array([sign_flip_p(*column) for column in np.transpose(sizes).tolist()])


def sign_flip_p(ones: int, twos: int, total: int) -> float:
    """Chance that ``ones`` values of size 1 and ``twos`` of size 2, signs at random, add up to at least ``total``."""
    one, two = np.arange(ones + 1), np.arange(twos + 1)
    chance = np.outer(scipy.stats.binom.pmf(one, ones, 0.5), scipy.stats.binom.pmf(two, twos, 0.5))
    sums = np.add.outer(2 * one - ones, 2 * (2 * two - twos))
    return float(min(1.0, chance[np.abs(sums) >= total].sum()))
