"""The same work in several ways, alternating: methods for heads, backends, the store, workers, a race, and patching.

Usage::

    python benchmarks/sweeps.py [--ways methods,races,patching] [--repeats 3] [--documents 16]

- ``methods``: attribution and integrated gradients of all heads against the exact sweep, and how well they rank heads.
- ``backends``: TransformerLens and nnsight against the fast path.
- ``store``: what keeping answers costs a sweep that is computed, and what it saves one that is not.
- ``workers``: this process against one worker of Ray and two, of one thread each, which hold the model beforehand.
- ``races``: a race of all layers on all documents, its work, and which layers are critical in it and not in the sweep.
- ``patching``: what attention writes, at every layer and token of a prompt, put into another one by `dl.patch` and by a
  loop of TransformerLens hooks over the same grid.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import typer
from shared import alternating, show

import depthlens as dl
from depthlens.analysis.numbers.betting import CRITICAL
from depthlens.analysis.numbers.ranks import in_words
from depthlens.arguments import BACKENDS

TASKS = ("capitals_continuation", "kv_retrieval_4_continuation")


def methods(sweep: Callable[..., dl.Result], lens: dl.Lens, repeats: int) -> None:
    names = ("exact", "attribution", "integrated_gradients")
    for task in TASKS:
        of_heads = partial(dl.head_sweep, lens, task, measure="answer_logprob", **sweep.keywords)
        seconds, found = alternating({name: partial(of_heads, method=name) for name in names}, repeats)
        agreement = {name: dl.agreement(found["exact"], found[name]) for name in names[1:]}
        show(f"all heads on {task}", seconds, ranks={name: in_words(a.table.iloc[0]) for name, a in agreement.items()})


def backends(sweep: Callable[..., dl.Result], lens: dl.Lens, repeats: int) -> None:
    seconds, found = alternating({name: partial(sweep, backend=name) for name in BACKENDS}, repeats)
    apart = {name: (r.docs["value"] - found["torch"].docs["value"]).abs().max() for name, r in found.items()}
    show("all layers by backend", seconds, apart=apart)


def store(sweep: Callable[..., dl.Result], lens: dl.Lens, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        places = iter(range(repeats))
        runs = {
            "without": sweep,
            "into a store": lambda: sweep(store=f"{folder}/{next(places)}"),
            "read": lambda: sweep(store=f"{folder}/0"),
        }
        seconds, found = alternating(runs, repeats)
    assert all(result.docs.equals(found["without"].docs) for result in found.values()), "the documents differ"
    show("all layers and the store", seconds)


def workers(sweep: Callable[..., dl.Result], lens: dl.Lens, repeats: int) -> None:
    torch.set_num_threads(1)
    runs = {"here": sweep, **{f"{n} workers": partial(sweep, workers=n, worker_cpus=1) for n in (1, 2)}}
    alternating(runs, 1)  # the workers load the model
    seconds, found = alternating(runs, repeats)
    assert all(result.docs.equals(found["here"].docs) for result in found.values()), "the scores differ"
    show("all layers by workers", seconds)


def races(sweep: Callable[..., dl.Result], lens: dl.Lens, repeats: int) -> None:
    alike = {**sweep.keywords, "limit": None}
    runs = {"sweep": partial(sweep, **alike), "race": partial(dl.race, lens, TASKS[0], "layers", **alike)}
    seconds, found = alternating(runs, repeats)
    critical = {"sweep": {*found["sweep"].primary().critical()["condition"]}, "race": {*found["race"].of(CRITICAL)}}
    work = {name: result.record["work"]["layer_tokens"] for name, result in found.items()}
    told = {
        name: f"{len(of)}, of which {len(of - critical['sweep'])} not in the sweep" for name, of in critical.items()
    }
    show("all layers by a race", seconds, work=work, critical=told)


PROMPT = "{} went to the market with a list that her old mother had written, and there she bought some"


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
        hook = partial(put, source=cache[name], at=at)
        found[layer, at] = difference(bridge.run_with_hooks(tokens[1], fwd_hooks=[(name, hook)]))
    return (found - base) / (whole - base)


@torch.no_grad()
def patching(sweep: Callable[..., dl.Result], lens: dl.Lens, repeats: int) -> None:
    rows = [lens.tokenizer(PROMPT.format(name)).input_ids for name in ("Alice", "Robert")]
    texts, tokens = [lens.tokenizer.decode(row) for row in rows], [torch.tensor([row]) for row in rows]
    answers = [int(lens.model(row).logits[0, -1].topk(3).indices[i]) for i, row in enumerate(tokens)]
    words = tuple(lens.tokenizer.decode([answer]) for answer in answers)
    ways = {
        "depthlens": lambda: dl.patch(lens, *texts, "attn", answer=words, progress=False).effect.value,
        "TransformerLens hooks": lambda: by_hooks(lens.bridge, tokens, answers, lens.dims.n_layers),
    }
    seconds, found = alternating(ways, repeats)
    apart = {name: np.abs(effects - found["depthlens"]).max() for name, effects in found.items()}
    show(f"patching of {found['depthlens'].shape} layers and tokens", seconds, apart=apart)


WAYS = {way.__name__: way for way in (methods, backends, store, workers, races, patching)}


def main(ways: str = ",".join(WAYS), repeats: int = 3, documents: int = 16, num_fewshot: int = 0) -> None:
    """Print a table for each of the ways."""
    lens = dl.load("smollm2-135m")
    options = {"limit": documents, "num_fewshot": num_fewshot, "store": None, "progress": False}
    for name in ways.split(","):
        WAYS[name](partial(dl.layer_sweep, lens, TASKS[0], **options), lens, repeats)


if __name__ == "__main__":
    typer.run(main)
