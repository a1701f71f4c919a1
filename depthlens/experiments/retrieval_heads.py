r"""Which heads copy from the context: by where they look, by what they write, and by what their removal costs.

While the model writes a needle that is in its context, a head is scored by one of the detectors of `head_detectors`
(copy-paste score, query-to-gold attention, write-aware score), token by token. A needle is recalled where greedy
decoding writes exactly the answer, so that one teacher-forced pass for each needle shows every step. The score is the
mean over the tokens of a needle, then over recalled needles; its spread over tokens is reported beside it.

**Loss on needle tokens**: what removing the head (zero ablation of its z) costs on these tokens, in nats per token,
exactly or estimated from gradients. The loss says whether the head matters, not what it does.

Limit: single removals miss heads that can replace each other; ``given_removed`` finds those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import pandas as pd

from depthlens import arguments
from depthlens.ablations import BASELINE, Head, heads_condition
from depthlens.analysis.head_scores import HeadScores
from depthlens.engine.engine import Engine
from depthlens.errors import UserError, unknown
from depthlens.experiments.attribution import STEPS, address
from depthlens.experiments.head_detectors import COPY_PASTE, DETECTORS, scores_by_token
from depthlens.experiments.head_losses import EXACT, engine_of, losses, removed_alone
from depthlens.experiments.measured import made_record
from depthlens.experiments.options import WITHOUT_CONDITIONS, EvalOptions, settled, task_options, tasks_record
from depthlens.models.lens import Lens, one_thread
from depthlens.requests import LoglikelihoodRequest
from depthlens.store.answer_cache import AnswerStore, Where
from depthlens.store.parts import DEFAULT
from depthlens.tasks import needles as prompts
from depthlens.tasks.needles import Needle

METHODS = (*DETECTORS, EXACT, *STEPS)


@one_thread
def retrieval_scores(
    lens: Lens,
    tasks: str | Sequence[str] | None = None,
    *,
    method: str = COPY_PASTE,
    heads: Sequence[Head] | None = None,
    given_removed: Sequence[Head] | None = None,
    needles: Sequence[Needle] | None = None,
    only_recalled: bool = True,
    n_needles: int = 2,
    depths: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    context_lengths: Sequence[int] = (256, 512),
    **options: Unpack[EvalOptions],
) -> HeadScores:
    """Score every head as a retrieval head: where it looks, what it writes, or what its removal costs.

    Args:
        lens: A loaded model.
        tasks: One lm-eval task or several whose answers are in their prompts; None: haystacks written for the purpose.
        method: ``copy_paste`` (copy-paste score, from 0 to 1), ``query_to_gold`` (attention from the question to the
            sentence with the answer, from 0 to 1), ``write_aware`` (what the head adds to the logit of the answer's
            tokens), ``write_from_needle`` (the part of that which it reads from the sentence with the answer),
            ``exact`` (loss per needle token, in nats, when the head is removed), ``attribution`` (first-order
            estimate of that loss from one forward and one backward pass) or ``integrated_gradients`` (an estimate that
            costs more and holds behind a saturated softmax, see `depthlens.experiments.attribution`).
        heads: Heads to remove, with ``exact``; None for all. This takes long for long prompts, so that it is used to
            check the heads that an estimate ranks first.
        given_removed: Heads to test against each other, with ``exact``: the loss that removing one adds when all others
            of them are removed already. It is high for heads that can replace each other.
        needles: Needles to use, from `depthlens.tasks.needles`, in place of the following.
        only_recalled: Whether needles count only if the model recalls them. False: their answers are given to the
            model token by token, which says what its heads do then, and not how it would find an answer.
        n_needles: Written haystacks for every depth and context length.
        depths: Where in the haystack the needle is, from 0 to 1.
        context_lengths: Tokens of a prompt.
        options: `EvalOptions`: limit, num_fewshot and include_path of ``tasks``; seed of the haystacks, or of the
            choice of examples; batch_tokens, store, progress.

    Returns:
        Means over the needles that count; ``record["needles"]`` says how many are recalled of how many.

    Raises:
        UserError: anything asked for that does not exist, or only recalled needles count and there are none.
    """
    arguments.loaded(lens)
    chosen = settled(options, without=WITHOUT_CONDITIONS)
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if heads is not None and given_removed is not None:
        raise UserError("heads and given_removed are both given; give heads to remove alone, or given the others")
    removed = removed_alone(lens, heads, method)
    if given_removed is not None:
        removed = removed_alone(lens, given_removed, method, name="given_removed", at_least=2)
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
        source |= {"seed": chosen["seed"]}
    answers = AnswerStore(chosen["store"], lens)
    engine = engine_of(lens, chosen, answers.entry(label))
    recalled = _recalled(engine, needles)
    if only_recalled and not recalled:
        fix = "give shorter contexts, more examples (num_fewshot) or a larger model, or only_recalled=False"
        raise UserError(f"{lens.name} recalls none of {len(needles)} needles: cannot judge its heads; {fix}")
    used = recalled if only_recalled else needles
    counts = {"asked": len(needles), "recalled": len(recalled), "only_recalled": only_recalled}
    source["documents"] = [n.about["doc_hash"] for n in used if "doc_hash" in n.about]  # those that made the scores
    source["needles"] = {**counts, "groups": _by_group(needles, recalled)}
    caches = [engine.cache]
    if method != EXACT:
        of_method = address(method, STEPS[method]) if method in STEPS else f"{method} by token"
        caches.append(answers.entry(label, method=of_method))
    if method in DETECTORS:
        detector = DETECTORS[method]
        by_token = scores_by_token(lens, used, method, progress=chosen["progress"], cache=caches[-1])
        record = made_record(lens, answers, caches, method=method, **source)
        return HeadScores.of_tokens(detector.label, detector.unit, by_token, record, bounded=not detector.unit)
    requests = [_needle_tokens(n) for n in used]
    name = "loss on needle tokens"
    if method != EXACT:
        engine, name = engine_of(lens, chosen, caches[-1]), f"{name}, by {method.replace('_', ' ')}"
    found, _ = losses(engine, requests, method, heads=removed, given_others=given_removed is not None)
    if given_removed is not None and removed:
        source["given_removed"] = [str(heads_condition([head])) for head in removed]
        name = f"{name} after {len(removed) - 1} other heads"
    n_tokens = np.array([len(q.continuation) for q in requests])[:, None, None]
    record = made_record(lens, answers, caches, method=method, **source)
    return HeadScores.of_cases(name, "nats", found / n_tokens, record, tested=True, heads=removed)


def _needle_tokens(needle: Needle) -> LoglikelihoodRequest:
    """The needle's tokens alone, after everything before them; tokens between two of them count, too."""
    n = len(needle.request.context)
    tokens = (*needle.request.context, *needle.request.continuation)
    first, last = n + needle.steps[0], n + needle.steps[-1]
    return LoglikelihoodRequest(tokens[:first], tokens[first : last + 1])


