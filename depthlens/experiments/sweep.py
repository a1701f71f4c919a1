"""Conditions x task -> `Result`: every layer, sublayer, head or block removed in turn, on equal documents."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack, cast

import pandas as pd
from torch import Tensor

from depthlens import arguments, cluster, provenance
from depthlens.ablations import INDEXED, WORDS, Condition, expand
from depthlens.analysis.documents import COMPLETE, DOCS_COLUMNS, PARSED
from depthlens.analysis.questions import SUBTASK
from depthlens.analysis.results import Result
from depthlens.engine import attention_choice, memory_budget
from depthlens.engine.engine import Engine, LoglikelihoodAnswer
from depthlens.engine.references import Reference
from depthlens.engine.work import Work
from depthlens.errors import UserError, unknown
from depthlens.experiments import attribution, integrated_gradients
from depthlens.experiments.options import EvalOptions, load_tasks, recorded, refuse_workers, settled
from depthlens.experiments.views import View, references_of, tokens_of_prompts, views_of
from depthlens.metrics import ANSWER_LOGPROB
from depthlens.models import loading, pairs, sources
from depthlens.models.lens import Lens
from depthlens.models.offload import NO_GENERATION
from depthlens.requests import LoglikelihoodRequest
from depthlens.store import dry_run
from depthlens.store.answer_cache import AnswerCache, AnswerStore, cache_usage
from depthlens.tasks import groups

LAYER_SITES = ("layer", "attn", "mlp")
METHODS = ("exact", "attribution", "integrated_gradients")
HEAD_MODES = ("zero", "mean", "resample")


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


def head_sweep(
    lens: Lens,
    tasks: str | Sequence[str],
    *,
    layers: Sequence[int] | None = None,
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
        layers: Layers whose heads are removed; None for all.
        site: ``head``, ``kv`` or ``expert`` (experts of a mixture, by ``exact`` and ``zero``).
        method: ``exact`` runs every condition; ``attribution`` estimates all of them, as changes of
            ``answer_logprob``, from one forward and one backward pass (`depthlens.experiments.attribution`);
            ``integrated_gradients`` from slopes along the way to the removal of some heads of a layer at a time, which
            costs more and holds behind a saturated softmax (`depthlens.experiments.integrated_gradients`).
        mode: What takes the place of z: ``zero``, the ``mean`` over texts of the task that are not evaluated (by class
            of the token, see `condition_sweep`), or ``resample``: z of a reference prompt at the same position.
        steps: Points along the way of ``integrated_gradients`` besides the whole model; None: 1.
        resample_prompts: Reference prompts for ``resample``; scores are means over them.
        options: `EvalOptions`; ``measure`` is ``both`` by default, and ``answer_logprob`` is all that estimates have.

    Returns:
        Every document under the baseline and a condition a head. ``record["method"]`` says how it was found, and
        ``record["steps"]`` with how many points.

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
    chosen = range(dims.n_layers) if layers is None else arguments.layers("layers", layers, dims.n_layers)
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
        arguments.whole("steps", steps, 1)
    if method != "exact":
        if resample_prompts is not None and mode != "resample":
            fix = "leave them out, or use method='exact' and mode='resample'"
            raise UserError(f"resample_prompts {resample_prompts!r}: {method} puts no prompt in place; {fix}")
        points = None if method == "attribution" else steps or integrated_gradients.STEPS
        estimate = _Estimate(method, mode, points, chosen)
        return _estimated(lens, tasks, ablate, estimate, settled(options, measure=ANSWER_LOGPROB))
    options = {"measure": "both", **options}
    result = condition_sweep(lens, tasks, ablate, resample_prompts=resample_prompts, **options)
    return Result(result.docs, result.record | {"method": method}, result.asked)


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
    lens: Lens, names: str | Sequence[str], ablate: list[str], estimate: _Estimate, options: EvalOptions
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
    views = views_of(lens, load_tasks(names, options), options)
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
    return _result(lens, answers, views, options, conditions, run, record)


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
    checked = settled(options)
    arguments.check(dtype=dtype, device=device, quantize=quantize, tasks=tasks, resample_prompts=resample_prompts)
    for name in (model, donor):
        if name is not None and not remote:
            sources.probe(sources.find(name))
    loaded = load_tasks(tasks, checked)
    cluster.workers_of(checked)  # their errors come before the model is loaded
    lens = loading.load(model, dtype=dtype, device=device, quantize=quantize, offload=offload, remote=remote)
    result = condition_sweep(lens, loaded, ablate, resample_prompts=resample_prompts, donor=donor, **options)
    result.record["asked_tasks"] = list(tasks)  # groups among them stand for their tasks
    return result


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
    that mean). There are three means: of first tokens, of prompts and of answers. They are taken over up to 64 texts of
    each task that are not evaluated and have no examples (`depthlens.tasks.reference_texts`).

    Args:
        lens: A loaded model.
        tasks: One lm-eval task (or group) or several, or tasks from `depthlens.tasks.harness.load_tasks`.
        ablate: ``layers``, ``attn``, ``mlp``, ``heads``, ``kv``, ``blocks:N``, ``bottom``, ``top`` or conditions; see
            `depthlens.ablations.expand`.
        resample_prompts: Prompts whose z ``@resample`` conditions put in place, each in turn; scores are means over
            them.
        donor: Model whose weights ``@donor`` conditions put in place: a name or a loaded model
            (`depthlens.models.pairs.with_donor`).
        options: `EvalOptions`.

    Returns:
        Every document under the baseline and every condition.

    Raises:
        UserError: for anything asked for that does not exist.
    """
    arguments.loaded(lens)
    chosen = settled(options)
    arguments.check(resample_prompts=resample_prompts)
    conditions = expand(ablate, lens.dims)
    if any(c.uses("resample") for c in conditions):
        lens.needs_weights("@resample")
    backend, batch_tokens = chosen["backend"], chosen["batch_tokens"]
    both = pairs.join_donor(lens, donor, conditions, backend)
    answers = AnswerStore(chosen["store"], both)  # its errors come before the tasks are made
    workers = cluster.workers_of(chosen)
    repeated_before = workers.repeated if workers else 0
    if not isinstance(tasks, dict) or not tasks:
        tasks = load_tasks(cast(Sequence[str], tasks), chosen)  # which refuses an empty dict
    views = views_of(lens, tasks, chosen)
    if lens.stream and (writing := [view.name for view in views if view.output_type == "generate_until"]):
        raise UserError(f"task {writing[0]}: {NO_GENERATION}")

    def run(view: View, reference: Reference | None) -> tuple[list[list[Any]], AnswerCache]:
        cache = answers.entry(view.name, backend=backend, reference=reference.keys if reference else None)
        means = None
        if reference is not None and not dry_run.current() and cache.lacks(view.requests, conditions):
            means = reference.measure(both)
        about: dict[str, Any] = {"means": means, "progress": chosen["progress"], "cache": cache, "workers": workers}
        engine = Engine(both, backend=backend, batch_tokens=batch_tokens, **about)
        start = time.monotonic()
        found = view.run(engine, conditions)
        seconds.append(time.monotonic() - start)
        if workers:
            record["workers"] = workers.describe() | {"repeated_shards": workers.repeated - repeated_before}
        work.add(engine.work)
        record["work"] = work.described(lens) | {"seconds": sum(seconds)}
        return found, cache

    work, seconds = Work(), list[float]()
    record = {"ablate": ablate if isinstance(ablate, str) else [str(c) for c in conditions[1:]]} | recorded(chosen)
    record["resample_prompts"] = list(resample_prompts) if resample_prompts else None
    record["batch_tokens"] = memory_budget.choose(lens, batch_tokens).batch_tokens
    record["tree_attention"] = attention_choice.of_model(lens)
    if both.donor:
        record["donor"] = both.donor.lens.describe(answers.donor_fingerprint) | {"notes": list(both.donor.notes)}
    return _result(
        lens, answers, views, chosen, conditions, run, record, tokens_of_prompts(lens, conditions, resample_prompts)
    )


