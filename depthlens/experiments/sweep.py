"""Conditions x task -> `Result`: parts removed in turn on equal documents, blocks and more and more layers, free text.

A layer that can be removed alone need not be removable together with others. Single removals therefore say how much
each layer matters, and nothing about how many layers are needed. Three experiments answer that:

* `block_sweep` removes every contiguous block up to a size. Blocks are what the depth-pruning literature cuts
  (Gromov et al. 2024, arXiv 2403.17887).
* `pair_sweep` removes every two of some parts.
* `greedy_removal` removes, step by step, the layer that costs least in addition to those that are removed already (Song
  et al. 2024, SLEB, arXiv 2402.09025, with a task in place of perplexity), until the score has fallen too far.

The cheapest of many removals would look too cheap on the documents that chose it, because its loss is partly luck.
`greedy_removal` therefore chooses layers and stops on one half of the documents, and judges on the other
(`depthlens.analysis.layers.removal`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, Unpack, cast

import pandas as pd

from depthlens import arguments, cluster
from depthlens.ablations import INDEXED, WORDS, Ablation, Condition, Dims, expand
from depthlens.analysis.layers.pairs import PairLosses, interaction_table
from depthlens.analysis.layers.removal import Greedy, follow
from depthlens.analysis.numbers.stats import BASELINE
from depthlens.analysis.numbers.words import NOT_ABOVE_CHANCE
from depthlens.analysis.result.concat import concat
from depthlens.analysis.result.losses import Losses
from depthlens.analysis.result.results import Result
from depthlens.arguments import EvalOptions
from depthlens.engine.references import Reference
from depthlens.errors import UserError
from depthlens.experiments import attribution
from depthlens.experiments.condition_runs import Ablate, ConditionRuns, Tasks, load_tasks, settled
from depthlens.experiments.texts import EMBEDDED, Texts, chosen, named
from depthlens.metrics import ANSWER_LOGPROB
from depthlens.models import loading, names
from depthlens.models.lens import Lens, one_thread
from depthlens.requests import LoglikelihoodAnswer
from depthlens.tasks.measures import NAME, FreeText

LAYER_SITES = ("layer", "attn", "mlp")
METHODS = ("exact", *attribution.STEPS)
OF_FREE_TEXT = ("donor", "backend", "batch_tokens", "store", "progress", *cluster.NAMES)  # its options


@one_thread
def condition_sweep(lens: Lens, tasks: Tasks, ablate: Ablate, **options: Unpack[EvalOptions]) -> Result:
    """Score tasks under the baseline and every condition of ``ablate``.

    ``@mean`` puts the mean of what a part adds in the place of what it adds (a layer's output becomes its input plus
    that mean). There are two means: of first tokens and of all others. They are taken over up to 64 texts of
    each task that are not evaluated and have no examples (`depthlens.tasks.measures`).

    Args:
        lens: A loaded model.
        tasks: One lm-eval task (or group) or several, or tasks from `depthlens.tasks.harness.load_tasks`.
        ablate: ``layers``, ``attn``, ``mlp``, ``heads``, ``kv``, ``blocks:N``, ``pairs``, ``repeats``, ``bottom``,
            ``top`` or conditions; see `depthlens.ablations.expand`.
        options: `EvalOptions`.

    Returns:
        Every document under the baseline and every condition.

    Raises:
        UserError: for anything asked for that does not exist.

    Example:
        >>> result = dl.condition_sweep(lens, "organism_one_hop", ["L2", "L2.H1", "L3-4@mean"], limit=8)
        >>> result.summary["condition"].tolist()
        ['baseline', 'L2', 'L2.H1', 'L3-4@mean']
    """
    return ConditionRuns(lens, tasks, ablate, settled(options)).result()


def run_by_name(
    model: str, tasks: Sequence[str], ablate: str, *, experiment: Callable[..., Any] = condition_sweep, **options: Any
) -> Any:
    """An experiment on a model by its name; what needs no weights is checked before they are read.

    Args:
        model: What `depthlens.load` takes.
        tasks: See `condition_sweep`.
        ablate: See `condition_sweep`.
        experiment: `condition_sweep` or what takes the same arguments.
        options: Those of `depthlens.load`, and `EvalOptions`.
    """
    how = {name: options.pop(name, option.default) for name, option in arguments.LOADING.items()}
    arguments.check(tasks=tasks, **how)
    for name in (model, options.get("donor")):
        if name is not None and not how["remote"]:
            names.configuration(names.find(name))
    loaded = load_tasks(tasks, settled(cast(EvalOptions, options)))
    lens = loading.load(model, **how)
    return experiment(lens, loaded, ablate, **options)


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

    Example:
        >>> result = dl.layer_sweep(lens, "organism_one_hop", limit=12)
        >>> result.critical()["condition"].tolist()
        ['L1', 'L2']
    """
    arguments.one_of(*LAYER_SITES)("site", site)
    return condition_sweep(lens, tasks, "layers" if site == "layer" else site, **options)


