"""Contrasts of synthetic profiles whose depth is known, and the figure of their losses."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import tiny

import depthlens as dl
from depthlens.analysis.results import Result
from depthlens.claims import depth_contrasts
from depthlens.errors import UserError

N_LAYERS, N_DOCS = 6, 60
EARLY, LATE = [0.9, 0.8, 0.1, 0.1, 0.0, 0.0], [0.1, 0.0, 0.3, 0.4, 0.8, 0.9]


def synthetic(tasks, logprobs=None):
    """tasks: {name: (accuracy of the whole model, share of right answers lost without each layer)}."""
    rng = np.random.default_rng(0)
    rows, record = [], {"tasks": {}, "model": {"dims": {"n_layers": N_LAYERS}}}
    conditions = [("baseline", None), *((f"L{i}", i) for i in range(N_LAYERS))]
    for task, (base, lost) in tasks.items():
        info = {"acc": {"chance": 0.25}, "acc_norm": {"chance": 0.25}}
        right, luck = rng.random(N_DOCS) < base, rng.random((N_LAYERS, N_DOCS))
        for name, layer in conditions:
            kept = right if layer is None else right & (luck[layer] >= lost[layer])
            for metric in info:
                rows += [("m", task, metric, name, layer, None, i, float(v), "") for i, v in enumerate(kept)]
        if logprobs and task in logprobs:
            info["answer_logprob"] = {"chance": None}
            for name, layer in conditions:
                value = -2.0 if layer is None else -2.0 - 5 * logprobs[task][layer]
                noise = rng.normal(0, 0.1, N_DOCS)
                rows += [
                    ("m", task, "answer_logprob", name, layer, None, i, value + e, "") for i, e in enumerate(noise)
                ]
        record["tasks"][task] = {"metrics": info}
    columns = ["model", "task", "metric", "condition", "layer", "head", "doc_id", "value", "response"]
    return Result(pd.DataFrame(rows, columns=columns), record)


def test_views_are_the_first_metric_and_the_likelihood():
    seen = depth_contrasts.views(synthetic({"cot": (0.9, LATE), "facts": (0.9, EARLY)}, {"cot": EARLY}))
    pairs = set(seen.docs[["task", "metric"]].itertuples(index=False, name=None))
    assert pairs == {("cot", "acc"), ("cot", "answer_logprob"), ("facts", "acc")}


def test_what_lies_deeper_is_shown_and_what_lies_less_deep_is_the_opposite():
    tasks = {"cot": (0.9, LATE), "choice": (0.9, EARLY), "facts": (0.9, EARLY)}
    result = synthetic(tasks, {"cot": EARLY, "choice": EARLY, "facts": LATE})
    found = depth_contrasts.contrasts(result, "cot", ["choice"], ["facts"])
    assert [(c.task, c.other, c.verdict) for c in found] == [
        ("cot", "facts", "shown"),
        ("cot answer_logprob", "facts answer_logprob", "the opposite"),
        ("cot", "cot answer_logprob", "shown"),
        ("cot", "choice", "shown"),
    ]
    first = found[0]
    sums = result.summary.query("metric == 'acc' and condition != 'baseline'").groupby("task")
    wanted = {task: -rows["delta"].iloc[2:].sum() / -rows["delta"].sum() for task, rows in sums}
    assert (first.share, first.other_share) == pytest.approx((wanted["cot"], wanted["facts"]))
    assert first.ci_low <= first.difference <= first.ci_high
    assert first.difference == pytest.approx(first.share - first.other_share)
    assert f"{100 * first.ci_low:+.0f}, {100 * first.ci_high:+.0f}] points" in str(first) and "**shown**" in str(first)
    assert depth_contrasts.verdict(found).startswith(
        "This model shows the study's effect **in part, and its opposite in part**"
    )
    assert depth_contrasts.contrasts(result, "cot", ["choice"], ["facts"]) == found, "seeded"


def test_equal_depth_is_undecided_and_chance_cannot_be_judged():
    found = depth_contrasts.contrasts(synthetic({"cot": (0.9, LATE), "facts": (0.9, LATE)}), "cot", [], ["facts"])
    assert [c.verdict for c in found] == ["undecided"]
    assert (
        "**does not prove** the study's effect, nor its opposite: of 1 contrasts, 1 undecided"
        in depth_contrasts.verdict(found)
    )
    found = depth_contrasts.contrasts(synthetic({"cot": (0.2, LATE), "facts": (0.9, LATE)}), "cot", [], ["facts"])
    assert found[0].verdict == "cannot be judged" and str(found[0]).endswith("**cannot be judged** (cot: at chance).")
    assert "**cannot be judged**" in depth_contrasts.verdict(found)


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (["shown", "shown"], "**shows** the study's effect: of 2 contrasts, 2 shown."),
        (["shown", "cannot be judged"], "**shows** the study's effect: of 2 contrasts, 1 shown, 1 cannot be judged."),
        (["shown", "undecided"], "**in part**: of 2 contrasts, 1 shown, 1 undecided."),
        (["the opposite", "undecided"], "**opposite** of the study's effect: of 2 contrasts, 1 the opposite, 1 undec"),
        ([], "**cannot be judged**"),
    ],
)
def test_verdict(verdicts, said):
    assert said in depth_contrasts.verdict([depth_contrasts.Contrast("c", "a", "b", v, "") for v in verdicts])


def test_one_task_alone_has_no_contrast_but_its_likelihood():
    alone = synthetic({"cot": (0.9, LATE)}, {"cot": EARLY})
    assert [c.other for c in depth_contrasts.contrasts(alone, "cot")] == ["cot answer_logprob"]
    assert depth_contrasts.contrasts(synthetic({"cot": (0.9, LATE)}), "cot") == []
    with pytest.raises(UserError, match="unknown task 'facts'"):
        depth_contrasts.contrasts(alone, "cot", knowledge=["facts"])


def test_figure_has_a_row_for_each_view_and_says_what_cannot_be_judged():
    seen = depth_contrasts.views(synthetic({"cot": (0.2, LATE), "facts": (0.9, EARLY)}, {"cot": EARLY}))
    fig = dl.plots.loss_shares(seen)
    ax = fig.axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["cot\nacc", "cot\nanswer_logprob", "facts"]
    (mesh,) = (m for m in ax.collections if m.get_gid() == "shares")
    grid = mesh.get_array().reshape(3, N_LAYERS)
    assert grid.mask[0].all() and list(grid[1:].sum(axis=1)) == pytest.approx([1, 1])
    assert any(t.get_text() == "at chance: cannot judge" for t in ax.texts)
    centres = [line.get_xdata()[0] for line in ax.lines if line.get_gid() == "centre"]
    wanted = dl.analysis.centre_of_mass(seen).set_index("task").loc[["cot answer_logprob", "facts"], "centre"]
    assert centres == pytest.approx(list(wanted * (N_LAYERS - 1)))


LOCAL = """
task: gsm8k_tiny
dataset_path: json
dataset_kwargs: {data_files: {train: FOLDER/train.jsonl, test: FOLDER/test.jsonl}, cache_dir: FOLDER/cache}
training_split: train
test_split: test
fewshot_split: train
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["Question:"], do_sample: false, max_gen_toks: 6}
filter_list:
  - {name: strict-match, filter: [{function: regex, regex_pattern: "#### ([0-9]+)"}, {function: take_first}]}
  - {name: flexible-extract, filter: [{function: regex, regex_pattern: "([0-9]+)"}, {function: take_first}]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true, regexes_to_ignore: ["(?s).*#### "]}]
