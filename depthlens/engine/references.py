"""What ``@mean`` and ``@resample`` put in the place of a part: named by its texts, measured only where it is needed.

A store addresses an answer by the texts of its reference, so that nothing has to be measured to find the answer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from depthlens.ablations import BASELINE, Condition, modes
from depthlens.backends.row_edits import ACTS_ON, Means, RowEdits, hooks
from depthlens.backends.site_edits import Sums
from depthlens.backends.torch import applied
from depthlens.engine import work
from depthlens.models import in_force
from depthlens.models.architectures import body_of, wide_type
from depthlens.models.lens import Lens
from depthlens.store.answer_cache import digest

Tokens = Sequence[int]
SITES = ("layer", "attn", "mlp", "z")  # what is read: what a layer adds, what its sublayers give, and z of its heads


@dataclass(eq=False)
class Reference:
    """What ``@mean`` and ``@resample`` put in place, known by its texts.

    Attributes:
        name: What it is, for the record.
        texts: Token ids of the prompts and answers whose means ``@mean`` puts in place; none where nothing asks for it.
        prompt: Token ids of the prompt that ``@resample`` takes parts from, if there is one.
        parent: The reference without the prompt: it measures the means once for all prompts.
        sites: Those of `SITES` that are kept of the prompt.
    """

    name: str
    texts: Sequence[tuple[Tokens, Tokens]]
    prompt: Tokens | None = None
    parent: Reference | None = None
    sites: Collection[str] = SITES
    _means: Means | None = field(default=None, init=False)

    @cached_property
    def keys(self) -> dict[str, str]:
        """Digest of the texts and of where their answers begin, by mode."""
        of_need = {"means": digest([(tuple(p), tuple(a)) for p, a in self.texts]), "prompt": digest(self.prompt)}
        return {name: of_need[made.needs] for name, made in modes.BUILT_IN.items() if made.kind == "reference"}

    def with_prompts(self, prompts: Sequence[Tokens], conditions: Sequence[Condition]) -> list[Reference]:
        """The same with each of the prompts of ``@resample``, as far as conditions ask for it."""
        sites = {ACTS_ON[a.site] for c in conditions for a in c.ablations if modes.of(a.mode).needs == "prompt"}
        return [Reference(self.name, self.texts, prompt, self, sites) for prompt in prompts]

    def measure(self, lens: Lens) -> Means:
        """Means over the texts, with parts of the prompt if there is one; the means are measured once."""
        if self.parent is not None and self.prompt is not None:
            return sample(lens, self.parent.measure(lens), self.prompt, self.sites)
        if self._means is None:
            texts = [(*prompt, *answer) for prompt, answer in self.texts if prompt]  # a task may have an empty one
            self._means = measure_means(lens, texts, self.name) if texts else Means(self.name)
        return self._means


@torch.no_grad()
def sample(lens: Lens, means: Means, tokens: Tokens, sites: Collection[str] = SITES) -> Means:
    """The same means with what every position of one reference prompt has at some sites, for ``@resample``.

    Args:
        lens: The model.
        means: From `measure_means`.
        tokens: The reference prompt.
        sites: Of `SITES`.

    Raises:
        UserError: the model's weights are on a server.
    """
    lens.needs_weights("@resample")
    # a layer of a hybrid model without heads keeps a z of zeros, which no condition asks for
    n_layers, n_pos, widths = lens.dims.n_layers, len(tokens), _widths(lens)
    kept = {site: torch.zeros(n_layers, n_pos, widths[site], dtype=lens.dtype, device=lens.device) for site in sites}

    def keep(value: Tensor, base: Tensor | None = None, *, site: str, layer: int) -> Tensor:
        kept[site][layer] = (value if base is None else value - base).reshape(n_pos, -1)
        return value

    edits = [{site: partial(keep, site=site, layer=layer) for site in sites} for layer in range(n_layers)]
    _read(lens, torch.tensor([list(tokens)]), edits)
    if "z" in kept:
        kept["z"] = kept["z"].unflatten(-1, (lens.dims.n_heads, lens.dims.d_head))
    return replace(means, sample=kept)


@torch.no_grad()
def measure_means(lens: Lens, texts: Sequence[Tokens], name: str) -> Means:
    """Means of every site over a reference set, of first tokens and of all others.

    Where the set has first tokens only, their mean takes the place of that of all others.

    Args:
        lens: The model.
        texts: Token ids of the set: at least one text, and none of them empty.
        name: What the set is, for the record.
    """
    n_tokens = torch.tensor([len(texts), sum(map(len, texts)) - len(texts)])
    read = [{site: Sums(width) for site, width in _widths(lens).items()} for _ in range(lens.dims.n_layers)]
    batch_tokens, alone = work.choose(lens).batch_tokens, not lens.remote and in_force.foreign(lens.model)
    for length, group in groupby(sorted(texts, key=len), key=len):  # without padding: every position counts once
        alike = list(group)
        size = 1 if alone else max(1, batch_tokens // length)
        for start in range(0, len(alike), size):
            _read(lens, torch.tensor(alike[start : start + size]), read)
    kinds = [0, 1] if n_tokens[1] else [0, 0]
    means = {}
    for site in SITES:
        of_site = torch.stack([at[site].total for at in read]) / n_tokens[:, None]
        means[site] = of_site[:, kinds].to(lens.device, wide_type(lens.dtype))
    means["z"] = means["z"].unflatten(-1, (lens.dims.n_heads, lens.dims.d_head))
    return Means(name, means)


def _widths(lens: Lens) -> dict[str, int]:
    """The width of each of `SITES`."""
    dims = lens.dims
    return {"layer": dims.d_model, "attn": dims.d_model, "mlp": dims.d_model, "z": dims.n_heads * dims.d_head}


def _read(lens: Lens, tokens: Int[Tensor, "row pos"], edits: Sequence[dict[str, Any]]) -> None:
    """Run rows of tokens, of which each layer's edits get what the model computes."""
    if lens.remote:
        from depthlens.backends.nnsight import NnsightBackend  # slow to import

        return NnsightBackend(lens).read(tokens, edits)
    tokens, position_ids = tokens.to(lens.device), torch.arange(tokens.shape[1], device=lens.device)[None]
    with ExitStack() as stack:
        # what is in force comes first, so that its work is seen
        stack.enter_context(applied(RowEdits([BASELINE], lens, None, position_ids, tokens)))
        for layer, at in enumerate(edits):
            stack.enter_context(hooks(lens.arch, layer, at))
        body_of(lens.model)(input_ids=tokens, use_cache=False)
