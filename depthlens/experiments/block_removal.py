"""How much depth a task needs: contiguous blocks of layers removed together, and layers removed one after another.

A layer that can be removed alone need not be removable together with others. Single removals therefore say how much
each layer matters, and nothing about how many layers are needed. Two experiments answer that:

* `block_sweep` removes every contiguous block up to a size. Blocks are what the depth-pruning literature cuts
  (Gromov et al. 2024, arXiv 2403.17887).
* `greedy_removal` removes, step by step, the layer that costs least in addition to those that are removed already (Song
  et al. 2024, SLEB, arXiv 2402.09025, with a task in place of perplexity), until the score has fallen too far.

The cheapest of many removals would look too cheap on the documents that chose it, because its loss is partly luck.
`greedy_removal` therefore chooses layers and stops on one half of the documents, and judges on the other
(`depthlens.analysis.block_removal`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import pandas as pd

from depthlens import arguments
from depthlens.ablations import Ablation, Condition
from depthlens.analysis.block_removal import Greedy, Tried, follow
from depthlens.analysis.results import Result, concat
from depthlens.analysis.stats import BASELINE
from depthlens.errors import UserError, unknown
from depthlens.experiments.options import EvalOptions
from depthlens.experiments.sweep import condition_sweep
from depthlens.models.lens import Lens, one_thread

MIN_DOCS = 4  # two choose and two judge


@one_thread
def block_sweep(lens: Lens, tasks: str | Sequence[str], *, max_size: int = 8, **options: Unpack[EvalOptions]) -> Result:
    """Remove every contiguous block of 1 to ``max_size`` layers, one block at a time.

    Args:
        lens: A loaded model.
        tasks: One lm-eval task (or group) or several.
        max_size: Layers of the largest block, where the model has so many.
        options: `EvalOptions`.

    Returns:
        Every document under the baseline and every block; single layers are those of a layer sweep.

    Raises:
        UserError: ``max_size`` is no number of layers, or anything that a sweep refuses.
    """
    arguments.loaded(lens)
    max_size = arguments.whole("max_size", max_size, 1, of=" of layers")
    return condition_sweep(lens, tasks, f"blocks:{max_size}", **options)


@one_thread
def greedy_removal(
    lens: Lens,
    tasks: str,
    *,
    tolerance: float = 0.1,
    max_layers: int | None = None,
    metric: str | None = None,
    **options: Unpack[EvalOptions],
) -> Greedy:
    """Remove layers one after another, each time the one that costs least, until the score falls by more than allowed.

    One half of the documents chooses and stops; the other judges what is gone in the end, so that its interval is not
    flattered.

    Args:
        lens: A loaded model.
        tasks: One lm-eval task.
        tolerance: How far the mean score of the choosing half may fall below the whole model's, in the metric's unit.
        max_layers: Largest number of layers to remove; None, or as many as the model has: all but one.
        metric: Which metric; None takes the task's first.
        options: `EvalOptions`. With a store the steps of an earlier call are read.

    Returns:
        The steps; see `Greedy`.

    Raises:
        UserError: a bad tolerance or number of layers, a metric that the task does not have, a task at chance, fewer
            than four documents, or anything that a sweep refuses.
    """
    arguments.loaded(lens)
    n_layers = lens.dims.n_layers
    asked = n_layers if max_layers is None else max_layers
    asked = arguments.whole("max_layers", asked, 1, fix=", or leave it out")
    tolerance = arguments.number("tolerance", tolerance, 0)
    results: list[Result] = []

    def tried(gone: list[int]) -> Tried:
        left = [layer for layer in range(n_layers) if layer not in gone]
        conditions = {layer: str(_without([*gone, layer])) for layer in left}
        result = condition_sweep(lens, tasks, list(conditions.values()), **options)
        results.append(_same_baseline(result.select(metrics=_metric(result, metric)), results))
        table = results[-1].docs.pivot(index="doc_id", columns="condition", values="value")
        return table[BASELINE].to_numpy(), {layer: table[name].to_numpy() for layer, name in conditions.items()}

    first = tried([])
    task, name = results[0].docs[["task", "metric"]].iloc[0]
    better = results[0].metric_info(task, name)["higher_is_better"]
    rows, stopped = follow(
        lambda gone: tried(gone) if gone else first,
        tolerance=tolerance,
        max_removed=min(asked, n_layers - 1),
        sign=1.0 if better else -1.0,
        metric=name,
    )
    steps = pd.DataFrame(rows).astype({"layer": "Int64"})
    order = [row["layer"] for row in rows[1:]]
    steps["removed"] = [BASELINE, *(str(_without(order[: i + 1])) for i in range(len(order)))]
    record = {"task": tasks, "metric": name, "tolerance": tolerance, "n_layers": n_layers, "higher_is_better": better}
    return Greedy(steps, concat(results), stopped, record)


def _same_baseline(result: Result, earlier: Sequence[Result]) -> Result:
    """A sweep with the baseline of the first one, because in other batches its last digits may differ."""
    if not earlier:
        return result
    first, docs = earlier[0].docs, result.docs
    rows = [first[first["condition"] == BASELINE], docs[docs["condition"] != BASELINE]]
    return Result(pd.concat(rows, ignore_index=True), result.record, result.asked)


def _without(layers: Sequence[int]) -> Condition:
    return Condition(tuple(Ablation(layer) for layer in sorted(layers)))


def _metric(result: Result, asked: str | None) -> str:
    """The metric asked for, or the task's first, of a task that can be judged."""
    known = list(dict.fromkeys(result.docs["metric"]))
    if result.docs["task"].nunique() > 1:
        raise UserError(f"greedy removal follows one task; {', '.join(result.docs['task'].unique())} are several")
    if asked is not None and asked not in known:
        raise unknown("metric", asked, known)
    metric = asked or known[0]
    row = next(r for r in result.baselines.itertuples() if r.metric == metric)
    if row.at_chance:
        fault = f"{row.task} ({metric}) is at chance with every layer in place"
        raise UserError(f"{fault}: nothing to lose; take another task")
    if row.n < MIN_DOCS:
        raise UserError(f"{row.n} documents cannot be halved for choosing and judging; take at least {MIN_DOCS}")
    return metric
