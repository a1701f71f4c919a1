"""The next token after a prompt, under the baseline and other conditions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from depthlens import arguments
from depthlens.ablations import BASELINE, Condition, expand
from depthlens.engine.engine import Engine
from depthlens.errors import UserError


def next_token(
    lens: Any, prompt: str, conditions: Sequence[str | Condition] = (), k: int = 8, backend: str = "torch"
) -> pd.DataFrame:
    """Probability of the next token after a prompt, under the baseline and other conditions.

    Args:
        lens: A loaded model.
        prompt: Text, encoded as the tokenizer does by default.
        conditions: Beside the baseline, which always comes first.
        k: How many of the likeliest tokens of each condition are kept (their union is shown for all).
        backend: What applies the conditions.

    Returns:
        One row a token, one column a condition (its text form), sorted by the baseline's probability.

    Raises:
        UserError: empty prompt, or a condition that the model does not have.
    """
    arguments.loaded(lens)
    arguments.whole("k", k, 1)
    tokens = lens.tokenizer(prompt).input_ids if isinstance(prompt, str) else []
    if not tokens:
        raise UserError(f"prompt {prompt!r}: give some text")
    wanted = expand(conditions, lens.dims) if conditions else [BASELINE]
    rows = torch.tensor([tokens] * len(wanted), device=lens.device)
    engine = Engine(lens, backend=backend, progress=False)
    logits, _ = engine.backend.forward(rows, torch.ones_like(rows), wanted, positions=[[len(tokens) - 1]] * len(wanted))
    probs = torch.cat(logits).float().softmax(-1)  # [condition, d_vocab]
    kept = probs.topk(k).indices.flatten().unique()
    frame = pd.DataFrame(
        probs[:, kept].T.cpu().numpy(),
        index=pd.Index([lens.tokenizer.decode([t]) for t in kept.tolist()], name="token"),
        columns=[str(c) for c in wanted],
    )
    return frame.sort_values("baseline", ascending=False)
