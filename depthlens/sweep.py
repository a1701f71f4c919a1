"""Conditions x task -> `Result`: every layer, sublayer, head or block removed in turn, on equal documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from depthlens import backends, harness, models, provenance
from depthlens.ablations import Condition, expand
from depthlens.backends.torch import measure_means
from depthlens.engine import Engine
from depthlens.errors import UserError
from depthlens.results import Result

N_REFERENCE = 64  # prompts whose mean stands in for a part under @mean


def layer_sweep(
    lens: models.Lens,
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
        batch_tokens: Token budget of one batch; None chooses by device.
        chat: Wrap prompts in the tokenizer's chat template.
        system_prompt: Instruction before everything else.
        progress: Show progress bars.

    Returns:
        Every document under the baseline and n_layers conditions.

    Raises:
        UserError: for anything asked for that does not exist.
    """
    words = {"layer": "layers", "attn": "attn", "mlp": "mlp"}
    if site not in words:
        raise UserError(f"unknown site {site!r} for a layer sweep; allowed: {', '.join(words)}")
    return condition_sweep(
        lens,
        task,
        words[site],
        limit=limit,
        num_fewshot=num_fewshot,
        include_path=include_path,
        seed=seed,
        backend=backend,
        batch_tokens=batch_tokens,
        chat=chat,
        system_prompt=system_prompt,
        progress=progress,
    )


def run_sweep(
    model: str, tasks: Sequence[str], ablate: str, *, dtype: str = "auto", device: str = "auto", **kwargs: Any
) -> Result:
    """`condition_sweep` on a model by name; tasks are looked up first, since loading a model takes longer."""
    loaded = harness.load_tasks(
        tasks,
        include_path=kwargs.get("include_path"),
        num_fewshot=kwargs.get("num_fewshot"),
        seed=kwargs.get("seed", 0),
    )
    return condition_sweep(models.load(model, dtype=dtype, device=device), loaded, ablate, **kwargs)


def condition_sweep(
    lens: models.Lens,
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
    progress: bool = True,
) -> Result:
    """Score tasks under the baseline and every condition of ``ablate`` (see `depthlens.ablations.expand`).

    ``tasks`` are task names, or tasks from `harness.load_tasks`; ``ablate`` is ``layers``, ``attn``, ``mlp``,
    ``heads``, ``kv``, ``blocks:N`` or conditions. For the other arguments, the result and the errors see
    `layer_sweep`. ``@mean`` conditions use the mean over the prompts of the first 64 documents of each task.
    """
    conditions = expand(ablate, lens.dims)
    if not isinstance(tasks, dict):
        names = [tasks] if isinstance(tasks, str) else tasks
        tasks = harness.load_tasks(names, include_path=include_path, num_fewshot=num_fewshot, seed=seed)
    prepared = harness.prepare(lens, tasks, limit=limit, chat=chat, system_prompt=system_prompt)
    frames, records = [], {}
    for task in prepared:
        means = _reference(lens, task) if any(c.uses_mean for c in conditions) else None
        engine = Engine(lens, backend=backend, batch_tokens=batch_tokens, means=means, progress=progress)
        frame = _frame(lens.name, task, conditions, task.run(engine, conditions))
        frames.append(frame)
        records[task.name] = task.describe(frame) | ({"reference": means.name} if means else {})
    record = {
        "model": lens.describe(),
        "tasks": records,
        "conditions": [str(c) for c in conditions],
        "ablate": ablate if isinstance(ablate, str) else [str(c) for c in conditions[1:]],
        "seed": seed,
        "limit": limit,
        "chat": chat,
        "system_prompt": system_prompt,
        "backend": backend,
        "batch_tokens": engine.batch_tokens,
        **provenance.environment(),
        **provenance.where_and_when(),
    }
    return Result(pd.concat(frames, ignore_index=True), record)


def _reference(lens: models.Lens, task: harness.Prepared) -> backends.Means:
    contexts = list(dict.fromkeys(q.context for q in task.requests))[:N_REFERENCE]
    return measure_means(lens, contexts, f"{task.name}: contexts of the first {len(contexts)} requests")


def _frame(
    model: str, task: harness.Prepared, conditions: Sequence[Condition], answers: Sequence[Sequence[Any]]
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
