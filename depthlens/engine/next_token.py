"""The next token after a prompt, under the baseline and other conditions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import pandas as pd
import torch

from depthlens import arguments, progress
from depthlens.ablations import BASELINE, Condition, expand
from depthlens.engine.engine import Engine
from depthlens.errors import UserError
from depthlens.models.architectures import wide
from depthlens.models.lens import Lens, one_thread


@one_thread
def next_token(
    lens: Lens, prompt: str, conditions: Sequence[str | Condition] = (), k: int = 8, backend: str = "torch"
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
    k = arguments.whole("k", k, 1)
    tokens = lens.tokenizer(prompt).input_ids if isinstance(prompt, str) else []
    if not tokens:
        raise UserError(f"prompt {prompt!r}: give some text")
    columns = expand(conditions, lens.dims) if conditions else [BASELINE]
    rows = torch.tensor([tokens] * len(columns), device=lens.device)
    last = [[len(tokens) - 1]] * len(columns)
    with progress.working(f"{len(columns)} conditions with {backend}") if backend != "torch" else nullcontext():
        engine = Engine(lens, backend=backend, progress=False)  # libraries are imported here, which takes seconds
        logits, _ = engine.backend.forward(rows, torch.ones_like(rows), columns, positions=last)
    probs = wide(torch.cat(logits)).softmax(-1)  # [condition, d_vocab]
    likeliest = probs.topk(k).indices.flatten().unique()
    frame = pd.DataFrame(
        probs[:, likeliest].T.cpu().numpy(),
        index=pd.Index([lens.tokenizer.decode([t]) for t in likeliest.tolist()], name="token"),
        columns=[str(c) for c in columns],
    )
    return frame.sort_values("baseline", ascending=False)
