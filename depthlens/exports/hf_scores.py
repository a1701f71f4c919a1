"""What lm-eval's own ``hf`` model makes of an exported checkpoint, beside the scores of its condition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from depthlens import arguments
from depthlens.ablations import parse_condition
from depthlens.analysis.results import Result
from depthlens.errors import UserError
from depthlens.tasks import task_index

BATCH_SIZE = 8


def hf_scores(folder: str | Path, result: Result, condition: str, *, device: str = "cpu") -> pd.DataFrame:
    """Score a checkpoint by lm-eval's ``hf`` on the documents of a sweep, beside the condition that it was made from.

    Tasks, examples, seed, chat template and dtype are those of the sweep. Nothing of depthlens computes here.

    Args:
        folder: What `depthlens.export` wrote.
        result: A sweep, of lm-eval's metrics, in which the condition was scored.
        condition: As its text.
        device: As torch names it.

    Returns:
        One row a task, metric and document: task, metric, doc_id, condition (its score), checkpoint (that of ``hf``).

    Raises:
        UserError: there is no checkpoint, or the result lacks the condition or has no metric of lm-eval.
    """
    import lm_eval  # slow to import
    from lm_eval.models.huggingface import HFLM

    arguments.result(result)
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"folder {str(folder)!r} holds no checkpoint; give one that dl.export wrote")
    docs = result.docs[result.docs["condition"] == str(parse_condition(condition))]
    if docs.empty:
        raise UserError(f"condition {condition!r} is not in the result; give one that was swept")
    record = result.record
    model = HFLM(pretrained=str(folder), dtype=record["model"]["dtype"], device=device, batch_size=BATCH_SIZE)
    found: list[dict[str, Any]] = []
    for task, rows in docs.groupby("task", sort=False):
        scores = lm_eval.simple_evaluate(
            model=model,
            tasks=[task],
            task_manager=task_index.task_manager([task], record["include_path"]),
            num_fewshot=record["tasks"][task]["num_fewshot"],
            samples={str(task): sorted(map(int, rows["doc_id"].unique()))},
            fewshot_random_seed=record["seed"],
            apply_chat_template=record["apply_chat_template"],
            system_instruction=record["system_instruction"],
            gen_kwargs=record["gen_kwargs"],
            bootstrap_iters=0,
        )
        assert scores is not None  # it is None on other ranks than the first
        samples = scores["samples"][task]
        several = len({sample["filter"] for sample in samples}) > 1
        for sample in samples:
            for metric in sample["metrics"]:
                name = f"{metric},{sample['filter']}" if several else metric
                found.append({"metric": name, "doc_id": sample["doc_id"], "task": task, "checkpoint": sample[metric]})
    ours = docs[["task", "metric", "doc_id", "value"]].rename(columns={"value": "condition"})
    both = ours.merge(pd.DataFrame(found), on=["task", "metric", "doc_id"])
    if both.empty:
        raise UserError("the result has no metric of lm-eval; sweep with measure='task'")
    return both.astype({"checkpoint": float})
