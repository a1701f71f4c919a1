"""Conditions x task -> `Result`: every layer, sublayer, head or block removed in turn, on equal documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack, cast, overload

from torch import Tensor

from depthlens import arguments
from depthlens.ablations import INDEXED, WORDS, Condition, Dims, expand
from depthlens.analysis.races import Race
from depthlens.analysis.results import Result
from depthlens.engine.references import Reference
from depthlens.errors import UserError, unknown
from depthlens.experiments import attribution, integrated_gradients
from depthlens.experiments.condition_runs import ConditionRuns, model_and_tasks, result_of
from depthlens.experiments.options import EvalOptions, load_tasks, recorded, refuse_workers, settled
from depthlens.experiments.race import race
from depthlens.experiments.views import View, views_of
from depthlens.metrics import ANSWER_LOGPROB
from depthlens.models.lens import Lens, one_thread
from depthlens.requests import LoglikelihoodAnswer, LoglikelihoodRequest
from depthlens.store.answer_cache import AnswerCache, AnswerStore

LAYER_SITES = ("layer", "attn", "mlp")
METHODS = ("exact", "attribution", "integrated_gradients", "race")
HEAD_MODES = ("zero", "mean", "resample")


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


@overload
def head_sweep(  # type: ignore[overload-overlap]
    lens: Lens,
    tasks: str | Sequence[str],
    *,
    method: Literal["race"],
    layers: Sequence[int] | str | None = None,
    site: str = "head",
    mode: str = "zero",
    margin: float | None = None,
    alpha: float | None = None,
    max_documents: int | None = None,
    **options: Unpack[EvalOptions],
) -> Race: ...
@overload
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
) -> Result: ...
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
    margin: float | None = None,
    alpha: float | None = None,
    max_documents: int | None = None,
    **options: Unpack[EvalOptions],
) -> Result | Race:
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
            costs more and holds behind a saturated softmax (`depthlens.experiments.integrated_gradients`); ``race``
            runs each only as long as it is undecided (`depthlens.race`).
        mode: What takes the place of z: ``zero``, the ``mean`` over texts of the task that are not evaluated (by class
            of the token, see `condition_sweep`), or ``resample``: z of a reference prompt at the same position.
        steps: Points along the way of ``integrated_gradients`` besides the whole model; None: 1.
        resample_prompts: Reference prompts for ``resample``; scores are means over them.
        margin: Of a ``race``; None: as `depthlens.race` has it. So with ``alpha`` and ``max_documents``.
        alpha: Of a ``race``.
        max_documents: Of a ``race``.
        options: `EvalOptions`; ``measure`` is ``both`` by default, ``answer_logprob`` with ``race``, and that is all
            that estimates have.

    Returns:
        Every document under the baseline and a condition a head. ``record["method"]`` says how it was found, and
        ``record["steps"]`` with how many points. With ``race``, the decisions.

    Raises:
        UserError: for anything asked for that does not exist.
    """
    arguments.loaded(lens)
    for name, value, allowed in (
        ("site", site, tuple(INDEXED)),
        ("method", method, METHODS),
        ("mode", mode, HEAD_MODES),
    ):
        if value not in allowed:
            raise unknown(name, value, allowed)
    dims = lens.dims
    chosen = _layers("layers" if layers is None else layers, dims)
    if site == "expert" and (method, mode) != ("exact", "zero"):
        raise UserError(f"method {method!r} with mode {mode!r}: experts are removed; leave both out")
    suffix = "" if mode == "zero" else f"@{mode}"
    if not len(chosen):
        raise UserError("layers is empty; name at least one layer, or leave it out for all")
    every = expand(WORDS[site] + suffix, dims)[1:]
    ablate = [str(condition) for layer in chosen for condition in every if condition.layer == layer]
    if not ablate:
        raise UserError(f"layers {list(chosen)}: they have no {WORDS[site]}; {every[0]} is the first of {lens.name!r}")
    if steps is not None:
        if method != "integrated_gradients":
            raise UserError(f"steps {steps!r}: method {method!r} has none; use method='integrated_gradients'")
        steps = arguments.whole("steps", steps, 1)
    own = {"margin": margin, "alpha": alpha, "max_documents": max_documents}
    of_race: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
    if method == "race":
        if mode == "resample" or resample_prompts is not None:
            raise UserError(
                "a race has no @resample conditions, whose scores are means over prompts; use method='exact'"
            )
        return race(lens, tasks, ablate, **of_race, **settled(options, measure=ANSWER_LOGPROB))
    if of_race:
        unused = next(iter(of_race))
        raise UserError(f"{unused} {of_race[unused]!r}: method {method!r} has none; use method='race'")
    if method != "exact":
        if resample_prompts is not None and mode != "resample":
            fix = "leave them out, or use method='exact' and mode='resample'"
            raise UserError(f"resample_prompts {resample_prompts!r}: {method} puts no prompt in place; {fix}")
        points = None if method == "attribution" else steps or integrated_gradients.STEPS
        estimate = _Estimate(method, mode, points, chosen)
        return _estimated(lens, tasks, settled(options, measure=ANSWER_LOGPROB), ablate=ablate, estimate=estimate)
    options = {"measure": "both", **options}
    result = condition_sweep(lens, tasks, ablate, resample_prompts=resample_prompts, **options)
    return Result(result.docs, result.record | {"method": method}, result.asked)


