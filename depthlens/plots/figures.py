"""Which figures belong to which kind of finding: what ``plot`` of it draws."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from depthlens.ablations import INDEXED, parse_condition
from depthlens.analysis.numbers.stats import BASELINE
from depthlens.analysis.result.results import Result
from depthlens.analysis.result.tables import DescribedTable
from depthlens.analysis.runs.comparison import Comparison
from depthlens.errors import UserError, unknown
from depthlens.plots import claims, comparison, heads, layers, prompts
from depthlens.plots.panels import MAX_OVERLAID
from depthlens.plots.theme import Plot

# By the name of its class, or by the function that made a table; the first is drawn where `_suited` chooses none.
FIGURES: dict[str, tuple[Callable[..., Plot], ...]] = {
    "Result": (
        *(layers.depth_profile, heads.head_map, layers.block_map),
        *(layers.protocol_comparison, layers.loss_shares),
    ),
    "HeadScores": (heads.head_map,),
    "ReasoningScores": (heads.head_map,),
    "RemovalCurve": (heads.removal_curve,),
    "SufficiencyCurve": (heads.sufficiency,),
    "Geometry": (layers.influence_profile, layers.angular_map, layers.logit_lens),
    "Comparison": (comparison.profile_comparison, comparison.loss_difference, comparison.run_centres),
    "Verdicts": (claims.scorecard,),
    "Patching": (prompts.token_grid,),
    "LogitLens": (prompts.token_grid,),
    "open_book_losses": (layers.open_book_losses,),
}


def draw(found: Any, name: str | None, options: dict[str, Any]) -> Plot:
    """A figure of a finding; see `depthlens.analysis.result.findings.Drawable.plot`."""
    kind = found.record.get("made_by", "") if isinstance(found, DescribedTable) else type(found).__name__
    figures = {figure.__name__: figure for figure in FIGURES.get(kind, ())}
    if not figures:
        known = ", ".join(FIGURES)
        raise UserError(f"{kind or type(found).__name__} has no figure of its own; those that have one: {known}")
    name = name or _suited(found) or next(iter(figures))
    if name not in figures:
        raise unknown(f"figure of {kind}", name, figures)
    return figures[name](found, **options)


def _suited(found: Any) -> str:
    """The figure for what a sweep removed, or for so many runs; "" for the first of its kind."""
    if isinstance(found, Comparison):
        return "run_centres" if len(found.runs) > MAX_OVERLAID else ""
    if not isinstance(found, Result):
        return ""
    conditions = [name for name in found.docs["condition"].unique() if name != BASELINE]
    parts = [parse_condition(name).ablations for name in conditions]
    if parts and all(len(a) == 1 and a[0].site in INDEXED for a in parts):
        return "head_map"
    spans = [re.fullmatch(r"L\d+(-\d+)?", name) for name in conditions]
    return "block_map" if all(spans) and any(span[1] for span in spans if span) else ""
