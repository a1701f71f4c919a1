r"""Which heads copy from the context: by where they look, and by what their removal costs.

**Copy-paste score** (Wu et al. 2024, arXiv 2404.15574). While the model writes a needle k that is in its context, a
head scores at each step where its top-1 attended position lies in the needle *and* holds the token being written::

    score(h) = mean over recalled needles of  1 / |k| * #{steps t : argmax_j a_h(t, j) in needle, x_j = written token}

A needle is recalled where greedy decoding writes exactly the answer, so one teacher-forced pass per needle shows what
attention did at every step. It says where a head looks, not whether that matters.

**Loss on needle tokens**: what removing the head (zero ablation of its z) costs there, in nats per token, exactly or by
attribution. It says whether the head matters, not what it does.

Limit: single removals miss heads that can replace each other (``given_removed`` finds those).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from depthlens import arguments
from depthlens.ablations import BASELINE, Head, heads_condition
from depthlens.analysis.head_scores import HeadScores
from depthlens.engine.engine import Engine
from depthlens.errors import UserError, unknown
from depthlens.experiments import attention_patterns
from depthlens.experiments.attribution import attribute
from depthlens.experiments.head_losses import ATTRIBUTION, EXACT, added, checked, removed_alone, scores_record, single
from depthlens.experiments.options import OF_PROMPTS, WITHOUT_CONDITIONS, EvalOptions, settled
from depthlens.models.lens import Lens
from depthlens.requests import LoglikelihoodRequest
from depthlens.store.answer_cache import AnswerCache, AnswerStore, Where, cache_usage
from depthlens.store.parts import DEFAULT
from depthlens.tasks import needles as prompts
from depthlens.tasks.needles import Needle

COPY_PASTE = "copy_paste"


def retrieval_scores(
    lens: Lens,
    tasks: str | Sequence[str] | None = None,
    *,
    method: str = COPY_PASTE,
    heads: Sequence[Head] | None = None,
    given_removed: Sequence[Head] | None = None,
    needles: Sequence[Needle] | None = None,
    n_needles: int = 2,
    depths: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    context_lengths: Sequence[int] = (256, 512),
    **options: Unpack[EvalOptions],
) -> HeadScores:
    """Score every head as a retrieval head: where it looks, or what its removal costs, while needles are written.

    Args:
        lens: A loaded model.
        tasks: One lm-eval task or several whose answers are in their prompts; None: haystacks written for the purpose.
        method: ``copy_paste`` (copy-paste score, from 0 to 1), ``exact`` (loss per needle token, in nats, when the head
            is removed) or ``attribution`` (first-order estimate of that loss from one forward and one backward pass).
        heads: Heads to remove, with ``exact``; None for all. Costly for long prompts, so the heads that an estimate
            puts first can be checked alone.
        given_removed: Heads to test against each other, with ``exact``: the loss that removing one adds when all others
            of them are removed already. High for heads that can replace each other.
        needles: Needles to use, from `depthlens.tasks.needles`, in place of the following.
        n_needles: Written haystacks for every depth and context length.
        depths: Where in the haystack the needle is, from 0 to 1.
        context_lengths: Tokens of a prompt.
        options: `EvalOptions`: limit, num_fewshot and include_path of ``tasks``; seed of the haystacks, or of the
            choice of examples; batch_tokens, store, progress.

    Returns:
        Means over the needles that the model recalls; ``record["needles"]`` says how many of how many.

    Raises:
        UserError: anything asked for that does not exist, or no needle is recalled: then nothing can be judged.
    """
    arguments.loaded(lens)
    chosen = settled(options, without=WITHOUT_CONDITIONS)
    if method not in (COPY_PASTE, EXACT, ATTRIBUTION):
        raise unknown("method", method, (COPY_PASTE, EXACT, ATTRIBUTION))
    removed = _removed(lens, method, heads, given_removed)
    if needles is not None:
        source: dict[str, Any] = {"given": len(needles)}
    elif tasks is not None:
        names = arguments.names("tasks", tasks, "kv_retrieval_4")
        source = {"tasks": names, **{name: chosen[name] for name in ("limit", "num_fewshot", "seed")}}
        needles = prompts.task_needles(lens, names, **{name: chosen[name] for name in OF_PROMPTS})
    else:
        source = {"n_needles": n_needles, "depths": list(depths), "context_lengths": list(context_lengths)}
        source["seed"] = chosen["seed"]
        needles = prompts.written_needles(lens, n_needles, depths, context_lengths, chosen["seed"])
    answers, label = AnswerStore(chosen["store"], lens), " ".join(["needles", *source.get("tasks", [])])
    engine = Engine(lens, batch_tokens=chosen["batch_tokens"], progress=chosen["progress"], cache=answers.entry(label))
    recalled_needles = _recalled(lens, engine, needles)
    record = scores_record(lens, answers, method, source)
    groups = _groups(needles, recalled_needles)
    record["needles"] = {"asked": len(needles), "recalled": len(recalled_needles), "groups": groups}
    if method == COPY_PASTE:
        cache = answers.entry(label, method="copy-paste score")
        values = copy_paste(lens, recalled_needles, chosen["progress"], cache)
        record["store"] = cache_usage([engine.cache, cache])
        scores = HeadScores.of_cases("copy-paste score", "", values, record, tested=False)
        return replace(scores, low=scores.low.clip(0, 1), high=scores.high.clip(0, 1))
    requests = [_needle_tokens(n) for n in recalled_needles]
    n_tokens = np.array([len(q.continuation) for q in requests])[:, None, None]
    if method == ATTRIBUTION:
        cache = answers.entry(label, method="attribution zero")
        change, _ = attribute(
            lens, requests, batch_tokens=chosen["batch_tokens"], progress=chosen["progress"], cache=cache
        )
        record["store"] = cache_usage([engine.cache, cache])
        name = "loss on needle tokens, by attribution"
        return HeadScores.of_cases(name, "nats", -change.numpy() / n_tokens, record, tested=True)
    if given_removed is None:
        name, (losses, _) = "loss on needle tokens", single(lens, engine, requests, removed)
    else:
        record["given_removed"] = [str(heads_condition([h])) for h in removed]
        name, losses = (
            f"loss on needle tokens after {len(removed) - 1} other heads",
            added(lens, engine, requests, removed),
        )
    record["store"] = cache_usage([engine.cache])
    return HeadScores.of_cases(name, "nats", losses / n_tokens, record, tested=True, heads=removed)


def _removed(
    lens: Lens, method: str, heads: Sequence[Head] | None, given_removed: Sequence[Head] | None
) -> list[Head] | None:
    """Heads that are removed alone, or given that others are; None for all."""
    if given_removed is None:
        return removed_alone(lens, heads, method)
    if method != EXACT:
        raise UserError(
            f"given_removed with method {method!r}: only 'exact' removes several heads at once; leave it out"
        )
    if heads is not None:
        raise UserError("heads and given_removed are both given; give heads to remove alone, or given the others")
    return checked(lens, given_removed)


def recalled_needles(
    lens: Lens,
    needles: Sequence[Needle],
    *,
    batch_tokens: int | None = None,
    store: Where = DEFAULT,
    progress: bool = True,
) -> list[Needle]:
    """The needles whose answer greedy decoding writes token by token.

    Raises:
        UserError: no needles, or none of them is recalled.
    """
    arguments.loaded(lens)
    cache = AnswerStore(store, lens).entry("needles")
    return _recalled(lens, Engine(lens, batch_tokens=batch_tokens, progress=progress, cache=cache), needles)


def recall_table(needles: Sequence[Needle], found: Sequence[Needle]) -> pd.DataFrame:
    """How many needles were asked and how many recalled: one row a depth and context length, or a task.

    Args:
        needles: All that were asked.
        found: Those that `recalled` gave.
    """
    return pd.DataFrame(_groups(needles, found))


def copy_paste(
    lens: Any, needles: Sequence[Needle], progress: bool = False, cache: AnswerCache | None = None
) -> np.ndarray:
    """Copy-paste score of every head on each needle, recalled or not. Shape [needle, n_layers, n_heads]."""
    dims = lens.dims

    def measure(members: list[int]) -> Iterator[tuple[list[int], np.ndarray]]:
        for i in members:
            yield [i], _copy_paste(lens, needles[i]).reshape(1, -1)

    cases = [(n.request, n.targets, n.places, n.asked) for n in needles]
    options = {"desc": "attention patterns", "unit": "needle", "progress": progress}
    values = (cache or AnswerCache()).numbers(cases, dims.head_names, measure, **options)
    return values.reshape(len(needles), dims.n_layers, dims.n_heads)


def _copy_paste(lens: Any, needle: Needle) -> np.ndarray:
    """Copy-paste score of every head on one needle. Shape [n_layers, n_heads]."""
    scores = np.zeros((lens.dims.n_layers, lens.dims.n_heads))
    sequence = (*needle.request.context, *needle.request.continuation)[:-1]
    targets, tokens, places = (torch.tensor(x, device=lens.device) for x in (needle.targets, sequence, needle.places))

    def see(layer: int, _: int, pattern: Tensor) -> None:
        top = pattern.argmax(-1)  # [n_heads, step]
        hits = torch.isin(top, places) & (tokens[top] == targets)
        scores[layer] = hits.double().mean(-1).cpu().numpy()

    attention_patterns.read(lens, [sequence], [needle.asked], see)
    return scores


def _recalled(lens: Any, engine: Engine, needles: Sequence[Needle]) -> list[Needle]:
    if not needles or not all(isinstance(needle, Needle) for needle in needles):
        raise UserError("no needles; give at least one, from depthlens.tasks.needles")
    (answers,) = engine.loglikelihood([n.request for n in needles], [BASELINE], desc="recall")
    found = [n for n, answer in zip(needles, answers, strict=True) if answer.is_greedy]
    if not found:
        fix = "give shorter contexts, more examples (num_fewshot) or a larger model"
        raise UserError(f"{lens.name} recalls none of {len(needles)} needles: cannot judge its heads; {fix}")
    return found


def _groups(needles: Sequence[Needle], recalled: Sequence[Needle]) -> list[dict[str, Any]]:
    """How many needles were asked and recalled, by depth and context length, or by task."""

    def key(needle: Needle) -> tuple:
        return tuple((k, v) for k, v in needle.about.items() if k in ("depth", "context_length", "task"))

    asked, found = Counter(map(key, needles)), Counter(map(key, recalled))
    return [{**dict(k), "asked": n, "recalled": found[k]} for k, n in asked.items()]


def _needle_tokens(needle: Needle) -> LoglikelihoodRequest:
    """The needle's tokens alone, after everything before them (what stands between two of them counts, too)."""
    n = len(needle.request.context)
    tokens = (*needle.request.context, *needle.request.continuation)
    first, last = n + needle.steps[0], n + needle.steps[-1]
    return LoglikelihoodRequest(tokens[:first], tokens[first : last + 1])
