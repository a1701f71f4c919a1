"""What PEFT and quantisers ask of a model that a condition leaves: lists of layers and modules, by its own numbers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from depthlens.ablations import ROUNDED, Condition, parse_condition
from depthlens.models.lens import Lens, one_thread


def kept_layers(lens: Lens, condition: Condition) -> list[int]:
    """Numbers, in the whole model, of the layers that are left; one that runs twice is there twice."""
    skipped = {a.layer for a in condition.ablations if a.mode == "skip" and not a.start}
    times = [0 if i in skipped else 1 + condition.runs_twice(i) for i in range(lens.dims.n_layers)]
    return [layer for layer, n in enumerate(times) for _ in range(n)]


@one_thread
def layer_lists(lens: Lens, condition: str | Condition) -> dict[str, Any]:
    """Lists for fine-tuning and for quantisation, of the model that a condition leaves.

    Numbers and names are those of the checkpoint that `depthlens.export` writes. Where no layer goes, they are the
    model's own.

    Args:
        lens: A loaded model.
        condition: What is removed or rounded, e.g. ``L8-11`` or ``L3@int4+L5.mlp@int8``.

    Returns:
        ``layers`` (of each layer its number in the whole model); ``layers_to_transform`` and ``layers_pattern`` of
        PEFT's configurations (the layers before and after a gap, and those of which a part was removed or rounded,
        whose adapters can make up for it); ``bits`` (by name of a module, for quantisers that take a precision for
        each); and ``modules_to_not_convert`` of transformers' quantisation configurations (all that is not rounded).

    Raises:
        UserError: a part does not exist in the model.
    """
    chosen = (parse_condition(condition) if isinstance(condition, str) else condition).validate(lens.dims)
    kept, family = kept_layers(lens, chosen), lens.arch.family
    edited = {a.layer for a in chosen.ablations if a.mode not in ("skip", "twice")}
    after_gap = [new for new, (a, b) in enumerate(itertools.pairwise([-1, *kept])) if b != a + 1]
    before_gap = [new for new, (a, b) in enumerate(itertools.pairwise([*kept, lens.dims.n_layers])) if b != a + 1]
    changed = {*after_gap, *before_gap, *(new for new, old in enumerate(kept) if old in edited)}
    bits: dict[str, int] = {}
    plain: list[str] = []
    for new, old in enumerate(kept):
        name = f"{family.layers}.{new}"
        rounded = {a.site: ROUNDED[a.mode] for a in chosen.ablations if a.layer == old and a.mode in ROUNDED}
        parts = {"layer": name, "attn": f"{name}.{family.mixes(old)}", "mlp": f"{name}.{family.mlp}"}
        bits |= {parts[site]: n for site, n in rounded.items() if site in parts}
        plain += [] if "layer" in rounded else _left([parts["attn"], parts["mlp"]], bits, name)
    return {
        "layers": kept,
        "layers_to_transform": sorted(changed),
        "layers_pattern": family.layers.rpartition(".")[2],
        "bits": bits,
        "modules_to_not_convert": [*plain, family.unembed],
    }


def _left(parts: Sequence[str], bits: dict[str, int], layer: str) -> list[str]:
    """Names of what is not rounded in a layer; the layer's own where nothing is."""
    left = [part for part in parts if part not in bits]
    return left if len(left) < len(parts) else [layer]
