"""Races against full sweeps on the embedded model: forward work, and whether their decisions agree.

Run: ``python benchmarks/racing.py [--part NAME]... [--documents 2000] [--heads 200] [--dtype bfloat16] [--store DIR]``.
An hour on two cores with bfloat16 arithmetic. A store keeps the sweeps, so that a run that was cut off goes on.

Documents are generated as those of the embedded tasks are, with other seeds. Two parts:

- *layers*: a full sweep of all layers on ``--documents`` documents, and races on the same documents in five random
  orders. The sweep decides *critical* by Holm-corrected tests, and *below the margin* by its non-inferiority test. What
  a race costs is counted wave by wave, as the engine plans it, and not computed again;
- *heads*: a full sweep of all heads on ``--heads`` documents, from which 2,000 are drawn with replacement in five
  random orders, and raced for the eight costliest. Work is rows here: conditions times documents.
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
from racing_errors import top_race
from scipy import stats as sps
from statsmodels.stats.multitest import multipletests

import depthlens as dl
from depthlens.analysis.races import CRITICAL, SPARED
from depthlens.paths import tasks_dir
from depthlens.tasks import harness

DOCUMENTS, MARGIN, ALPHA, ORDERS, TOP = 2000, 0.1, 0.05, 5, 8
PARTS = ("layers", "heads")
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


def operations(lens: dl.Lens, task: dict[str, Any], conditions: list[str], **about: Any) -> float:
    """Floating point operations of a sweep, as the engine plans it."""
    return float(dl.plan(lens, task, conditions, measured=False, **{**about, "store": None}).table["flops"].sum())


def raced(lens: dl.Lens, name: str, n: int, about: dict[str, Any]) -> None:
    """Print what races in five orders decide, and how many fewer operations they take than a sweep."""
    swept = dl.layer_sweep(lens, name, limit=n, measure="task", **about)
    (metric,) = swept.primary().docs["metric"].unique()
    critical, small = decided_by_all(swept.document_losses(name, metric).clip(-1, 1))
    task = harness.load_tasks([name], include_path=about["include_path"])
    all_of_it = operations(lens, task, ["layers"], limit=n, **about)
    for seed in range(ORDERS):
        found = dl.race(lens, name, "layers", margin=MARGIN, alpha=ALPHA, limit=n, seed=seed, **about)
        decided = found.decisions.set_index("condition")["decision"].loc[critical.index]  # each has been swept
        both = decided.isin([CRITICAL, SPARED])
        conflicts = ((decided == CRITICAL) & ~critical) | ((decided == SPARED) & ~small)
        spent = sum(
            operations(lens, task, [*wave["condition"].unique()], samples=sorted(wave["doc_id"].unique()), **about)
            for _, wave in found.losses.groupby("wave")
        )
        assert found.record["n_baseline"][name] == found.decisions["n"].max(), "the whole model has read more"
        read = found.decisions["n"].sum() + found.decisions["n"].max()
        print(
            f"{name}, order {seed}: {all_of_it / spent:.1f}x fewer operations, {n * (len(decided) + 1) / read:.1f}x "
            f"fewer rows, {both.sum()} of {len(decided)} decided, {conflicts.sum()} not by the sweep",
            flush=True,
        )


def costliest_heads(lens: dl.Lens, task: str, n: int, about: dict[str, Any]) -> None:
    """Print what races for the costliest heads find."""
    heads = dl.head_sweep(lens, task, limit=n, measure="answer_logprob", **about)
    losses = np.clip(heads.document_losses(task, "answer_logprob").to_numpy(), -1, 1)
    guess = dl.head_sweep(lens, task, method="attribution", samples=range(DOCUMENTS - 16, DOCUMENTS), **about)
    order = np.argsort(-guess.document_losses(task, "answer_logprob").to_numpy().mean(0), kind="stable")
    for seed in range(ORDERS):
        drawn = losses[np.random.default_rng(seed).integers(0, len(losses), DOCUMENTS)]
        best, rows, found, _ = top_race(drawn, order, TOP, bound=2.0)
        truth, worst = np.sort(losses.mean(0))[-TOP], losses.mean(0)[best].min()
        print(f"order {seed}: {drawn.size / rows.sum():.1f}x fewer rows, {found=}, least {worst:.3f}, 8th {truth:.3f}")


def main() -> None:
    """Print all comparisons."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    parser.add_argument("--heads", type=int, default=200)
    parser.add_argument("--dtype", default="float32", help="of the model")
    parser.add_argument("--store", help="folder that keeps the sweeps; a temporary one without")
    options = parser.parse_args()
    parts = options.part or PARTS
    with tempfile.TemporaryDirectory() as folder:
        made(Path(folder), DOCUMENTS)
        about: dict[str, Any] = {"include_path": folder, "store": options.store or f"{folder}/store", "progress": False}
        if "layers" in parts:
            for task in TASKS:
                raced(dl.load(MODELS[task], dtype=options.dtype), task, options.documents, about)
        if "heads" in parts:
            lens = dl.load(MODELS["racing_kv"], dtype=options.dtype)
            costliest_heads(lens, "racing_kv", options.heads, about)


if __name__ == "__main__":
    main()
