"""Names of metrics, their units, and their ranges; a module of its own, because tasks and analysis import it."""

from __future__ import annotations

import math

# the metrics of `depthlens.tasks.measures`: of the whole reference answer, and per token of it
ANSWER_LOGPROB, TOKEN_LOGPROB = LOGPROBS = ("answer_logprob", "token_logprob")
ACC_NORM = "acc_norm"  # the option with the highest log-likelihood per character is the answer
# tasks whose baselines are published by accuracy normalised by the length of the options (Open LLM Leaderboard v1)
LENGTH_NORMALISED = frozenset({"hellaswag", "arc_challenge"})
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
