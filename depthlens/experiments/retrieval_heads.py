r"""Which heads copy from the context: by where they look, and by what their removal costs.

**Copy-paste score** (Wu et al. 2024, arXiv 2404.15574). While the model writes a needle k that is in its context, a
head scores at each step where its top-1 attended position is in the needle *and* holds the token being written::

    score(h) = mean over recalled needles of  1 / |k| * #{steps t : argmax_j a_h(t, j) in needle, x_j = written token}

A needle is recalled where greedy decoding writes exactly the answer, so that one teacher-forced pass for each needle
shows the attention of every step. The score says where a head looks, not whether that matters.

**Loss on needle tokens**: what removing the head (zero ablation of its z) costs on these tokens, in nats per token,
exactly or by attribution. The loss says whether the head matters, not what it does.

Limit: single removals miss heads that can replace each other; ``given_removed`` finds those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from depthlens import arguments
from depthlens.ablations import BASELINE, Head, heads_condition
from depthlens.analysis.head_scores import HeadScores
from depthlens.engine.engine import Engine
from depthlens.errors import UserError, unknown
from depthlens.experiments import attention_patterns
from depthlens.experiments.attribution import attribute
from depthlens.experiments.head_losses import ATTRIBUTION, EXACT, added, checked, removed_alone, scores_record, single
from depthlens.experiments.measured import one_by_one
from depthlens.experiments.options import WITHOUT_CONDITIONS, EvalOptions, settled, task_options, tasks_record
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
        heads: Heads to remove, with ``exact``; None for all. This takes long for long prompts, so that it is used to
            check the heads that an estimate ranks first.
        given_removed: Heads to test against each other, with ``exact``: the loss that removing one adds when all others
            of them are removed already. It is high for heads that can replace each other.
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
    label = "needles"
    source: dict[str, Any]
    if needles is not None:
        source = {"given": len(needles)}
    elif tasks is not None:
        names = arguments.names("tasks", tasks, "kv_retrieval_4")
        needles = prompts.task_needles(lens, names, **task_options(chosen))
        label, source = " ".join([label, *names]), tasks_record(names, chosen)
    else:
        needles = prompts.written_needles(lens, n_needles, depths, context_lengths, chosen["seed"])
        source = {"n_needles": n_needles, "depths": list(depths), "context_lengths": list(context_lengths)}
        source["seed"] = chosen["seed"]
    answers = AnswerStore(chosen["store"], lens)
    engine = Engine(lens, batch_tokens=chosen["batch_tokens"], progress=chosen["progress"], cache=answers.entry(label))
    recalled = _recalled(lens, engine, needles)
    record = scores_record(lens, answers, method, source)
    record["needles"] = {"asked": len(needles), "recalled": len(recalled), "groups": _groups(needles, recalled)}
    if method == COPY_PASTE:
        cache = answers.entry(label, method="copy-paste score")
        values = copy_paste(lens, recalled, chosen["progress"], cache)
        record["store"] = cache_usage([engine.cache, cache])
        scores = HeadScores.of_cases("copy-paste score", "", values, record, tested=False)
        assert scores.low is not None and scores.high is not None  # `of_cases` gives every score an interval
        return replace(scores, low=scores.low.clip(0, 1), high=scores.high.clip(0, 1))
    requests = [_needle_tokens(n) for n in recalled]
    name = "loss on needle tokens"
    if method == ATTRIBUTION:
        cache = answers.entry(label, method="attribution zero")
        change, _ = attribute(
            lens, requests, batch_tokens=chosen["batch_tokens"], progress=chosen["progress"], cache=cache
        )
        record["store"] = cache_usage([engine.cache, cache])
        name, losses = f"{name}, by attribution", -change.numpy()
    elif given_removed is None:
        losses, _ = single(lens, engine, requests, removed)
        record["store"] = cache_usage([engine.cache])
    else:
        assert removed is not None  # `_removed` returns the heads of given_removed
        losses = added(lens, engine, requests, removed)
        record |= {"given_removed": [str(heads_condition([h])) for h in removed], "store": cache_usage([engine.cache])}
        name = f"{name} after {len(removed) - 1} other heads"
    n_tokens = np.array([len(q.continuation) for q in requests])[:, None, None]
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


def recall_table(needles: Sequence[Needle], recalled: Sequence[Needle]) -> pd.DataFrame:
    """How many needles were asked and how many recalled: one row a depth and context length, or a task.

    Args:
        needles: All that were asked.
        recalled: Those that `recalled_needles` returned.
    """
    return pd.DataFrame(_groups(needles, recalled))


def copy_paste(
    lens: Lens, needles: Sequence[Needle], progress: bool = False, cache: AnswerCache | None = None
) -> Float[np.ndarray, "needle n_layers n_heads"]:
    """Copy-paste score of every head on each needle, recalled or not."""
    values = one_by_one(
        cache or AnswerCache(),
        [(n.request, n.targets, n.places, n.asked) for n in needles],
        lens.dims.head_names,
        lambda i: _copy_paste(lens, needles[i]),
        desc="attention patterns",
        unit="needle",
        progress=progress,
    )
    return values.reshape(len(needles), lens.dims.n_layers, lens.dims.n_heads)


def _copy_paste(lens: Lens, needle: Needle) -> Float[np.ndarray, "n_layers n_heads"]:
    """Copy-paste score of every head on one needle."""
    scores = np.zeros((lens.dims.n_layers, lens.dims.n_heads))
    sequence = (*needle.request.context, *needle.request.continuation)[:-1]
    targets, tokens, places = (torch.tensor(x, device=lens.device) for x in (needle.targets, sequence, needle.places))

    def see(layer: int, _: int, pattern: Tensor) -> None:
        top = pattern.argmax(-1)  # [n_heads, step]
        hits = torch.isin(top, places) & (tokens[top] == targets)
        scores[layer] = hits.double().mean(-1).cpu().numpy()

    attention_patterns.read(lens, [sequence], [needle.asked], see)
    return scores


def _recalled(lens: Lens, engine: Engine, needles: Sequence[Needle]) -> list[Needle]:
    if not needles or not all(isinstance(needle, Needle) for needle in needles):
        raise UserError("no needles; give at least one, from depthlens.tasks.needles")
    (answers,) = engine.loglikelihood([n.request for n in needles], [BASELINE], desc="recall")
    recalled = [n for n, answer in zip(needles, answers, strict=True) if answer.is_greedy]
    if not recalled:
        fix = "give shorter contexts, more examples (num_fewshot) or a larger model"
        raise UserError(f"{lens.name} recalls none of {len(needles)} needles: cannot judge its heads; {fix}")
    return recalled


def _groups(needles: Sequence[Needle], recalled: Sequence[Needle]) -> list[dict[str, Any]]:
    """How many needles were asked and recalled, by depth and context length, or by task."""

    def key(needle: Needle) -> tuple:
        return tuple((k, v) for k, v in needle.about.items() if k in ("depth", "context_length", "task"))

    n_asked, n_recalled = Counter(map(key, needles)), Counter(map(key, recalled))
    return [{**dict(k), "asked": n, "recalled": n_recalled[k]} for k, n in n_asked.items()]


def _needle_tokens(needle: Needle) -> LoglikelihoodRequest:
    """The needle's tokens alone, after everything before them; tokens between two of them count, too."""
    n = len(needle.request.context)
    tokens = (*needle.request.context, *needle.request.continuation)
    first, last = n + needle.steps[0], n + needle.steps[-1]
    return LoglikelihoodRequest(tokens[:first], tokens[first : last + 1])
