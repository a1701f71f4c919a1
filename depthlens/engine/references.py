"""What ``@mean`` and ``@resample`` put in the place of a part: named by its texts, measured only where it is needed.

A store addresses an answer by the texts of its reference, so that nothing has to be measured to find the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from depthlens.ablations import Condition
from depthlens.backends.protocol import TOKEN_CLASSES, Means, classes
from depthlens.engine import memory_budget
from depthlens.errors import UserError
from depthlens.models.architectures import body_of, hidden, wide_type
from depthlens.models.lens import Lens
from depthlens.models.placement import moved
from depthlens.store.answer_cache import digest

Tokens = Sequence[int]
SITES = ("layer", "attn", "mlp", "z")  # what is read: what a layer adds, what its sublayers give, and z of its heads


class Reference:
    """What ``@mean`` and ``@resample`` put in place, known by its texts.

    Args:
        name: What it is, for the record.
        texts: Token ids of the prompts and answers whose means ``@mean`` puts in place; none where nothing asks for it.
        prompt: Token ids of the prompt that ``@resample`` takes parts from, if there is one.
        parent: The reference without the prompt: it measures the means once for all prompts.
        sites: Those of `SITES` that are kept of the prompt.

    Attributes:
        keys: Digest of the texts and of where their answers begin, by mode.
    """

    def __init__(
        self,
        name: str,
        texts: Sequence[tuple[Tokens, Tokens]],
        prompt: Tokens | None = None,
        parent: Reference | None = None,
        sites: Collection[str] = SITES,
    ) -> None:
        self.name = name
        self.texts = texts
        self.prompt = prompt
        self.parent = parent
        self.sites = sites
        self.keys = {"mean": digest([(tuple(p), tuple(a)) for p, a in texts]), "resample": digest(prompt)}
        self._means: Means | None = None

    def with_prompts(self, prompts: Sequence[Tokens], conditions: Sequence[Condition]) -> list[Reference]:
        """The same with each of the prompts of ``@resample``, as far as conditions ask for it."""
        resampled = {a.site for c in conditions for a in c.ablations if a.mode == "resample"}
        sites = {"z" if site in ("head", "kv") else site for site in resampled}
        return [Reference(self.name, self.texts, prompt, self, sites) for prompt in prompts]

    def measure(self, lens: Lens) -> Means:
        """Means over the texts, with parts of the prompt if there is one; the means are measured once."""
        if self._means is None:
            self._means = self.parent.measure(lens) if self.parent else self._measure(lens)
        return self._means if self.prompt is None else sample(lens, self._means, self.prompt, self.name, self.sites)

    def _measure(self, lens: Lens) -> Means:
        if not self.texts:
            return no_means(lens, self.name)
        return measure_means(lens, [p for p, _ in self.texts], self.name, [a for _, a in self.texts])


@torch.no_grad()
def sample(lens: Lens, means: Means, tokens: Sequence[int], name: str, sites: Collection[str] = SITES) -> Means:
    """The same means with what every position of one reference prompt has at some sites, for ``@resample``.

    Args:
        lens: The model.
        means: From `measure_means`.
        tokens: The reference prompt.
        name: What the reference is, for the record.
        sites: Of `SITES`.

    Raises:
        UserError: the model's weights are on a server.
    """
    lens.needs_weights("@resample")
    n_layers, n_pos, widths = lens.dims.n_layers, len(tokens), _widths(lens)
    # a layer of a hybrid model without heads keeps a z of zeros, which no condition asks for
    kept = {site: torch.zeros(n_layers, n_pos, widths[site], dtype=lens.dtype, device=lens.device) for site in sites}

    def keep(site: str, layer: int, value: Tensor) -> None:
        kept[site][layer] = value.reshape(n_pos, -1).to(kept[site])

    with _reading(lens, sites, keep):
        body_of(lens.model)(input_ids=torch.tensor([list(tokens)], device=lens.device), use_cache=False)
    if "z" in kept:
        kept["z"] = kept["z"].unflatten(-1, (lens.dims.n_heads, lens.dims.d_head))
    return replace(means, name=name, sample=kept)


def no_means(lens: Lens, name: str) -> Means:
    """Means of no class of tokens, for references that have a prompt of ``@resample`` only."""
    dims = lens.dims
    empty = torch.zeros(dims.n_layers, 0, dims.d_model)
    return Means(name, empty, empty, empty, torch.zeros(dims.n_layers, 0, dims.n_heads, dims.d_head))


@torch.no_grad()
def measure_means(lens: Lens, prompts: Sequence[Tokens], name: str, answers: Sequence[Tokens] | None = None) -> Means:
    """Means of every site over a reference set, by class of the token (`depthlens.backends.protocol.TOKEN_CLASSES`).

    Where the set has first tokens only, their mean takes the place of that of all others.

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
    texts = [[*p, *a] for p, a in zip(prompts, answers, strict=True) if len(p)]
    total, n_tokens = _sums_there(lens, texts) if lens.remote else _sums_by_class(lens, texts)
    if not n_tokens[1]:
        n_tokens[1] = n_tokens[0]
        for sums in total.values():
            sums[:, 1] = sums[:, 0]
    means = {site: (sums / n_tokens[:, None]).to(lens.device, wide_type(lens.dtype)) for site, sums in total.items()}
    z = means["z"].unflatten(-1, (lens.dims.n_heads, lens.dims.d_head))
    return Means(name, means["layer"], means["attn"], means["mlp"], z)


