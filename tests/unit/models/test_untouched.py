"""Whatever is measured on a model, the model, its tokenizer and the process are as before: also after errors."""

import copy
import hashlib
import itertools
import logging
import pickle
import random
import sys
import threading
import warnings

import lm_eval
import numpy as np
import pytest
import tiny
import torch
from lm_eval.tasks import TaskManager

import depthlens as dl
from depthlens import paths
from depthlens.lm_eval_model import DepthlensLM

pytestmark = pytest.mark.usefixtures("unchecked")

CHOICE, WRITTEN = "capitals_continuation", "capitals_generative"
LONG = {"max_position_embeddings": 1024}
HEAD = 3.0  # the head's own weights, as multiples of the embedding's
QUIET = {"limit": 2, "store": None, "progress": False}
FREE = {"store": None, "progress": False}
SHORT = {"gen_kwargs": {"max_gen_toks": 6}}
SEEDS = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed"))  # else lm-eval sets generators
TEXTS = ["one text of some length", "another one, which is longer"]
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")


def untied() -> dl.Lens:
    """A model whose configuration ties the head to the embedding, and which has a head of its own; no pad token."""
    model = tiny.model("llama-gqa", tie_word_embeddings=True, **LONG)
    model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.detach() * HEAD)
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = None
    return dl.Lens(model, tokenizer)


def state(lens: dl.Lens) -> dict[str, object]:
    """Everything that an experiment could leave behind, in a form that can be compared."""
    model, tokenizer = lens.model, lens.tokenizer
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "weights": {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors},
        "tensors": {name: (id(tensor), tensor.requires_grad, tensor.grad) for name, tensor in tensors},
        "tied": model.lm_head.weight is model.model.embed_tokens.weight,
        "modules": [(name, id(module), type(module)) for name, module in model.named_modules()],
        "hooks": [[len(vars(m)[hooks]) for hooks in HOOKS] for m in model.modules()],
        "training": [module.training for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],  # a forward method of its own, too
        "config": model.config.to_json_string(use_diff=False),
        "attention": model.config._attn_implementation,
        "generation_config": model.generation_config.to_json_string(use_diff=False),
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "special tokens": str(tokenizer.special_tokens_map),
        "padding": (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token),
        "template": tokenizer.chat_template,
        "python's generator": random.getstate(),
        "numpy's generator": pickle.dumps(np.random.get_state()),
        "torch's generator": torch.get_rng_state().numpy().tobytes(),
        "torch": (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()),
        "precision": (torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()),
        "streams": (id(sys.stdout), id(sys.stderr), sys.stderr.closed),
        "warnings": list(warnings.filters),
        "logs": levels(),
        "bars": lm_eval.api.task.tqdm,
    }


def levels() -> dict[str, int]:
    return {name: logging.getLogger(name).level for name in ("", "lm_eval", "datasets", "transformers")}


@pytest.fixture(scope="module")
def lens():
    """The model, when all libraries are imported: imports add filters of warnings, and change no level of logging."""
    lens, before = untied(), levels()
    dl.layer_sweep(lens, CHOICE, **QUIET).describe()
    assert lens.bridge and lens.nnsight and levels() == before
    return lens


def transplanted(lens):
    donor = tiny.lens("llama-gqa", tie_word_embeddings=False, **LONG)
    with dl.ablated(dl.with_donor(lens, donor), "L1@donor+L3.H1@donor"):
        lens.model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, do_sample=False)


def harness(lens):
    manager = TaskManager(include_path=str(paths.tasks_dir()), include_defaults=False)
    model = DepthlensLM(lens, condition="L1")
    lm_eval.simple_evaluate(model=model, tasks=[CHOICE], task_manager=manager, limit=2, bootstrap_iters=0, **SEEDS)


def conditions(*conditions, tasks=CHOICE, **options):
    return lambda lens: dl.condition_sweep(lens, tasks, list(conditions), **QUIET | options)


