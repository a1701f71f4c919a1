"""What figures read from a sweep: effects of single parts, whether they are critical, their units and words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from depthlens import arguments
from depthlens.ablations import parse_condition
from depthlens.analysis import stats
from depthlens.analysis.results import Result
from depthlens.analysis.stats import ALPHA, BASELINE, GROUP, loss_unit
from depthlens.analysis.words import bounds
from depthlens.errors import UserError
from depthlens.metrics import limits, metric_unit
from depthlens.plots.panels import ACCURACY
from depthlens.plots.theme import counts

Names = str | Sequence[str] | None
FIELDS = [*GROUP, "site", "mode"]
SITES = {"layer": "whole layer", "attn": "attention", "mlp": "MLP"}
SITES |= {"head": "head", "kv": "KV group", "expert": "expert"}  # several a layer
_ONE = {"whole layer": "one layer", "attention": "attention of one layer", "MLP": "MLP of one layer"}
_COUNTS = {"head": "n_heads", "KV group": "n_kv_heads", "expert": "n_experts"}  # sites of several parts a layer
_DONE = {
    "removed": "removed",
    "mean": "replaced by the mean of what it adds",
    "resample": "replaced by another prompt's",
    "noise": "disturbed by noise of its norm",
    "int8": "computed with weights of 8 bits",
    "int4": "computed with weights of 4 bits",
    "donor": "replaced by the donor's",
    "twice": "run twice",
}
PROVEN = f"adjusted p < {ALPHA}"


@dataclass(frozen=True)
class Effects:
    """What removing or replacing each part changes, of one model, task, metric, site and mode; or a score of each head.

    Arrays are of shape [n_layers] or, of heads, KV groups and experts, [n_layers, n_heads]. They are NaN (or False)
    where a part was not removed.

    Attributes:
        key: What distinguishes it from others: of a sweep the value of each of `FIELDS`, in words.
        unit: Of the values.
        worse: Sign of a loss; 0 for scores from 0 to 1.
        values: Changes from baseline, or scores.
        low: Lower ends of their 95% intervals.
        high: Upper ends.
        critical: Losses that are proven; none where nothing can be judged.
        gain: Gains that are proven.
        n: Documents, or cases.
        group: Query heads that share keys and values.
        baseline: Score of the whole model; NaN for scores of heads.
        chance: Score of guessing; NaN where it is not known.
        at_chance: Whether nothing can be judged.
        tested: Whether the values were tested against 0.
        p: Adjusted p-values; None where there are none.
        limits: The least and the greatest score that there can be; of changes, the least and the greatest change.
    """

    key: dict[str, str]
    unit: str
    worse: int
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    critical: np.ndarray
    gain: np.ndarray
    n: int
    group: int = 1
    baseline: float = math.nan
    chance: float = math.nan
    at_chance: bool = False
    tested: bool = True
    p: np.ndarray | None = None
    limits: tuple[float, float] = (-math.inf, math.inf)

    def said(self, *at: int) -> str:
        """What there is to say of one part: its score, or its change with interval and adjusted p-value."""
        value, low, high = (float(array[at]) for array in (self.values, self.low, self.high))
        known = not (math.isnan(value) or np.isnan(self.low).all())  # some scores have no intervals at all
        ends = f" {bounds(low, high, '.3g')}" if known else ""
        p = "" if self.p is None or math.isnan(self.p[at]) else f", adjusted p = {self.p[at]:.2g}"
        if math.isnan(self.baseline) or self.unit.startswith("change"):
            return f"{self.unit} {value:.3g}{ends}{p}"
        return f"{self.unit} {self.baseline + value:.3g}, change {value:+.3g}{ends}{p}"

    def as_change(self) -> Effects:
        """The same as changes from a baseline of 0."""
        low, high = self.limits
        unit, limits = f"change of {self.unit} from baseline", (low - high, high - low)
        return replace(self, unit=unit, limits=limits, baseline=0.0, chance=math.nan)

    def label(self, fields: Sequence[str]) -> str:
        return ", ".join(self.key[f] for f in fields)


def sweep_effects(result: Result, tasks: Names, metrics: Names, sites: Sequence[str], fix: str) -> list[Effects]:
    """Effects of all conditions of a result that remove or replace one part; other conditions are left out.

    Args:
        result: Of a sweep.
        tasks: The task or tasks to choose; all for None.
        metrics: The metric or metrics to choose; all for None.
        sites: Which parts, out of `SITES`; the first names them in the error.
        fix: How to sweep them, for the error.

    Raises:
        UserError: an unknown task or metric, or no condition that is such a part.
    """
    arguments.result(result)
    result = result if tasks is None and metrics is None else result.select(tasks=tasks, metrics=metrics)
    names = list(result.summary["condition"].unique())
    ablations = {name: parse_condition(name).ablations for name in names}
    parts = {name: a[0] for name, a in ablations.items() if len(a) == 1 and a[0].site in sites}
    if not parts:
        others = ", ".join([name for name in names if name != BASELINE][:5]) or "the baseline alone"
        raise UserError(f"no condition removes a single {sites[0]} ({others}); {fix}")
    table = result.summary[result.summary["condition"].isin(parts)]
    table = table.merge(result.baselines[[*GROUP, "chance", "at_chance"]], on=GROUP, how="left")
    part = table["condition"].map(parts)
    table["site"] = [SITES[p.site] for p in part]
    table["mode"] = ["removed" if p.mode in ("skip", "zero") else p.mode for p in part]
    table["index"] = [p.index for p in part]
    return [_effects(result, rows) for _, rows in table.groupby(FIELDS, sort=False)]


def _effects(result: Result, rows: pd.DataFrame) -> Effects:
    first = rows.iloc[0]
    model, task, metric, site = (str(first[field]) for field in FIELDS[:4])
    info, dims = result.metric_info(task, metric), model_dims(result.record, model)
    values = _scores(result, model, task, metric)
    worse = -1 if info["higher_is_better"] else 1
    proven = (rows["p_adjusted"] < ALPHA) & (rows["bounded"].abs() > info["min_effect"]) & ~rows["at_chance"]
    loss = worse * rows["bounded"] > 0
    at, shape = [rows["layer"].to_numpy(int)], [max(int(rows["layer"].max()) + 1, dims.get("n_layers", 0))]
    if site in _COUNTS:
        at.append(rows["index"].to_numpy(int))
        shape.append(max([int(rows["index"].max()) + 1, *np.atleast_1d(dims.get(_COUNTS[site], 0))]))

    def grid(column: pd.Series, empty: float | bool) -> np.ndarray:
        array = np.full(shape, empty)
        array[tuple(at)] = column
        return array

    return Effects(
        key={field: str(first[field]) for field in FIELDS} | {"metric": metric.removesuffix(",none")},
        unit=unit_of(result, model, task, metric, loss=True),
        worse=worse,
        values=grid(rows["bounded"], math.nan),
        low=grid(rows["ci_low"], math.nan),
        high=grid(rows["ci_high"], math.nan),
        critical=grid(proven & loss, False),
        gain=grid(proven & ~loss, False),
        p=grid(rows["p_adjusted"], math.nan),
        n=int(first["n"]),
        limits=limits(metric, values.min(), values.max()),
        group=group_size(dims) if site == "head" else 1,
        baseline=float(first["baseline"]),
        chance=float(first["chance"]),
        at_chance=bool(first["at_chance"]),
    )


def model_dims(record: dict, model: str) -> dict[str, Any]:
    """Sizes of a model, from the record or from the part of a joined record that is about it; {} if it has none."""
    models = [r.get("model", {}) for r in (record, *record.get("parts", ()))]
    return next((m["dims"] for m in models if m.get("name", model) == model and m.get("dims")), {})


def group_size(dims: dict[str, Any]) -> int:
    """Query heads that share keys and values; 1 where it is not known."""
    return dims["n_heads"] // dims["n_kv_heads"] if dims.get("n_kv_heads") else 1


def unit_of(result: Result, model: str, task: str, metric: str, *, loss: bool = False) -> str:
    """What a metric is called on an axis: accuracy where it is a share of documents, else its name and unit.

    Args:
        result: Of a sweep.
        model: Name of the model.
        task: Name of the task.
        metric: Name of the metric.
        loss: Whether changes are drawn, which are bounded (`depthlens.metrics.loss_unit`).
    """
    values = _scores(result, model, task, metric)
    if result.metric_info(task, metric)["higher_is_better"] and stats.is_binary(values):
        return ACCURACY
    return named(metric, loss=loss)


def named(metric: str, *, loss: bool = False) -> str:
    """A metric with its unit; see `unit_of`."""
    unit = loss_unit(metric) if loss else metric_unit(metric)
    return metric.removesuffix(",none") + (f" ({unit})" if unit else "")


def _scores(result: Result, model: str, task: str, metric: str) -> pd.Series:
    docs = result.docs
    return docs.loc[(docs["model"] == model) & (docs["task"] == task) & (docs["metric"] == metric), "value"]


def varying(keys: Sequence[dict[str, str]]) -> list[str]:
    """The fields that tell series or panels apart; not the metric where the others already do."""
    fields = [f for f in keys[0] if len({key[f] for key in keys}) > 1]
    others = [f for f in fields if f != "metric"]
    return others if len({tuple(key[f] for f in others) for key in keys}) == len(keys) else fields


def sweep_title(effects: Sequence[Effects], several: str, how: str = "") -> str:
    """What is the same in all effects: models, task, what was done to which part, number of documents.

    Args:
        effects: Of a sweep.
        several: What was removed where it is of several sites.
        how: Added to what was done.
    """
    models, tasks, _, sites, modes = (list(dict.fromkeys(e.key[f] for e in effects)) for f in FIELDS)
    task = f", {tasks[0]}" if len(tasks) == 1 else ""
    part = _ONE.get(sites[0], f"one {sites[0]}") if len(sites) == 1 else several
    done = _DONE[modes[0]] if len(modes) == 1 else "removed or replaced"
    return f"{', '.join(models)}{task}: {part} {done} at a time{how}, n = {counts(e.n for e in effects)} documents"