@one_thread
def head_sweep(
    lens: Lens,
    tasks: str | Sequence[str],
    *,
    layers: Sequence[int] | str | None = None,
    site: str = "head",
    method: str = "exact",
    **options: Unpack[EvalOptions],
) -> Result:
    """Remove every attention head, or every group of heads that share keys and values, one at a time.

    Each head's z becomes zero. `condition_sweep` of ``heads@mean`` or ``heads@resample`` puts others in its place.

    Args:
        lens: A loaded model.
        tasks: One lm-eval task (or group) or several.
        layers: Layers whose heads are removed: numbers, or a text such as ``layers:4`` (four, evenly spread) or
            ``L3,L8-11``; None for all.
        site: ``head`` or ``kv``.
        method: ``exact`` runs every condition; ``attribution`` estimates all of them, as changes of
            ``answer_logprob``, from one forward and one backward pass (`depthlens.experiments.attribution`);
            ``integrated_gradients`` from slopes along the way to the removal of some heads of a layer at a time, which
            costs more and holds behind a saturated softmax.
        options: `EvalOptions`; ``measure`` is ``both`` by default; estimates have ``answer_logprob`` alone.

    Returns:
        Every document under the baseline and a condition a head. ``record["method"]`` says how it was found.

    Raises:
        UserError: for anything asked for that does not exist.

    Example:
        >>> heads = dl.head_sweep(lens, "organism_one_hop", layers=[1, 2], limit=8)
        >>> heads.head_losses(metric="acc").top(2)
        [L2.H1, L1.H2]
    """
    for name, value, allowed in (("site", site, INDEXED), ("method", method, METHODS)):
        arguments.one_of(*allowed)(name, value)
    of_layers = _layers("layers" if layers is None else layers, lens.dims)
    every = expand(WORDS[site], lens.dims)[1:]
    ablate = [str(condition) for layer in of_layers for condition in every if condition.layer == layer]
    if not ablate:
        raise UserError(f"layers {of_layers}: they have no {WORDS[site]}; {every[0]} is the first of {lens.name!r}")
    if method == "exact":
        options = {"measure": "both", **options}
        result = condition_sweep(lens, tasks, ablate, **options)
        result.record["method"] = method
        return result
    settings = settled({"measure": ANSWER_LOGPROB, **options}, without=cluster.NAMES)
    for name, value, can in (
        ("measure", settings["measure"], ANSWER_LOGPROB),
        ("backend", settings["backend"], "torch"),
    ):
        if value != can:
            raise UserError(f"{name} {value!r}: {method} can do {can} only; use it, or method='exact'")
    runs = ConditionRuns(lens, tasks, ablate, settings)
    runs.record["method"] = method
    how: dict[str, Any] = {name: settings[name] for name in ("batch_tokens", "progress")}
    how |= {"steps": attribution.STEPS[method], "layers": of_layers}
    n_in_layer = len(ablate) // len(of_layers)

    def estimated(task: Any, reference: Reference | None) -> list[list[Any]]:
        cache = runs.store.entry(task.name, method=attribution.address(method))
        change, clean = attribution.attribute(lens, task.requests, cache=cache, **how)
        change = change.unflatten(-1, (n_in_layer, -1)).sum(-1)  # a group's estimate is the sum over its heads
        values = [clean + change[:, c.layer, c.ablations[0].index] if c else clean for c in runs.conditions]
        return [[LoglikelihoodAnswer(float(value), False) for value in of_condition] for of_condition in values]

    return runs.result(estimated)


