"""The sweeps that `depthlens.claims` judges by: every layer, under every view, with several few-shot seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Unpack

from depthlens.analysis.results import Result
from depthlens.errors import UserError
from depthlens.experiments.options import EvalOptions, load_tasks, settled
from depthlens.experiments.sweep import condition_sweep
from depthlens.metrics import TOKEN_LOGPROB
from depthlens.models.lens import Lens
from depthlens.tasks import groups

VIEWS = ("layers", "layers[1:]", "layers@mean")
SEEDS = (0, 1, 2)
TOKENS = "tokens"  # the role whose tasks are measured in nats per answer token


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
        ablate: The views: all layers skipped, with the first token spared, and by their mean.
        options: `EvalOptions`, but for ``seed`` and ``measure``.

    Returns:
        One result a seed for each role, as `depthlens.claims.Evidence` takes them.

    Raises:
        UserError: no roles, no seeds, an option that does not apply, or see `condition_sweep`.
    """
    if given := [name for name in ("seed", "measure") if name in options]:
        raise UserError(f"option {given[0]!r}: claim_sweeps sets it for each role; use seeds= and roles=")
    if not roles:
        raise UserError("no roles; give tasks by role, e.g. {'letters': 'capitals_default'}")
    seeds = [*seeds]
    if not seeds:
        raise UserError("no seeds; give at least one, e.g. seeds=[0]")
    chosen = settled({**options, "seed": seeds[0]})
    tasks = {role: groups.names(load_tasks(names, chosen)) for role, names in roles.items()}
    scored = list(dict.fromkeys(name for role, names in tasks.items() if role != TOKENS for name in names))
    found: dict[str, list[Result]] = {role: [] for role in tasks}
    for seed in seeds:
        of_seed: EvalOptions = {**options, "seed": seed}
        if scored:
            result = condition_sweep(lens, scored, ablate, **of_seed)
            for role, names in tasks.items():
                if role != TOKENS:
                    found[role].append(result.select(tasks=names))
        if TOKENS in tasks:
            of_tokens: EvalOptions = {**of_seed, "measure": TOKEN_LOGPROB}
            found[TOKENS].append(condition_sweep(lens, tasks[TOKENS], ablate, **of_tokens))
    return found
