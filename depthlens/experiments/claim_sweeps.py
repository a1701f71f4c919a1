"""What the claims are judged by: sweeps of layers and curves of heads, under every view and with several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Unpack

from depthlens.ablations import AnyHead
from depthlens.analysis.heads.curves import RemovalCurve
from depthlens.analysis.result.losses import broken_condition
from depthlens.analysis.result.results import Result
from depthlens.arguments import EvalOptions
from depthlens.errors import unknown
from depthlens.experiments.condition_runs import load_tasks, settled
from depthlens.experiments.head_curves import MIN_DRAWS, removal_curve
from depthlens.experiments.sweep import condition_sweep
from depthlens.metrics import TOKEN_LOGPROB
from depthlens.models.lens import Lens, one_thread
from depthlens.tasks import harness

VIEWS = ("layers", "layers[1:]", "layers@mean")
SEEDS = (0, 1, 2)
TOKENS = "tokens"  # the role whose tasks are measured in nats per answer token


@one_thread
def claim_sweeps(
    lens: Lens,
    roles: Mapping[str, str | Sequence[str]],
    *,
    seeds: Sequence[int] = SEEDS,
    ablate: str | Sequence[str] = VIEWS,
    **options: Unpack[EvalOptions],
) -> dict[str, list[Result]]:
    """Sweep the tasks of every role with every few-shot seed.

    Args:
        lens: A loaded model.
        roles: Tasks by the field of `depthlens.claims.Evidence` that they are for. Those of ``tokens`` are measured
            in nats per answer token, all others by their own metrics.
        seeds: Seeds of the choice of examples. Without examples (``num_fewshot=0``) the prompts of all seeds are the
            same, so give one.
        ablate: The views: all layers skipped, with the first token spared, and by their mean. The first half of the
            layers is removed, too: what such a model scores is the measured floor.
        options: `EvalOptions`; ``seed`` is that of each sweep, and so is ``measure`` for ``tokens``.

    Returns:
        One result a seed for each role, as `depthlens.claims.Evidence` takes them.

    Raises:
        UserError: see `condition_sweep`.

    Example:
        >>> sweeps = dl.claim_sweeps(lens, {"retrieval": "organism_one_hop"}, seeds=[0], ablate="layers", limit=2)
        >>> evidence = dl.claims.Evidence(**sweeps)
    """
    views = [ablate] if isinstance(ablate, str) else [*ablate]
    chosen = settled({**options, "seed": seeds[0]})
    tasks = {role: harness.names_of(load_tasks(names, chosen)) for role, names in roles.items()}
    scored = list(dict.fromkeys(name for role, names in tasks.items() if role != TOKENS for name in names))
    found: dict[str, list[Result]] = {role: [] for role in tasks}
    conditions = [*views, broken_condition(lens.dims.n_layers)]
    for seed in seeds:
        of_seed: EvalOptions = {**options, "seed": seed}
        if scored:
            result = condition_sweep(lens, scored, conditions, **of_seed)
            for role, names in tasks.items():
                if role != TOKENS:
                    found[role].append(result.select(tasks=names))
        if TOKENS in tasks:
            of_tokens: EvalOptions = {**of_seed, "measure": TOKEN_LOGPROB}
            found[TOKENS].append(condition_sweep(lens, tasks[TOKENS], views, **of_tokens))
    return found


@one_thread
def claim_curves(
    lens: Lens,
    tasks: str | Sequence[str],
    lists: dict[str, Sequence[AnyHead]],
    *,
    k: int | Sequence[int],
    n_draws: int = 40,
    seeds: Sequence[int] = SEEDS,
    ablate: str | Sequence[str] = VIEWS,
    **options: Unpack[EvalOptions],
) -> list[RemovalCurve]:
    """Remove lists of heads under every view and with every few-shot seed, as claim C5 is judged by.

    Args:
        lens: A loaded model.
        tasks: The task of each list.
        lists: See `removal_curve`.
        k: See `removal_curve`.
        n_draws: Random rivals of each list in the curve that decides. The others count by their sign, and have 10.
        seeds: As `claim_sweeps` has them. The first is that of the curve that decides.
        ablate: As `claim_sweeps` has it: heads are set to zero, spared at the first token, and replaced by their mean
            where layers are. The views other than the first take the first seed.
        options: `EvalOptions`; ``seed`` is that of each curve, and ``measure`` is ``both`` by default.

    Returns:
        The curve that decides, then those of the other seeds, then those of the other views.

    Raises:
        UserError: views that are not of all layers, or see `removal_curve`.

    Example:
        >>> lists, tasks = {"one": ["L2.H1"], "two": ["L4.H3"]}, ["organism_one_hop", "organism_two_hop"]
        >>> curves = dl.claim_curves(lens, tasks, lists, k=1, n_draws=10, seeds=[0], ablate="layers", limit=2)
        >>> len(curves)
        1
    """
    views = [ablate] if isinstance(ablate, str) else [*ablate]
    if wrong := [view for view in views if view not in VIEWS]:
        raise unknown("view", wrong[0], VIEWS)
    ways = [("", seed) for seed in seeds]
    ways += [(view.removeprefix(VIEWS[0]), seeds[0]) for view in views if view != VIEWS[0]]
    curves = []
    for i, (suffix, seed) in enumerate(ways):
        of_way: EvalOptions = {"measure": "both", **options, "seed": seed}
        draws = min(n_draws, MIN_DRAWS) if i else n_draws
        curves.append(removal_curve(lens, tasks, lists, k=k, n_draws=draws, suffix=suffix, **of_way))
    return curves