def _layers(layers: Sequence[int] | str, dims: Dims) -> list[int]:
    """Layers by their numbers, or those that a text such as ``layers:4`` names."""
    if not isinstance(layers, str):
        return arguments.layers("layers", layers, dims.n_layers)
    try:
        return sorted({ablation.layer for condition in expand(layers, dims) for ablation in condition.ablations})
    except UserError as error:
        raise UserError(f"layers {layers!r}: {error}") from None


@dataclass(frozen=True)
class _Estimate:
    """How the effects of removal are estimated from gradients.

    Attributes:
        method: ``attribution`` or ``integrated_gradients``.
        mode: What takes the place of z.
        steps: Points of ``integrated_gradients`` besides the whole model.
        layers: Layers whose heads are removed.
    """

    method: str
    mode: str
    steps: int | None
    layers: Sequence[int]

    @property
    def address(self) -> str:
        """What the store calls the estimates."""
        points = f" {self.steps} steps {integrated_gradients.GROUPS} groups" if self.steps else ""
        return f"{self.method} {self.mode}{points}"

    def run(self, lens: Lens, requests: Sequence[LoglikelihoodRequest], **settings: Any) -> tuple[Tensor, Tensor]:
        """See `depthlens.experiments.attribution.attribute`."""
        if self.steps is None:
            return attribution.attribute(lens, requests, mode=self.mode, **settings)
        chosen: dict[str, Any] = {"steps": self.steps, "layers": self.layers}
        return integrated_gradients.integrate(lens, requests, mode=self.mode, **chosen, **settings)


def _estimated(
    lens: Lens,
    tasks: str | Sequence[str] | dict[str, Any],
    options: EvalOptions,
    *,
    ablate: list[str],
    estimate: _Estimate,
) -> Result:
    """The result of a head sweep as it is estimated from gradients."""
    method = estimate.method
    if options["measure"] != ANSWER_LOGPROB:
        fault = f"measure {options['measure']!r}: {method} estimates {ANSWER_LOGPROB} only"
        raise UserError(f"{fault}; use it, or method='exact'")
    refuse_workers(options, method, ", or use method='exact'")
    if options["backend"] != "torch":
        raise UserError(f"backend {options['backend']!r}: {method} runs with 'torch' only; leave backend out")
    if estimate.mode == "resample":
        raise UserError(f"mode 'resample': {method} estimates 'zero' and 'mean'; use one of these, or method='exact'")
    conditions = expand(ablate, lens.dims)
    answers = AnswerStore(options["store"], lens)  # its errors come before the tasks are made
    if not isinstance(tasks, dict):
        tasks = load_tasks(tasks, options)
    views = views_of(lens, tasks, options)
    of_layer = len(ablate) // len({c.layer for c in conditions[1:]})  # heads, or groups of them

    def run(view: View, reference: Reference | None) -> tuple[list[list[Any]], AnswerCache]:
        cache = answers.entry(view.name, method=estimate.address + (f" {reference.keys['mean']}" if reference else ""))
        change, clean = estimate.run(
            lens,
            cast(Sequence[LoglikelihoodRequest], view.requests),  # those of reference answers
            means=(lambda: reference.measure(lens)) if reference else None,
            batch_tokens=options["batch_tokens"],
            progress=options["progress"],
            cache=cache,
        )
        change = change.unflatten(-1, (of_layer, -1)).sum(-1)  # a group's estimate is the sum over its heads
        estimates = [
            [LoglikelihoodAnswer(float(v), False) for v in (clean if not c else clean + change[:, c.layer, _index(c)])]
            for c in conditions
        ]
        return estimates, cache

    record = {"ablate": ablate, "method": method, **({"steps": estimate.steps} if estimate.steps else {})}
    record |= recorded(options)
    return result_of(lens, answers, views, conditions, run, record)


def _index(condition: Condition) -> int:
    """Head or KV group of a condition that removes one."""
    (ablation,) = condition.ablations
    return ablation.index


def run_sweep(
    model: str,
    tasks: Sequence[str],
    ablate: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str | None = None,
    offload: str | None = None,
    remote: bool | str = False,
    resample_prompts: Sequence[str] | None = None,
    donor: str | None = None,
    **options: Unpack[EvalOptions],
) -> Result:
    """`condition_sweep` on a model by name; what needs no weights is checked before they are read."""
    how = {"dtype": dtype, "device": device, "quantize": quantize, "offload": offload, "remote": remote}
    arguments.check(resample_prompts=resample_prompts)
    lens, loaded = model_and_tasks(model, tasks, settled(options), donor=donor, **how)
    result = condition_sweep(lens, loaded, ablate, resample_prompts=resample_prompts, donor=donor, **options)
    result.record["asked_tasks"] = list(tasks)  # groups among them stand for their tasks
    return result


@one_thread
def condition_sweep(
    lens: Lens,
    tasks: str | Sequence[str] | dict[str, Any],
    ablate: str | Iterable[str | Condition],
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
    runs = ConditionRuns(lens, tasks, ablate, resample_prompts=resample_prompts, donor=donor, options=settled(options))
    return result_of(lens, runs.store, runs.views, runs.conditions, runs.run, runs.record, runs.prompts)
