"""Races against full sweeps on the embedded model: forward work, and whether their decisions agree.

Run: ``python benchmarks/racing.py [--documents 2000] [--dtype bfloat16]``: an hour on two cores.

Documents are generated as those of the embedded tasks are, with other seeds. A full sweep of all layers is compared
with races on the same documents in five random orders. The sweep decides *critical* by Holm-corrected tests, and *below
the margin* by its non-inferiority test. Work is tokens that pass a layer, as the engine counts them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy import stats as sps
from statsmodels.stats.multitest import multipletests

import depthlens as dl
from depthlens.analysis.races import CRITICAL, SPARED
from depthlens.paths import tasks_dir

DOCUMENTS, MARGIN, ALPHA, ORDERS = 2000, 0.1, 0.05, 5
TASKS = {"racing_kv": "kv_retrieval/kv_retrieval_4", "racing_arithmetic": "arithmetic/arithmetic_continuation"}
# one that is above chance on the task, as smollm2-135m is not on arithmetic (0.24 of 2,000): nothing would be judged
MODELS = {"racing_kv": "smollm2-135m", "racing_arithmetic": "smollm2-135m-direct"}


def made(folder: Path, n: int) -> None:
    """Write two tasks of n documents each."""
    source = Path(__file__).parents[1] / "data" / "generate.py"
    spec = importlib.util.spec_from_file_location("generate", source)
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
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


def decided_by_all(losses: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Which conditions a full sweep calls critical, and which below the margin. One column a condition."""
    p_cost = sps.ttest_1samp(losses, 0, alternative="greater").pvalue
    p_small = sps.ttest_1samp(losses, MARGIN, alternative="less").pvalue
    still = losses.std() == 0  # nothing changed on any document
    corrected = [
        multipletests(np.where(still, p, p_all), ALPHA, "holm")[0] for p, p_all in ((1.0, p_cost), (0.0, p_small))
    ]
    critical, small = (pd.Series(reject, losses.columns) for reject in corrected)
    return critical, small


def raced(lens: dl.Lens, name: str, n: int, about: dict[str, Any]) -> None:
    """Print what races in five orders decide, and how many times less work they take than a sweep."""
    swept = dl.layer_sweep(lens, name, limit=n, measure="task", **about)
    (metric,) = swept.primary().docs["metric"].unique()
    critical, small = decided_by_all(swept.document_losses(name, metric).clip(-1, 1))
    all_of_it = swept.record["work"]["layer_tokens"]
    for seed in range(ORDERS):
        found = dl.race(lens, name, "layers", margin=MARGIN, alpha=ALPHA, limit=n, seed=seed, **about)
        decided = found.decisions.set_index("condition")["decision"].loc[critical.index]  # each has been swept
        both = decided.isin([CRITICAL, SPARED])
        conflicts = ((decided == CRITICAL) & ~critical) | ((decided == SPARED) & ~small)
        assert found.record["n_baseline"][name] == found.decisions["n"].max(), "the whole model has read more"
        read = found.decisions["n"].sum() + found.decisions["n"].max()
        less = all_of_it / found.record["work"]["layer_tokens"]
        print(
            f"{name}, order {seed}: {less:.1f}x less work, {n * (len(decided) + 1) / read:.1f}x "
            f"fewer rows, {both.sum()} of {len(decided)} decided, {conflicts.sum()} not by the sweep",
            flush=True,
        )


def main() -> None:
    """Print all comparisons."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    parser.add_argument("--dtype", default="float32", help="of the model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made(Path(folder), DOCUMENTS)
        about: dict[str, Any] = {"include_path": folder, "store": None, "progress": False}
        for task in TASKS:
            raced(dl.load(MODELS[task], dtype=options.dtype), task, options.documents, about)


if __name__ == "__main__":
    main()
