"""The words of a sweep, each of which means many conditions: ``layers``, ``heads[1:]``, ``blocks:4`` and the like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from depthlens.ablations.conditions import BASELINE, ENDS, Ablation, Condition, Dims, How, parse_condition, split
from depthlens.errors import UserError


def expand(spec: str | Iterable[str | Condition], dims: Dims) -> list[Condition]:
    """The conditions that a specification means, baseline first.

    Args:
        spec: Words and conditions, as a comma-separated text or a sequence. Words, each with an optional first position
            and mode as in ``layers@mean``, ``layers[1:]`` or ``heads[1:]@noise3``: ``layers``, ``attn``, ``mlp``,
            ``heads``, ``kv``, ``experts``; ``layersx2``; ``layers:N``, ``attn:N`` and ``mlp:N`` (N of them, evenly
            spread over the depth; all where there are fewer); ``blocks:N`` (all contiguous blocks of at most N layers);
            ``bottom`` and ``top`` (the lowest, or highest, 1, 2 .. n_layers layers; ``bottom:N`` and ``top:N`` grow by
            N layers, in the end to all); ``whole@donor`` (every layer and both embeddings: the donor itself).
        dims: The model's sizes.

    Raises:
        UserError: unknown word, malformed condition, or a part that the model does not have.
    """
    allowed = "layers, attn, mlp, heads, kv, experts, blocks:N, layers:N, bottom[:N], top[:N] or conditions"
    if not isinstance(spec, Iterable) or isinstance(spec, Mapping):
        raise UserError(f"ablate {spec!r}: give {allowed}")
    items = [t for t in spec.split(",") if t.strip()] if isinstance(spec, str) else list(spec)
    if not items:
        raise UserError(f"nothing to ablate in {spec!r}; give {allowed}")
    if wrong := [item for item in items if not isinstance(item, str | Condition)]:
        raise UserError(f"ablate {wrong[0]!r}: give {allowed}, each as a text")
    conditions = [BASELINE]
    for item in items:
        if isinstance(item, Condition):
            conditions.append(item)
        else:
            conditions += _expand_word(*split(item.strip()), dims) or [parse_condition(item)]
    return list(dict.fromkeys(condition.validate(dims) for condition in conditions))


def _expand_word(word: str, how: How, dims: Dims) -> list[Condition] | None:
    """The conditions of a word such as ``layers``; None where ``word`` is not one."""
    layers = range(dims.n_layers)
    name, _, size = word.partition(":")
    if name == "blocks" or (name in ("bottom", "top", "layers", "attn", "mlp") and ":" in word):
        if not size.isdecimal() or not int(size):
            raise UserError(f"size {size!r} in {word!r}; give {name}:N with N a whole number, at least 1")
    if name == "blocks":
        parts = [
            [Ablation(layer, **how) for layer in layers[start : start + n]]
            for n in range(1, min(int(size), dims.n_layers) + 1)
            for start in range(dims.n_layers - n + 1)
        ]
    elif name in ("bottom", "top"):
        lengths = [*range(int(size or 1), dims.n_layers, int(size or 1)), dims.n_layers]
        runs = [layers[:n] if name == "bottom" else layers[-n:] for n in lengths]
        parts = [[Ablation(layer, **how) for layer in run] for run in runs]
    elif word == "whole":
        if how["mode"] != "donor":
            raise UserError(f"{word!r} can only be taken from a donor; write whole@donor")
        embeddings = [Ablation(-1, site, **how) for site in ENDS]
        parts = [[Ablation(layer, **how) for layer in layers] + embeddings]
    elif name in ("layers", "attn", "mlp"):
        n = min(int(size or dims.n_layers), dims.n_layers)
        spread = [(2 * i + 1) * dims.n_layers // (2 * n) for i in range(n)]  # the middle of each n-th of the depth
        parts = [[Ablation(layer, name.replace("layers", "layer"), **how)] for layer in spread]
    elif word in ("heads", "kv"):
        site, count = ("head", dims.n_heads) if word == "heads" else ("kv", dims.n_kv_heads)
        with_heads = [layer for layer in layers if layer not in dims.headless]
        parts = [[Ablation(layer, site, i, **how)] for layer in with_heads for i in range(count)]
    elif word == "experts":
        if not any(dims.n_experts):
            raise UserError(f"{word!r}: the model has no experts; give layers, attn, mlp, heads or kv")
        parts = [
            [Ablation(layer, "expert", i, **how)] for layer, n in enumerate(dims.n_experts) if n > 1 for i in range(n)
        ]
    else:
        return None
    return [Condition(tuple(p)) for p in parts]
