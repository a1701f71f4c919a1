"""What a whole result says: the sentences of `depthlens.Result.describe`, chosen by the conditions that it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from depthlens.analysis import block_losses, depth, head_effects

if TYPE_CHECKING:
    from depthlens.analysis.results import Result


def describe(result: Result) -> list[str]:
    """Sentences on heads, on blocks or on critical conditions, for each task and metric; model by model."""
    models = result.docs["model"].unique()
    if len(models) > 1:
        return [f"{model}, {line}" for model in models for line in describe(result.select(models=model))]
    table = result.losses()
    if len(table) and table["head"].notna().all():
        return head_effects.describe_heads(result)
    if table["condition"].str.fullmatch(r"L\d+-\d+").any():
        return block_losses.describe_blocks(result)
    return depth.describe_critical(result)
