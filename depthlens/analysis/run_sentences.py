"""What a comparison of runs says, one sentence each, from its tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from depthlens.analysis import run_settings
from depthlens.analysis.run_differences import CENTRE, SCORE
from depthlens.analysis.run_families import Key
from depthlens.analysis.words import bounds

_MOST = 6  # conditions that a sentence names


def sentences(tables: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """Sentences on the tables of `depthlens.analysis.run_comparison.Comparison`."""
    settings = tables["settings"]
    differs = settings[~settings["equal"] & (settings["kind"] == run_settings.DECIDES)]["setting"].unique()
    if len(differs):
        names = ", ".join(differs)
        yield f"The runs differ in settings that decide scores ({names}); they are compared where these are equal."
    else:
        yield "No setting that decides scores differs between the runs."
    yield from _whole_models(tables["baselines"])
    yield from _losses(tables["differences"])
    yield from _centres(tables["centres"])


def _name(row: Any, parts: str | None = None) -> str:
    return str(Key(row.place, row.task, row.metric, row.parts if parts is None else parts))


def _whole_models(table: pd.DataFrame) -> Iterator[str]:
    scores = {(row.place, row.task, row.metric, row.run): row for row in table.itertuples()}
    for row in table.itertuples():
        name = _name(row, "whole model").removesuffix(", whole model")
        if row.at_chance:
            yield f"{name}: {row.run} is at chance ({row.baseline:.2f}, n = {row.n}), cannot judge."
        if not row.reference:
            continue
        other = scores[row.place, row.task, row.metric, row.reference]
        gap = f"{row.difference:+.2f} {bounds(row.difference_low, row.difference_high, '+.2f')} "
        gap += f"(p = {row.p_adjusted:.2g}, n = {row.n} and {other.n}, {row.documents})"
        verdict = "**differ**" if row.shown else "are not shown to differ"
        yield (
            f"{name}: the whole models {verdict}: {row.run} scores {row.baseline:.2f} and {row.reference} "
            f"{other.baseline:.2f}, {gap}."
        )


def _losses(table: pd.DataFrame) -> Iterator[str]:
    keys = [*Key._fields, "run", "reference", "scale"]
    for values, rows in table.groupby(keys, sort=False):
        *key, run, reference, scale = map(str, values)
        unit = "in the metric's unit" if scale == SCORE else "as shares of the score above the floor"
        shown = rows[rows["shown"].astype(bool)]
        name = str(Key(*key))
        if not len(shown):
            top = rows.loc[rows["difference"].abs().idxmax()]
            most = f"{top['condition']}, {top['difference']:+.2f}, p_adjusted = {top['p_adjusted']:.2g}"
            yield f"{name}: no loss is shown to differ between {run} and {reference}, {unit} (most: {most})."
            continue
        ways = [(run, shown[shown["difference"] > 0]), (reference, shown[shown["difference"] < 0])]
        said = [f"{len(of)} cost {more} more ({_listed(of)})" for more, of in ways if len(of)]
        count = f"**{len(shown)} of {len(rows)}** losses differ between {run} and {reference}, {unit}"
        yield f"{name}: {count}: {'; '.join(said)}."


def _listed(rows: pd.DataFrame) -> str:
    ordered = rows.reindex(rows["difference"].abs().sort_values(ascending=False, kind="stable").index)
    names = [f"{row.condition} {row.difference:+.2f}" for row in ordered.head(_MOST).itertuples()]
    return ", ".join(names) + (f" and {len(rows) - _MOST} more" if len(rows) > _MOST else "")


def _centres(table: pd.DataFrame) -> Iterator[str]:
    chosen = table[(table["measure"] == CENTRE) & (table["reference"] != "")]
    values = {(*(getattr(r, f) for f in Key._fields), r.run): r for r in table[table["measure"] == CENTRE].itertuples()}
    for row in chosen.itertuples():
        other = values[(*(getattr(row, f) for f in Key._fields), row.reference)]
        name = _name(row)
        if math.isnan(row.difference):
            why = "; ".join(f"{r.run}: {r.why}" for r in (row, other) if r.why) or "not every layer of both was removed"
            yield f"{name}: cannot judge where in depth the losses are ({why})."
            continue
        gap = f"{row.difference:+.3f} {bounds(row.difference_low, row.difference_high, '+.3f')}"
        verdict = "is not shown to differ"
        if row.shown:
            verdict = f"is **{'deeper' if row.difference > 0 else 'less deep'}** in {row.run}"
        places = f"{row.value:.2f} of depth in {row.run}, {other.value:.2f} in {row.reference}"
        yield f"{name}: the centre of mass of the losses {verdict}: {places}, {gap}, p = {row.p_adjusted:.2g}."
