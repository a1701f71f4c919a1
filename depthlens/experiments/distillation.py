"""A base model against one distilled from it (the donor): how far weights and activations moved.

Transplants of parts are conditions: ``dl.condition_sweep(base, task, "layers@donor", donor="smollm2-135m-cot")``, and
of `depthlens.ablated` with `depthlens.models.pairs.with_donor`. The module `depthlens.backends.row_edits` says what
belongs to a part, `depthlens.models.pairs` what makes a pair.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from depthlens.engine import prefix_tree, walk_check
from depthlens.engine.tree_attention import Layout, walking
from depthlens.errors import UserError
from depthlens.experiments.texts import measured, table_of_means, tokens_of
from depthlens.models import quantised
from depthlens.models.architectures import wide
from depthlens.models.lens import Lens, one_thread
from depthlens.models.pairs import load_donor
from depthlens.store.answer_cache import AnswerStore, Where
from depthlens.store.parts import DEFAULT

Name = str | os.PathLike[str]


@one_thread
def weight_deltas(base: Lens, donor: Name | Lens, *, store: Where = DEFAULT) -> pd.DataFrame:
    """How far every matrix and vector of weights moved, layer by layer.

    With W_b and W_d the base's and the donor's: ``relative`` is ||W_d - W_b|| / ||W_b|| (Frobenius norms), ``cosine``
    <W_d, W_b> / (||W_d|| ||W_b||). Sums are float64. One layer of each model is in memory at a time, where they are
    offloaded.

    Args:
        base: A loaded model.
        donor: Name of a model that fits it, or a loaded one.
        store: Where the deltas of single matrices are found and kept; see `depthlens.layer_sweep`.

    Returns:
        One row a matrix: layer (missing outside the layers), site (``attn`` and ``mlp`` with their norms, ``embed``,
        ``unembed`` with the final norm), matrix (its name in the layer), n_parameters, relative (infinite for weights
        that were zero), cosine (missing where one is zero).

    Raises:
        UserError: the two are no pair.

    Example:
        >>> dl.weight_deltas(base, donor).columns.tolist()
        ['layer', 'site', 'matrix', 'n_parameters', 'relative', 'cosine']
    """
    donor = load_donor(base, donor)
    if lens := next((lens for lens in (base, donor) if quantised.method_of(lens.model.config)), None):
        fault = f"weight deltas compare plain weights, and those of {lens.name!r} are quantised"
        raise UserError(f"{fault}; load it without")
    blocks = (None, *range(base.dims.n_layers))  # None: outside the layers
    places = [
        (layer, _site(base, layer, name), name, weight.numel())
        for layer in blocks
        for name, weight in _weights(base, layer).items()
    ]

    def measure(members: list[int]) -> Iterator[tuple[list[int], np.ndarray]]:
        for layer, some in itertools.groupby(members, key=lambda i: places[i][0]):
            chosen = list(some)
            with _resident(base, layer), _resident(donor, layer):
                one, other = _weights(base, layer), _weights(donor, layer)
                names = [places[i][2] for i in chosen]
                moved = [_apart(one[name].flatten(), other[name].flatten()) for name in names]
            yield chosen, np.array(moved)

    cache = AnswerStore(store, base, donor).entry("deltas", method="weight deltas")
    values = cache.numbers(places, list(_MEASURES), measure, desc="weight deltas", unit="matrix")
    table = pd.DataFrame(places, columns=["layer", "site", "matrix", "n_parameters"]).astype({"layer": "Int64"})
    return table.assign(**dict(zip(_MEASURES, values.T, strict=True)))


def _weights(lens: Lens, layer: int | None) -> dict[str, Tensor]:
    """Weights of a layer by name, or of what is outside the layers."""
    if layer is not None:
        return lens.arch.layers[layer].state_dict()
    parts = {name: getattr(lens.arch, name).state_dict() for name in ("embed", "final_norm", "unembed")}
    return {f"{name}.{key}": weight for name, state in parts.items() for key, weight in state.items()}


def _site(lens: Lens, layer: int | None, name: str) -> str:
    owner = name.rpartition(".")[0]
    if layer is None:
        return "embed" if owner == "embed" else "unembed"
    mlp = (f"{path}." for path in (lens.arch.family.mlp_norm, lens.arch.family.mlp) if path)
    return "mlp" if f"{owner}.".startswith((*mlp,)) else "attn"


def _resident(lens: Lens, layer: int | None) -> AbstractContextManager[None]:
    return nullcontext() if layer is None else lens.resident(layer)


def _apart(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Relative norm of the difference, and cosine, of vectors along the last axis; means over all others."""
    a, b = wide(one), wide(other)
    norm, its, apart = (torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64) for x in (a, b, b - a))
    relative = torch.where(apart == 0, 0.0, apart / norm)
    cosine = (a * b).sum(-1, dtype=torch.float64) / (norm * its)
    return float(relative.mean()), float(cosine.mean())


