"""Activation patching compared with a loop of TransformerLens hooks over the same grid of layers and tokens.

    python benchmarks/patching.py [--repeats 3] [--positions 20]

Both patch what attention writes, at every layer and token of one prompt, into another prompt, in one process and in
alternation. Printed are the median of the ratios and the largest difference of an effect.
"""

from __future__ import annotations

import functools

import numpy as np
import shared
import torch
import typer

import depthlens as dl

CLEAN = "Alice went to the market with a list that her old mother had written, and there she bought some"
CORRUPTED = "Robert went to the market with a list that her old mother had written, and there she bought some"


def by_hooks(bridge: torch.nn.Module, tokens: list[torch.Tensor], answers: list[int], n_layers: int) -> np.ndarray:
    """The usual way: one forward pass with a hook for each cell. Shape [layer, pos]."""

    def put(value: torch.Tensor, hook: object, source: torch.Tensor, at: int) -> torch.Tensor:
        value[:, at] = source[:, at]
        return value

    def difference(logits: torch.Tensor) -> float:
        return float(logits[0, -1, answers[0]] - logits[0, -1, answers[1]])

    clean, cache = bridge.run_with_cache(tokens[0])
    whole, base = difference(clean), difference(bridge(tokens[1]))
    found = np.zeros((n_layers, tokens[0].shape[1]))
    for layer, at in np.ndindex(found.shape):
        name = f"blocks.{layer}.hook_attn_out"
        hook = functools.partial(put, source=cache[name], at=at)
        found[layer, at] = difference(bridge.run_with_hooks(tokens[1], fwd_hooks=[(name, hook)]))
    return (found - base) / (whole - base)


def main(model: str = "smollm2-135m", repeats: int = 3, positions: int = 20) -> None:
    """Time both, and compare."""
    lens = dl.load(model)
    rows = [lens.tokenizer(text).input_ids[:positions] for text in (CLEAN, CORRUPTED)]
    texts = [lens.tokenizer.decode(row) for row in rows]
    tokens = [torch.tensor([row], device=lens.device) for row in rows]
    with torch.no_grad():
        answers = [int(lens.model(row).logits[0, -1].topk(3).indices[i]) for i, row in enumerate(tokens)]
    words = tuple(lens.tokenizer.decode([answer]) for answer in answers)
    ways = {
        "depthlens": lambda: dl.patch(lens, *texts, "attn", answer=words, progress=False).effect.value,
        "TransformerLens hooks": lambda: by_hooks(lens.bridge, tokens, answers, lens.dims.n_layers),
    }
    with torch.no_grad():
        seconds, found = shared.alternating(ways, repeats)
    ours, theirs = found.values()
    apart = float(np.abs(ours - theirs).max())
    shared.show(f"{ours.shape[0]} layers x {ours.shape[1]} tokens, effects within {apart:.1e}", seconds)


if __name__ == "__main__":
    typer.run(main)
