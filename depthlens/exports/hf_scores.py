"""What lm-eval's own ``hf`` model makes of an exported checkpoint, beside the scores of its condition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from depthlens import arguments
from depthlens.ablations import parse_condition
from depthlens.analysis.results import Result
from depthlens.tasks import groups

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
        UserError: the result lacks the condition.
    """
    import lm_eval  # slow to import
    from lm_eval.models.huggingface import HFLM

    arguments.result(result)
    name, record = str(parse_condition(condition)), result.record
    docs = result.select(conditions=[name]).docs.query("condition == @name")
    model = HFLM(pretrained=str(folder), dtype=record["model"]["dtype"], device=device, batch_size=BATCH_SIZE)
    found: list[dict[str, Any]] = []
    for task, rows in docs.groupby("task", sort=False):
        scores = lm_eval.simple_evaluate(
            model=model,
            tasks=[task],
            task_manager=groups.task_manager([task], record["include_path"]),
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
                of = {"metric": f"{metric},{sample['filter']}" if several else metric, "doc_id": sample["doc_id"]}
                found.append({"task": task, **of, "checkpoint": sample[metric]})
    ours = docs[["task", "metric", "doc_id", "value"]].rename(columns={"value": "condition"})
    both = ours.merge(pd.DataFrame(found), on=["task", "metric", "doc_id"])
    return both.astype({"checkpoint": float})
