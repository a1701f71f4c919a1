"""What ``@mean`` and ``@resample`` put in the place of a part: named by its texts, measured only where it is needed.

A store addresses an answer by the texts of its reference, so that nothing has to be measured to find the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor

from depthlens.backends.protocol import TOKEN_CLASSES, Means, Places
from depthlens.engine import memory_budget
from depthlens.errors import UserError
from depthlens.models.architectures import body_of, hidden
from depthlens.models.lens import Lens
from depthlens.models.placement import moved
from depthlens.store.answer_rows import digest

Tokens = Sequence[int]


class Reference:
    """What ``@mean`` and ``@resample`` put in place, known by its texts.

    Args:
        name: What it is, for the record.
        texts: Token ids of the prompts and answers whose means ``@mean`` puts in place; none where nothing asks for it.
        prompt: Token ids of the prompt whose z ``@resample`` puts in place, if there is one.
        parent: The reference without the prompt: it measures the means once for all prompts.

    Attributes:
        keys: Digest of the texts and of where their answers begin, by mode.
    """

    def __init__(
        self,
        name: str,
        texts: Sequence[tuple[Tokens, Tokens]],
        prompt: Tokens | None = None,
        parent: Reference | None = None,
    ) -> None:
        self.name = name
        self.texts = texts
        self.prompt = prompt
        self.parent = parent
        self.keys = {"mean": digest([(tuple(p), tuple(a)) for p, a in texts]), "resample": digest(prompt)}
        self._means: Means | None = None

    def with_prompts(self, prompts: Sequence[Tokens]) -> list[Reference]:
        """The same with each of the prompts of ``@resample``."""
        return [Reference(self.name, self.texts, prompt, self) for prompt in prompts]

    def measure(self, lens: Lens) -> Means:
        """Means over the texts, with z of the prompt if there is one; the means are measured once."""
        if self._means is None:
            self._means = self.parent.measure(lens) if self.parent else self._measure(lens)
        return self._means if self.prompt is None else sample(lens, self._means, self.prompt, self.name)

    def _measure(self, lens: Lens) -> Means:
        if not self.texts:
            return no_means(lens, self.name)
        return measure_means(lens, [p for p, _ in self.texts], self.name, [a for _, a in self.texts])


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
    lens.needs_heads("@resample")
    by_layer: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for i, o_proj in enumerate(lens.arch.o_proj):
            stack.enter_context(
                o_proj.register_forward_pre_hook(lambda module, args, i=i: by_layer.update({i: args[0][0]}))
            )
        body_of(lens.model)(input_ids=torch.tensor([list(tokens)], device=lens.device), use_cache=False)
    z = torch.stack([by_layer[i].to(lens.device) for i in range(lens.dims.n_layers)])  # [layer, pos, n_heads * d_head]
    return replace(means, name=name, sample=z.unflatten(-1, (lens.dims.n_heads, lens.dims.d_head)))


def no_means(lens: Lens, name: str) -> Means:
    """Means of no class of tokens, for references that have a prompt of ``@resample`` only."""
    dims = lens.dims
    empty = torch.zeros(dims.n_layers, 0, dims.d_model)
    return Means(name, empty, empty, empty, torch.zeros(dims.n_layers, 0, dims.n_heads, dims.d_head))


@torch.no_grad()
def measure_means(lens: Lens, prompts: Sequence[Tokens], name: str, answers: Sequence[Tokens] | None = None) -> Means:
    """Means of every site over a reference set, by class of the token (`depthlens.backends.protocol.TOKEN_CLASSES`).

    Where the set has no token of the prompt beside the first ones, or no token of an answer, the mean of the other of
    these two takes its place; where it has first tokens only, theirs does.

    Args:
        lens: The model.
        prompts: Token ids of the reference prompts.
        name: What the set is, for the record.
        answers: Token ids of the answer that follows each prompt; None: no answers.

    Raises:
        UserError: the set is empty.
    """
    if not any(map(len, prompts)):
        raise UserError(f"reference set {name!r} for @mean is empty; give at least one prompt")
    answers = [()] * len(prompts) if answers is None else answers
    texts = [([*p, *a], len(p)) for p, a in zip(prompts, answers, strict=True) if len(p)]
    if lens.remote:
        from depthlens.backends import remote

        total, n_tokens = remote.sums_by_class(lens, texts, memory_budget.choose(lens).batch_tokens)
    else:
        total, n_tokens = _sums_by_class(lens, texts)
    for lacking, other in ((2, 1), (1, 2), (1, 0), (2, 0)):
        if not n_tokens[lacking]:
            n_tokens[lacking] = n_tokens[other]
            for sums in total.values():
                sums[:, lacking] = sums[:, other]
    means = {site: (sums / n_tokens[:, None]).float().to(lens.device) for site, sums in total.items()}
    z = means["z"].unflatten(-1, (lens.dims.n_heads, lens.dims.d_head))
    return Means(name, means["layer"], means["attn"], means["mlp"], z)


def _sums_by_class(lens: Lens, texts: Sequence[tuple[list[int], int]]) -> tuple[dict[str, Tensor], Tensor]:
    """Sums of every site over the tokens of each class, of shape [n_layers, token_class, width], and their numbers.

    A text is token ids and how many of them are of the prompt.
    """
    arch, dims = lens.arch, lens.dims
    widths = {"layer": dims.d_model, "attn": dims.d_model, "mlp": dims.d_model, "z": dims.n_heads * dims.d_head}
    n_classes = len(TOKEN_CLASSES)
    # float64 sums: a float32 running sum over 10^5 positions would lose three digits
    total = {site: torch.zeros(dims.n_layers, n_classes, w, dtype=torch.float64) for site, w in widths.items()}
    n_tokens = torch.zeros(n_classes, dtype=torch.float64)
    classes = torch.zeros(0, dtype=torch.long)  # of the tokens of the text that is read

    def add(site: str, layer: int, value: Tensor) -> None:
        total[site][layer].index_add_(0, classes, value.flatten(0, -2).cpu().double())

    def add_layer(layer: int, args: tuple, kwargs: dict, output: Tensor | tuple) -> None:
        before = args[0] if args else kwargs["hidden_states"]  # may still be where the layer before is
        add("layer", layer, hidden(output) - moved(before, hidden(output).device))

    with ExitStack() as stack:
        for i in range(dims.n_layers):
            for handle in (
                arch.layers[i].register_forward_hook(lambda m, a, k, o, i=i: add_layer(i, a, k, o), with_kwargs=True),
                arch.attn[i].register_forward_hook(lambda m, a, o, i=i: add("attn", i, hidden(o))),
                arch.mlp[i].register_forward_hook(lambda m, a, o, i=i: add("mlp", i, hidden(o))),
                arch.o_proj[i].register_forward_pre_hook(lambda m, a, i=i: add("z", i, a[0])),
            ):
                stack.enter_context(handle)
        for tokens, n_context in texts:  # one at a time: no padding, so that every position counts once
            classes = Places.of_rows(torch.arange(len(tokens))[None], [n_context]).classes[0]
            n_tokens += classes.bincount(minlength=n_classes)
            body_of(lens.model)(input_ids=torch.tensor([tokens], device=lens.device), use_cache=False)
    return total, n_tokens
