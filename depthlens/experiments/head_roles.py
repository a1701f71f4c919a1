r"""Which heads copy from the context, and which carry computation.

**Copy-paste score** (Wu et al. 2024, arXiv 2404.15574). While the model writes a needle k that stands in its context, a
head scores at each step where its top-1 attended position lies in the needle *and* holds the token being written::

    score(h) = mean over recalled needles of  1 / |k| * #{steps t : argmax_j a_h(t, j) in needle, x_j = written token}

A needle is recalled where greedy decoding writes exactly the answer, so one teacher-forced pass per needle shows what
attention did at every step. It says where a head looks, not whether that matters.

**Loss on needle tokens**: what removing the head (zero ablation of its z) costs there, in nats per token, exactly or by
attribution. It says whether the head matters, not what it does.

**Reasoning scores**: the same loss on the tokens of worked solutions, teacher-forced, apart for *computed* numbers,
*copied* numbers and plain *text* (`solutions`), and the contrast computed minus copied. A head that helps to write any
number at all raises both; one that carries computation raises the contrast.

Limits: teacher forcing measures the given solution, which need not be how the model would solve the problem; single
removals miss heads that stand in for each other (`among` finds those).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from depthlens import arguments, provenance
from depthlens.ablations import BASELINE, Head, heads_condition
from depthlens.analysis.head_scores import HeadScores, ReasoningScores
from depthlens.engine.engine import Engine
from depthlens.errors import UserError, unknown
from depthlens.experiments import attention_patterns, worked_solutions
from depthlens.experiments.attribution import attribute
from depthlens.experiments.head_losses import added, checked, single
from depthlens.experiments.worked_solutions import KINDS, Solution
from depthlens.requests import LoglikelihoodRequest
from depthlens.store.answer_cache import AnswerCache, AnswerStore, Where, describe
from depthlens.store.parts import DEFAULT
from depthlens.tasks import needles as prompts
from depthlens.tasks.needles import Needle

COPY, EXACT, ATTRIBUTION = "copy", "exact", "attribution"


def retrieval_scores(
    lens: Any,
    task: str | None = None,
    *,
    method: str = COPY,
    heads: Sequence[Head] | None = None,
    among: Sequence[Head] | None = None,
    needles: Sequence[Needle] | None = None,
    n_needles: int = 2,
    depths: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    context_lengths: Sequence[int] = (256, 512),
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: str | Path | None = None,
    seed: int = 0,
    batch_tokens: int | None = None,
    store: Where = DEFAULT,
    progress: bool = True,
) -> HeadScores:
    """Score every head as a retrieval head: where it looks, or what its removal costs, while needles are written.

    Args:
        lens: A loaded model.
        task: An lm-eval task whose answers stand in its prompts; None: haystacks written for the purpose.
        method: ``copy`` (copy-paste score, from 0 to 1), ``exact`` (loss per needle token, in nats, when the head is
            removed) or ``attribution`` (first-order estimate of that loss from one forward and one backward pass).
        heads: Heads to remove, with ``exact``; None for all. Costly for long prompts, so the heads that an estimate
            puts first can be checked alone.
        among: Heads to test against each other, with ``exact``: the loss that removing one adds when all others of them
            are removed already. High for heads that can stand in for each other.
        needles: Needles to use, from `depthlens.tasks.needles`, in place of the following.
        n_needles: Written haystacks for every depth and context length.
        depths: Where in the haystack the needle stands, from 0 to 1.
        context_lengths: Tokens of a prompt.
        limit: First so many documents of ``task``; None for all.
        num_fewshot: Worked examples before each question of ``task``; None keeps what it says.
        include_path: Folder with more lm-eval YAML files.
        seed: Of the haystacks, or of the choice of examples.
        batch_tokens: Token budget of one batch; None chooses by device and free memory.
        store: Where scores of single requests are found and kept; see `depthlens.layer_sweep`.
        progress: Show progress bars.

    Returns:
        Means over the needles that the model recalls; ``record["needles"]`` says how many of how many.

    Raises:
        UserError: anything asked for that does not exist, or no needle is recalled: then nothing can be judged.
    """
    arguments.loaded(lens)
    arguments.check(
        limit=limit, num_fewshot=num_fewshot, include_path=include_path, seed=seed, batch_tokens=batch_tokens
    )
    if method not in (COPY, EXACT, ATTRIBUTION):
        raise unknown("method", method, (COPY, EXACT, ATTRIBUTION))
    if among is not None and method != EXACT:
        raise UserError(f"among is given with method {method!r}; only 'exact' removes several heads at once")
    if among is not None and heads is not None:
        raise UserError("heads and among are both given; give heads to remove alone, or among others")
    chosen = _chosen(lens, heads, method) if among is None else checked(lens, among)
    source = {"task": task, "limit": limit, "num_fewshot": num_fewshot, "seed": seed}
    if needles is not None:
        source = {"given": len(needles)}
    elif task is not None:
        options = {"limit": limit, "num_fewshot": num_fewshot, "include_path": include_path, "seed": seed}
        needles = prompts.of_task(lens, task, **options)
    else:
        needles = prompts.written(lens, n_needles, depths, context_lengths, seed)
        source = {
            "n_needles": n_needles,
            "depths": list(depths),
            "context_lengths": list(context_lengths),
            "seed": seed,
        }
    answers = AnswerStore(store, lens)
    label = f"needles {task or ''}"
    engine = Engine(lens, batch_tokens=batch_tokens, progress=progress, kept=answers.entry(label))
    found = _recalled(lens, engine, needles)
    record = _record(lens, answers, method, source)
    record["needles"] = {"asked": len(needles), "recalled": len(found), "groups": _groups(needles, found)}
    if method == COPY:
        kept = answers.entry(label, method="copy-paste score")
        values = copy_paste(lens, found, progress, kept)
        record["store"] = describe([engine.kept, kept])
        scores = HeadScores.of_cases("copy-paste score", "", values, record, tested=False)
        bounded = {"low": scores.low.clip(0, 1), "high": scores.high.clip(0, 1)}
        return HeadScores(**{**vars(scores), **bounded})
    requests = [_needle_tokens(n) for n in found]
    n_tokens = np.array([len(q.continuation) for q in requests])[:, None, None]
    name = "loss on needle tokens" + (", by attribution" if method == ATTRIBUTION else "")
    if method == ATTRIBUTION:
        kept = answers.entry(label, method="attribution zero")
        change, _ = attribute(lens, requests, batch_tokens=batch_tokens, progress=progress, kept=kept)
        record["store"] = describe([engine.kept, kept])
        return HeadScores.of_cases(name, "nats", -change.numpy() / n_tokens, record, tested=True)
    if among is None:
        losses, _ = single(lens, engine, requests, chosen)
    else:
        record["among"] = [str(heads_condition([h])) for h in chosen]
        losses = added(lens, engine, requests, chosen)
        name = f"loss on needle tokens after {len(chosen) - 1} other heads"
    record["store"] = describe([engine.kept])
    return HeadScores.of_cases(name, "nats", losses / n_tokens, record, tested=True, heads=chosen)


def recalled(
    lens: Any,
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
    kept = AnswerStore(store, lens).entry("needles")
    return _recalled(lens, Engine(lens, batch_tokens=batch_tokens, progress=progress, kept=kept), needles)


def recall(needles: Sequence[Needle], found: Sequence[Needle]) -> pd.DataFrame:
    """How many needles were asked and how many recalled: one row a depth and context length, or a task.

    Args:
        needles: All that were asked.
        found: Those that `recalled` gave.
    """
    return pd.DataFrame(_groups(needles, found))


def copy_paste(
    lens: Any, needles: Sequence[Needle], progress: bool = False, kept: AnswerCache | None = None
) -> np.ndarray:
    """Copy-paste score of every head on each needle, recalled or not. Shape [needle, n_layers, n_heads]."""
    dims = lens.dims

    def measure(members: list[int]) -> Iterator[tuple[list[int], np.ndarray]]:
        for i in members:
            yield [i], _copy_paste(lens, needles[i]).reshape(1, -1)

    cases = [(n.request, n.targets, n.places, n.asked) for n in needles]
    options = {"desc": "attention patterns", "unit": "needle", "progress": progress}
    values = (kept or AnswerCache()).numbers(cases, dims.head_names, measure, **options)
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


def reasoning_scores(
    lens: Any,
    task: str = "arithmetic_cot",
    *,
    method: str = EXACT,
    heads: Sequence[Head] | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: str | Path | None = None,
    seed: int = 0,
    batch_tokens: int | None = None,
    store: Where = DEFAULT,
    progress: bool = True,
) -> ReasoningScores:
    """Score every head by what its removal costs on computed, copied and plain tokens of worked solutions.

    Args:
        lens: A loaded model.
        task: A generative lm-eval task whose reference answers are worked solutions, such as ``gsm8k``.
        method: ``exact`` removes every head in turn; ``attribution`` estimates all of them
            (`depthlens.experiments.attribution`).
        heads: Heads to remove, with ``exact``; None for all.
        limit: First so many documents; None for all.
        num_fewshot: Worked examples before each question; None keeps what the task says.
        include_path: Folder with more lm-eval YAML files.
        seed: Of the choice of examples.
        batch_tokens: Token budget of one batch; None chooses by device and free memory.
        store: Where scores of single requests are found and kept; see `depthlens.layer_sweep`.
        progress: Show progress bars.

    Returns:
        Loss in nats per token, means over the solutions that have tokens of the kind. ``record["baseline"]`` says how
        well the whole model writes each kind: a loss on tokens that it cannot write means little.

    Raises:
        UserError: anything asked for that does not exist, or a task without worked solutions.
    """
    arguments.loaded(lens)
    arguments.check(
        limit=limit, num_fewshot=num_fewshot, include_path=include_path, seed=seed, batch_tokens=batch_tokens
    )
    if method not in (EXACT, ATTRIBUTION):
        raise unknown("method", method, (EXACT, ATTRIBUTION))
    chosen = _chosen(lens, heads, method)
    answers, label = AnswerStore(store, lens), f"solutions {task}"
    options = {"limit": limit, "num_fewshot": num_fewshot, "include_path": include_path, "seed": seed}
    solved = worked_solutions.of_task(lens, task, **options)
    cells = [(s, kind) for s in range(len(solved)) for kind in KINDS if solved[s].n_tokens(kind)]
    n_tokens = np.array([solved[s].n_tokens(kind) for s, kind in cells])
    if method == EXACT:
        kept = answers.entry(label)
        engine = Engine(lens, batch_tokens=batch_tokens, progress=progress, kept=kept)
        spans = [(c, span) for c, (s, kind) in enumerate(cells) for span in solved[s].spans if span.kind == kind]
        requests = [solved[cells[c][0]].request(span) for c, span in spans]
        by_span, clean_by_span = single(lens, engine, requests, chosen)
        sums, clean = np.zeros((len(cells), *by_span.shape[1:])), np.zeros(len(cells))
        np.add.at(sums, [c for c, _ in spans], by_span)
        np.add.at(clean, [c for c, _ in spans], clean_by_span)
    else:
        requests, weights = zip(*(_weighted(solved[s], kind) for s, kind in cells), strict=True)
        kept = answers.entry(label, method="attribution zero")
        change, logprobs = attribute(
            lens, requests, weights=weights, batch_tokens=batch_tokens, progress=progress, kept=kept
        )
        sums, clean = -change.numpy(), logprobs.numpy()
    losses = sums / n_tokens[:, None, None]
    record = _record(lens, answers, method, {"task": task, "limit": limit, "num_fewshot": num_fewshot, "seed": seed})
    record["store"] = describe([kept])
    record["n_unclear"] = sum(s.n_unclear for s in solved)
    record["baseline"] = {
        kind: {
            "n_tokens": int(sum(n for n, cell in zip(n_tokens, cells, strict=True) if cell[1] == kind)),
            "nats_per_token": float(
                np.mean([clean[i] / n_tokens[i] for i, cell in enumerate(cells) if cell[1] == kind])
            ),
        }
        for kind in KINDS
        if any(cell[1] == kind for cell in cells)
    }
    index = {cell: i for i, cell in enumerate(cells)}
    of = {kind: [i for i, cell in enumerate(cells) if cell[1] == kind] for kind in KINDS}
    for kind in KINDS:
        if not of[kind]:
            raise UserError(f"task {task}: none of {len(solved)} solutions has {kind} tokens to judge")
    both = [s for s in range(len(solved)) if (s, "computed") in index and (s, "copied") in index]
    if not both:
        raise UserError(f"task {task}: no solution has both computed and copied numbers; take more documents")
    tail = ", by attribution" if method == ATTRIBUTION else ""
    scores = [
        HeadScores.of_cases(f"loss on {kind} tokens{tail}", "nats", losses[of[kind]], record, tested=True, heads=chosen)
        for kind in KINDS
    ]
    gap = losses[[index[s, "computed"] for s in both]] - losses[[index[s, "copied"] for s in both]]
    name = f"loss on computed minus copied tokens{tail}"
    contrast = HeadScores.of_cases(name, "nats", gap, record, tested=True, heads=chosen)
    return ReasoningScores(*scores, contrast, record)


def _weighted(solution: Solution, kind: str) -> tuple[LoglikelihoodRequest, list[float]]:
    """The whole solution as one continuation, in which the tokens of one kind count."""
    n = len(solution.text.request.context)
    weights = [0.0] * len(solution.text.request.continuation)
    for span in solution.spans:
        if span.kind == kind:
            weights[span.start - n : span.end - n] = [1.0] * (span.end - span.start)
    return solution.text.request, weights


def _chosen(lens: Any, heads: Sequence[Head] | None, method: str) -> list[Head] | None:
    """Heads that are to be removed one at a time; None for all."""
    if heads is None:
        return None
    if method != EXACT:
        raise UserError(f"heads are given with method {method!r}; only 'exact' removes heads, others score all at once")
    return checked(lens, heads, name="heads", least=1)


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


def _record(lens: Any, answers: AnswerStore, method: str, source: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": lens.describe(answers.fingerprint),
        "method": method,
        **source,
        **provenance.environment(),
        **provenance.where_and_when(),
    }
