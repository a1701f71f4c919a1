"""What figures read from a sweep: a row for each single part, its effect, its units, and words for titles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from depthlens.ablations import parse_condition
from depthlens.analysis.numbers.stats import BASELINE, GROUP, is_binary, loss_unit
from depthlens.analysis.result.losses import Losses
from depthlens.analysis.result.results import Result
from depthlens.errors import UserError
from depthlens.metrics import metric_unit
from depthlens.plots.panels import ACCURACY, idle_where
from depthlens.plots.theme import counts

FIELDS = [*GROUP[1:], "site", "mode"]
SITES = {"layer": "whole layer", "attn": "attention", "mlp": "MLP"}
SITES |= {"head": "head", "kv": "KV group"}  # several a layer
_ONE = {"whole layer": "one layer", "attention": "attention of one layer", "MLP": "MLP of one layer"}


def sweep_table(result: Result, sites: Sequence[str], fix: str) -> pd.DataFrame:
    """Effects of all conditions of a result that remove or replace one part; other conditions are left out.

    Args:
        result: Of a sweep.
        sites: Which parts, out of `SITES`; the first names them in the error.
        fix: How to sweep them, for the error.

    Returns:
        The columns of `Result.losses`, those of `FIELDS` in words, and by row: ``index`` (of a head in its layer),
        ``low`` and ``high`` (ends of the interval of ``bounded``), ``shown`` (a proven loss), ``idle`` (why nothing can
        be judged), and those of `axis_of`.

    Raises:
        UserError: no condition is such a part.
    """
    table, every = result.loss_table, result.every_losses.values()
    names = list(table["condition"].unique())
    ablations = {name: parse_condition(name).ablations for name in names}
    parts = {name: a[0] for name, a in ablations.items() if len(a) == 1 and a[0].site in sites}
    if not parts:
        others = ", ".join([name for name in names if name != BASELINE][:5]) or "the baseline alone"
        raise UserError(f"no condition removes a single {sites[0]} ({others}); {fix}")
    table = table[table["condition"].isin(parts)]
    part = table["condition"].map(parts)
    axes = [{name: getattr(of, name) for name in GROUP} | axis_of(result, of, loss=True) for of in every]
    return table.assign(
        site=[SITES[p.site] for p in part],
        mode=["removed" if p.kind == "removal" else p.manner for p in part],
        layer=table["layer"].astype(int),
        index=[p.index for p in part],
        low=table["ci_low"],
        high=table["ci_high"],
        shown=table["critical"],
        idle=idle_where(table["at_chance"]),
    ).merge(pd.DataFrame(axes), on=GROUP)


def model_dims(record: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of the model of a record; {} if it has none."""
    return record.get("model", {}).get("dims") or {}


def axis_of(result: Result, losses: Losses, *, loss: bool = False) -> dict[str, Any]:
    """Columns that say on which axis a metric is drawn.

    Args:
        result: Of a sweep.
        losses: Its losses by the metric.
        loss: Whether changes are drawn, which are bounded (`depthlens.metrics.loss_unit`).

    Returns:
        ``unit`` (accuracy where the metric is a share of documents, else its name and unit), ``least`` and ``greatest``
        (scores that there can be), ``worse`` (sign of a loss), and ``n_layers`` (of the model).
    """
    n_layers = max(losses.layers.max(initial=-1) + 1, model_dims(result.record).get("n_layers", 0))
    right = losses.sign > 0 and is_binary(losses.base) and is_binary(losses.values)
    unit = ACCURACY if right else named(losses.metric, loss=loss)
    least, greatest = sorted(losses.sign * end for end in losses.limits)
    return {"unit": unit, "least": least, "greatest": greatest, "worse": -int(losses.sign), "n_layers": n_layers}


def named(metric: str, *, loss: bool = False) -> str:
    """A metric with its unit; see `axis_of`."""
    unit = loss_unit(metric) if loss else metric_unit(metric)
    return metric.removesuffix(",none") + (f" ({unit})" if unit else "")


def varying(table: pd.DataFrame) -> list[str]:
    """The fields that tell series or panels apart; not the metric where the others already do."""
    keys = table[FIELDS].drop_duplicates()
    fields = [f for f in FIELDS if keys[f].nunique() > 1]
    others = [f for f in fields if f != "metric"]
    return others if len({*zip(*(keys[f] for f in others), strict=True)}) == len(keys) else fields


def labels(table: pd.DataFrame, fields: Sequence[str]) -> pd.Series:
    """What each row is called by the values of some fields; by its task if there are none."""
    columns = [table[f].astype(str).str.removesuffix(",none") for f in fields or ["task"]]
    return columns[0].str.cat(columns[1:], sep=", ") if len(columns) > 1 else columns[0]


def sweep_title(table: pd.DataFrame, several: str, how: str = "") -> str:
    """What is the same in all effects: model, task, what was done to which part, number of documents.

    Args:
        table: See `sweep_table`.
        several: What was removed where it is of several sites.
        how: Added to what was done.
    """
    tasks, _, sites, modes = (list(table[f].unique()) for f in FIELDS)
    task = f", {tasks[0]}" if len(tasks) == 1 else ""
    part = _ONE.get(sites[0], f"one {sites[0]}") if len(sites) == 1 else several
    done = "removed" if modes == ["removed"] else f"under @{modes[0]}" if len(modes) == 1 else "removed or replaced"
    return f"{table['model'].iloc[0]}{task}: {part} {done} at a time{how}, n = {counts(table['n'])} documents"
