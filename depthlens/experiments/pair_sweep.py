"""Every two of some parts removed together: what they cost beyond the sum of what each of them costs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, Unpack

from depthlens import arguments, cluster
from depthlens.ablations import Condition, expand
from depthlens.analysis.layers.pairs import PairLosses, interaction_table
from depthlens.arguments import EvalOptions
from depthlens.errors import UserError
from depthlens.experiments.condition_runs import Ablate
from depthlens.experiments.sweep import condition_sweep, head_sweep
from depthlens.models.lens import Lens, one_thread

HEADS = "heads"


@one_thread
def pair_sweep(
    lens: Lens,
    tasks: str | Sequence[str],
    parts: Ablate = "layers",
    *,
    n_heads: int = 12,
    **options: Unpack[EvalOptions],
) -> PairLosses:
    """Remove every two of some parts together, and test what a pair costs beyond the sum of its parts.

    The interaction of a pair is its loss minus the losses of its two parts, question by question. It is tested for all
    pairs of a task as one family, so that a pair that stands out is no accident of many. Parts that back each other up
    cost more together; parts of one chain cost less. Conditions share their rows until they part: all 435 pairs of 30
    layers take about half of the layer passes.

    Args:
        lens: A loaded model.
        tasks: One lm-eval task (or group) or several.
        parts: ``layers``, ``layers:N``, ``attn``, ``mlp`` or conditions, of which no two have a part in common; or
            ``heads``, which are those that attribution finds to cost most.
        n_heads: How many heads are taken of each task.
        options: `EvalOptions`.

    Returns:
        Table, sentences and figure (`plot`); ``result`` has the answers.

    Raises:
        UserError: fewer than two parts, or anything that a sweep refuses.

    Example:
        >>> found = dl.pair_sweep(lens, "organism_one_hop", ["L1", "L2", "L4"], limit=12)
        >>> found.table["condition"].tolist()
        ['L1-2', 'L1+L4', 'L2+L4']
    """
    n_heads = arguments.whole("n_heads", n_heads, 2)
    if parts == HEADS:
        how: Any = {name: value for name, value in options.items() if name not in ("measure", *cluster.NAMES)}
        estimates = head_sweep(lens, tasks, method="attribution", **how)
        names = estimates.docs["task"].unique()
        parts = [str(head) for task in names for head in estimates.head_losses(task).top(n_heads)]
    singles = expand(parts, lens.dims)[1:]
    if len(singles) < 2:
        raise UserError(f"parts {parts!r}: a pair needs two parts; name more")
    both = {str(Condition((*a.ablations, *b.ablations))): (str(a), str(b)) for a, b in combinations(singles, 2)}
    result = condition_sweep(lens, tasks, [*singles, *both], **options)
    record = {"parts": [*map(str, singles)], "pairs": both}
    return PairLosses(interaction_table(result.primary(), both), result, record)
