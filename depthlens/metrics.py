"""Names of metrics and their units."""

from __future__ import annotations

# nats: about 5% of an answer's probability; a smaller change is never called critical, however certain it is
LEAST_NATS = 0.05
ANSWER_LOGPROB = "answer_logprob"  # the metric of `depthlens.tasks.answer_logprob`


def metric_unit(metric: str) -> str:
    """``nats`` for log-probabilities of answers (`depthlens.tasks.answer_logprob`), "" for scores."""
    return "nats" if metric == ANSWER_LOGPROB else ""