def _sums_by_class(lens: Lens, texts: Sequence[list[int]]) -> tuple[dict[str, Tensor], Tensor]:
    """Sums of every site over the tokens of each class, of shape [n_layers, token_class, width], and their numbers."""
    n_layers, n_classes = lens.dims.n_layers, len(TOKEN_CLASSES)
    # float64 sums: a float32 running sum over 10^5 positions would lose three digits
    total = {site: torch.zeros(n_layers, n_classes, w, dtype=torch.float64) for site, w in _widths(lens).items()}
    n_tokens = torch.zeros(n_classes, dtype=torch.float64)
    kinds = torch.zeros(0, dtype=torch.long)  # of the tokens of the texts that are read

    def add(site: str, layer: int, value: Tensor) -> None:
        total[site][layer].index_add_(0, kinds, value.flatten(0, -2).cpu().double())

    with _reading(lens, SITES, add):
        for batch in _of_equal_length(texts, memory_budget.choose(lens).batch_tokens):
            ids = torch.tensor(batch)
            kinds = classes(torch.arange(ids.shape[1]).expand(len(batch), -1)).flatten()
            n_tokens += kinds.bincount(minlength=n_classes)
            body_of(lens.model)(input_ids=ids.to(lens.device), use_cache=False)
    return total, n_tokens


def _sums_there(lens: Lens, texts: Sequence[list[int]]) -> tuple[dict[str, Tensor], Tensor]:
    """`_sums_by_class` on a server."""
    from depthlens.backends.nnsight import NnsightBackend  # slow to import

    backend, total = NnsightBackend(lens), dict[str, Tensor]()
    n_tokens = torch.zeros(len(TOKEN_CLASSES), dtype=torch.float64)
    for batch in _of_equal_length(texts, memory_budget.choose(lens).batch_tokens):
        tokens = torch.tensor(batch)
        n_tokens += torch.tensor([len(batch), tokens.numel() - len(batch)])
        for site, sums in backend.sums(tokens).items():
            total[site] = total.get(site, 0) + sums
    return total, n_tokens


def _of_equal_length(texts: Sequence[list[int]], batch_tokens: int) -> Iterator[list[list[int]]]:
    """Batches of texts without padding, so that every position counts once."""
    for length, group in groupby(sorted(texts, key=len), key=len):
        alike = list(group)
        size = max(1, batch_tokens // length)
        yield from (alike[i : i + size] for i in range(0, len(alike), size))


def _widths(lens: Lens) -> dict[str, int]:
    """The width of each of `SITES`."""
    dims = lens.dims
    return {"layer": dims.d_model, "attn": dims.d_model, "mlp": dims.d_model, "z": dims.n_heads * dims.d_head}


@contextmanager
def _reading(lens: Lens, sites: Collection[str], read: Callable[[str, int, Tensor], None]) -> Iterator[None]:
    """Within the context ``read`` gets every value of some sites, with site and layer, as the model computes it."""
    arch = lens.arch

    def read_layer(layer: int, args: tuple, kwargs: dict, output: Tensor | tuple) -> None:
        before = args[0] if args else kwargs["hidden_states"]  # may still be where the layer before is
        read("layer", layer, hidden(output) - moved(before, hidden(output).device))

    with ExitStack() as stack:
        for i in range(lens.dims.n_layers):
            hook = {
                "layer": lambda i=i: arch.layers[i].register_forward_hook(
                    lambda m, a, k, o: read_layer(i, a, k, o), with_kwargs=True
                ),
                "attn": lambda i=i: arch.attn[i].register_forward_hook(lambda m, a, o: read("attn", i, hidden(o))),
                "mlp": lambda i=i: arch.mlp[i].register_forward_hook(lambda m, a, o: read("mlp", i, hidden(o))),
                "z": lambda i=i: arch.o_proj[i].register_forward_pre_hook(lambda m, a: read("z", i, a[0])),
            }
            for site in sites:
                stack.enter_context(hook[site]())
        yield
