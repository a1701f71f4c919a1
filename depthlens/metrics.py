"""Names of metrics and their units."""

from __future__ import annotations

# the metrics of `depthlens.tasks.answer_logprob`: of the whole reference answer, and per token of it
ANSWER_LOGPROB, TOKEN_LOGPROB = LOGPROBS = ("answer_logprob", "token_logprob")
ACC_NORM = "acc_norm"  # the option with the highest log-likelihood per character is the answer
# tasks whose baselines are published by accuracy normalised by the length of the options (Open LLM Leaderboard v1)
LENGTH_NORMALISED = frozenset({"hellaswag", "arc_challenge"})
# metrics whose value of one document is between 0 and 1, whatever the documents are
SHARES = frozenset({"acc", ACC_NORM, "acc_bytes", "acc_mutual_info", "exact_match"})
MIN_NATS = 0.05  # nats: about 5% of an answer's probability. A smaller change is not called an effect, however sure


def metric_unit(metric: str) -> str:
    """``nats`` for log-probabilities of answers (`depthlens.tasks.answer_logprob`), "" for scores."""
    return "nats" if metric in LOGPROBS else ""
