"""lm-eval's tasks of the study, on handwritten documents in the schemas of the hub: real YAML, prompts and metrics."""

from __future__ import annotations

import re

import hub
import lm_eval
import pytest
import tiny
from lm_eval.models.huggingface import HFLM

from depthlens.experiments.sweep import condition_sweep
from depthlens.tasks import harness

MORE = ("openbookqa", "kv_retrieval_uuid_8", "mathqa", "gsm8k_copy", "mmlu_anatomy_continuation")
TASKS = [
    "mmlu_anatomy",
    "mmlu_anatomy_generative",
    "hellaswag",
    "openbookqa_open",
    "gsm8k",
    *(pytest.param(name, marks=pytest.mark.nightly) for name in MORE),
]
# the metric that stands for a task where that is not its first one
HEADLINES = {"hellaswag": "acc_norm"} | dict.fromkeys(("gsm8k", "gsm8k_copy"), "exact_match,flexible-extract")
LIMIT = 3
SHORT = {"max_gen_toks": 12}  # of what a random model writes, for the time it takes
# float32 sums of log-probabilities of some hundred bytes in another batch layout
LOGPROB_TOLERANCE = 2e-3

pytestmark = pytest.mark.slow  # lm-eval's own index takes seconds


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory):
    """The data sets stand where the hub's are looked for, and nothing may be downloaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(hub.write(tmp_path_factory.mktemp("hub")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("llama-gqa", max_position_embeddings=8192)


@pytest.mark.parametrize("name", TASKS)
def test_baseline_is_lm_evals_on_every_document(lens, name):
    written = name.startswith(("gsm8k", "kv_retrieval")) or name.endswith("generative")
    theirs = lm_eval.simple_evaluate(
        model=HFLM(pretrained=lens.model, tokenizer=lens.tokenizer, batch_size=4),
        tasks=[name],
        task_manager=harness.task_manager([name]),
        limit=LIMIT,
        fewshot_random_seed=0,
        bootstrap_iters=0,
        gen_kwargs="max_gen_toks=12" if written else None,
    )
    options = {"gen_kwargs": SHORT} if written else {}
    ours = condition_sweep(lens, name, "L1", limit=LIMIT, progress=False, **options)
    base = ours.docs[ours.docs["condition"] == "baseline"].set_index(["metric", "doc_id"])["value"]
    several = len({sample["filter"] for sample in theirs["samples"][name]}) > 1
    compared = 0
    for sample in theirs["samples"][name]:
        for metric in sample["metrics"]:
            key = f"{metric},{sample['filter']}" if several else metric
            assert base[key, sample["doc_id"]] == pytest.approx(sample[metric], abs=LOGPROB_TOLERANCE)
            compared += 1
    assert compared == len(base) >= LIMIT
    first = ours.docs["metric"].iloc[0]
    assert ours.primary().docs["metric"].unique().tolist() == [HEADLINES.get(name, first)]
    assert (HEADLINES.get(name, first) == first) == (name not in HEADLINES)


def test_the_open_book_has_the_fact_before_the_very_question(lens):
    open_, closed = (harness.prepare(lens, harness.load_tasks(name))[0] for name in ("openbookqa_open", "openbookqa"))
    facts = [doc["fact1"] for doc in hub.DATA_SETS["allenai/openbookqa"]["additional"]["test"]]
    with_fact, without = (
        list(dict.fromkeys(lens.tokenizer.decode(q.context) for q in prepared.requests)) for prepared in (open_, closed)
    )
    assert with_fact == [f"{fact}\n{question}" for fact, question in zip(facts, without, strict=True)]
    options = [[lens.tokenizer.decode(q.continuation) for q in prepared.requests] for prepared in (open_, closed)]
    assert options[0] == options[1]
    assert open_.asked["doc_hash"].tolist() == closed.asked["doc_hash"].tolist(), "they are paired by it"


def test_the_copy_of_a_solution_is_as_long_and_cannot_be_calculated(lens):
    solved, copied = (harness.load_tasks(name, num_fewshot=0)[name] for name in ("gsm8k", "gsm8k_copy"))
    for own, copy in zip(solved.eval_docs, copied.eval_docs, strict=True):
        target, text = copied.doc_to_target(copy), copied.doc_to_text(copy)
        assert text == f"Text: {target}\nCopy:" and len(target) == len(solved.doc_to_target(own))
        a, b, result, again = re.findall(r"<<(\d+)&(\d+):(\d+)>>(\d+)", target)[0]
        assert result == again == target.rpartition("#### ")[2] and int(a) + int(b) != int(result)
        assert not re.search(r"[-+*/=]", target)
