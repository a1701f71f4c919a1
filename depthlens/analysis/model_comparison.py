"""Two models under the same sweep: where in depth removing a layer costs the one more than the other.

Made for a base model and what distillation made of it (claim C6). `compare_models` compares their losses by layer, by
depth third and by the centre of mass. Both models answer the same questions, so that everything is paired by question
(`depthlens.analysis.means`); p-values of layers are of step-down maxT over the layers of one task and metric. Losses in
nats are at most 1 a document.

Limit: a model that scores higher has more to lose, so that a difference in the metric's own unit may only say so.
Shares (``scale="above_chance"``, ``scale="importance"``, the centre of mass) are free of that where damage is in
proportion to the score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from depthlens.analysis import stats
from depthlens.analysis.depth import third_losses
from depthlens.analysis.interval_text import bounds
from depthlens.analysis.means import max_t
from depthlens.analysis.scores import THIRDS, Scores, paired_scores
from depthlens.analysis.stats import ALPHA
from depthlens.analysis.tables import DescribedTable, record_of

if TYPE_CHECKING:
    from depthlens.analysis.results import Result

Pairs = list[tuple[Scores, Scores]]


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
            `depthlens.analysis.scores.Scores.centre`), shift (distilled minus base, above 0 where the losses
            moved deeper), ci_low, ci_high, unplaced (why there is none: "MODEL: at chance"; "" if there is one).
    """

    thirds: pd.DataFrame
    centres: pd.DataFrame


def compare_models(base: Result, distilled: Result, *, scale: str = "importance") -> ModelComparison:
    """Compare the losses of two models under the same layer sweep.

    Args:
        base: A layer sweep of one model.
        distilled: The same sweep of the other: same tasks, metrics, documents, conditions and settings.
        scale: Of ``thirds``: ``score``, ``above_chance`` or ``importance``; see `depthlens.analysis.depth`.

    Returns:
        The comparison. Its sentences say, for every task, what the whole models score, which layers cost one model
        more, and where in depth the losses moved (on the scale of ``importance``).

    Raises:
        UserError: the sweeps differ or are not layer sweeps, or the scale does not fit a metric.
    """
    pairs = paired_scores(base, distilled)
    layers = layer_differences(base, distilled)
    centres = _centres(pairs)
    shares = _thirds(pairs, "importance")
    thirds = shares if scale == "importance" else _thirds(pairs, scale)
    lines = [line for pair in pairs for line in _sentences(*pair, layers, shares, centres)]
    record = record_of("compare_models", base, distilled, scale=scale)
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
    for a, b in paired_scores(base, distilled):
        own, rival = a.mean_loss(), b.mean_loss()
        gap = own - rival
        at_chance = ", ".join(x.model for x in (a, b) if x.at_chance)
        columns = {"task": a.label, "layer": a.layers, "n": len(a.base), "base": own.value, "distilled": rival.value}
        columns |= {"difference": gap.value} | dict(zip(("ci_low", "ci_high"), gap.interval(), strict=True))
        table = pd.DataFrame(columns)
        table["p_value"], table["p_adjusted"] = (np.nan, np.nan) if at_chance else (gap.p(), max_t(gap))
        min_effect = base.metric_info(a.task, a.metric)["min_effect"]
        table["proven"] = (table["p_adjusted"] < ALPHA) & (table["difference"].abs() > min_effect)
        tables.append(table.assign(at_chance=at_chance))
    return pd.concat(tables, ignore_index=True)


def _thirds(pairs: Pairs, scale: str) -> pd.DataFrame:
    rows = []
    for pair in pairs:
        if not any(p.unusable(scale) for p in pair):
            a, b = (third_losses(p, scale) for p in pair)
            numbers = a.value, b.value, (a - b).value, *(a - b).interval()
            rows += [(pair[0].label, *row) for row in zip(THIRDS, *numbers, strict=True)]
    return pd.DataFrame(rows, columns=["task", "third", "base", "distilled", "difference", "ci_low", "ci_high"])


def _centres(pairs: Pairs) -> pd.DataFrame:
    rows = []
    for a, b in pairs:
        values = [np.nan if p.unplaced else float(p.centre.value) for p in (a, b)]
        why = "; ".join(f"{p.model}: {p.unplaced}" for p in (a, b) if p.unplaced)
        shift = b.centre - a.centre
        numbers = [np.nan] * 3 if why else [float(x) for x in (shift.value, *shift.interval())]
        rows.append((a.label, len(a.documents), *values, *numbers, why))
    columns = ["task", "n", "base", "distilled", "shift", "ci_low", "ci_high", "unplaced"]
    return pd.DataFrame(rows, columns=columns)


def _sentences(a: Scores, b: Scores, layers: pd.DataFrame, thirds: pd.DataFrame, centres: pd.DataFrame) -> list[str]:
    table = layers[layers["task"] == a.label]
    own, rival = (x.sign * x.base for x in (a, b))
    change = stats.changes(a.metric, rival - own, a.units)
    delta, low, high, p = (float(x) for x in (change.value, *change.interval(), change.p()))
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


def _shift(row: pd.Series, a: Scores, b: Scores) -> str:
    gap = f"{row['shift']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
    places = f"from {row['base']:.2f} of depth in {a.model} to {row['distilled']:.2f} in {b.model}"
    if row["ci_low"] > 0 or row["ci_high"] < 0:
        way = "deeper" if row["shift"] > 0 else "towards the first layers"
        return f"the centre of the losses moved **{way}**, {places}: {gap}"
    return f"no proven move of the centre of the losses, {places}: {gap}"


def _third(row: Any, a: Scores, b: Scores) -> str:
    gap = f"{-row.difference:+.2f} [{-row.ci_high:+.2f}, {-row.ci_low:+.2f}]"
    sure = "" if row.ci_low > 0 or row.ci_high < 0 else ", no proven change"
    return (
        f"the {row.third} holds {row.distilled:.2f} of all loss in {b.model}, {row.base:.2f} in {a.model}: {gap}{sure}"
    )
