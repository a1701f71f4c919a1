"""Edits of a model by hand, in every way that we know, and what the engine answers after each of them.

A way is a statement. It sees the model, ``layers``, two of them by number (``i``, the ``layer``, and ``j``), and random
numbers; a way to edit a weight sees that, too. What it did is there as long as the context of `edited` lasts.
"""

import copy
import math
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock  # noqa: F401 - for a statement

import peft
import tiny
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP  # noqa: F401 - for a statement

import depthlens as dl
from depthlens.requests import GenerateRequest, LoglikelihoodRequest
from depthlens.store.answer_cache import AnswerStore

# modules that have a weight
WEIGHTS = {
    **{"embedding": "model.embed_tokens", "unembedding": "lm_head", "final norm": "model.norm"},
    **{f"{name} norm": f"model.layers.{{}}.{name}_layernorm" for name in ("input", "post_attention")},
    **{name: f"model.layers.{{}}.self_attn.{name}_proj" for name in "qkvo"},
    **{name: f"model.layers.{{}}.mlp.{name}_proj" for name in ("gate", "up", "down")},
}
OF_WEIGHTS = {
    "one element": "weight[place] += 1",
    "one element by .data": "weight.data[place] = 3",  # leaves the version counter as it is
    "one element by numpy": "weight.detach().numpy()[place] *= -2",
    "all scaled": "weight.mul_(factor)",
    "a bit of one element": "weight.view(torch.int32)[place] ^= 1 << chance.randrange(18, 23)",
    "other storage": "weight.data = weight.data * factor",
    "another parameter": "owner.weight = nn.Parameter(weight * factor, requires_grad=False)",
}
SWAPPED = "layers[i]{0}, layers[j]{0} = layers[j]{0}, layers[i]{0}"
WAYS = {
    **{f"{of}: {name}": statement for of in WEIGHTS for name, statement in OF_WEIGHTS.items()},
    "tied": "model.lm_head.weight = model.model.embed_tokens.weight",
    "layers swapped": f"{SWAPPED.format('')}; {SWAPPED.format('.self_attn.layer_idx')}",
    "parts swapped": SWAPPED.format(".mlp"),
    "another activation": "layer.mlp.act_fn = nn.GELU()",
    "a buffer": "model.model.rotary_emb.inv_freq[chance.randrange(2)] *= 1.5",
    "scaling of attention": "layer.self_attn.scaling *= factor",
    "epsilon of a norm": "layer.input_layernorm.variance_epsilon += 0.01",
    "epsilon of the final norm": "model.model.norm.variance_epsilon += 0.01",
    "scaling of the rotation": "model.model.rotary_emb.attention_scaling *= factor",
    "rounded": "layer.bfloat16().float()",
    "another dtype": "model.bfloat16()",
    "an adapter": "adapted(model, chance)",
    "an adapter's weight": "adapted(model, chance).lora_B['default'].weight[0, 0] += 1",
    "an adapter merged": "adapted(model, chance).merge()",
    "a hook": "layer.mlp.register_forward_hook(lambda module, args, out: out * 2)",
    "a pre-hook": "layer.self_attn.o_proj.register_forward_pre_hook(lambda module, args: (args[0] * 2,))",
    "a global hook": "until.callback(nn.modules.module.register_module_forward_hook(louder).remove)",
    "a forward": "layer.mlp.forward = lambda x, own=layer.mlp.forward: own(x) * 2",
    "a forward of the class": "until.enter_context(mock.patch.object(LlamaMLP, 'forward', doubled(LlamaMLP.forward)))",
    "a class of one's own": "layer.mlp = Doubled(layer.mlp).eval()",
    "training": "model.train()",
    "lower precision": "lower_precision(until)",
    "a penalty": "config.repetition_penalty = factor",
    "other ends": "config.eos_token_id = list(range(128))",
    "an end of the tokenizer": "config.eos_token_id = None; tokenizer.eos_token = tokenizer.convert_ids_to_tokens(65)",
}


