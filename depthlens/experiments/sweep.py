"""Conditions x task -> `Result`: every layer, sublayer, head or block removed in turn, on equal documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from depthlens import arguments, provenance
from depthlens.ablations import Condition, expand
from depthlens.analysis.results import Result
from depthlens.engine import memory_budget
from depthlens.engine.engine import Engine, LoglikelihoodAnswer
from depthlens.engine.references import Reference, of_task
from depthlens.errors import UserError, unknown
from depthlens.experiments import attribution
from depthlens.metrics import ANSWER_LOGPROB
from depthlens.models import loading, pairs, sources
from depthlens.models.lens import Lens
from depthlens.models.offload import NO_GENERATION
from depthlens.store import parts as storage
from depthlens.store.answer_cache import AnswerCache, AnswerStore, Where, describe
from depthlens.tasks import harness
from depthlens.tasks.answer_logprob import Answers

METHODS = ("exact", "attribution")
HEAD_MODES = ("zero", "mean", "resample")


def layer_sweep(
    lens: Lens,
    task: str | Sequence[str],
    *,
    site: str = "layer",
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: str | Path | None = None,
    seed: int = 0,
    backend: str = "torch",
    batch_tokens: int | None = None,
    chat: bool = False,
    system_prompt: str | None = None,
    measure: str = "task",
    store: Where = storage.DEFAULT,
    progress: bool = True,
) -> Result:
    """Remove every layer in turn, or only its attention or MLP, and score the task each time.

    Args:
        lens: A loaded model.
        task: One lm-eval task (or group) or several.
        site: ``layer`` (skipped whole), ``attn`` or ``mlp`` (contribution set to zero).
        limit: First so many documents of each task; None for all.
        num_fewshot: Worked examples before each question; None keeps what the task says.
        include_path: Folder with more lm-eval YAML files.
        seed: Seed of the choice of examples.
        backend: What applies the conditions.
        batch_tokens: Token budget of one batch; None chooses by device and free memory.
        chat: Wrap prompts in the tokenizer's chat template.
        system_prompt: Instruction before everything else.
        measure: ``task`` (the task's own metrics), ``answer_logprob`` (log-likelihood of the reference answer in
            nats, see `depthlens.tasks.answer_logprob`) or ``both``.
        store: Folder or URL where answers are found and kept as they come, so that nothing is computed twice
            (`depthlens.store`); ``auto``: what DEPTHLENS_STORE names, or the user's data folder; None: nowhere.
        progress: Show progress bars.

    Returns:
        Every document under the baseline and n_layers conditions.

    Raises:
        UserError: for anything asked for that does not exist.
    """
    sites = ("layer", "attn", "mlp")
    if site not in sites:
        raise UserError(f"unknown site {site!r} for a layer sweep; allowed: {', '.join(sites)}")
    return condition_sweep(
        lens,
        task,
        "layers" if site == "layer" else site,
        limit=limit,
        num_fewshot=num_fewshot,
        include_path=include_path,
        seed=seed,
        backend=backend,
        batch_tokens=batch_tokens,
        chat=chat,
        system_prompt=system_prompt,
        measure=measure,
        store=store,
        progress=progress,
    )


def head_sweep(
    lens: Lens,
    task: str | Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    site: str = "head",
    method: str = "exact",
    mode: str = "zero",
    references: Sequence[str] | None = None,
    measure: str | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: str | Path | None = None,
    seed: int = 0,
    backend: str = "torch",
    batch_tokens: int | None = None,
    chat: bool = False,
    system_prompt: str | None = None,
    store: Where = storage.DEFAULT,
    progress: bool = True,
) -> Result:
    """Remove every attention head, or every group of heads that share keys and values, one at a time.

    Args:
        lens: A loaded model.
        task: One lm-eval task (or group) or several.
        layers: Layers whose heads are removed; None for all.
        site: ``head`` or ``kv``.
        method: ``exact`` runs every condition; ``attribution`` estimates all of them, as changes of
            ``answer_logprob``, from one forward and one backward pass (`depthlens.experiments.attribution`).
        mode: What takes the place of z: ``zero``, the ``mean`` over the prompts of the first 64 documents, or
            ``resample``: z of a reference prompt at the same position.
        references: Reference prompts for ``resample``; scores are means over them.
        measure: As in `layer_sweep`; ``both`` by default, and ``answer_logprob`` is all that attribution can give.
        limit: First so many documents of each task; None for all.
        num_fewshot: Worked examples before each question; None keeps what the task says.
        include_path: Folder with more lm-eval YAML files.
        seed: Seed of the choice of examples.
        backend: What applies the conditions.
        batch_tokens: Token budget of one batch; None chooses by device and free memory.
        chat: Wrap prompts in the tokenizer's chat template.
        system_prompt: Instruction before everything else.
        store: As in `layer_sweep`.
        progress: Show progress bars.

    Returns:
        Every document under the baseline and a condition a head. ``record["method"]`` says how it was found.

    Raises:
        UserError: for anything asked for that does not exist.
    """
    arguments.loaded(lens)
    for name, value, allowed in (
        ("site", site, ("head", "kv")),
        ("method", method, METHODS),
        ("mode", mode, HEAD_MODES),
    ):
        if value not in allowed:
            raise unknown(name, value, allowed)
    if measure is None:
        measure = ANSWER_LOGPROB if method == "attribution" else "both"
    dims = lens.dims
    chosen = range(dims.n_layers) if layers is None else arguments.layers("layers", layers, dims.n_layers)
    of_layer, letter = (dims.n_heads, "H") if site == "head" else (dims.n_kv_heads, "KV")
    suffix = "" if mode == "zero" else f"@{mode}"
    ablate = [f"L{layer}.{letter}{i}{suffix}" for layer in chosen for i in range(of_layer)]
    if not ablate:
        raise UserError("layers is empty; name at least one layer, or leave it out for all")
    if method == "exact":
        result = condition_sweep(
            lens,
            task,
            ablate,
            limit=limit,
            num_fewshot=num_fewshot,
            include_path=include_path,
            seed=seed,
            backend=backend,
            batch_tokens=batch_tokens,
            chat=chat,
            system_prompt=system_prompt,
            measure=measure,
            references=references,
            store=store,
            progress=progress,
        )
        return Result(result.docs, result.record | {"method": method}, result.asked)
    if measure != ANSWER_LOGPROB:
        raise UserError(f"measure {measure!r}: attribution estimates {ANSWER_LOGPROB} only; use it, or method='exact'")
    arguments.check(limit=limit, num_fewshot=num_fewshot, include_path=include_path, seed=seed, backend=backend)
    arguments.check(batch_tokens=batch_tokens, chat=chat, system_prompt=system_prompt, progress=progress)
    if backend != "torch":
        raise UserError(f"backend {backend!r}: attribution runs with 'torch' only; leave backend out")
    if mode == "resample":
        raise UserError("mode 'resample': attribution estimates 'zero' and 'mean'; use one of these, or method='exact'")
    if references is not None:
        fix = "leave them out, or use method='exact' and mode='resample'"
        raise UserError(f"references {references!r}: attribution puts no prompt in place of a head; {fix}")
    conditions = expand(ablate, dims)
    answers = AnswerStore(store, lens)  # what is wrong with it is told before the tasks are made
    names, n_docs = arguments.names("task", task, "capitals_continuation"), arguments.documents(limit)
    tasks = harness.load_tasks(names, include_path=include_path, num_fewshot=num_fewshot, seed=seed, limit=n_docs)
    views = _views(lens, tasks, measure, limit=limit, chat=chat, system_prompt=system_prompt)

    def run(view: Answers, reference: Reference | None) -> tuple[list[list[LoglikelihoodAnswer]], AnswerCache]:
        method = f"attribution {mode}" + (f" {reference.keys['mean']}" if reference else "")
        kept = answers.entry(view.name, method=method)
        means = (lambda: reference.measure(lens)) if reference else None
        change, clean = attribution.attribute(
            lens, view.requests, mode=mode, means=means, batch_tokens=batch_tokens, progress=progress, kept=kept
        )
        change = change.unflatten(-1, (of_layer, -1)).sum(-1)  # a group's estimate is the sum over its heads
        estimates = [
            [LoglikelihoodAnswer(float(v), False) for v in (clean if not c else clean + change[:, c.layer, _index(c)])]
            for c in conditions
        ]
        return estimates, kept

    settings = {"limit": limit, "chat": chat, "system_prompt": system_prompt, "measure": measure, "seed": seed}
    settings["include_path"] = str(include_path) if include_path is not None else None
    record = {"ablate": ablate, "backend": backend, "method": method} | settings
    return _result(lens, answers, views, conditions, run, record)


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
    offload: str | None = None,
    remote: bool | str = False,
    **kwargs: Any,
) -> Result:
    """`condition_sweep` on a model by name; what needs no weights is looked at before they are read."""
    checked = ("limit", "num_fewshot", "include_path", "seed", "backend", "batch_tokens", "measure", "references")
    arguments.check(
        **{name: kwargs[name] for name in checked if name in kwargs}, dtype=dtype, device=device, tasks=tasks
    )
    for name in (model, kwargs.get("donor")):
        if name is not None and not isinstance(name, Lens) and not remote:
            sources.probe(sources.find(name))
    loaded = harness.load_tasks(
        tasks,
        include_path=kwargs.get("include_path"),
        num_fewshot=kwargs.get("num_fewshot"),
        seed=kwargs.get("seed", 0),
        limit=arguments.documents(kwargs.get("limit")),
    )
    lens = loading.load(model, dtype=dtype, device=device, offload=offload, remote=remote)
    result = condition_sweep(lens, loaded, ablate, **kwargs)
    result.record["asked_tasks"] = list(tasks)  # groups among them stand for their tasks
    return result


def condition_sweep(
    lens: Lens,
    tasks: str | Sequence[str] | dict[str, Any],
    ablate: str | Iterable[str | Condition],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: str | Path | None = None,
    seed: int = 0,
    backend: str = "torch",
    batch_tokens: int | None = None,
    chat: bool = False,
    system_prompt: str | None = None,
    measure: str = "task",
    references: Sequence[str] | None = None,
    donor: str | Path | Lens | None = None,
    store: Where = storage.DEFAULT,
    progress: bool = True,
) -> Result:
    """Score tasks under the baseline and every condition of ``ablate`` (see `depthlens.ablations.expand`).

    ``tasks`` are task names, or tasks from `harness.load_tasks`; ``ablate`` is ``layers``, ``attn``, ``mlp``,
    ``heads``, ``kv``, ``blocks:N``, ``bottom``, ``top`` or conditions. For the other arguments, the result and the
    errors see `layer_sweep`. ``@mean`` puts the mean of what a part adds, over the prompts of the first 64 documents of
    each task, in the place of what it adds (a layer's output becomes its input plus that mean); ``@resample``
    puts z of each of the prompts ``references`` in turn, and scores are means over these; ``@donor`` puts weights of
    ``donor``, a name or a loaded model (`depthlens.models.pairs.with_donor`).
    """
    arguments.loaded(lens)
    arguments.check(limit=limit, num_fewshot=num_fewshot, include_path=include_path, seed=seed, backend=backend)
    arguments.check(
        batch_tokens=batch_tokens, chat=chat, system_prompt=system_prompt, measure=measure, progress=progress
    )
    arguments.check(references=references)
    conditions = expand(ablate, lens.dims)
    if any(c.uses_resample for c in conditions):
        lens.needs_weights("@resample")
    both = pairs.together(lens, donor, conditions, backend)
    answers = AnswerStore(store, both)  # what is wrong with it is told before the tasks are made
    if not isinstance(tasks, dict) or not tasks:
        names, n_docs = arguments.names("task", tasks, "capitals_continuation"), arguments.documents(limit)
        tasks = harness.load_tasks(names, include_path=include_path, num_fewshot=num_fewshot, seed=seed, limit=n_docs)
    views = _views(lens, tasks, measure, limit=limit, chat=chat, system_prompt=system_prompt)
    if lens.stream and (writing := [view.name for view in views if view.output_type == "generate_until"]):
        raise UserError(f"task {writing[0]}: {NO_GENERATION}")

    def run(view: harness.Prepared | Answers, reference: Reference | None) -> tuple[list[list[Any]], AnswerCache]:
        kept = answers.entry(view.name, backend=backend, reference=reference.keys if reference else None)
        lacks = reference is not None and kept.lacks(view.requests, conditions)
        means = reference.measure(both) if lacks else None
        engine = Engine(both, backend=backend, batch_tokens=batch_tokens, means=means, progress=progress, kept=kept)
        return view.run(engine, conditions), kept

    settings = {"limit": limit, "chat": chat, "system_prompt": system_prompt, "measure": measure, "seed": seed}
    settings["include_path"] = str(include_path) if include_path is not None else None
    settings["references"] = list(references) if references else None
    record = {"ablate": ablate if isinstance(ablate, str) else [str(c) for c in conditions[1:]], "backend": backend}
    record["batch_tokens"] = memory_budget.choose(lens, batch_tokens).batch_tokens
    if both.donor:
        record["donor"] = both.donor.lens.describe(answers.donor_fingerprint) | {"notes": list(both.donor.notes)}
    return _result(lens, answers, views, conditions, run, record | settings, _tokens(lens, conditions, references))


def _result(
    lens: Lens,
    store: AnswerStore,
    views: Sequence[harness.Prepared | Answers],
    conditions: Sequence[Condition],
    run: Callable[[harness.Prepared | Answers, Reference | None], tuple[Sequence[Sequence[Any]], AnswerCache]],
    record: dict[str, Any],
    prompts: Sequence[Sequence[int]] = (),
) -> Result:
    """Run every view of the tasks and put the documents and the record together."""
    frames: list[pd.DataFrame] = []
    records: dict[str, dict] = {}
    asked: dict[str, pd.DataFrame] = {}
    stores: list[AnswerCache] = []
    for view in views:
        needed = bool(prompts) or any(c.uses_mean for c in conditions)
        reference = of_task(view.name, view.requests) if needed else None
        runs = []
        for one in reference.sampled(prompts) if prompts else [reference]:
            answers, kept = run(view, one)
            runs.append(_frame(lens.name, view, conditions, answers))
            stores.append(kept)
        frame = runs[0] if len(runs) == 1 else runs[0].assign(value=sum(f["value"] for f in runs) / len(runs))
        frames.append(frame)
        about = view.describe(frame) | ({"reference": reference.name} if reference else {})
        if view.name in records:  # the task's own metrics came before
            first = records[view.name]
            cut = {key: max(first[key], about[key]) for key in ("n_truncated", "max_tokens_cut")}
            about = first | cut | {"metrics": first["metrics"] | about["metrics"]}
        records[view.name] = about
        asked[view.name] = view.asked
    record = {
        "model": lens.describe(store.fingerprint),
        "tasks": records,
        "conditions": [str(c) for c in conditions],
        **record,
        "store": describe(stores),
        **provenance.environment(),
        **provenance.where_and_when(),
    }
    return Result(pd.concat(frames, ignore_index=True), record, pd.concat(asked.values(), ignore_index=True))


def _views(
    lens: Lens,
    tasks: dict[str, Any],
    measure: str,
    *,
    chat: bool = False,
    limit: int | None = None,
    **options: Any,
) -> list[harness.Prepared | Answers]:
    """What is run of each task: the task itself, its reference answers, or one after the other."""
    views: list[harness.Prepared | Answers] = []
    for task in harness.prepare(lens, tasks, chat=chat, limit=arguments.documents(limit), **options):
        views += [task] if measure != ANSWER_LOGPROB else []
        views += [Answers(lens, task, chat=chat)] if measure != "task" else []
    return views


def _tokens(lens: Lens, conditions: Sequence[Condition], references: Sequence[str] | None) -> list[list[int]]:
    """Token ids of the reference prompts, where a condition asks for some."""
    asked = next((c for c in conditions if c.uses_resample), None)
    if bool(asked) != bool(references):
        fault = f"condition {asked} needs references" if asked else "references are used by @resample conditions only"
        raise UserError(f"{fault}: give both, or neither")
    return [lens.tokenizer(r).input_ids for r in references or ()]


def _frame(
    model: str, task: harness.Prepared | Answers, conditions: Sequence[Condition], answers: Sequence[Sequence[Any]]
) -> pd.DataFrame:
    """Tidy rows of one task: one a condition, metric and document."""
    rows = [
        (model, task.name, metric, str(condition), condition.layer, condition.head, doc_id, value, response)
        for condition, given in zip(conditions, answers, strict=True)
        for metric, doc_id, value, response in task.score(given)
    ]
    if not rows:
        skipped = ", ".join(task.skipped) or "none"
        raise UserError(f"task {task.name}: no metric has a value per document ({skipped})")
    columns = ["model", "task", "metric", "condition", "layer", "head", "doc_id", "value", "response"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype({"layer": "Int64", "head": "Int64", "doc_id": "int64", "value": "float64"})
