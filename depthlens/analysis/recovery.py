"""How far transplants carry a base model towards its donor, as a share of the gap between the two.

A transplant is a condition that takes parts from a donor (``L0-11@donor``, see `depthlens.ablations`). With mean
scores over the same documents it recovers ``(transplant - base) / (donor - base)``: 0 is the base, 1 the donor, below 0
worse than either. Intervals are percentile bootstraps over documents, drawn jointly for all three
(`depthlens.analysis.layer_profiles`). The share is given where the donor is proven better than the base: without a gap
there is nothing to recover, and a ratio of noise could be anything.

Limit: what is transplanted meets layers that were trained with other ones. A low share says that the parts do not work
here, not that the ability is elsewhere.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from depthlens import arguments
from depthlens.ablations import ENDS, parse_condition
from depthlens.analysis import stats
from depthlens.analysis.layer_profiles import (
    N_BOOT,
    change,
    comparable,
    draws,
    imaginary,
    interval,
    labels,
    ratio,
    same,
)
from depthlens.analysis.results import Result
from depthlens.analysis.stats import ALPHA, BASELINE
from depthlens.errors import UserError

NO_GAP = "the donor is not proven better than the base"
ONE, BOTTOM, TOP = "of one layer", "from the bottom", "from the top"


def transplant_recovery(result: Result, donor: Result, *, seed: int = 0, n_boot: int = N_BOOT) -> pd.DataFrame:
    """What share of the gap between base and donor each transplant recovers.

    Args:
        result: A sweep of the base model over conditions that take parts from the donor; others are left out.
        donor: The donor's own scores (baseline) on the same tasks, metrics and documents; its conditions are not read.
        seed: Of the bootstrap.
        n_boot: Number of draws.

    Returns:
        One row a task and transplant: task, metric, condition, site, first, last (the layers that it changes, where
        these are one stretch of one site, else missing), n, value, value_low, value_high (score, with the interval of
        its difference from the base), base, donor, recovered, ci_low, ci_high, p_adjusted (of the difference from the
        base; Holm's correction over the sweep), no_gap ("" or why no share is given).

    Raises:
        UserError: no transplants; or the results differ in tasks, metrics, documents or settings.
    """
    arguments.result(result)
    arguments.result(donor, "donor")
    comparable(result, donor)
    conditions = [c for c in result.docs["condition"].unique() if parse_condition(c).uses_donor]
    if not conditions:
        raise UserError("no condition takes a part from a donor; sweep some, e.g. 'bottom@donor'")
    summary = result.summary.set_index(["task", "metric", "condition"])
    tables = []
    for (task, metric), label in labels(result).items():
        scores, others = (_scores(r, task, metric) for r in (result, donor))
        models = [str(r.docs["model"].iloc[0]) for r in (result, donor)]
        same("documents", task, list(zip(models, (list(scores.index), list(others.index)), strict=True)))
        rows = summary.loc[[(task, metric, c) for c in conditions]]
        table = pd.DataFrame([_stretch(c) for c in conditions], columns=["site", "first", "last"])
        table = table.astype({"first": "Int64", "last": "Int64"})
        table.insert(0, "condition", conditions)
        value, base = rows["value"].to_numpy(), rows["baseline"].to_numpy()
        table = table.assign(n=len(scores), value=value)
        table["value_low"], table["value_high"] = (base + rows[c].to_numpy() for c in ("ci_low", "ci_high"))
        table = table.assign(base=base, donor=others[BASELINE].mean())
        sign = 1 if result.metric_info(task, metric)["higher_is_better"] else -1
        own, goal, given = (sign * x.to_numpy() for x in (scores[BASELINE], others[BASELINE], scores[conditions]))
        shares, no_gap = _shares(own, goal, given, seed, n_boot)
        table[["recovered", "ci_low", "ci_high"]] = shares
        table = table.assign(p_adjusted=rows["p_adjusted"].to_numpy(), no_gap=no_gap)
        table.insert(0, "task", label)
        table.insert(1, "metric", metric)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def series(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Transplants of one task by kind (and site, where that is not the whole layer), in order of layers.

    One layer begins a cumulative series and all layers end both, so a transplant may be in several. Kinds with fewer
    than two are left out.

    Args:
        rows: Those of one task from `transplant_recovery`.
    """
    found = {}
    for site, part in rows.dropna(subset=["first"]).groupby("site", sort=False):
        kinds = {
            ONE: part[part["first"] == part["last"]].sort_values("first"),
            BOTTOM: part[part["first"] == 0].sort_values("last"),
            TOP: part[part["last"] == part["last"].max()].sort_values("first"),
        }
        where = "" if site == "layer" else f"{site} "
        found |= {f"{where}{kind}": chosen for kind, chosen in kinds.items() if len(chosen) > 1}
    return found


def recovery_findings(table: pd.DataFrame) -> list[str]:
    """What transplants recover, in sentences: the best of each series, and the least that surely gives half.

    Args:
        table: From `transplant_recovery`.
    """
    lines = []
    # numbered anew: rows of two tables that were joined may share their numbers
    for task, rows in table.reset_index(drop=True).groupby("task", sort=False):
        base, donor, n = rows[["base", "donor", "n"]].iloc[0]
        levels = f"base {base:.2f}, donor {donor:.2f}, n = {n:.0f}"
        if why := rows["no_gap"].iloc[0]:
            lines.append(f"{task}: {why}, cannot judge transplants ({levels}).")
            continue
        told = series(rows)
        for kind, chosen in told.items():
            lines.append(f"{task}, transplants {kind}: {_best(chosen)} ({levels}).")
            half = chosen[(chosen["ci_low"] >= 0.5) & (chosen["p_adjusted"] < ALPHA)]
            if kind.endswith(ONE):
                continue
            if not len(half):
                lines.append(f"{task}, transplants {kind}: none surely recovers half of the gap.")
                continue
            least = half.loc[(half["last"] - half["first"]).idxmin()]
            lines.append(
                f"{task}, transplants {kind}: half of the gap is surely recovered from **{least['condition']}** on, "
                f"{_share(least)}."
            )
        rest = rows.drop(index=[i for chosen in told.values() for i in chosen.index])
        for row in rest.itertuples():
            proven = "" if row.p_adjusted < ALPHA else ", no proven change"
            lines.append(f"{task}: {row.condition} recovers {_share(row._asdict())} of the gap{proven} ({levels}).")
    return lines


def _best(chosen: pd.DataFrame) -> str:
    smallest_first = chosen.assign(layers=chosen["last"] - chosen["first"]).sort_values("layers", kind="stable")
    best = chosen.loc[smallest_first["recovered"].idxmax()]
    said = f"{best['condition']} recovers {_share(best)} of the gap"
    if best["p_adjusted"] < ALPHA and best["recovered"] > 0:
        return f"**{said}**, the most of {len(chosen)}"
    return f"none of {len(chosen)} is proven to help; {said}"


def _share(row: pd.Series | dict) -> str:
    return f"{row['recovered']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]"


def _shares(own: np.ndarray, goal: np.ndarray, given: np.ndarray, seed: int, n_boot: int) -> tuple[np.ndarray, str]:
    """Recovered shares with their intervals [condition, 3], NaN and a reason where there is no gap.

    Args:
        own: Scores of the base. Shape [document].
        goal: Scores of the donor. Shape [document].
        given: Scores under each transplant. Shape [document, condition].
        seed: Of the bootstrap.
        n_boot: Number of draws.
    """
    n, number = given.shape
    gap, *_, p = change(own, goal)
    if not (gap > 0 and p < ALPHA):
        return np.full((number, 3), np.nan), NO_GAP
    counts = draws(n, n_boot, seed)
    gained = counts @ (given - own[:, None])
    if stats.is_binary(np.abs(np.column_stack([own, goal, given]))):
        rng = np.random.default_rng([seed, 1])
        gained[1:] += np.hstack([imaginary((n_boot, 1), rng) for _ in range(number)])
    share = ratio(gained, (counts @ (goal - own))[:, None])
    return np.column_stack([share[0], *interval(share, n)]), ""


def _stretch(condition: str) -> tuple[str, int | None, int | None]:
    """Site, first and last layer of a condition that is one stretch of layers of one site."""
    parts = parse_condition(condition).ablations
    layers, sites = sorted({p.layer for p in parts}), {p.site for p in parts}
    if len(sites) > 1 or sites & {"head", "kv", *ENDS} or layers != list(range(layers[0], layers[-1] + 1)):
        return "+".join(sorted(sites)), None, None
    return sites.pop(), layers[0], layers[-1]


def _scores(result: Result, task: str, metric: str) -> pd.DataFrame:
    """Documents x conditions."""
    docs = result.docs[(result.docs["task"] == task) & (result.docs["metric"] == metric)]
    return docs.pivot(index="doc_id", columns="condition", values="value")
