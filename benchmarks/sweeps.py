"""The same sweep in several ways, alternating: methods for heads, backends, the store, and workers.

Usage::

    python benchmarks/sweeps.py [--ways methods,backends,store,workers] [--repeats 3] [--documents 16]

- ``methods``: attribution and integrated gradients of all heads against the exact sweep, and how well they rank heads.
- ``backends``: TransformerLens and nnsight against the fast path.
- ``store``: what keeping answers costs a sweep that is computed, and what it saves one that is not.
- ``workers``: this process against one worker of Ray and two, of one thread each, which hold the model beforehand.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial

import torch
import typer
from shared import alternating, show

import depthlens as dl
from depthlens.analysis.rank_correlations import in_words

TASKS = ("capitals_continuation", "kv_retrieval_4_continuation")


def methods(sweep: Callable[..., dl.Result], lens: dl.Lens, repeats: int) -> None:
    names = ("exact", "attribution", "integrated_gradients")
    for task in TASKS:
        of_heads = partial(dl.head_sweep, lens, task, measure="answer_logprob", **sweep.keywords)
        seconds, found = alternating({name: partial(of_heads, method=name) for name in names}, repeats)
        agreement = {name: dl.analysis.head_agreement(found["exact"], found[name]) for name in names[1:]}
        show(f"all heads on {task}", seconds, ranks={name: in_words(a.table.iloc[0]) for name, a in agreement.items()})


def backends(sweep: Callable[..., dl.Result], lens: dl.Lens, repeats: int) -> None:
    seconds, found = alternating({name: partial(sweep, backend=name) for name in dl.backends.BACKENDS}, repeats)
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


WAYS = {way.__name__: way for way in (methods, backends, store, workers)}


def main(ways: str = ",".join(WAYS), repeats: int = 3, documents: int = 16, num_fewshot: int = 0) -> None:
    """Print a table for each of the ways."""
    lens = dl.load("smollm2-135m")
    options = {"limit": documents, "num_fewshot": num_fewshot, "store": None, "progress": False}
    for name in ways.split(","):
        WAYS[name](partial(dl.layer_sweep, lens, TASKS[0], **options), lens, repeats)


if __name__ == "__main__":
    typer.run(main)