def adapted(model: nn.Module, chance: random.Random) -> Any:
    """One of the adapters that are put into a model."""
    torch.manual_seed(chance.randrange(10**6))
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, model)
    model.eval().requires_grad_(False)
    return chance.choice([m for m in model.modules() if hasattr(m, "lora_A")])


def louder(module: nn.Module, args: tuple, out: Any) -> Any:
    return out * 1.1 if isinstance(module, nn.Linear) else out


def doubled(forward: Any) -> Any:
    return lambda self, x: forward(self, x) * 2


class Doubled(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * 2


def lower_precision(until: ExitStack) -> None:
    for backend in (torch.backends.cuda, torch.backends.mkldnn):  # the next line would leave "ieee" for "none"
        until.callback(setattr, backend.matmul, "fp32_precision", backend.matmul.fp32_precision)
    until.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision("medium")


CLEAN = tiny.model("llama-gqa")
TOKENIZER = tiny.tokenizer()
PROMPTS = [tuple(TOKENIZER(text).input_ids) for text in ("The capital of Peru is", "A text")]
SCORED = [LoglikelihoodRequest(prompt, (65, 66, 67)) for prompt in PROMPTS]
WRITTEN = [GenerateRequest(prompt, ("\n",), 6) for prompt in PROMPTS]
CONDITIONS = [dl.parse_condition(text) for text in ("baseline", "L1.H0", "L3")]


def fresh() -> dl.Lens:
    """The clean model, with nothing shared but its values."""
    return dl.Lens(copy.deepcopy(CLEAN), copy.deepcopy(TOKENIZER), "tiny")


@contextmanager
def edited(way: str, seed: int) -> Iterator[dl.Lens]:
    """The clean model after an edit."""
    lens, chance = fresh(), random.Random(seed)
    layers, (i, j) = lens.model.model.layers, chance.sample(range(lens.dims.n_layers), 2)
    names = {"model": lens.model, "config": lens.model.generation_config, "tokenizer": lens.tokenizer, "layers": layers}
    names |= {"i": i, "j": j, "layer": layers[i], "chance": chance, "factor": chance.uniform(1.5, 3.0)}
    if path := WEIGHTS.get(way.partition(":")[0]):
        owner = lens.model.get_submodule(path.format(i))
        place = tuple(chance.randrange(n) for n in owner.weight.shape)
        names |= {"owner": owner, "weight": owner.weight, "place": place}
    with ExitStack() as until, torch.no_grad():
        exec(WAYS[way], globals() | names | {"until": until})
        yield lens


def answers(lens: dl.Lens, store: str | None) -> list:
    """Log-likelihoods and texts under some conditions."""
    opened = AnswerStore(store, lens)
    found: list = []
    for kind, requests in (("loglikelihood", SCORED), ("generate_until", WRITTEN)):
        engine = dl.Engine(lens, progress=False, cache=opened.entry(kind))
        rows = getattr(engine, kind)(requests, CONDITIONS)
        found += [a if isinstance(a, str) else a.logprob for row in rows for a in row]
    return found


def equal(one: list, other: list) -> bool:
    """Texts are equal, numbers but for what other batches may round (float32, a sum of three)."""
    pairs = zip(one, other, strict=True)
    return all(a == b if isinstance(a, str) else math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-5) for a, b in pairs)


def tried(todo: list[tuple[str, int]], store: str) -> dict[str, Any]:
    """Edits one after another, each answered twice from a store that holds what the ones before left in it."""
    clean = answers(fresh(), None)
    wrong, changed = [], 0
    for way, seed in todo:
        with edited(way, seed) as lens:
            truth = answers(lens, None)
            found = [answers(lens, store) for _ in range(2)]
        changed += not equal(truth, clean)
        right = all(equal(truth, f) for f in found) and equal(clean, answers(fresh(), store))
        wrong += [] if right else [(way, seed)]
    return {"changed": changed, "wrong": wrong}


def some(n: int, seed: int) -> list[tuple[str, int]]:
    """Random edits."""
    chance = random.Random(seed)
    return [(chance.choice(list(WAYS)), chance.randrange(10**6)) for _ in range(n)]
