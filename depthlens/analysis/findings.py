"""What a whole result says: the sentences of `depthlens.Result.describe`, chosen by the conditions that it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from depthlens.analysis import block_losses, depth, head_effects, written_answers

if TYPE_CHECKING:
    from depthlens.analysis.results import Result


def describe(result: Result) -> list[str]:
    """Sentences on heads, on blocks or on critical conditions, and on unreadable answers; model by model."""
    models = result.docs["model"].unique()
    if len(models) > 1:
        return [f"{model}, {line}" for model in models for line in describe(result.select(models=model))]
    table = result.losses()
    if len(table) and table["head"].notna().all():
        lines = head_effects.describe_heads(result)
    elif table["condition"].str.fullmatch(r"L\d+-\d+").any():
        lines = block_losses.describe_blocks(result)
    else:
        lines = depth.describe_critical(result)
    return lines + written_answers.describe(result)