@one_thread
def recalled_needles(
    lens: Lens,
    needles: Sequence[Needle],
    *,
    batch_tokens: int | None = None,
    store: Where = DEFAULT,
    progress: bool = True,
) -> list[Needle]:
    """The needles whose answer greedy decoding writes token by token.

    Returns:
        None where the model recalls none.

    Raises:
        UserError: no needles.
    """
    arguments.loaded(lens)
    options = {"batch_tokens": batch_tokens, "progress": progress}  # workers are those of the environment
    return _recalled(engine_of(lens, options, AnswerStore(store, lens).entry("needles")), needles)


def recall_table(needles: Sequence[Needle], recalled: Sequence[Needle]) -> pd.DataFrame:
    """How many needles were asked and how many recalled: one row a depth and context length, or a task.

    Args:
        needles: All that were asked.
        recalled: Those that `recalled_needles` returned.
    """
    return pd.DataFrame(_by_group(needles, recalled))


def _recalled(engine: Engine, needles: Sequence[Needle]) -> list[Needle]:
    """See `recalled_needles`."""
    if not needles or not all(isinstance(needle, Needle) for needle in needles):
        raise UserError("no needles; give at least one, from depthlens.tasks.needles")
    (answers,) = engine.loglikelihood([n.request for n in needles], [BASELINE], desc="recall")
    return [n for n, answer in zip(needles, answers, strict=True) if answer.is_greedy]


def _by_group(needles: Sequence[Needle], recalled: Sequence[Needle]) -> list[dict[str, Any]]:
    """How many needles were asked and recalled, by depth and context length, or by task."""

    def key(needle: Needle) -> tuple:
        return tuple((k, v) for k, v in needle.about.items() if k in ("depth", "context_length", "task"))

    n_asked, n_recalled = Counter(map(key, needles)), Counter(map(key, recalled))
    return [{**dict(k), "asked": n, "recalled": n_recalled[k]} for k, n in n_asked.items()]