def _layers(layers: Sequence[int] | str, dims: Dims) -> list[int]:
    """Layers by their numbers, or those that a text such as ``layers:4`` names."""
    if not isinstance(layers, str):
        return arguments.layers("layers", layers, dims.n_layers)
    return sorted({ablation.layer for condition in expand(layers, dims) for ablation in condition.ablations})


@one_thread
def free_text(
    lens: Lens,
    ablate: Ablate = "layers",
    *,
    texts: Texts = None,
    n_prompts: int | None = 24,
    prompt_tokens: int = 32,
    max_new_tokens: int = 64,
    **options: Unpack[EvalOptions],
) -> Result:
    """Let a model continue plain texts under every condition; how much it repeats itself and how strange the text is.

    Args:
        lens: A loaded model.
        ablate: What to remove; see `depthlens.condition_sweep`.
        texts: Texts that begin the prompts, or the name of a set: ``embedded`` or ``c4``
            (`depthlens.experiments.texts`); None: the embedded ones.
        n_prompts: The first so many texts; None: all.
        prompt_tokens: So many tokens of a text are given, from its start on; all of a shorter one.
        max_new_tokens: Longest continuation, in tokens. Loops often begin late: 64 and more show them.
        options: `EvalOptions`: donor, backend, batch_tokens, store, progress, and those of workers.

    Returns:
        A result with the task ``free_text``, a document for each prompt, and the metrics ``repetition`` (share of
        4-grams that occurred before) and ``nats_per_token`` (log perplexity of what was written, under the whole
        model); lower is better for both. The texts are the responses.

    Raises:
        UserError: more tokens than the model reads, or anything that
            `depthlens.condition_sweep` refuses.

    Example:
        >>> result = dl.free_text(lens, ["L2"], n_prompts=2, max_new_tokens=4)
        >>> result.docs["metric"].unique().tolist()
        ['repetition', 'nats_per_token']
    """
    settled(options, without=[name for name in arguments.OPTIONS if name not in OF_FREE_TEXT])
    prompt_tokens = arguments.whole("prompt_tokens", prompt_tokens, 1)
    max_new_tokens = arguments.whole("max_new_tokens", max_new_tokens, 1)
    if n_prompts is not None:
        n_prompts = arguments.whole("n_prompts", n_prompts, 2, fix=", or None for all")
    read = chosen(EMBEDDED if texts is None else texts, n_prompts)
    rows = [tuple(lens.tokenizer(text).input_ids[:prompt_tokens]) for text in read]
    if (both := prompt_tokens + max_new_tokens) > lens.max_length:
        fault = f"prompt_tokens {prompt_tokens} and max_new_tokens {max_new_tokens} are {both} tokens"
        raise UserError(f"{fault}; the model reads {lens.max_length} in all")
    view = FreeText(lens, rows, max_new_tokens)
    result = condition_sweep(lens, {NAME: view}, ablate, **options)
    settings = {"prompt_tokens": prompt_tokens, "max_new_tokens": max_new_tokens, "n_prompts": len(rows)}
    result.record[NAME] = {**settings, "texts": named(texts)}
    return result


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

    Example:
        >>> blocks = dl.block_sweep(lens, "organism_one_hop", max_size=2, limit=4)
        >>> blocks.summary["condition"].tolist()[-3:]
        ['L2-3', 'L3-4', 'L4-5']
    """
    max_size = arguments.whole("max_size", max_size, 1, of=" of layers")
    return condition_sweep(lens, tasks, f"blocks:{max_size}", **options)


@one_thread
def pair_sweep(
    lens: Lens,
    tasks: str | Sequence[str],
    parts: Ablate = "layers",
    *,
    n_heads: int = 12,
    **options: Unpack[EvalOptions],
) -> PairLosses:
    """Remove every two of some parts together, and test what a pair costs beyond the sum of its parts.

    The interaction of a pair is its loss minus the losses of its two parts, question by question. It is tested for all
    pairs of a task as one family, so that a pair that stands out is no accident of many. Parts that back each other up
    cost more together; parts of one chain cost less. Conditions share their rows until they part: all 435 pairs of 30
    layers take about half of the layer passes.

    Args:
        lens: A loaded model.
        tasks: One lm-eval task (or group) or several.
        parts: ``layers``, ``layers:N``, ``attn``, ``mlp`` or conditions, of which no two have a part in common; or
            ``heads``, which are those that attribution finds to cost most.
        n_heads: How many heads are taken of each task.
        options: `EvalOptions`.

    Returns:
        Table, sentences and figure (`plot`); ``result`` has the answers.

    Raises:
        UserError: fewer than two parts, or anything that a sweep refuses.

    Example:
        >>> found = dl.pair_sweep(lens, "organism_one_hop", ["L1", "L2", "L4"], limit=12)
        >>> found.table["condition"].tolist()
        ['L1-2', 'L1+L4', 'L2+L4']
    """
    n_heads = arguments.whole("n_heads", n_heads, 2)
    if parts == WORDS["head"]:
        how: Any = {name: value for name, value in options.items() if name not in ("measure", *cluster.NAMES)}
        estimates = head_sweep(lens, tasks, method="attribution", **how)
        names = estimates.docs["task"].unique()
        parts = [str(head) for task in names for head in estimates.head_losses(task).top(n_heads)]
    singles = expand(parts, lens.dims)[1:]
    if len(singles) < 2:
        raise UserError(f"parts {parts!r}: a pair needs two parts; name more")
    both = {str(Condition((*a.ablations, *b.ablations))): (str(a), str(b)) for a, b in combinations(singles, 2)}
    result = condition_sweep(lens, tasks, [*singles, *both], **options)
    record = {"parts": [*map(str, singles)], "pairs": both}
    return PairLosses(interaction_table(result.primary(), both), result, record)


@one_thread
def greedy_removal(
    lens: Lens, tasks: str, *, tolerance: float = 0.1, max_layers: int | None = None, **options: Unpack[EvalOptions]
) -> Greedy:
    """Remove layers one after another, each time the one that costs least, until the score falls by more than allowed.

    One half of the documents chooses and stops; the other judges what is gone in the end, so that its interval is not
    flattered.

    Args:
        lens: A loaded model.
        tasks: One lm-eval task.
        tolerance: How far the mean score of the choosing half may fall below the whole model's, in the metric's unit.
        max_layers: Largest number of layers to remove; None, or as many as the model has: all but one.
        options: `EvalOptions`. With a store the steps of an earlier call are read.

    Returns:
        The steps; see `Greedy`.

    Raises:
        UserError: a bad tolerance or number of layers, a task at chance, fewer than two documents, or anything that a
            sweep refuses.

    Example:
        >>> greedy = dl.greedy_removal(lens, "organism_one_hop", max_layers=1, limit=12)
        >>> greedy.removed
        [0]
    """
    n_layers = lens.dims.n_layers
    asked = n_layers if max_layers is None else max_layers
    asked = arguments.whole("max_layers", asked, 1, fix=", or leave it out")
    tolerance = arguments.number("tolerance", tolerance, 0)
    results: list[Result] = []

    def tried(gone: list[int]) -> tuple[list[int], Losses]:
        left = [layer for layer in range(n_layers) if layer not in gone]
        conditions = [str(_without([*gone, layer])) for layer in left]
        results.append(_same_baseline(condition_sweep(lens, tasks, conditions, **options).primary(), results))
        losses = results[-1].losses()
        if losses.at_chance:
            fault = f"{losses.task} ({losses.metric}) is {NOT_ABOVE_CHANCE} with every layer in place"
            raise UserError(f"{fault}: nothing to lose; take another task or more documents")
        return left, losses.select(conditions)

    rows, stopped = follow(tried, tolerance=tolerance, max_removed=min(asked, n_layers - 1))
    steps = pd.DataFrame(rows).astype({"layer": "Int64"})
    order = [row["layer"] for row in rows[1:]]
    steps["removed"] = [BASELINE, *(str(_without(order[: i + 1])) for i in range(len(order)))]
    first = results[0].losses()
    record = {"task": tasks, "metric": first.metric, "tolerance": tolerance, "n_layers": n_layers}
    record["higher_is_better"] = first.sign > 0
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
