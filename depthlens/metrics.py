"""Names of metrics, their units and ranges, and what lm-eval's say of one document.

It is a module of its own, because tasks, analysis and readers of logs import it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

# the metrics of `depthlens.tasks.measures`: of the whole reference answer, and per token of it
ANSWER_LOGPROB, TOKEN_LOGPROB = LOGPROBS = ("answer_logprob", "token_logprob")
ACC_NORM = "acc_norm"  # the option with the highest log-likelihood per character is the answer
# tasks whose baselines are published by accuracy normalised by the length of the options (Open LLM Leaderboard v1)
LENGTH_NORMALISED = frozenset({"hellaswag", "arc_challenge"})
AMONG_OPTIONS = ("acc", ACC_NORM, "acc_bytes", "acc_mutual_info")  # the likeliest option is the answer
_LENGTHS: dict[str, Callable[[str], int]] = {ACC_NORM: len, "acc_bytes": lambda option: len(option.encode())}
# perplexity metrics: the name of what we report of each document, and its unit in nats
_RATES = {
    "word_perplexity": ("nats_per_word", 1.0),
    "byte_perplexity": ("nats_per_byte", 1.0),
    "bits_per_byte": ("bits_per_byte", math.log(2)),
}
MIN_NATS = 0.05  # nats: about 5% of an answer's probability. A smaller change is not called an effect, however sure


def metric_unit(metric: str) -> str:
    """``nats`` for log-probabilities of answers (`depthlens.tasks.measures`), "" for scores."""
    return "nats" if metric in LOGPROBS else ""


def in_nats(metric: str) -> bool:
    """Whether a score is a number of nats or bits, which has no bound."""
    return metric in LOGPROBS or metric.startswith(("nats", "bits"))


def limits(metric: str, least: float, greatest: float) -> tuple[float, float]:
    """The least and the greatest score that a metric can have; minus or plus infinity where nothing bounds it.

    Nats and bits have one bound, by their names, which rounding may pass. Any other metric whose scores, from ``least``
    to ``greatest``, are all from 0 to 1 is a share or a probability.
    """
    if metric in LOGPROBS:
        return -math.inf, max(0.0, greatest)
    if in_nats(metric):
        return min(0.0, least), math.inf
    return (0.0, 1.0) if 0 <= least and greatest <= 1 else (-math.inf, math.inf)


def rises(metric: str) -> bool:
    """Whether a higher score is better, where a task does not say so."""
    return not metric.startswith(("nats", "bits"))


def of_document(metric: str, value: Any) -> tuple[str, float] | None:
    """A metric's value of one document, and its name; None for metrics that exist on the whole set only.

    Args:
        metric: lm-eval's name.
        value: What the task's ``process_results`` gives.
    """
    if metric in _RATES and isinstance(value, tuple | list):
        name, unit = _RATES[metric]
        loglikelihood, n_pieces = value  # words or bytes
        return name, -loglikelihood / n_pieces / unit
    if metric == "perplexity":  # a cloze task's log-likelihood, which lm-eval turns into perplexity at the end
        return "nats", -float(value)
    number = isinstance(value, bool | int | float) or hasattr(value, "item")
    return (metric, float(value)) if number else None


def chosen(metric: str, options: Sequence[str], answers: Sequence[tuple[float, bool]]) -> str:
    """The option that a metric chooses, by the rules of lm-eval's ``ConfigurableTask.process_results``.

    Args:
        metric: lm-eval's name.
        options: In lm-eval's order.
        answers: Log-likelihood of each, and whether it is what greedy decoding writes; for ``acc_mutual_info`` those
            without the context come behind.
    """
    import numpy as np  # commands that need no model do without

    logprobs = np.array([logprob for logprob, _ in answers])
    with_context, without = logprobs[: len(options)], logprobs[len(options) :]
    if metric == "exact_match":
        return " | ".join(o.strip() for o, (_, is_greedy) in zip(options, answers, strict=False) if is_greedy)
    if metric == "acc_mutual_info" and len(without):
        with_context = with_context - without
    elif metric in _LENGTHS:
        with np.errstate(divide="ignore", invalid="ignore"):  # an option may be empty
            with_context = with_context / [float(_LENGTHS[metric](option)) for option in options]
    return options[int(np.argmax(with_context))].strip()
