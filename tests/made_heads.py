"""Simulated removal of heads: heads are chosen on documents by an attribution, and removed on the same or on others."""

import made_results
import numpy as np
import pandas as pd

from depthlens.analysis.head_scores import HeadScores
from depthlens.analysis.removal_contrasts import Costs, interaction_table, ratio_table
from depthlens.analysis.removal_curve import RemovalCurve
from depthlens.metrics import ANSWER_LOGPROB

TASKS = {"retrieval": "kv", "reasoning": "sums"}
TOP, DRAWS = 4, 40
FOUND = 10.0  # nats that an attribution gives to heads for the format
ACCURACY = "acc"


def evidence(*, seed, n=60, shape=(6, 8), likeness=1.0, effect=0.0, both=False, tokens=1, formats=0.0, reuse=False):
    """A curve, and what chose its lists.

    Args:
        seed: Of the draws.
        n: Documents that test.
        shape: Layers and heads.
        likeness: Correlation of attribution with the loss, document by document.
        effect: Mean loss of the planted heads, `TOP` for each task, on their own task, in nats; or by list.
        both: Whether the planted heads of one task cost as much on the other.
        tokens: Tokens of a solution, each of which loses what a token of a retrieved answer does.
        formats: Probability that a solution cannot be parsed without one of the planted heads of reasoning. It costs no
            nats, and the attribution finds these heads.
        reuse: Whether the documents that test also choose.
    """
    rng = np.random.default_rng(seed)
    heads = [(layer, head) for layer in range(shape[0]) for head in range(shape[1])]
    # one head a layer, so that random heads of the same layers are others
    planted = {"retrieval": [heads.index((i, 0)) for i in range(TOP)]}
    planted["reasoning"] = [heads.index((shape[0] - 1 - i, 1)) for i in range(TOP)]
    losses, chosen_by = {}, {}
    for name, task in TASKS.items():
        mean = np.zeros(len(heads))
        for other, at in planted.items():
            mean[at] += (effect[other] if isinstance(effect, dict) else effect) * (both or other == name)
        long, unread = (tokens, formats) if name == "reasoning" else (1, 0.0)
        loss, estimate = _losses(rng, n, mean, likeness, long)
        estimate[:, planted[name]] += FOUND * (unread > 0)
        losses[task] = loss[:n]
        chosen_by[name] = estimate[:n] if reuse else estimate[n:]
    lists = {name: [heads[i] for i in np.argsort(-x.mean(0))[:TOP]] for name, x in chosen_by.items()}
    draws = {name: [_draw(of, shape[1], rng) for _ in range(DRAWS)] for name, of in lists.items()}
    found, tests = [], []
    for task, loss in losses.items():
        hard = rng.standard_normal(n)
        unparsed = np.zeros(loss.shape, dtype=bool)
        if task == TASKS["reasoning"] and formats:
            unparsed[:, planted["reasoning"]] = rng.random((n, TOP)) < formats
        for metric in (ACCURACY, ANSWER_LOGPROB):

            def cost(of, loss=loss, hard=hard, unparsed=unparsed, metric=metric):
                at = [heads.index(h) for h in of]
                return _cost(loss[:, at].sum(1), hard, unparsed[:, at].any(1), metric)

            own = {name: cost(of) for name, of in lists.items()}
            rivals = {name: np.stack([cost(of) for of in orders]) for name, orders in draws.items()}
            scale = 1.0 if metric == ANSWER_LOGPROB else float((hard < 1).mean())
            means = {name: x.mean(0) for name, x in rivals.items()}
            found.append(Costs(task, metric, False, own, means, scale, (task,)))
            for name in lists:
                others = rivals[name].mean(1)
                p, cheaper = (
                    (1 + int(n)) / (1 + DRAWS)
                    for n in ((others >= own[name].mean()).sum(), (others <= own[name].mean()).sum())
                )
                tests.append((name, task, metric, p, cheaper, 1 / (1 + DRAWS), False))
    curve = _curve(found, tests, n)
    documents = range(n) if reuse else range(n, 2 * n)
    scores = {}
    for name, x in chosen_by.items():
        values, record = x.mean(0).reshape(shape), {"tasks": [TASKS[name]], "samples": list(documents)}
        scores[name] = HeadScores(name, "nats", values, values, values, n, None, record)
    return curve, scores


def _losses(rng, n, mean, likeness, tokens):
    """What removing each head costs each of 2 n documents, and what an attribution says it costs."""
    noise = rng.standard_normal((2 * n, len(mean))) * (1 + rng.exponential(1.0, (1, len(mean))))
    loss = mean * tokens + noise * tokens**0.5
    off = rng.standard_normal(loss.shape) * loss.std(0)
    return loss, likeness * loss + np.sqrt(1 - likeness**2) * off


def _cost(lost, hard, unparsed, metric):
    """What heads cost each document that lose it so many nats, and its format or not."""
    if metric == ANSWER_LOGPROB:
        return lost
    return (hard < 1).astype(float) - ((hard + lost / 8 < 1) & ~unparsed)


def _curve(found, tests, n):
    table = pd.DataFrame(tests, columns=["list", "task", "metric", "p_value", "p_cheaper", "smallest_p", "at_chance"])
    result = made_results.result({task: {"baseline": [1.0] * n} for task in TASKS.values()}, metric=ACCURACY)
    curve = RemovalCurve(pd.DataFrame(), pd.DataFrame(), table, result, {"n_draws": DRAWS})
    # cached properties, known here
    curve.__dict__.update(ratio=ratio_table(found), interactions=interaction_table(found))
    return curve


def _draw(of, n_heads, rng):
    order = {layer: list(rng.permutation(n_heads)) for layer in {layer for layer, _ in of}}
    return [(layer, int(order[layer].pop())) for layer, _ in of]