EXPERIMENTS = {
    "layers": lambda lens: dl.layer_sweep(lens, CHOICE, **QUIET),
    "few-shot": lambda lens: dl.layer_sweep(lens, CHOICE, num_fewshot=2, **QUIET),
    "written": lambda lens: dl.layer_sweep(lens, WRITTEN, **QUIET | SHORT),
    "drawn": conditions("L1", tasks=WRITTEN, gen_kwargs={"do_sample": True, "temperature": 0.7, "max_gen_toks": 6}),
    "all sites": conditions("L1", "L2.attn", "L2.mlp", "L1.H2", "L3.KV1", "L1-3"),
    "means": conditions("L1@mean", "L2.H1@mean"),
    "a sample": conditions("L1@resample", resample_prompts=["a reference prompt"]),
    "noise, twice, rounded": conditions("L1@noise3", "L2x2", "L3@int8"),
    "a donor": lambda lens: dl.condition_sweep(lens, CHOICE, ["L1@donor"], donor=untied(), **QUIET),
    "whole passes": conditions("L1", "L2.H1", backend="nnsight"),
    "TransformerLens": conditions("L1", "L2.H1", backend="transformer_lens"),
    "heads": lambda lens: dl.head_sweep(lens, CHOICE, layers=[1], **QUIET),
    "attribution": lambda lens: dl.head_sweep(lens, CHOICE, method="attribution", **QUIET),
    "race": lambda lens: dl.race(lens, CHOICE, "layers", limit=4, **FREE),
    "plan": lambda lens: dl.plan(lens, CHOICE, "layers", limit=2, store=None),
    "curve": lambda lens: dl.removal_curve(lens, CHOICE, {"a": [(0, 1)]}, k=[1], n_draws=10, **QUIET),
    "free text": lambda lens: dl.free_text(lens, "L1", n_prompts=2, prompt_tokens=4, max_new_tokens=4, **FREE),
    "blocks": lambda lens: dl.block_sweep(lens, CHOICE, max_size=2, **QUIET),
    "next token": lambda lens: dl.next_token(lens, "abc", ["L1"]),
    "attention": lambda lens: dl.attention(lens, [1, 2, 3, 4], (1, 2)).pattern,
    "geometry": lambda lens: dl.depth_geometry(lens, TEXTS, store=None, progress=False),
    "transplant": transplanted,
    "lm-eval": harness,
}


class BrokenError(Exception):
    pass


ENDS = {"ends": None, "error": BrokenError, "Ctrl-C": KeyboardInterrupt}


def raise_in_the_model(monkeypatch, error: type[BaseException]) -> None:
    """From now on the 20th product that a model computes, in the middle of its first pass, ends in an error."""
    product, calls = torch.nn.Linear.forward, iter(range(1 << 20))

    def forward(self, *args):
        if next(calls) == 20:
            raise error("in the middle")
        return product(self, *args)

    monkeypatch.setattr(torch.nn.Linear, "forward", forward)


# every experiment ends, and is stopped in one of two ways
CASES = [(experiment, "ends") for experiment in EXPERIMENTS]
CASES += zip(EXPERIMENTS, itertools.cycle(("error", "Ctrl-C")))


@pytest.mark.parametrize(("experiment", "end"), CASES)
def test_everything_is_as_before(lens, monkeypatch, experiment, end):
    before = state(lens)
    if ENDS[end] is None:
        EXPERIMENTS[experiment](lens)
    else:
        with monkeypatch.context() as patch, pytest.raises(ENDS[end]):
            raise_in_the_model(patch, ENDS[end])
            EXPERIMENTS[experiment](lens)
    after = state(lens)
    if experiment == "lm-eval":  # which draws names that it does not use
        del before["python's generator"]
    changed = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
    assert not changed


def shown(lens: dl.Lens) -> list:
    return dl.next_token(lens, "abc", ["L1"]).to_numpy().tolist()


def test_another_thread_waits_while_a_model_is_transplanted():
    lens, donor = tiny.lens("llama-gqa", **LONG), tiny.lens("llama-gqa", tie_word_embeddings=False, **LONG)
    plain, found, begun = shown(lens), [], threading.Event()

    def measure():
        begun.set()
        found.append(shown(lens))

    with dl.ablated(dl.with_donor(lens, donor), "L1-2@donor"):
        thread = threading.Thread(target=measure)
        thread.start()
        begun.wait()
        shown(donor)
    thread.join()
    assert found == [plain]


def test_a_copy_that_is_made_under_a_condition_is_a_whole_model_of_its_own():
    lens, prompt = tiny.lens("llama-gqa"), TEXTS[0]

    def logits(model):
        with torch.no_grad():
            return model(**lens.tokenizer(prompt, return_tensors="pt")).logits

    whole = logits(lens.model)
    with dl.ablated(lens, "L1"):
        copied = copy.deepcopy(lens.model)
        assert not torch.equal(logits(lens.model), whole)
    assert torch.equal(logits(copied), whole)
    with torch.no_grad():
        copied.lm_head.weight.zero_()
    assert not logits(copied).any() and torch.equal(logits(lens.model), whole)
    assert dl.next_token(dl.Lens(copied, lens.tokenizer), prompt, ["L1"]).notna().all(axis=None)
