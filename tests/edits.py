"""Edits of a model by hand, in every way that we know, and what the engine answers after each of them.

Each way takes a lens and a random generator. What it did is there as long as the context of `edited` lasts.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import peft
import tiny
import torch
from torch import nn
from transformers.models.llama import modeling_llama

from depthlens.ablations import parse_condition
from depthlens.engine.engine import Engine
from depthlens.models.lens import Lens
from depthlens.requests import GenerateRequest, LoglikelihoodRequest
from depthlens.store.answer_cache import AnswerStore

Way = Callable[[Lens, random.Random, ExitStack], Any]

WEIGHTS = {
    "embedding": "model.embed_tokens.weight",
    "unembedding": "lm_head.weight",
    "final norm": "model.norm.weight",
    "input norm": "model.layers.{}.input_layernorm.weight",
    "mlp norm": "model.layers.{}.post_attention_layernorm.weight",
    "query": "model.layers.{}.self_attn.q_proj.weight",
    "key": "model.layers.{}.self_attn.k_proj.weight",
    "value": "model.layers.{}.self_attn.v_proj.weight",
    "output": "model.layers.{}.self_attn.o_proj.weight",
    "gate": "model.layers.{}.mlp.gate_proj.weight",
    "up": "model.layers.{}.mlp.up_proj.weight",
    "down": "model.layers.{}.mlp.down_proj.weight",
}


def place(tensor: torch.Tensor, chance: random.Random) -> tuple[int, ...]:
    return tuple(chance.randrange(n) for n in tensor.shape)


def one_element(tensor: torch.Tensor, chance: random.Random) -> None:
    tensor[place(tensor, chance)] += 1.0


def by_data(tensor: torch.Tensor, chance: random.Random) -> None:
    tensor.data[place(tensor, chance)] = 3.0  # leaves the version counter as it is


def by_numpy(tensor: torch.Tensor, chance: random.Random) -> None:
    tensor.detach().numpy()[place(tensor, chance)] *= -2.0


def all_scaled(tensor: torch.Tensor, chance: random.Random) -> None:
    tensor.mul_(chance.uniform(1.5, 3.0))


def last_bit(tensor: torch.Tensor, chance: random.Random) -> None:
    tensor.view(torch.int32)[place(tensor, chance)] ^= 1 << chance.randrange(18, 23)


HOW = {
    "one element": one_element,
    "one element by .data": by_data,
    "one element by numpy": by_numpy,
    "all scaled": all_scaled,
    "a bit of one element": last_bit,
}


def weight(path: str, how: Callable[[torch.Tensor, random.Random], None]) -> Way:
    def way(lens: Lens, chance: random.Random, _: ExitStack) -> None:
        how(lens.model.get_parameter(path.format(chance.randrange(lens.dims.n_layers))), chance)

    return way


def rebound(path: str) -> Way:
    """The parameter stays, with other storage."""

    def way(lens: Lens, chance: random.Random, _: ExitStack) -> None:
        found = lens.model.get_parameter(path.format(chance.randrange(lens.dims.n_layers)))
        found.data = found.data * chance.uniform(1.5, 3.0)

    return way


def replaced(path: str) -> Way:
    """Another parameter."""

    def way(lens: Lens, chance: random.Random, _: ExitStack) -> None:
        owner, _, name = path.format(chance.randrange(lens.dims.n_layers)).rpartition(".")
        module = lens.model.get_submodule(owner)
        setattr(module, name, nn.Parameter(getattr(module, name) * chance.uniform(1.5, 3.0), requires_grad=False))

    return way


def layer(lens: Lens, chance: random.Random) -> Any:
    return lens.model.model.layers[chance.randrange(lens.dims.n_layers)]


def tied(lens: Lens, chance: random.Random, _: ExitStack) -> None:
    lens.model.lm_head.weight = lens.model.model.embed_tokens.weight


def layers_swapped(lens: Lens, chance: random.Random, _: ExitStack) -> None:
    one, other = chance.sample(range(lens.dims.n_layers), 2)
    layers = lens.model.model.layers
    layers[one], layers[other] = layers[other], layers[one]
    layers[one].self_attn.layer_idx, layers[other].self_attn.layer_idx = one, other


def parts_swapped(lens: Lens, chance: random.Random, _: ExitStack) -> None:
    one, other = chance.sample(list(lens.model.model.layers), 2)
    one.mlp, other.mlp = other.mlp, one.mlp


def another_activation(lens: Lens, chance: random.Random, _: ExitStack) -> None:
    layer(lens, chance).mlp.act_fn = nn.GELU()


def a_buffer(lens: Lens, chance: random.Random, _: ExitStack) -> None:
    lens.model.model.rotary_emb.inv_freq[chance.randrange(2)] *= 1.5


def scalar(owner: Callable[[Lens, random.Random], Any], name: str) -> Way:
    def way(lens: Lens, chance: random.Random, _: ExitStack) -> None:
        module = owner(lens, chance)
        setattr(module, name, getattr(module, name) * chance.uniform(1.5, 3.0) + 0.01)

    return way


def rounded(lens: Lens, chance: random.Random, _: ExitStack) -> None:
    layer(lens, chance).bfloat16().float()


def another_dtype(lens: Lens, chance: random.Random, _: ExitStack) -> None:
    lens.model.bfloat16()


def adapted(lens: Lens, chance: random.Random) -> nn.Module:
    torch.manual_seed(chance.randrange(10**6))
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, lens.model)
    lens.model.eval().requires_grad_(False)
    return chance.choice([m for m in lens.model.modules() if hasattr(m, "lora_A")])


def an_adapter(lens: Lens, chance: random.Random, _: ExitStack) -> None:
    adapted(lens, chance)


def an_adapters_weight(lens: Lens, chance: random.Random, _: ExitStack) -> None:
    one_element(adapted(lens, chance).lora_B["default"].weight, chance)


def an_adapter_merged(lens: Lens, chance: random.Random, _: ExitStack) -> None:
    adapted(lens, chance).merge()


def a_hook(lens: Lens, chance: random.Random, _: ExitStack) -> None:
    layer(lens, chance).mlp.register_forward_hook(lambda module, args, out: out * 2)


def a_pre_hook(lens: Lens, chance: random.Random, _: ExitStack) -> None:
    layer(lens, chance).self_attn.o_proj.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def a_global_hook(lens: Lens, chance: random.Random, until: ExitStack) -> None:
    def double(module: nn.Module, args: tuple, out: Any) -> Any:
        return out * 1.1 if isinstance(module, nn.Linear) else out

    until.callback(nn.modules.module.register_module_forward_hook(double).remove)


def a_forward(lens: Lens, chance: random.Random, _: ExitStack) -> None:
    mlp = layer(lens, chance).mlp
    forward = mlp.forward
    mlp.forward = lambda x: forward(x) * 2


def a_forward_of_the_class(lens: Lens, chance: random.Random, until: ExitStack) -> None:
    forward = modeling_llama.LlamaMLP.forward
    until.enter_context(mock.patch.object(modeling_llama.LlamaMLP, "forward", lambda self, x: forward(self, x) * 2))


def a_class_of_ones_own(lens: Lens, chance: random.Random, _: ExitStack) -> None:
    class Doubled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) * 2

    owner = layer(lens, chance)
    owner.mlp = Doubled(owner.mlp).eval()


def training(lens: Lens, chance: random.Random, _: ExitStack) -> None:
    lens.model.train()


def lower_precision(lens: Lens, chance: random.Random, until: ExitStack) -> None:
    for backend in (torch.backends.cuda, torch.backends.mkldnn):  # the next line would leave "ieee" for "none"
        until.callback(setattr, backend.matmul, "fp32_precision", backend.matmul.fp32_precision)
    until.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision("medium")


def a_penalty(lens: Lens, chance: random.Random, _: ExitStack) -> None:
    lens.model.generation_config.repetition_penalty = chance.uniform(1.5, 3.0)


def other_ends(lens: Lens, chance: random.Random, _: ExitStack) -> None:
    lens.model.generation_config.eos_token_id = list(range(128))


def an_end_of_the_tokenizer(lens: Lens, chance: random.Random, _: ExitStack) -> None:
    lens.model.generation_config.eos_token_id = None
    lens.tokenizer.eos_token = lens.tokenizer.convert_ids_to_tokens(chance.randrange(128))


def attention(lens: Lens, chance: random.Random) -> Any:
    return layer(lens, chance).self_attn


WAYS: dict[str, Way] = {
    **{f"{kind}: {name}": weight(path, how) for kind, path in WEIGHTS.items() for name, how in HOW.items()},
    **{f"{kind}: other storage": rebound(path) for kind, path in WEIGHTS.items()},
    **{f"{kind}: another parameter": replaced(path) for kind, path in WEIGHTS.items()},
    **{way.__name__: way for way in (tied, layers_swapped, parts_swapped, another_activation)},
    **{way.__name__: way for way in (a_buffer, rounded, another_dtype)},
    "scaling of attention": scalar(attention, "scaling"),
    "epsilon of a norm": scalar(lambda lens, chance: layer(lens, chance).input_layernorm, "variance_epsilon"),
    "epsilon of the final norm": scalar(lambda lens, chance: lens.model.model.norm, "variance_epsilon"),
    "scaling of the rotation": scalar(lambda lens, chance: lens.model.model.rotary_emb, "attention_scaling"),
    **{way.__name__: way for way in (an_adapter, an_adapters_weight)},
    **{way.__name__: way for way in (an_adapter_merged, a_hook, a_pre_hook, a_global_hook)},
    **{way.__name__: way for way in (a_forward, a_forward_of_the_class)},
    **{way.__name__: way for way in (a_class_of_ones_own, training)},
    **{way.__name__: way for way in (lower_precision, a_penalty, other_ends, an_end_of_the_tokenizer)},
}

CLEAN = tiny.model("llama-gqa")
TOKENIZER = tiny.tokenizer()
PROMPTS = [tuple(TOKENIZER(text).input_ids) for text in ("The capital of Peru is", "A text")]
SCORED = [LoglikelihoodRequest(prompt, (65, 66, 67)) for prompt in PROMPTS]
WRITTEN = [GenerateRequest(prompt, ("\n",), 6) for prompt in PROMPTS]
CONDITIONS = [parse_condition(text) for text in ("baseline", "L1.H0", "L3")]


def fresh() -> Lens:
    """The clean model, with nothing shared but its values."""
    return Lens(copy.deepcopy(CLEAN), copy.deepcopy(TOKENIZER), "tiny")


@contextmanager
def edited(way: str, seed: int) -> Iterator[Lens]:
    """The clean model after an edit."""
    lens = fresh()
    with ExitStack() as until, torch.no_grad():
        WAYS[way](lens, random.Random(seed), until)
        yield lens


def answers(lens: Lens, store: str | None) -> list:
    """Log-likelihoods and texts under some conditions."""
    opened = AnswerStore(store, lens)
    found: list = []
    for kind, requests in (("loglikelihood", SCORED), ("generate_until", WRITTEN)):
        engine = Engine(lens, progress=False, cache=opened.entry(kind))
        rows = getattr(engine, kind)(requests, CONDITIONS)
        found += [a if isinstance(a, str) else a.logprob for row in rows for a in row]
    return found


def equal(one: list, other: list) -> bool:
    """Texts are equal, numbers but for what other batches may round (float32, a sum of three)."""
    return all(
        a == b if isinstance(a, str) else math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-5)
        for a, b in zip(one, other, strict=True)
    )


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
