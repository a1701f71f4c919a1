"""Which figures belong to which kind of finding: what ``plot`` of it draws."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from depthlens.analysis.numbers.stats import BASELINE
from depthlens.analysis.result.results import Result
from depthlens.errors import UserError, unknown
from depthlens.plots import comparison, heads, layers
from depthlens.plots.theme import Plot

# By the name of its class; the first is drawn where no name is given.
FIGURES: dict[str, tuple[Callable[..., Plot], ...]] = {
    "Result": (
        *(layers.depth_profile, layers.block_map, layers.protocol_comparison, heads.head_map),
        comparison.recovery_curve,
    ),
    "HeadScores": (heads.head_map,),
    "RemovalCurve": (heads.removal_curve,),
    "Geometry": (layers.geometry_profile,),
    "Comparison": (comparison.profile_comparison, comparison.loss_difference),
    "PairLosses": (layers.pair_map,),
    **dict.fromkeys(("Patching", "LogitLens"), (layers.token_grid,)),
}
# But of a sweep, if all of its conditions are such ones.
_SWEPT = {"head_map": r"(L\d+\.(H|KV)\d+[^+ ]* ?)+", "block_map": r"(?=.*-)(L\d+(-\d+)? ?)+"}


def draw(found: Any, name: str | None, options: dict[str, Any]) -> Plot:
    """A figure of a finding; see `depthlens.analysis.result.findings.Drawable.plot`."""
    kind = type(found).__name__
    figures = {figure.__name__: figure for figure in FIGURES.get(kind, ())}
    if not figures:
        raise UserError(f"a {kind} has no figure of its own; those that have one: {', '.join(FIGURES)}")
    if not name:
        swept = " ".join(sorted({*found.docs["condition"]} - {BASELINE})) if isinstance(found, Result) else ""
        name = next((name for name, all_of in _SWEPT.items() if re.fullmatch(all_of, swept)), next(iter(figures)))
    if name not in figures:
        raise unknown(f"figure of {kind}", name, figures)
    return figures[name](found, **options)
