"""Conditions x task -> `Result`: every layer, sublayer, head or block removed in turn, on equal documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack, cast

from depthlens import arguments
from depthlens.ablations import INDEXED, WORDS, Dims, expand
from depthlens.analysis.results import Result
from depthlens.engine.references import Reference
from depthlens.errors import UserError, unknown
from depthlens.experiments import attribution
from depthlens.experiments.condition_runs import Ablate, AskedTask, ConditionRuns, Tasks
from depthlens.experiments.options import EvalOptions, load_tasks, refuse_workers, settled
from depthlens.metrics import ANSWER_LOGPROB
from depthlens.models import loading, names
from depthlens.models.lens import Lens, one_thread
from depthlens.requests import LoglikelihoodAnswer, LoglikelihoodRequest
from depthlens.store.answer_cache import AnswerCache

LAYER_SITES = ("layer", "attn", "mlp")
METHODS = ("exact", *attribution.STEPS)
HEAD_MODES = ("zero", "mean", "resample")


@one_thread
def condition_sweep(
    lens: Lens,
    tasks: Tasks,
    ablate: Ablate,
    *,
    resample_prompts: Sequence[str] | None = None,
    donor: str | Path | Lens | None = None,
    **options: Unpack[EvalOptions],
) -> Result:
    """Score tasks under the baseline and every condition of ``ablate``.

    ``@mean`` puts the mean of what a part adds in the place of what it adds (a layer's output becomes its input plus
    that mean). There are two means: of first tokens and of all others. They are taken over up to 64 texts of
    each task that are not evaluated and have no examples (`depthlens.tasks.measures`).

    Args:
        lens: A loaded model.
        tasks: One lm-eval task (or group) or several, or tasks from `depthlens.tasks.harness.load_tasks`.
        ablate: ``layers``, ``attn``, ``mlp``, ``heads``, ``kv``, ``blocks:N``, ``bottom``, ``top`` or conditions; see
            `depthlens.ablations.expand`.
        resample_prompts: Prompts whose parts ``@resample`` conditions put in place, each in turn; scores are means over
            them. `depthlens.resample_prompts` makes some.
        donor: Model whose weights ``@donor`` conditions put in place: a name or a loaded model
            (`depthlens.models.pairs.with_donor`).
        options: `EvalOptions`.

    Returns:
        Every document under the baseline and every condition.

    Raises:
        UserError: for anything asked for that does not exist.
    """
    options = settled(options)
    return ConditionRuns(lens, tasks, ablate, options, resample_prompts=resample_prompts, donor=donor).result()


def run_by_name(
    model: str,
    tasks: Sequence[str],
    ablate: str,
    *,
    experiment: Callable[..., Any] = condition_sweep,
    donor: str | None = None,
    resample_prompts: Sequence[str] | None = None,
    **options: Any,
) -> Any:
    """An experiment on a model by its name; what needs no weights is checked before they are read.

    Args:
        model: What `depthlens.load` takes.
        tasks: See `condition_sweep`.
        ablate: See `condition_sweep`.
        experiment: `condition_sweep` or what takes the same arguments.
        donor: See `condition_sweep`.
        resample_prompts: See `condition_sweep`.
        options: Those of `depthlens.load`, and `EvalOptions`.
    """
    how = {name: options.pop(name, option.default) for name, option in arguments.LOADING.items()}
    arguments.check(tasks=tasks, resample_prompts=resample_prompts, **how)
    for name in (model, donor):
        if name is not None and not how["remote"]:
            names.configuration(names.find(name))
    loaded = load_tasks(tasks, settled(cast(EvalOptions, options)))
    lens = loading.load(model, **how)
    return experiment(lens, loaded, ablate, donor=donor, resample_prompts=resample_prompts, **options)


@one_thread
def layer_sweep(
    lens: Lens, tasks: str | Sequence[str], *, site: str = "layer", **options: Unpack[EvalOptions]
) -> Result:
    """Remove every layer in turn, or only its attention or MLP, and score the tasks each time.

    Args:
        lens: A loaded model.
        tasks: One lm-eval task (or group) or several.
        site: ``layer`` (skipped whole), ``attn`` or ``mlp`` (contribution set to zero).
        options: `EvalOptions`: limit, samples, num_fewshot, include_path, seed, apply_chat_template,
            system_instruction, gen_kwargs, think_end_token, enable_thinking, measure, backend, batch_tokens, store,
            progress, workers, ray, worker_cpus, worker_gpus.

    Returns:
        Every document under the baseline and n_layers conditions.

    Raises:
        UserError: for anything asked for that does not exist.
    """
    if site not in LAYER_SITES:
        raise UserError(f"unknown site {site!r} for a layer sweep; allowed: {', '.join(LAYER_SITES)}")
    return condition_sweep(lens, tasks, "layers" if site == "layer" else site, **options)


@one_thread
def head_sweep(
    lens: Lens,
    tasks: str | Sequence[str],
    *,
    layers: Sequence[int] | str | None = None,
    site: str = "head",
    method: str = "exact",
    mode: str = "zero",
    steps: int | None = None,
    resample_prompts: Sequence[str] | None = None,
    **options: Unpack[EvalOptions],
) -> Result:
    """Remove every attention head, every group of heads that share keys and values, or every expert, one at a time.

    Args:
        lens: A loaded model.
        tasks: One lm-eval task (or group) or several.
        layers: Layers whose heads are removed: numbers, or a text such as ``layers:4`` (four, evenly spread) or
            ``L3,L8-11``; None for all.
        site: ``head``, ``kv`` or ``expert`` (experts of a mixture, by ``exact`` and ``zero``).
        method: ``exact`` runs every condition; ``attribution`` estimates all of them, as changes of
            ``answer_logprob``, from one forward and one backward pass (`depthlens.experiments.attribution`);
            ``integrated_gradients`` from slopes along the way to the removal of some heads of a layer at a time, which
            costs more and holds behind a saturated softmax.
        mode: What takes the place of z: ``zero``, the ``mean`` over texts of the task that are not evaluated (by class
            of the token, see `condition_sweep`), or ``resample``: z of a reference prompt at the same position.
        steps: Points along the way of ``integrated_gradients`` besides the whole model; None: 1.
        resample_prompts: Reference prompts for ``resample``; scores are means over them.
        options: `EvalOptions`; ``measure`` is ``both`` by default; estimates have ``answer_logprob`` alone.

    Returns:
        Every document under the baseline and a condition a head. ``record["method"]`` says how it was found, and
        ``record["steps"]`` with how many points.

    Raises:
        UserError: for anything asked for that does not exist.
    """
    arguments.loaded(lens)
    for name, value, allowed in (("site", site, INDEXED), ("method", method, METHODS), ("mode", mode, HEAD_MODES)):
        if value not in allowed:
            raise unknown(name, value, tuple(allowed))
    if site == "expert" and (method, mode) != ("exact", "zero"):
        raise UserError(f"method {method!r} with mode {mode!r}: experts are removed; leave both out")
    if steps is not None:
        if method != "integrated_gradients":
            raise UserError(f"steps {steps!r}: method {method!r} has none; use method='integrated_gradients'")
        steps = arguments.whole("steps", steps, 1)
    chosen = _layers("layers" if layers is None else layers, lens.dims)
    every = expand(WORDS[site] + ("" if mode == "zero" else f"@{mode}"), lens.dims)[1:]
    ablate = [str(condition) for layer in chosen for condition in every if condition.layer == layer]
    if not ablate:
        raise UserError(f"layers {chosen}: they have no {WORDS[site]}; {every[0]} is the first of {lens.name!r}")
    if method == "exact":
        options = {"measure": "both", **options}
        result = condition_sweep(lens, tasks, ablate, resample_prompts=resample_prompts, **options)
        result.record["method"] = method
        return result
    settings = settled(options, measure=ANSWER_LOGPROB)
    refuse_workers(settings, method, ", or use method='exact'")
    for name, value, can in (
        ("measure", settings["measure"], (ANSWER_LOGPROB,)),
        ("backend", settings["backend"], ("torch",)),
        ("mode", mode, attribution.MODES),
    ):
        if value not in can:
            raise UserError(f"{name} {value!r}: {method} can do {' and '.join(can)} only; use it, or method='exact'")
    steps = steps or attribution.STEPS[method]
    runs = ConditionRuns(lens, tasks, ablate, settings, resample_prompts=resample_prompts)
    runs.record |= {"method": method} | ({"steps": steps} if steps else {})
    how: dict[str, Any] = {"batch_tokens": settings["batch_tokens"], "progress": settings["progress"]}
    how |= {"steps": steps, "layers": chosen, "n_in_layer": len(ablate) // len(chosen)}
    return runs.result(partial(_estimated, runs, of_method=attribution.address(method, steps, mode), **how))


def _layers(layers: Sequence[int] | str, dims: Dims) -> list[int]:
    """Layers by their numbers, or those that a text such as ``layers:4`` names."""
    if not isinstance(layers, str):
        return arguments.layers("layers", layers, dims.n_layers)
    try:
        return sorted({ablation.layer for condition in expand(layers, dims) for ablation in condition.ablations})
    except UserError as error:
        raise UserError(f"layers {layers!r}: {error}") from None


def _estimated(
    runs: ConditionRuns, task: AskedTask, reference: Reference | None, *, of_method: str, n_in_layer: int, **how: Any
) -> tuple[list[list[Any]], AnswerCache]:
    """What `ConditionRuns.run` gives, estimated from gradients.

    Args:
        runs: Heads, or groups of them, that are removed.
        task: One of those of ``runs``.
        reference: What takes the place of z.
        of_method: What the store calls the estimates.
        n_in_layer: Heads, or groups of them, in a layer.
        how: Arguments of `attribution.attribute`.
    """
    cache = runs.store.entry(task.name, method=of_method + (f" {reference.keys['mean']}" if reference else ""))
    requests = cast(Sequence[LoglikelihoodRequest], task.requests)  # those of reference answers
    means = (lambda: reference.measure(runs.lens)) if reference else None
    change, clean = attribution.attribute(runs.lens, requests, means=means, cache=cache, **how)
    change = change.unflatten(-1, (n_in_layer, -1)).sum(-1)  # a group's estimate is the sum over its heads
    answers = []
    for c in runs.conditions:
        values = clean + change[:, c.layer, c.ablations[0].index] if c else clean
        answers.append([LoglikelihoodAnswer(float(value), False) for value in values])
    return answers, cache
