"""Races against full sweeps on the embedded model: forward work, and whether their decisions agree.

Run: ``python benchmarks/racing.py [--documents 2000] [--dtype bfloat16]``: an hour on two cores.

Documents are generated as those of the embedded tasks are, with other seeds. A full sweep of all layers is compared
with races on the same documents in five random orders. A decision is not shared by the sweep where a layer is not
critical in it, or its interval reaches the margin. Work is tokens that pass a layer, as the engine counts them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import typer
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

import generate  # noqa: E402

import depthlens as dl  # noqa: E402
from depthlens.analysis.races import CRITICAL, SPARED  # noqa: E402
from depthlens.paths import tasks_dir  # noqa: E402

DOCUMENTS, MARGIN, ALPHA, ORDERS = 2000, 0.1, 0.05, 5
TASKS = {"racing_kv": "kv_retrieval/kv_retrieval_4", "racing_arithmetic": "arithmetic/arithmetic_continuation"}
# one that is above chance on the task, as smollm2-135m is not on arithmetic (0.24 of 2,000): nothing would be judged
MODELS = {"racing_kv": "smollm2-135m", "racing_arithmetic": "smollm2-135m-direct"}


def made(folder: Path, n: int) -> None:
    """Write two tasks of n documents each."""
    documents = {"racing_kv": generate.kv_docs(n, 4, generate.named_codes, Random("racing"))}
    generate.N_PROBLEMS = n
    generate.rng = lambda name: Random(f"racing {name}")
    documents["racing_arithmetic"] = generate.arithmetic()["arithmetic/choice_test.jsonl"]
    for name, docs in documents.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
        path = tasks_dir() / f"{TASKS[name]}.yaml"
        text = yaml.safe_load(path.read_text())
        files = {"test": str(folder / f"{name}.jsonl"), "fewshot": text["dataset_kwargs"]["fewshot"]}
        own = {"include": str(path), "task": name, "num_fewshot": 0, "dataset_kwargs": files}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(own))


def raced(lens: dl.Lens, name: str, n: int, **about: Any) -> pd.DataFrame:
    """What races in five orders decide, and how many times less work they take than a sweep: a row an order."""
    swept = dl.layer_sweep(lens, name, limit=n, measure="task", **about).primary()
    losses = swept.losses().set_index("condition")
    by_all = {CRITICAL: losses.index.isin(swept.critical()["condition"]), SPARED: losses["loss_high"] < MARGIN}
    rows = []
    for seed in range(ORDERS):
        found = dl.race(lens, name, "layers", margin=MARGIN, alpha=ALPHA, limit=n, seed=seed, **about)
        decisions = found.decisions.set_index("condition").loc[losses.index]
        read = decisions["n"].sum() + decisions["n"].max()
        all_of_it, less = (result.record["work"]["layer_tokens"] for result in (swept, found))
        row = {"task": name, "times less work": all_of_it / less}
        row |= {"times fewer rows": n * (len(decisions) + 1) / read, "of": len(decisions)}
        row["decided"] = decisions["decision"].isin([*by_all]).sum()
        row["not by the sweep"] = sum(((decisions["decision"] == says) & ~yes).sum() for says, yes in by_all.items())
        rows.append(row)
    return pd.DataFrame(rows)


def main(documents: int = DOCUMENTS, dtype: str = "float32") -> None:
    """Print all comparisons."""
    with tempfile.TemporaryDirectory() as folder:
        made(Path(folder), DOCUMENTS)
        about: dict[str, Any] = {"include_path": folder, "store": None, "progress": False}
        for task, model in MODELS.items():
            print(raced(dl.load(model, dtype=dtype), task, documents, **about).to_markdown(floatfmt=".3g"), flush=True)


if __name__ == "__main__":
    typer.run(main)
