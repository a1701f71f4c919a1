"""What figures read from a sweep: conditions of one part each, whether they are critical, their units and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from depthlens import arguments
from depthlens.ablations import parse_condition
from depthlens.analysis import stats
from depthlens.analysis.results import Result
from depthlens.analysis.stats import ALPHA, BASELINE, GROUP
from depthlens.errors import UserError
from depthlens.metrics import metric_unit
from depthlens.plots.panels import ACCURACY
from depthlens.plots.theme import counts

Names = str | Sequence[str] | None
FIELDS = [*GROUP, "site", "mode"]
SITES = {"layer": "whole layer", "attn": "attention", "mlp": "MLP", "head": "head", "kv": "KV group"}
_ONE = {"whole layer": "one layer", "attention": "attention of one layer", "MLP": "MLP of one layer"}
_DONE = {
    "removed": "removed",
    "mean": "replaced by the mean of what it adds",
    "resample": "replaced by another prompt's",
    "donor": "replaced by the donor's",
}
PROVEN = f"Holm-adjusted p < {ALPHA}"


@dataclass(frozen=True)
class Sweep:
    """All conditions that remove or replace one part, of one model, task, metric, site and mode.

    Attributes:
        key: Value of each of `FIELDS`, in words.
        unit: Of the metric.
        better: Whether higher is better.
        rows: Rows of the summary, with ``index`` (head or KV group), ``critical`` (a loss that is proven) and ``gain``.
        dims: Sizes of the model that the record has.
        n: Documents.
        baseline: Score of the whole model.
        chance: Score of guessing; NaN where it is not known.
        at_chance: Whether nothing can be judged; nothing is critical then.
    """

    key: dict[str, str]
    unit: str
    better: bool
    rows: pd.DataFrame
    dims: dict[str, int]
    n: int
    baseline: float
    chance: float
    at_chance: bool

    def label(self, fields: Sequence[str]) -> str:
        return ", ".join(self.key[f] for f in fields)


def sweeps(result: Result, tasks: Names, metrics: Names, sites: Sequence[str], what: str) -> list[Sweep]:
    """The sweeps over single parts that a result holds.

    Args:
        result: Where they are; other conditions are left out.
        tasks: The task or tasks to choose; all for None.
        metrics: The metric or metrics to choose; all for None.
        sites: Which parts, out of `SITES`.
        what: What a condition should have removed and how to sweep it, for the error.

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
        removed, fix = what.split("; ")
        raise UserError(f"no condition removes {removed} ({others}); {fix}")
    table = result.summary[result.summary["condition"].isin(parts)]
    table = table.merge(result.baselines[[*GROUP, "chance", "at_chance"]], on=GROUP, how="left")
    part = table["condition"].map(parts)
    table = table.assign(
        site=[SITES[p.site] for p in part],
        mode=["removed" if p.mode in ("skip", "zero") else p.mode for p in part],
        index=[p.index for p in part],
    )
    return [_sweep(result, rows) for _, rows in table.groupby(FIELDS, sort=False)]


def _sweep(result: Result, rows: pd.DataFrame) -> Sweep:
    first = rows.iloc[0]
    model, task, metric = (str(first[field]) for field in GROUP)
    info = result.metric_info(task, metric)
    better = bool(info["higher_is_better"])
    proven = (rows["p_adjusted"] < ALPHA) & (rows["delta"].abs() > info["min_effect"]) & ~rows["at_chance"]
    loss = (rows["delta"] < 0) if better else (rows["delta"] > 0)
    rows = rows.assign(critical=proven & loss, gain=proven & ~loss)
    key = {field: str(first[field]) for field in FIELDS} | {"metric": metric.removesuffix(",none")}
    numbers = int(first["n"]), float(first["baseline"]), float(first["chance"]), bool(first["at_chance"])
    return Sweep(key, unit_of(result, model, task, metric), better, rows, model_dims(result.record, model), *numbers)


def model_dims(record: dict, model: str) -> dict[str, int]:
    """Sizes of a model, from the record or from the part of a joined record that is about it; {} if it has none."""
    models = [r.get("model", {}) for r in (record, *record.get("parts", ()))]
    return next((m["dims"] for m in models if m.get("name", model) == model and m.get("dims")), {})


def unit_of(result: Result, model: str, task: str, metric: str) -> str:
    """What a metric is called on an axis: accuracy where it is a share of documents, else its name and unit."""
    docs = result.docs
    values = docs.loc[(docs["model"] == model) & (docs["task"] == task) & (docs["metric"] == metric), "value"]
    if result.metric_info(task, metric)["higher_is_better"] and stats.is_binary(values):
        return ACCURACY
    unit = metric_unit(metric)
    return metric.removesuffix(",none") + (f" ({unit})" if unit else "")


def varying(keys: Sequence[dict[str, str]]) -> list[str]:
    """The fields that tell series or panels apart; not the metric where the others already do."""
    fields = [f for f in keys[0] if len({key[f] for key in keys}) > 1]
    others = [f for f in fields if f != "metric"]
    return others if len({tuple(key[f] for f in others) for key in keys}) == len(keys) else fields


def sweep_title(found: Sequence[Sweep], several: str, how: str = "") -> str:
    """What is the same in all sweeps: models, task, what was done to which part, number of documents.

    Args:
        found: The sweeps.
        several: What was removed where it is of several sites.
        how: Added to what was done.
    """
    models, tasks, sites, modes = (list(dict.fromkeys(s.key[f] for s in found)) for f in ("model", "task", *FIELDS[3:]))
    task = f", {tasks[0]}" if len(tasks) == 1 else ""
    part = _ONE.get(sites[0], f"one {sites[0]}") if len(sites) == 1 else several
    done = _DONE[modes[0]] if len(modes) == 1 else "removed or replaced"
    return f"{', '.join(models)}{task}: {part} {done} at a time{how}, n = {counts(s.n for s in found)} documents"
