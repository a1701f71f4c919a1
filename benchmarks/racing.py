"""Races against full sweeps on the embedded model: forward tokens, and whether their decisions agree.

Run: ``python benchmarks/racing.py [--part tokens]... [--documents 500] [--heads 200] [--dtype bfloat16]``. Two hours
on two cores in float32.

Documents are generated as those of the embedded tasks are, with other seeds. Three parts:

- *tokens*: one race of all layers on 2,000 documents, against what a sweep of all 2,000 would read, which is counted
  and not computed;
- *decisions*: a full sweep of ``--documents`` documents, from which 2,000 are drawn with replacement in five random
  orders, and raced. The full sweep decides *critical* by Holm-corrected tests on the same 2,000, and *below the margin*
  by its non-inferiority test. Tokens are rows here: conditions times documents;
- *heads*: the same of ``--heads`` documents and all heads, for the eight costliest.
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
import yaml
from racing_errors import race, top_race
from scipy import stats as sps
from statsmodels.stats.multitest import multipletests

import depthlens as dl
from depthlens.analysis.races import CRITICAL, SPARED
from depthlens.paths import tasks_dir

DOCUMENTS, MARGIN, ALPHA, ORDERS, TOP = 2000, 0.1, 0.05, 5, 8
PARTS = ("tokens", "decisions", "heads")
TASKS = {"racing_kv": "kv_retrieval/kv_retrieval_4", "racing_arithmetic": "arithmetic/arithmetic_continuation"}


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


def decided_by_all(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which conditions a full sweep calls critical, and which below the margin. Shape [document, condition]."""
    p_cost = sps.ttest_1samp(losses, 0, alternative="greater").pvalue
    p_small = sps.ttest_1samp(losses, MARGIN, alternative="less").pvalue
    still = losses.std(0) == 0  # nothing changed on any document
    p_cost, p_small = np.where(still, 1.0, p_cost), np.where(still, 0.0, p_small)
    return multipletests(p_cost, ALPHA, "holm")[0], multipletests(p_small, ALPHA, "holm")[0]


def replayed(result: dl.Result, task: str, metric: str) -> dict[str, Any]:
    """Five races on documents drawn from a sweep, beside what all of them decide."""
    losses = np.clip(result.document_losses(task, metric).to_numpy(), -1, 1)
    ratios, conflicts, both = [], 0, 0
    for seed in range(ORDERS):
        drawn = losses[np.random.default_rng(seed).integers(0, len(losses), DOCUMENTS)]
        names, n = race(drawn, MARGIN)
        critical, small = decided_by_all(drawn)
        decided = np.array(names)
        conflicts += int(((decided == CRITICAL) & ~critical).sum() + ((decided == SPARED) & ~small).sum())
        both += int(((decided == CRITICAL) | (decided == SPARED)).sum())
        ratios.append(DOCUMENTS * (losses.shape[1] + 1) / (n.sum() + n.max()))
    return {
        "ratio": round(float(np.median(ratios)), 1),
        "ratios": [round(float(r), 1) for r in ratios],
        "conflicts": conflicts,
        "decided": both,
    }


def raced(lens: dl.Lens, task: str, about: dict[str, Any]) -> None:
    """Print what a race decides, and how many fewer tokens it reads than a sweep."""
    found = dl.race(lens, task, "layers", margin=MARGIN, alpha=ALPHA, **about)
    most = dl.plan(lens, task, "layers", measured=False, store=None, **about)
    tokens = most.table["tokens"].sum() / found.record["work"]["tokens"]
    print(f"{task}: {found.record['work']['seconds']:.0f} s, {tokens:.1f}x fewer tokens", *found.describe(), sep="\n")


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
    parser.add_argument("--documents", type=int, default=500)
    parser.add_argument("--heads", type=int, default=200)
    parser.add_argument("--dtype", default="float32", help="of the model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made(Path(folder), DOCUMENTS)
        lens = dl.load("smollm2-135m", dtype=options.dtype)
        about: dict[str, Any] = {"include_path": folder, "progress": False}
        parts = options.part or PARTS
        for task in TASKS:
            if "tokens" in parts:
                raced(lens, task, about)
            if "decisions" in parts:
                swept = dl.layer_sweep(lens, task, limit=options.documents, measure="task", **about)
                (metric,) = swept.primary().docs["metric"].unique()
                print(f"{task}, {options.documents} documents: {replayed(swept, task, metric)}", flush=True)
        if "heads" in parts:
            costliest_heads(lens, "racing_kv", options.heads, about)


if __name__ == "__main__":
    main()
