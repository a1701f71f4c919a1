"""The atlas: what each layer of some models costs on published benchmarks, made from stored scores.

Usage::

    python docs/atlas.py                       # docs/atlas.md and its figures, from data/examples
    python docs/atlas.py keep NAME RESULT...   # results of one model, as data/examples/NAME: scores, and no text

A stored score has the number of its document. No sentence of a benchmark is kept.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

import depthlens as dl
from depthlens.metrics import TOKEN_LOGPROB

HERE = Path(__file__).parent
STORED, FIGURES, PAGE = HERE.parent / "data/examples", HERE / "figures", HERE / "atlas.md"
COLUMNS = ["model", "task", "metric", "documents", "score", "critical layers", "centre of the losses"]


def keep(name: str, folders: list[str]) -> None:
    """Store the results of one model under a name of ours, without answers and questions."""
    whole = dl.concat([dl.Result.load(folder) for folder in folders])
    docs = whole.docs.assign(model=name, response="")
    record = whole.record | {"model": whole.record["model"] | {"name": name}}
    replace(whole, docs=docs, record=record, asked=None).save(STORED / name, overwrite=True)


def rows(result: dl.Result) -> list[list[str]]:
    """What a model scores on each task, which layers are critical, and where in depth its losses are."""
    found = []
    for whole in result.baselines.itertuples():
        of = result.select(tasks=whole.task, metrics=whole.metric)
        critical = "cannot judge" if whole.at_chance else _layers(of.critical()["layer"].tolist(), result.n_layers)
        (centre,) = of.centre_of_mass().table.itertuples()
        place = f"{centre.centre:.2f} [{centre.ci_low:.2f}, {centre.ci_high:.2f}]" if not centre.unplaced else ""
        score = f"{whole.baseline:.2f} [{whole.ci_low:.2f}, {whole.ci_high:.2f}]"
        found.append([whole.model, whole.task, whole.metric, str(whole.n), score, critical, place])
    return found


def _layers(critical: list[int], n_layers: int) -> str:
    """Critical layers; where they are more than half, those that are not."""
    others = [layer for layer in range(n_layers) if layer not in critical]
    if len(others) >= len(critical):
        return ", ".join(f"L{layer}" for layer in critical) or "none"
    return "all" + " but " * bool(others) + ", ".join(f"L{layer}" for layer in others)


def write() -> None:
    """Make the page of all stored results."""
    results = [dl.Result.load(folder) for folder in sorted(STORED.iterdir())]
    table = pd.DataFrame([row for result in results for row in rows(result)], columns=COLUMNS)
    for metrics, name in ((TOKEN_LOGPROB, "atlas_nats"), (("acc", "acc_norm"), "atlas_answers")):
        chosen = [r.select(metrics=[m for m in r.docs["metric"].unique() if m in metrics]).primary() for r in results]
        dl.compare(*chosen).plot().save(FIGURES / f"{name}.png")
    PAGE.write_text(table.to_markdown(index=False))


if __name__ == "__main__":
    if sys.argv[1:2] == ["keep"]:
        keep(sys.argv[2], sys.argv[3:])
    else:
        write()