def _result(
    lens: Lens,
    store: AnswerStore,
    views: Sequence[View],
    options: EvalOptions,
    conditions: Sequence[Condition],
    run: Callable[[View, Reference | None], tuple[Sequence[Sequence[Any]], AnswerCache]],
    record: dict[str, Any],
    prompts: Sequence[Sequence[int]] = (),
) -> Result:
    """Run every view of the tasks and put the documents and the record together."""
    frames: list[pd.DataFrame] = []
    records: dict[str, dict] = {}
    asked: dict[str, pd.DataFrame] = {}
    caches: list[AnswerCache] = []
    references = references_of(lens, views, options, conditions, with_prompts=bool(prompts))
    for view in views:
        reference = references.get(view.name)
        runs = []
        for reference_prompt in reference.with_prompts(prompts) if reference and prompts else [reference]:
            answers, cache = run(view, reference_prompt)
            runs.append(_frame(lens.name, view, conditions, answers))
            caches.append(cache)
        frame = runs[0] if len(runs) == 1 else runs[0].assign(value=sum(f["value"] for f in runs) / len(runs))
        frames.append(groups.renumbered(frame, view.member))
        about = view.describe(frame) | ({"reference": reference.name} if reference else {})
        if view.name in records:  # the task's own metrics came before
            first = records[view.name]
            cut = {key: max(first[key], about[key]) for key in ("n_truncated", "max_tokens_cut")}
            about = first | cut | {"metrics": first["metrics"] | about["metrics"]}
        records[view.name] = about
        assert view.asked is not None
        questions = view.asked if view.member is None else view.asked.assign(**{SUBTASK: view.name})
        asked[view.name] = groups.renumbered(questions, view.member)
    record = {
        "model": lens.describe(store.fingerprint),
        "tasks": groups.described(records, {view.name: view.member for view in views}),
        "conditions": [str(c) for c in conditions],
        **record,
        "store": cache_usage(caches),
        **provenance.environment(),
        **provenance.where_and_when(),
    }
    return Result(pd.concat(frames, ignore_index=True), record, pd.concat(asked.values(), ignore_index=True))


def _frame(model: str, task: View, conditions: Sequence[Condition], answers: Sequence[Sequence[Any]]) -> pd.DataFrame:
    """Tidy rows of one task: one a condition, metric and document."""
    rows = [
        (model, task.name, one.metric, str(condition), condition.layer, condition.head, *one[1:])
        for condition, given in zip(conditions, answers, strict=True)
        for one in task.score(given)
    ]
    if not rows:
        skipped = ", ".join(task.skipped) or "none"
        raise UserError(f"task {task.name}: no metric has a value per document ({skipped})")
    frame = pd.DataFrame(rows, columns=[*DOCS_COLUMNS, PARSED, COMPLETE])
    return frame.astype({"layer": "Int64", "head": "Int64", "doc_id": "int64", "value": "float64"})
