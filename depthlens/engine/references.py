"""What ``@mean`` and ``@resample`` put in the place of a part: named by its prompts, measured only where it is needed.

A store addresses an answer by the prompts of its reference, so that nothing has to be measured to find the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor

from depthlens.backends.protocol import Means
from depthlens.engine import memory_budget
from depthlens.errors import UserError
from depthlens.models.architectures import hidden
from depthlens.models.lens import Lens
from depthlens.requests import GenerateRequest, LoglikelihoodRequest
from depthlens.store.answer_rows import digest

N_REFERENCE = 64  # prompts whose mean takes the place of a part under @mean


class Reference:
    """What ``@mean`` and ``@resample`` put in place, known by its prompts.

    Args:
        name: What it is, for the record.
        contexts: Token ids of the prompts whose means ``@mean`` puts in place.
        prompt: Token ids of the prompt whose z ``@resample`` puts in place, if there is one.
        parent: The reference without the prompt: it measures the means once for all prompts.

    Attributes:
        keys: Digest of the prompts, by mode.
    """

    def __init__(
        self,
        name: str,
        contexts: Sequence[Sequence[int]],
        prompt: Sequence[int] | None = None,
        parent: Reference | None = None,
    ) -> None:
        self.name = name
        self.contexts = contexts
        self.prompt = prompt
        self.parent = parent
        self.keys = {"mean": digest(list(contexts)), "resample": digest(prompt)}
        self._means: Means | None = None

    def with_prompts(self, prompts: Sequence[Sequence[int]]) -> list[Reference]:
        """The same with each of the prompts of ``@resample``."""
        return [Reference(self.name, self.contexts, prompt, self) for prompt in prompts]

    def measure(self, lens: Lens) -> Means:
        """Means over the contexts, with z of the prompt if there is one; the means are measured once."""
        if self._means is None:
            self._means = self.parent.measure(lens) if self.parent else measure_means(lens, self.contexts, self.name)
        return self._means if self.prompt is None else sample(lens, self._means, self.prompt, self.name)


def task_reference(task: str, requests: Sequence[LoglikelihoodRequest | GenerateRequest]) -> Reference:
    """The reference of a task: the contexts of its first requests, each once."""
    contexts = list(dict.fromkeys(q.context for q in requests))[:N_REFERENCE]
    return Reference(f"{task}: contexts of the first {len(contexts)} requests", contexts)


@torch.no_grad()
def sample(lens: Lens, means: Means, tokens: Sequence[int], name: str) -> Means:
    """The same means with z of every position of one reference prompt, for ``@resample``.

    Args:
        lens: The model.
        means: From `measure_means`.
        tokens: The reference prompt.
        name: What the reference is, for the record.

    Raises:
        UserError: the model's weights are on a server.
    """
    lens.needs_weights("@resample")
    by_layer: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for i, o_proj in enumerate(lens.arch.o_proj):
            stack.enter_context(
                o_proj.register_forward_pre_hook(lambda module, args, i=i: by_layer.update({i: args[0][0]}))
            )
        lens.model.base_model(input_ids=torch.tensor([list(tokens)], device=lens.device), use_cache=False)
    z = torch.stack([by_layer[i] for i in range(lens.dims.n_layers)])  # [layer, pos, n_heads * d_head]
    return replace(means, name=name, sample=z.unflatten(-1, (lens.dims.n_heads, lens.dims.d_head)))


@torch.no_grad()
def measure_means(lens: Lens, prompts: Sequence[Sequence[int]], name: str) -> Means:
    """Means of every site over all positions of a reference set.

    Args:
        lens: The model.
        prompts: Token ids of the reference prompts.
        name: What the set is, for the record.

    Raises:
        UserError: the set is empty.
    """
    if not any(map(len, prompts)):
        raise UserError(f"reference set {name!r} for @mean is empty; give at least one prompt")
    if lens.remote:
        from depthlens.backends import remote

        return remote.measure_means(lens, prompts, name, memory_budget.choose(lens).batch_tokens)
    arch, dims = lens.arch, lens.dims
    widths = {"layer": dims.d_model, "attn": dims.d_model, "mlp": dims.d_model, "z": dims.n_heads * dims.d_head}
    # float64 sums: a float32 running sum over 10^5 positions would lose three digits
    total = {site: torch.zeros(dims.n_layers, width, dtype=torch.float64) for site, width in widths.items()}

    def add(site: str, layer: int, value: Tensor) -> None:
        total[site][layer] += value.double().sum((0, 1)).cpu()

    with ExitStack() as stack:
        for i in range(dims.n_layers):
            for handle in (
                arch.layers[i].register_forward_hook(
                    lambda m, a, k, o, i=i: add("layer", i, hidden(o) - (a[0] if a else k["hidden_states"])),
                    with_kwargs=True,
                ),
                arch.attn[i].register_forward_hook(lambda m, a, o, i=i: add("attn", i, hidden(o))),
                arch.mlp[i].register_forward_hook(lambda m, a, o, i=i: add("mlp", i, hidden(o))),
                arch.o_proj[i].register_forward_pre_hook(lambda m, a, i=i: add("z", i, a[0])),
            ):
                stack.enter_context(handle)
        for prompt in prompts:  # one at a time: no padding, so that every position counts once
            lens.model.base_model(input_ids=torch.tensor([list(prompt)], device=lens.device), use_cache=False)
    n = sum(map(len, prompts))
    means = {site: (value / n).float().to(lens.device) for site, value in total.items()}
    z = means["z"].unflatten(-1, (dims.n_heads, dims.d_head))
    return Means(name, means["layer"], means["attn"], means["mlp"], z)
