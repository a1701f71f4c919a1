"""Sufficiency: keep only the first k heads of a list, put all others at their mean, and see what is left of a score.

Removing a list (`depthlens.removal_curve`) asks whether its heads are necessary; keeping it alone asks whether they are
enough. Faithfulness of k kept heads is the share of what heads do for the score that is left,

    f(k) = (m(kept) - m(none)) / (m(all) - m(none)),

with m(none) the score where every head is at its mean (`@mean`), and m(all) that of the whole model. f is 0 where none
is kept and 1 where all are. Its areas over the share of heads kept are **CPR**, the area under f, high where few heads
restore the score, and **CMD**, the area between f and 1, low where they restore it and not more. Source: Mueller et al.
2025, MIB: A Mechanistic Interpretability Benchmark, arXiv 2504.13151. Theirs keeps edges or nodes and MLPs among them;
here MLPs stay as they are, and only heads are kept or put at their mean.

Each list is compared with random lists of the same layers (`depthlens.experiments.lists_of_heads.same_layers`): CPR is
ranked among those of ``n_draws`` draws.

It misleads where the score without any head is not proven to be lower than the whole model's, because there is nothing
to restore: such tasks are not judged. A list may be sufficient only together with MLPs that compensate.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Unpack

from depthlens import arguments
from depthlens.ablations import Ablation, Condition, Dims, Head
from depthlens.analysis import sufficiency
from depthlens.analysis.sufficiency import SufficiencyCurve
from depthlens.errors import UserError, unknown
from depthlens.experiments import lists_of_heads
from depthlens.experiments.options import EvalOptions, load_tasks, settled
from depthlens.experiments.sweep import condition_sweep
from depthlens.models.lens import Lens, one_thread

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # of all heads, as in MIB from its fourth on: heads are fewer than edges
MIN_DRAWS = 10


def keep_only(kept: Sequence[Head], dims: Dims) -> Condition:
    """The condition under which every head but those ``kept`` is at its mean.

    A layer without any of them is one ablation of its attention, since the output projection is linear and so the mean
    of what attention adds is the projected mean of z; a KV group likewise.

    Raises:
        UserError: a head that the model does not have.
    """
    kept = [*dict.fromkeys(kept)]
    Condition(tuple(Ablation(layer, "head", head) for layer, head in kept)).validate(dims)
    others: list[Ablation] = []
    for layer in range(dims.n_layers):
        own = {head for at, head in kept if at == layer}
        if not own:
            others.append(Ablation(layer, "attn", mode="mean"))
            continue
        for group in range(dims.n_kv_heads):
            heads = dims.query_heads(group)
            if own.isdisjoint(heads) and len(heads) > 1:
                others.append(Ablation(layer, "kv", group, "mean"))
            else:
                others += [Ablation(layer, "head", head, "mean") for head in heads if head not in own]
    return Condition(tuple(others))


@one_thread
def sufficiency_curve(
    lens: Lens,
    tasks: str | Sequence[str],
    lists: dict[str, Sequence[Head]],
    *,
    k: int | Sequence[int] | None = None,
    n_draws: int = 20,
    metric: str | None = None,
    **options: Unpack[EvalOptions],
) -> SufficiencyCurve:
    """Score tasks with only the first k heads of each list, all others at their mean, against random lists.

    Args:
        lens: A loaded model.
        tasks: One lm-eval task or several.
        lists: Heads as (layer, head), most important first, by name; rank many, e.g. by ``HeadScores.top``.
        k: Keep 1, 2, ... up to so many; or the numbers themselves; None: 1, 2, 5, 10, 20 and 50% of all heads, as far
            as the shortest list goes. Areas are exact only as far as these numbers reach: between the last one and all
            heads a straight line is assumed.
        n_draws: Random lists beside each list; at least 10.
        metric: Which metric of the tasks, where they have several; None takes each task's first.
        options: `EvalOptions`; ``measure`` is ``task`` or ``answer_logprob``, and ``seed`` also that of the draws.

    Raises:
        UserError: a list that is empty, too short for k or names a head twice or one that the model does not have; too
            few draws; or anything that the sweep refuses.
    """
    arguments.loaded(lens)
    settings = settled(options)
    n_draws = arguments.whole("n_draws", n_draws, MIN_DRAWS, fix="; fewer make no band")
    if settings["measure"] == "both":
        raise UserError("measure 'both': a curve has one measure; give 'task' or 'answer_logprob'")
    dims = lens.dims
    n_all = dims.n_layers * dims.n_heads
    found = lists_of_heads.checked(lens, lists)
    ks = _ks(k, n_all, found)
    chosen = {name: heads[: ks[-1]] for name, heads in found.items()}
    loaded = load_tasks(tasks, settings)
    for name, task in loaded.items():  # a wrong name is refused before the sweep
        known = task.higher_is_better()
        if settings["measure"] == "task" and metric and metric.split(",")[0] not in known:
            raise unknown(f"metric of task {name}", metric, known)
    draws: dict[str, list[list[Head]]] = {}
    for name, heads in chosen.items():
        random = Random(f"sufficiency {settings['seed']} {name}")
        draws[name] = [lists_of_heads.same_layers(heads, dims.n_heads, random) for _ in range(n_draws)]
    none = keep_only([], dims)
    conditions = {
        name: [[str(keep_only(order[:n], dims)) for n in ks] for order in (chosen[name], *draws[name])]
        for name in chosen
    }
    every = [str(none), *(c for orders in conditions.values() for order in orders for c in order)]
    swept = condition_sweep(lens, loaded, list(dict.fromkeys(every)), **options)
    result = lists_of_heads.one_metric(swept, metric)
    record = {
        **result.record,
        "k": ks,
        "n_heads": n_all,
        "n_draws": n_draws,
        "lists": {name: [list(head) for head in heads] for name, heads in chosen.items()},
        "draws": {name: [[list(head) for head in order] for order in orders] for name, orders in draws.items()},
    }
    return sufficiency.assemble(result, str(none), conditions, ks, n_all, record)


def _ks(k: int | Sequence[int] | None, n_all: int, lists: dict[str, list[Head]]) -> list[int]:
    """How many heads are kept: more than none and fewer than all."""
    name, shortest = min(((name, len(heads)) for name, heads in lists.items()), key=lambda item: item[1])
    if k is None:
        return sorted({min(max(1, round(share * n_all)), n_all - 1, shortest) for share in SHARES})
    ks = lists_of_heads.sizes(k)
    if ks[-1] > shortest:
        raise UserError(f"list {name!r} has {shortest} heads; k goes up to {ks[-1]}")
    if ks[-1] >= n_all:
        raise UserError(f"k {ks[-1]}: the model has {n_all} heads; keep fewer, since all are the whole model")
    return ks
