"""Organisms: both tasks solved, exactly the planted heads needed, options read strictly, tokens as they must be."""

import itertools
import json
import os
import subprocess
import sys
from functools import cache

import pytest
import torch
from organism_prompts import read, sample
from safetensors.torch import load_file

import depthlens as dl
from depthlens.ablations import BASELINE, Condition, Dims, parse_condition
from depthlens.models import loading
from depthlens.organisms import builder, language, weights
from depthlens.organisms.language import TASKS
from depthlens.paths import tasks_dir
from depthlens.requests import LoglikelihoodRequest
from depthlens.tasks import harness

SOLVED = 0.99
# a word of the prompt at random is right once in 26 times; with 50 prompts, 0.15 is far from it and from solved
CHANCE = 0.15
UNCHANGED = 0.02 + 1e-9  # one prompt of 50


@cache
def lens(name: str) -> dl.Lens:
    return loading.load(name, device="cpu")


@cache
def prompts(task: str, n: int = 50):
    return sample(n, task, seed=11)


def together(heads) -> Condition:
    return parse_condition("+".join(f"L{layer}.H{head}" for layer, head in sorted(heads)))


def accuracies(name: str, conditions, n: int = 50) -> dict[str, dict[str, float]]:
    """Accuracy (likeliest of all tokens) by condition and task, through the engine: both tasks share their prefixes."""
    asked = [LoglikelihoodRequest(p.tokens, (p.answer_id,)) for task in TASKS for p in prompts(task, n)]
    answers = dl.Engine(lens(name), progress=False).loglikelihood(asked, conditions)
    right = torch.tensor([[a.is_greedy for a in row] for row in answers]).double().unflatten(1, (len(TASKS), n))
    shares = (dict(zip(TASKS, row, strict=True)) for row in right.mean(2).tolist())
    return dict(zip(map(str, conditions), shares, strict=True))


MORE = ("decoy", "n_kv_heads=2", "seed=1,decoy,backup", "seed=2", "seed=3", "seed=4")


@pytest.mark.parametrize("name", [
    *("organism", "organism:n_kv_heads=1,decoy,backup"),
    *(pytest.param(f"organism:{more}", marks=pytest.mark.nightly) for more in MORE),
])  # fmt: skip
def test_exactly_the_planted_heads_carry_their_tasks(name):
    """Each head alone, and a head with its backup."""
    dims, truth = lens(name).dims, builder.truth(name)
    assert dims.n_kv_heads == builder.parse(name).n_kv_heads
    pair = truth.needed_together("one_hop")
    sets = [{head} for head in itertools.product(range(dims.n_layers), range(dims.n_heads))] + [pair] * bool(pair)
    base, *found = accuracies(name, [BASELINE, *map(together, sets)]).values()
    assert min(base.values()) >= SOLVED and len(found) == 24 + ("backup" in name)
    for heads, by_task in zip(sets, found, strict=True):
        for task, value in by_task.items():
            spare = truth.needed_together(task)
            if heads & truth.needed(task) or (spare and spare <= heads):
                assert value <= CHANCE, (heads, task)
            else:
                assert abs(value - base[task]) <= UNCHANGED, (heads, task)


@pytest.mark.nightly
def test_other_instruction_sets_give_the_same_weights(tmp_path):
    """A processor without vector instructions, which sums in another order: differences as of rounding, 1e-7."""
    program = "import sys; from depthlens.organisms import weights; weights.build().model.save_pretrained(sys.argv[1])"
    own = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=own, check=True)
    here = weights.build().model.state_dict()
    for name, weight in load_file(tmp_path / "model.safetensors").items():
        torch.testing.assert_close(weight, here[name], atol=1e-6, rtol=0)


def test_equal_seeds_give_equal_weights_whatever_the_threads_and_leave_the_callers_seed_alone():
    before, built = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(5)
            built.append(weights.build(seed=3, decoy=True).model.state_dict())
            drawn = torch.rand(3)
            torch.manual_seed(5)
            assert torch.equal(drawn, torch.rand(3)) and torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    other = lens("organism:seed=4").model.state_dict()
    for key, weight in built[0].items():
        assert weight.dtype == torch.float32 and all(torch.equal(weight, again[key]) for again in built)
        assert "norm" in key or not torch.equal(weight, other[key])


@pytest.mark.parametrize("name", ["organism", "organism:n_kv_heads=1,decoy,backup"])
def test_an_organism_is_an_ordinary_lens(name):
    loaded = lens(name)
    assert loaded.name == name and type(loaded.model).__name__ == "LlamaForCausalLM"
    assert loaded.dims == Dims(6, 4, 4 if name == "organism" else 1, d_model=256, d_head=64)
    assert loaded.model.config.vocab_size == len(loaded.tokenizer) == 100


# -- the embedded tasks ------------------------------------------------------------------------------------------

EMBEDDED = [f"organism_{task}{kind}" for task in TASKS for kind in ("", "_generative")]


def test_lm_eval_gives_the_model_the_tokens_that_the_circuit_expects():
    docs = [json.loads(line) for line in (tasks_dir() / "organism/test.jsonl").read_text().splitlines()]
    prepared = harness.prepare(lens("organism"), harness.load_tasks(EMBEDDED), limit=5)
    ids = language.vocabulary()
    for task in prepared:
        hops = next(t for t in TASKS if t in task.name)
        for i, doc in enumerate(docs[:5]):
            wanted = read(f"{doc['context']} {language.CONTROL[hops]} {doc['key']}")
            assert wanted.answer == doc[hops]
            if task.output_type == "generate_until":
                assert task.requests[i].context == wanted.tokens and task.requests[i].max_new_tokens == 1
            else:
                four = task.requests[4 * i : 4 * i + 4]
                assert {q.context for q in four} == {wanted.tokens}
                assert [q.continuation for q in four] == [(ids[option],) for option in doc["options"]]