num_fewshot: 1
metadata: {version: 1.0}
"""


def local_task(folder):
    """A task in the format of GSM8K, as a user would write it: YAML and JSONL in a folder of their own."""
    docs = [
        {"question": f"{n} eggs and 2 more?", "answer": f"{n}+2=<<{n}+2={n + 2}>>{n + 2}\n#### {n + 2}"}
        for n in range(9)
    ]
    for name, part in (("train", docs[6:]), ("test", docs[:6])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in part))
    (folder / "gsm8k_tiny.yaml").write_text(LOCAL.replace("FOLDER", str(folder)))
    return folder


def test_a_task_of_ones_own_goes_all_the_way(tmp_path):
    """What notebook 03 does with `-p tasks '["gsm8k_tiny"]' -p include_path FOLDER`."""
    lens = tiny.lens("llama-gqa", max_position_embeddings=4096)
    folder = str(local_task(tmp_path))
    (task,) = dl.load_tasks(["gsm8k_tiny"], include_path=folder).values()
    result = dl.layer_sweep(lens, "gsm8k_tiny", limit=3, measure="both", include_path=folder, progress=False)
    (found,) = depth_contrasts.contrasts(result, "gsm8k_tiny")
    assert (found.task, found.other) == ("gsm8k_tiny", "gsm8k_tiny answer_logprob")
    assert found.verdict == "cannot be judged" and "gsm8k_tiny: at chance" in str(found)
    table = dl.mistakes.classify(result, "gsm8k_tiny", [task.doc_to_text(doc) for doc in task.eval_docs])
    assert len(table) == 3 * (1 + lens.dims.n_layers) and not table["solved"].any()
    assert set(table["kind"]) <= set(dl.mistakes.MISTAKES)
