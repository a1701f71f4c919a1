r"""Which heads carry an operand to the result: each head's z from a text with another operand, put in place of its own.

For a result and its swap (`depthlens.experiments.operand_swaps`), let D = logit(result) - logit(swapped result) at the
position that predicts the first token in which they differ. In the text D should be above 0, and in the swapped text
below. A head's score is how much D falls when its z *at this position* is that of the swapped text,

    score(h) = D(text) - D(text with z_h of the swapped text),

in nats, as D is the log of a ratio of probabilities. All other positions stay as they are, so that only what the head
writes where the result is predicted counts, and the layers above it may react to it. Every head is patched exactly: the
earlier positions are computed once for each text, and the patched ones are single positions, so that all heads cost
about n_heads * n_layers / 2 further tokens. Sources: see `depthlens.experiments.operand_swaps`.

Only cases count in which D is above 0 in the text and below 0 in the swapped text, that is, in which the model follows
the operands; ``record["swaps"]`` says how many did.

It misleads where heads replace each other, since each is patched alone, and where the operand was gathered earlier:
heads that move it to other positions than the last are not found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Unpack

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from depthlens import arguments
from depthlens.analysis.head_scores import HeadScores
from depthlens.engine import walk_check
from depthlens.engine.plain_rows import CausalRows, LastPosition, refuse_window
from depthlens.engine.tree_attention import walking
from depthlens.errors import UserError
from depthlens.experiments import operand_swaps, own_solutions
from depthlens.experiments.head_losses import scores_record
from depthlens.experiments.measured import one_by_one
from depthlens.experiments.operand_swaps import Swap
from depthlens.experiments.options import WITHOUT_CONDITIONS, EvalOptions, settled, tasks_record
from depthlens.models.architectures import wide
from depthlens.models.lens import Lens, one_thread
from depthlens.models.placement import moved
from depthlens.store.answer_cache import AnswerStore, cache_usage

MIN_SOLUTIONS = 5  # in which the model follows the operands; an interval over fewer says nothing


@one_thread
def operand_swap_scores(
    lens: Lens,
    tasks: str | Sequence[str] = "arithmetic_cot",
    *,
    solutions: str = own_solutions.REFERENCE,
    **options: Unpack[EvalOptions],
) -> HeadScores:
    """Score every head by how much it moves a computed result to that of another operand.

    Args:
        lens: A loaded model.
        tasks: One generative lm-eval task or several whose answers are worked solutions, such as ``gsm8k``.
        solutions: ``reference``: the task's own; ``own``: those that the model writes and that are right
            (`depthlens.experiments.own_solutions`).
        options: `EvalOptions`: limit, num_fewshot, include_path, seed, batch_tokens, store, progress.

    Returns:
        Fall of the logit difference in nats, means over solutions (each a mean over its results).
        ``record["swaps"]``: ``asked`` swaps, ``followed`` by the model, and means of D in both texts over the latter.

    Raises:
        UserError: anything asked for that does not exist, an offloaded model, no swap that can be made, or fewer than 5
            solutions in which the model follows the operands.
    """
    arguments.loaded(lens)
    chosen = settled(options, without=WITHOUT_CONDITIONS)
    lens.needs_weights("swapped operands")
    if lens.stream:
        raise UserError("swapped operands need the whole model in memory; load without offload")
    answers = AnswerStore(chosen["store"], lens)
    names = arguments.names("tasks", tasks, "arithmetic_cot")
    solved, about = own_solutions.chosen(lens, names, solutions, chosen, answers)
    swaps = operand_swaps.operand_swaps(lens, solved, seed=chosen["seed"])
    operand_swaps.enough(swaps, names, len(solved))
    refuse_window(lens, max(len(s.prompt) for s in swaps), "swapped operands")
    dims = lens.dims
    cache = answers.entry(f"operand swaps {' '.join(names)}", method="operand swaps at the last position")
    values = one_by_one(
        cache,
        [(s.prompt, s.swapped, s.answers) for s in swaps],
        ["text", "swapped", *dims.head_names],
        lambda i: _differences(lens, swaps[i]),
        desc="operand swaps",
        unit="result",
        progress=chosen["progress"],
    )
    text, swapped, patched = values[:, 0], values[:, 1], values[:, 2:]
    followed = (text > 0) & (swapped < 0)
    owners = np.array([s.doc_id for s in swaps])
    documents = np.unique(owners[followed])
    if len(documents) < MIN_SOLUTIONS:
        fault = f"the model follows the operands in {len(documents)} of {len(np.unique(owners))} solutions"
        raise UserError(f"tasks {', '.join(names)}: {fault}, and {MIN_SOLUTIONS} are needed; take more documents")
    falls = (text[:, None] - patched).reshape(-1, dims.n_layers, dims.n_heads)
    cases = np.stack([falls[followed & (owners == doc)].mean(0) for doc in documents])
    record = scores_record(lens, answers, "operand swaps", tasks_record(names, chosen)) | about
    record["store"] = cache_usage([cache])
    counts = {"asked": len(swaps), "followed": int(followed.sum())}
    record["swaps"] = counts | {"text": float(text[followed].mean()), "swapped": float(swapped[followed].mean())}
    return HeadScores.of_cases("move of the result by a swapped operand", "nats", cases, record, tested=True)


@torch.no_grad()
def _differences(lens: Lens, swap: Swap) -> Float[np.ndarray, " case"]:
    """D in the text, in the swapped text, and with the z of each head in turn. Shape [2 + n_layers * n_heads]."""
    walk_check.require(lens, "the search for operands")
    walk_check.require_plain(lens, "the search for operands")
    with walking(lens.model):
        inputs, row, _, end = _seen(lens, swap.prompt)
        *_, other_z, other_end = _seen(lens, swap.swapped)
        ends = torch.cat([end, other_end, _patched(lens, inputs, LastPosition(row), other_z)])
    logits = wide(lens.arch.logits(ends))
    right, other = swap.answers
    return (logits[:, right] - logits[:, other]).double().cpu().numpy()


def _seen(lens: Lens, tokens: Sequence[int]) -> tuple[list[Tensor], CausalRows, list[Tensor], Tensor]:
    """One text: of its last position the residual streams before each layer, z and the final state; and its row."""
    arch = lens.arch
    row = CausalRows(len(tokens), lens.device, keep=True)
    x = arch.embed(torch.tensor([list(tokens)], device=lens.device))
    rotary = arch.angles(x, row.position_ids)
    inputs: list[Tensor] = []
    z: list[Tensor] = []
    with ExitStack() as stack:
        for o_proj in arch.o_proj:
            stack.enter_context(o_proj.register_forward_pre_hook(lambda module, args: z.append(args[0][:, -1:])))
        for layer in range(lens.dims.n_layers):
            inputs.append(x[:, -1:])
            x = arch.step(layer, x, row, rotary)[2]
    return inputs, row, z, x[:, -1]


def _patched(
    lens: Lens, inputs: list[Tensor], last: LastPosition, other_z: list[Tensor]
) -> Float[Tensor, "head d_model"]:
    """Final states of the last position with the z of one head at a time from the other text."""
    arch, dims = lens.arch, lens.dims
    rotary = arch.angles(inputs[0], last.position_ids)
    own = torch.eye(dims.n_heads, dtype=torch.bool, device=lens.device)[:, None, :, None]  # [row, pos, head, d_head]

    def patch(layer: int) -> Callable[[Any, tuple], tuple]:
        def hook(module: Any, args: tuple) -> tuple:
            z, other = (x.unflatten(-1, (dims.n_heads, dims.d_head)) for x in (args[0], other_z[layer]))
            patched = torch.where(moved(own, z.device), other, z[-dims.n_heads :])  # rows of this layer come last
            return torch.cat([z[: -dims.n_heads], patched]).flatten(-2), *args[1:]

        return hook

    x = inputs[0][:0]
    for layer in range(dims.n_layers):
        x = torch.cat([x, inputs[layer].expand(dims.n_heads, -1, -1)])
        handle = arch.o_proj[layer].register_forward_pre_hook(patch(layer))
        try:
            x = arch.step(layer, x, last, rotary)[2]
        finally:
            handle.remove()
    return x[:, 0]