@one_thread
@torch.no_grad()
def activation_deltas(
    base: Lens, donor: Name | Lens, prompts: str | Sequence[str | Sequence[int]], *, store: Where = DEFAULT
) -> pd.DataFrame:
    """How far the residual stream, and what each sublayer adds to it, moved on the same tokens.

    Both models read each prompt for themselves, so that differences pile up with depth. At every token, with x_b and
    x_d of the two: ``relative`` ||x_d - x_b|| / ||x_b||, ``cosine`` <x_d, x_b> / (||x_d|| ||x_b||); then the mean over
    a prompt's tokens, the mean over prompts, and its 95% interval (`depthlens.analysis.numbers.means`). The
    models walk side by side, and only what the current layer makes is held; offloaded ones read their layers once a
    prompt.

    Args:
        base: A loaded model.
        donor: Name of a model that fits it, or a loaded one.
        prompts: One text or several, encoded by the base's tokenizer, or token ids.
        store: Where the deltas on single prompts are found and kept; see `depthlens.layer_sweep`.

    Returns:
        One row a layer and part: layer, part (``attn_out``, ``mlp_out``, ``resid_post``), relative, relative_low,
        relative_high, cosine, cosine_low, cosine_high (intervals are missing for one prompt), n (prompts).

    Raises:
        UserError: the two are no pair, or a prompt is empty or longer than the attention window.

    Example:
        >>> deltas = dl.activation_deltas(base, donor, ["The capital of Denmark is", "Water boils at"])
        >>> deltas["part"].unique().tolist()
        ['attn_out', 'mlp_out', 'resid_post']
    """
    asked = [prompts] if isinstance(prompts, str) else prompts
    rows = [tokens_of(base, prompt) for prompt in asked]
    if not rows:
        raise UserError(f"prompts {prompts!r}: give at least one, each with some text")
    walk_check.refuse_window(base, max(map(len, rows)), "activation deltas")
    donor = load_donor(base, donor)
    places = list(itertools.product(range(base.dims.n_layers), _PARTS))

    def measure(tokens: Sequence[int]) -> np.ndarray:
        by_layer = zip(_states(base, tokens), _states(donor, tokens), strict=True)
        return np.array([_apart(*both) for of_layer in by_layer for both in zip(*of_layer, strict=True)])

    answers, names = (
        AnswerStore(store, base, donor),
        [f"L{at} {part} {name}" for at, part in places for name in _MEASURES],
    )
    values = measured(answers, "deltas", "activation deltas", rows, names, measure)
    values = values.reshape(len(rows), -1, len(_MEASURES))
    measures = {name: (values[..., i], limits) for i, (name, limits) in enumerate(_MEASURES.items())}
    return table_of_means(["layer", "part"], places, measures)


_PARTS = ("attn_out", "mlp_out", "resid_post")
_MEASURES = {"relative": (0.0, math.inf), "cosine": (-1.0, 1.0)}  # with their limits


def _states(lens: Lens, tokens: Sequence[int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What each layer makes of a prompt: attn_out, mlp_out and resid_post, each of shape [1, pos, d_model]."""
    walk_check.require(lens, "the comparison of activations", adds=True, whole=True)
    arch, layout = lens.arch, Layout(prefix_tree.build([tokens], [0]), lens.device)
    x = arch.embed(layout.tokens)[None]
    for layer in range(lens.dims.n_layers):
        with lens.resident(layer), walking(lens.model), arch.sublayers(layer) as given:
            x = arch.call(layer, x, layout, arch.angles(x, layout.position_ids))
        yield given["attn"], given["mlp"].view_as(x), x
