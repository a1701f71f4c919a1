"""Names of metrics and their units."""

from __future__ import annotations

# the metrics of `depthlens.tasks.answer_logprob`: of the whole reference answer, and per token of it
ANSWER_LOGPROB, TOKEN_LOGPROB = LOGPROBS = ("answer_logprob", "token_logprob")
MIN_NATS = 0.05  # nats: about 5% of an answer's probability. A smaller change is not called an effect, however sure


def metric_unit(metric: str) -> str:
    """``nats`` for log-probabilities of answers (`depthlens.tasks.answer_logprob`), "" for scores."""
    return "nats" if metric in LOGPROBS else ""
