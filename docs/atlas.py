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
from depthlens.analysis.result.folder import SUMMARY_FILE
from depthlens.metrics import TOKEN_LOGPROB

HERE = Path(__file__).parent
STORED, FIGURES, PAGE = HERE.parent / "data/examples", HERE / "figures", HERE / "atlas.md"
README = ["hellaswag", "piqa"]
COLUMNS = ["model", "task", "metric", "documents", "score", "critical layers", "centre of the losses"]
TEXT = """# Atlas

What each layer of {n} models costs on published benchmarks: {models}. Every layer was removed by
itself, without examples in the prompts, in {dtype} on {device}. The documents are a fixed random choice
({how}); 25 documents leave wide intervals. `python docs/atlas.py` makes this page from
`data/examples`, which has scores by document number and no text of a benchmark.
`dl.compare(mine, dl.examples("{last}"))` puts a sweep of your own beside one of these models.

## In nats a token of the right answer

![The loss of the right answer's tokens by removed layer, a panel a task](figures/atlas_nats.png)

## In answers

![The loss of right answers by removed layer, a panel a task](figures/atlas_answers.png)

## All numbers

A layer is critical where its loss is shown after correction over all layers. A centre of the losses, in shares of
depth, needs 100 documents.

{table}
"""


def keep(name: str, folders: list[str]) -> None:
    """Store the results of one model under a name of ours, without answers and questions."""
    whole = dl.concat([dl.Result.load(folder) for folder in folders])
    docs = whole.docs.assign(model=name, response="")
    record = whole.record | {"model": whole.record["model"] | {"name": name}}
    replace(whole, docs=docs, record=record, asked=None).save(STORED / name, overwrite=True)
    (STORED / name / SUMMARY_FILE).unlink()


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
    stored = [dl.Result.load(folder) for folder in sorted(STORED.iterdir())]
    results = [result for result in stored if result.asked is None]  # those of published benchmarks have no texts
    shown = [r.primary(with_logprob=True) for r in results]
    table = pd.DataFrame([row for result in shown for row in rows(result)], columns=COLUMNS)
    for metrics, name in (((TOKEN_LOGPROB,), "atlas_nats"), (("acc", "acc_norm"), "atlas_answers")):
        chosen = [r.select(metrics=[m for m in r.docs["metric"].unique() if m in metrics]).primary() for r in results]
        dl.compare(*chosen).plot().save(FIGURES / f"{name}.png")
        if TOKEN_LOGPROB in metrics:  # README's picture
            dl.compare(*(r.select(tasks=README) for r in chosen)).plot().save(FIGURES / "atlas_two.png")
    models = [result.record["model"] for result in results]
    said = {"n": len(models), "models": ", ".join(f"`{m['name']}` ({m['dims']['n_layers']} layers)" for m in models)}
    said |= {key: ", ".join(sorted({m[key] for m in models})) for key in ("dtype", "device")}
    said |= {"how": "[how to get them](howto/without_network.md)", "last": models[-1]["name"]}
    PAGE.write_text(TEXT.format(table=table.to_markdown(index=False), **said))


if __name__ == "__main__":
    if sys.argv[1:2] == ["keep"]:
        keep(sys.argv[2], sys.argv[3:])
    else:
        write()
