"""The embedded real model: our baseline is lm-eval's, and it takes no more memory than is said."""

import subprocess
import sys

import gsm8k
import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_evals import evaluate
from transformer_lens import patching

import depthlens as dl

pytestmark = pytest.mark.integration

SEED = 3
SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
PROMPT = "The capital of France is Paris. The capital of Japan is"

# lm-eval's own, but for shorter answers
SHORT = {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 48}


@pytest.fixture(scope="module")
def lens():
    return dl.load("smollm2-135m")


@pytest.fixture(scope="module")
def reference(lens):
    return HFLM(pretrained=lens.model, tokenizer=lens.tokenizer, batch_size=8)


def test_the_embedded_model_is_what_it_says(lens):
    assert (lens.dims.n_layers, lens.dims.n_heads, lens.dims.n_kv_heads, lens.dims.d_model) == (30, 9, 3, 576)
    assert 134e6 < lens.describe()["n_parameters"] < 135e6
    options = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0}
    greedy = lens.model.generate(**lens.tokenizer(PROMPT, return_tensors="pt"), **options)
    assert lens.tokenizer.decode(greedy[0, -1]) == " Tokyo"


@pytest.mark.nightly
def test_patching_the_residual_stream_is_transformer_lens_own(lens):
    pair, names = ("When Mary met John, John thanked", "When Mary met John, Mary thanked"), (" Mary", " John")
    found = dl.patch(lens, *pair, "resid", answer=names, progress=False)
    right, wrong = (lens.tokenizer(name).input_ids[0] for name in names)
    clean, corrupted = (torch.tensor([lens.tokenizer(text).input_ids]) for text in pair)
    _, cache = lens.bridge.run_with_cache(clean)
    whole, base = found.differences.loc[0, ["clean", "corrupted"]]

    def metric(logits):
        return (logits[0, -1, right] - logits[0, -1, wrong] - base) / (whole - base)

    theirs = patching.get_act_patch_resid_pre(lens.bridge, corrupted, cache, metric)
    np.testing.assert_allclose(found.effect.value, theirs.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("task", "limit", "num_fewshot", "solved"),
    [("capitals_continuation", 10, None, 5), ("capitals_generative", 8, None, 3), ("gsm8k_sample", 2, 1, 0)],
)
def test_the_baseline_is_lm_evals_document_by_document(lens, reference, tmp_path, task, limit, num_fewshot, solved):
    """It is swept beside a condition. Some documents are solved, so that both are not wrong in two ways."""
    gsm8k.write_task(tmp_path, "gsm8k_sample", generation_kwargs=SHORT)
    options, seeds = {"limit": limit, "num_fewshot": num_fewshot}, dict.fromkeys(SEEDS, SEED)
    theirs = evaluate(reference, [task], tmp_path, **options, **seeds)["samples"][task]
    result = dl.condition_sweep(lens, task, "L7", seed=SEED, include_path=tmp_path, progress=False, **options)
    docs = result.docs[result.docs["condition"] == "baseline"]
    ours = {(row.metric, row.doc_id): row.value for row in docs.itertuples()}
    several = len({sample["filter"] for sample in theirs}) > 1
    wanted = {}
    for sample in theirs:
        kind = f",{sample['filter']}" if several else ""
        wanted |= {(f"{metric}{kind}", sample["doc_id"]): float(sample[metric]) for metric in sample["metrics"]}
    assert ours == wanted and len(ours) == limit * docs["metric"].nunique() and sum(ours.values()) >= solved
    if result.record["tasks"][task]["output_type"] == "generate_until":
        texts = docs.drop_duplicates("doc_id").set_index("doc_id")["response"].to_dict()
        assert texts == {sample["doc_id"]: sample["resps"][0][0] for sample in theirs}


HOG = """
import re, sys
from itertools import combinations
from pathlib import Path
import psutil, torch
import depthlens as dl
from depthlens.ablations import expand, parse_condition
from depthlens.engine.engine import Engine
from depthlens.requests import GenerateRequest, LoglikelihoodRequest

lens = dl.load("smollm2-135m")
before = psutil.Process().memory_info().rss
engine = Engine(lens, progress=False)
random = torch.Generator().manual_seed(0)
draw = lambda n: tuple(torch.randint(1000, 40000, (n,), generator=random).tolist())
if sys.argv[1] == "loglikelihood":
    # fork in the last layer: rows are held all the same, and the others are walked by the clean row alone
    pairs = list(combinations(range(lens.dims.n_heads), 2))[:30]
    conditions = [parse_condition(f"L29.H{a}+L29.H{b}") for a, b in pairs]
    n_tokens = engine.budget.state_bytes // (len(conditions) * lens.dims.d_model * 4)
    requests = [LoglikelihoodRequest(draw(n_tokens // 40), (5, 6, 7)) for _ in range(42)]  # a full pack and a bit
    engine.loglikelihood(requests, conditions)
else:
    conditions = expand("L26,L27,L28,L29", lens.dims)
    shared, token_bytes = draw(600), 2 * lens.dims.n_layers * lens.dims.n_kv_heads * lens.dims.d_head * 4
    n_prompts = engine.budget.key_bytes // (len(conditions) * token_bytes * 106) + 2  # a full pack and a bit
    engine.generate_until([GenerateRequest(shared + draw(100), (), 6) for _ in range(n_prompts)], conditions)
# the process's own peak: ru_maxrss would be that of the test process where this one was larger when it forked
(peak,) = re.findall(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(int(peak) * 1024 - before)
"""


# in GiB; writing takes 3.02 here, and a quarter is left for what the allocator keeps elsewhere
@pytest.mark.nightly
@pytest.mark.parametrize(("work", "most"), [("loglikelihood", 2), ("generation", 3.25)])
def test_full_packs_take_no_more_memory_above_the_model_than_is_said(work, most):
    done = subprocess.run([sys.executable, "-c", HOG, work], capture_output=True, text=True, check=True)
    above = int(done.stdout.split()[-1])
    assert 0.5 * 2**30 < above < most * 2**30, f"{work}: peak memory is the model + {above / 2**30:.2f} GiB"
