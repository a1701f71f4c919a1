"""What a sweep runs of its tasks, and what takes the place of parts that it removes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack, cast

from depthlens import arguments
from depthlens.ablations import Condition, expand
from depthlens.engine.references import Reference
from depthlens.errors import UserError
from depthlens.experiments.options import EvalOptions, load_tasks, prepare, settled
from depthlens.metrics import ANSWER_LOGPROB, LOGPROBS
from depthlens.models.lens import Lens, one_thread
from depthlens.tasks.measures import Answers, FreeText, prompts_of_others, reference_of
from depthlens.tasks.prepared_task import Prepared

View = Prepared | FreeText


def references_of(
    views: Sequence[View], conditions: Sequence[Condition], *, with_prompts: bool = False
) -> dict[str, Reference]:
    """What takes the place of parts, by task, where a condition asks for it."""
    if any(c.uses("mean") for c in conditions):
        if free := next((view for view in views if isinstance(view, FreeText)), None):
            raise UserError(f"@mean on {free.name}: free text has no reference answers; remove parts instead")
        return {view.name: reference_of(cast(Prepared, view)) for view in views}
    return {view.name: Reference("resample_prompts", []) for view in views} if with_prompts else {}


def views_of(lens: Lens, tasks: dict[str, Any], options: EvalOptions) -> list[View]:
    """What is run of each task: the task itself, its reference answers, or one after the other."""
    views: list[View] = [task for task in tasks.values() if isinstance(task, FreeText)]  # ready as it is
    loaded = {name: task for name, task in tasks.items() if not isinstance(task, FreeText)}
    for task in prepare(lens, loaded, options):
        measure = options["measure"]
        views += [task] if measure not in LOGPROBS else []
        if measure != "task":
            metric = measure if measure in LOGPROBS else ANSWER_LOGPROB
            views += [Answers(task, metric)]
    return views


def tokens_of_prompts(lens: Lens, conditions: Sequence[Condition], prompts: Sequence[str] | None) -> list[list[int]]:
    """Token ids of the prompts of ``@resample``, where a condition asks for some."""
    asked = next((c for c in conditions if c.uses("resample")), None)
    if bool(asked) != bool(prompts):
        need = f"condition {asked} needs resample_prompts"
        fault = need if asked else "resample_prompts are used by @resample conditions only"
        raise UserError(f"{fault}: give both, or neither")
    return [lens.tokenizer(prompt).input_ids for prompt in prompts or ()]


@one_thread
def resample_prompts(
    lens: Lens,
    task: str,
    ablate: str | Iterable[str | Condition],
    *,
    n: int = 2,
    **options: Unpack[EvalOptions],
) -> list[str] | None:
    """Prompts for the ``@resample`` conditions of a sweep: those of documents of its task that it does not evaluate.

    They have the form of the prompts that are scored, with as many examples, and end with their reference answers
    (`depthlens.tasks.measures`). Whether enough documents are left for ``@mean`` is checked, too, so that a
    notebook says so before its first sweep.

    Args:
        lens: A loaded model.
        task: One lm-eval task; of a group its first one gives the prompts.
        ablate: See `depthlens.ablations.expand`.
        n: How many. A sweep runs its ``@resample`` conditions once with each, and scores are means over them.
        options: `EvalOptions`, as the sweep has them.

    Returns:
        What ``resample_prompts`` of `depthlens.condition_sweep` takes: None where no condition resamples.

    Raises:
        UserError: fewer documents are left, or anything asked for that does not exist.
    """
    arguments.loaded(lens)
    n = arguments.whole("n", n, 1, of=" of prompts")
    chosen = settled(options)
    conditions = expand(ablate, lens.dims)
    if not any(c.uses("resample") or c.uses("mean") for c in conditions):
        return None
    loaded = load_tasks(task, chosen)
    references_of(views_of(lens, loaded, chosen), conditions)
    if not any(c.uses("resample") for c in conditions):
        return None
    name, first = next(iter(loaded.items()))
    samples = chosen["samples"]
    if isinstance(samples, Mapping):
        chosen["samples"] = {name: samples[name]} if name in samples else None
    (prepared,) = prepare(lens, {name: first}, chosen)
    return prompts_of_others(prepared, n, seed=chosen["seed"])
