"""How much of the gap between a base model and its donor transplants close.

A transplant is a condition that takes parts from a donor (``L0-11@donor``, see `depthlens.ablations`). With mean
scores over the same questions it recovers ``(transplant - base) / (donor - base)``: 0 is the base, 1 the donor, below 0
worse than either. Intervals are of the quotient of two means over questions (`depthlens.analysis.numbers.means`). The
share is given where the donor is proven better than the base: without a gap there is nothing to recover, and a ratio of
noise could be anything. Differences in nats are at most 1 a document.

Limit: the transplanted parts work beside layers that they were not trained with. A low share says that the parts do not
work there, not that the ability is elsewhere.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from depthlens.ablations import ENDS, INDEXED, parse_condition
from depthlens.analysis.numbers.means import ALPHA, Mean
from depthlens.analysis.result.losses import Losses
from depthlens.analysis.result.profiles import by_document, comparable
from depthlens.analysis.result.results import Result
from depthlens.analysis.result.tables import DescribedTable
from depthlens.errors import UserError

NO_GAP = "the donor is not proven better than the base"
SHARE = "**{condition} recovers {recovered:.2f} [{ci_low:.2f}, {ci_high:.2f}] of the gap**"
ONE, BOTTOM, TOP = "of one layer", "from the bottom", "from the top"
COLUMNS = [
    "task", "metric", "condition", "site", "first", "last", "n", "value", "value_low", "value_high", "base", "donor",
    "recovered", "ci_low", "ci_high", "p_adjusted", "no_gap",
]  # fmt: skip


def recovery(result: Result, donor: Result) -> DescribedTable:
    """What share of the gap between base and donor each transplant recovers; see `depthlens.Result.recovery`.

    Returns:
        One row a task and transplant: task, metric, condition, site, first, last (the layers that it changes, where
        these are one stretch of one site, else missing), n, value, value_low, value_high (score, with the interval of
        its difference from the base), base, donor, recovered, ci_low, ci_high, p_adjusted (of the difference from the
        base; step-down maxT over the sweep), no_gap ("" or why no share is given). It is described by sentences on
        the best of each series of transplants.

    Raises:
        UserError: no transplants; or the results differ in tasks, metrics, documents or settings.
    """
    comparable(result, donor, ("task", "metric", "doc_id"))
    conditions = [c for c in result.docs["condition"].unique() if parse_condition(c).uses("donor")]
    if not conditions:
        raise UserError("no condition takes a part from a donor; sweep some, e.g. 'bottom@donor'")
    table, tables = result.loss_table, []
    for own in result.every_losses.values():
        rows = table[(table["task"] == own.task) & (table["metric"] == own.metric)]
        rows = rows.set_index("condition", drop=False).loc[conditions].reset_index(drop=True)
        own, goal = by_document(own.select(conditions), donor.losses(own.task, own.metric))
        share, no_gap = recovered_share(own, goal)
        ends = sorted(own.sign * end for end in own.limits)
        rows = rows.assign(task=own.label, base=rows["baseline"], donor=own.sign * goal.base.mean(), no_gap=no_gap)
        rows[["site", "first", "last"]] = pd.DataFrame([_stretch(c) for c in conditions], index=rows.index)
        for end in ("low", "high"):
            rows[f"value_{end}"] = (rows["baseline"] + rows[f"ci_{end}"]).clip(*ends)
        found = (share * np.nan if no_gap else share).columns("recovered")
        tables.append(rows.assign(**found).astype({"first": "Int64", "last": "Int64"})[COLUMNS])
    table = pd.concat(tables, ignore_index=True)
    return DescribedTable.of("recovery", result, donor, rows=table, columns=COLUMNS, lines=_sentences(table))


def series(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Transplants of one task by kind (and site, where that is not the whole layer), in order of layers.

    One layer begins a cumulative series and all layers end both, so a transplant may be in several. Kinds with fewer
    than two are left out.

    Args:
        rows: Those of one task from `depthlens.Result.recovery`.
    """
    by_kind: dict[str, pd.DataFrame] = {}
    for site, part in rows.dropna(subset=["first"]).groupby("site", sort=False):
        kinds = {
            ONE: part[part["first"] == part["last"]].sort_values("first"),
            BOTTOM: part[part["first"] == 0].sort_values("last"),
            TOP: part[part["last"] == part["last"].max()].sort_values("first"),
        }
        where = "" if site == "layer" else f"{site} "
        by_kind |= {f"{where}{kind}": chosen for kind, chosen in kinds.items() if len(chosen) > 1}
    return by_kind


def _sentences(table: pd.DataFrame) -> list[str]:
    """The best of each series, the smaller of equal ones, and every transplant that is in none."""
    lines = []
    for task, rows in table.groupby("task", sort=False):
        levels = "base {base:.2f}, donor {donor:.2f}, n = {n:.0f}".format_map(rows.iloc[0])
        if why := rows["no_gap"].iloc[0]:
            lines.append(f"{task}: {why}, cannot judge transplants ({levels}).")
            continue
        by_kind = series(rows)
        alone = rows.drop(index=[i for chosen in by_kind.values() for i in chosen.index])
        groups = [(f", transplants {kind}", chosen) for kind, chosen in by_kind.items()]
        for what, chosen in [*groups, *(("", alone.loc[[i]]) for i in alone.index)]:
            smallest_first = chosen.assign(layers=chosen["last"] - chosen["first"]).sort_values("layers", kind="stable")
            best = chosen.loc[smallest_first["recovered"].idxmax()]
            most = f", the most of {len(chosen)}" if what else ""
            proven = "" if best["p_adjusted"] < ALPHA and best["recovered"] > 0 else ", not proven to help"
            lines.append(f"{task}{what}: {SHARE.format_map(best)}{most}{proven} ({levels}).")
    return lines


def recovered_share(own: Losses, goal: Losses) -> tuple[Mean, str]:
    """Recovered share under each transplant, and why it says nothing where there is no gap ("" if it does).

    Args:
        own: Losses of the base under transplants.
        goal: Of the donor, on the same documents.
    """
    gap = goal.gain_over(own)
    return -own.mean() / gap, "" if gap.value > 0 and gap.p() < ALPHA else NO_GAP


def _stretch(condition: str) -> tuple[str, int | None, int | None]:
    """Site, first and last layer of a condition that is one stretch of layers of one site."""
    parts = parse_condition(condition).ablations
    layers, sites = sorted({p.layer for p in parts}), {p.site for p in parts}
    if len(sites) > 1 or sites & {*INDEXED, *ENDS} or layers != list(range(layers[0], layers[-1] + 1)):
        return "+".join(sorted(sites)), None, None
    return sites.pop(), layers[0], layers[-1]
