"""What ``@mean`` and ``@resample`` put in the place of a part: named by its prompts, measured only where it is needed.

A store knows an answer by the prompts of its reference, so that nothing has to be measured to find it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from depthlens.backends.protocol import Means
from depthlens.engine import memory_budget
from depthlens.errors import UserError
from depthlens.models.architectures import hidden
from depthlens.models.lens import Lens
from depthlens.store.answer_rows import digest

N_REFERENCE = 64  # prompts whose mean stands in for a part under @mean


class Reference:
    """What ``@mean`` and ``@resample`` put in place, known by its prompts; measured only where it is needed.

    Attributes:
        name: What it is, for the record.
        keys: Digest of the prompts, by mode.
    """

    def __init__(self, task: str, contexts: Sequence[Sequence[int]], prompt: Sequence[int] | None = None) -> None:
        self.contexts = contexts
        self.prompt = prompt
        self.name = f"{task}: contexts of the first {len(contexts)} requests"
        self.keys = {"mean": digest(list(contexts)), "resample": digest(prompt)}
        self._means: list[Means] = []  # shared by all prompts: measured once

    def sampled(self, prompts: Sequence[Sequence[int]]) -> list[Reference]:
        """The same with each of the prompts of ``@resample``."""
        each = [Reference("", self.contexts, prompt) for prompt in prompts]
        for one in each:
            one.name, one._means = self.name, self._means
        return each

    def measure(self, lens: Lens) -> Means:
        if not self._means:
            self._means.append(measure_means(lens, self.contexts, self.name))
        return self._means[0] if self.prompt is None else sample(lens, self._means[0], self.prompt, self.name)


def of_task(name: str, requests: Sequence[Any]) -> Reference:
    """The reference of a task: the contexts of its first requests, each once."""
    return Reference(name, list(dict.fromkeys(q.context for q in requests))[:N_REFERENCE])


@torch.no_grad()
def sample(lens: Any, means: Means, tokens: Sequence[int], name: str) -> Means:
    """The same means with z of every position of one reference prompt, for ``@resample``.

    Args:
        lens: The model.
        means: From `measure_means`.
        tokens: The reference prompt.
        name: What the reference is, kept in the record.
    """
    lens.needs_weights("@resample")
    kept: dict[int, Tensor] = {}
    handles = [
        o_proj.register_forward_pre_hook(lambda module, args, i=i: kept.update({i: args[0][0]}))
        for i, o_proj in enumerate(lens.arch.o_proj)
    ]
    try:
        lens.model.base_model(input_ids=torch.tensor([list(tokens)], device=lens.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    z = torch.stack([kept[i] for i in range(lens.dims.n_layers)])  # [layer, pos, n_heads * d_head]
    return replace(means, name=name, sample=z.unflatten(-1, (lens.dims.n_heads, lens.dims.d_head)))


@torch.no_grad()
def measure_means(lens: Any, rows: Sequence[Sequence[int]], name: str) -> Means:
    """Means of every site over all positions of a reference set.

    Args:
        lens: The model.
        rows: Token ids of the reference prompts.
        name: What the set is, kept in the record.

    Raises:
        UserError: the set is empty.
    """
    if not any(len(r) for r in rows):
        raise UserError(f"reference set {name!r} for @mean is empty; give at least one prompt")
    if lens.remote:
        from depthlens.backends import remote

        return remote.measure_means(lens, rows, name, memory_budget.choose(lens).batch_tokens)
    arch, dims = lens.arch, lens.dims
    # float64 sums: a float32 running sum over 10^5 positions would lose three digits
    total = {
        "layer": torch.zeros(dims.n_layers, dims.d_model, dtype=torch.float64),
        "attn": torch.zeros(dims.n_layers, dims.d_model, dtype=torch.float64),
        "mlp": torch.zeros(dims.n_layers, dims.d_model, dtype=torch.float64),
        "z": torch.zeros(dims.n_layers, dims.n_heads * dims.d_head, dtype=torch.float64),
    }

    def add(site: str, layer: int, value: Tensor) -> None:
        total[site][layer] += value.double().sum((0, 1)).cpu()

    handles: list[Any] = []
    try:
        for i in range(dims.n_layers):
            handles += [
                arch.layers[i].register_forward_hook(
                    lambda m, a, k, o, i=i: add("layer", i, hidden(o) - (a[0] if a else k["hidden_states"])),
                    with_kwargs=True,
                ),
                arch.attn[i].register_forward_hook(lambda m, a, o, i=i: add("attn", i, hidden(o))),
                arch.mlp[i].register_forward_hook(lambda m, a, o, i=i: add("mlp", i, hidden(o))),
                arch.o_proj[i].register_forward_pre_hook(lambda m, a, i=i: add("z", i, a[0])),
            ]
        for row in rows:  # one row at a time: no padding, so every position counts once
            lens.model.base_model(input_ids=torch.tensor([list(row)], device=lens.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    n = sum(len(r) for r in rows)
    means = {k: (v / n).float().to(lens.device) for k, v in total.items()}
    return Means(
        name,
        means["layer"],
        means["attn"],
        means["mlp"],
        means["z"].unflatten(-1, (dims.n_heads, dims.d_head)),
    )
