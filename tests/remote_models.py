"""Requests and conditions for remote tiny models, and their scores."""

from __future__ import annotations

import backend_table
import torch

from depthlens.ablations import expand, parse_condition
from depthlens.engine.engine import Engine
from depthlens.requests import LoglikelihoodRequest

TASK = "capitals_continuation"
FAMILIES = ("llama-gqa", "qwen3", "deepseek-v3")
# float32 rounding of one order of operations against another, over five layers
TOLERANCE = backend_table.TOLERANCE
TOKENS = backend_table.TOKENS
KINDS = {k: text for k, text in backend_table.KINDS.items() if "@resample" not in text and "@noise" not in text}
WORDS = ("layers", "attn", "mlp", "heads", "kv", "blocks:2")


def requests(n=5):
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 250, (n, 12), generator=draw).tolist()
    return [LoglikelihoodRequest((1, 2, 3, *row[: 4 + i]), tuple(row[9 - i % 3 :])) for i, row in enumerate(tokens)]


def every_kind(dims):
    conditions = [expand(word + mode, dims) for mode in ("", "@mean") for word in WORDS if ":" not in word or not mode]
    return list(dict.fromkeys(c for found in conditions for c in found)) + [
        parse_condition(text)
        for text in (
            "L0.H1+L0.H2@mean+L2.attn+L2.mlp+L3",
            "L1[1:]",
            "L0.H1[1:]+L0.H2[9:]@mean+L2.attn[2:]@mean+L3[11:]",
        )
    ]


def contexts_and_answers():
    """For `measure_means`."""
    return [q.context for q in requests()], "contexts", [q.continuation for q in requests()]


def scores(lens, conditions, **options):
    answers = Engine(lens, progress=False, **options).loglikelihood(requests(), conditions)
    return (
        torch.tensor([[a.logprob for a in row] for row in answers], dtype=torch.float64),
        [[a.is_greedy for a in row] for row in answers],
    )
