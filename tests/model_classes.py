"""Tiny random models of all of transformers' causal classes, and how depthlens takes each.

    python tests/model_classes.py

It writes the table of docs/models.md. Every class gets the same small sizes, under the names that its configuration
has for them.
"""

import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import tiny
import torch
import transformers
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

import depthlens as dl
from depthlens.ablations import expand
from depthlens.engine import walk_check
from depthlens.requests import LoglikelihoodRequest

N_HEADS = 4
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2}
OLDER = {"n_embd": 32, "n_layer": 4, "n_head": N_HEADS, "n_inner": 48, "n_positions": 512, "d_model": 32, "ffn_dim": 48}
ROTARY = {"rotary_dim": 4}
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
SIZES = tiny.BASE | tiny.LATENT | EXPERTS | OLDER | LINEAR | ROTARY
SIZES |= {"num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 8, "v_head_dim": 8}
SIZES |= {"shared_expert_intermediate_size": 16, "sliding_window": 64}
ABLATE = "L0,L2,L1.attn,L2.mlp,L1.H1,L2.H0+L3.H2"
CONTEXTS = [tuple(range(5, 17)), tuple(range(5, 14)), (40, 41, 42, 43, 44)]
ASKED = [LoglikelihoodRequest(context, answer) for context in CONTEXTS for answer in ((7, 8), (7, 9, 10))]
MORE = "layers do more than add"
LARGE = 10**7  # parameters of a class that has other names for its sizes

PAGE, TABLE = Path(__file__).parents[1] / "docs" / "models.md", "| class | how | why | difference |\n"

# kinds that the wavefront walks, beside those of `tiny.FAMILIES`
WALKED = (
    "apertus arcee aria_text bitnet cohere cohere2 cwm dots1 ernie4_5 ernie4_5_moe exaone4 exaone_moe "
    "flex_olmo gemma gemma3_text glm glm4 glm4_moe glm4_moe_lite gpt_neox gptj granite granitemoe "
    "granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hy_v3 jais2 llama4_text mellum minicpm3 "
    "minimax_m2 ministral ministral3 mixtral olmo olmo2 olmo3 olmoe persimmon phi phi3 phimoe qwen2_moe "
    "seed_oss smollm3 solar_open starcoder2 youtu "
).split()
# kinds that are computed by whole passes, each for another reason
WHOLE_PASSES = "gpt_oss stablelm diffllama gemma2 falcon gpt2 nemotron".split()


def config(kind: str) -> transformers.PreTrainedConfig:
    """A small configuration of a model type."""
    made = CONFIG_MAPPING[kind]
    usual = made()
    sizes = {name: value for name, value in SIZES.items() if hasattr(usual, name)}
    if isinstance(getattr(type(usual), "head_dim", None), property):  # a quotient of two others
        del sizes["head_dim"]
    if hasattr(usual, "kv_lora_rank"):  # latent attention makes a key and a value for every head
        sizes["num_key_value_heads"] = N_HEADS
    return made(**sizes)


def build(kind: str) -> PreTrainedModel | None:
    """A seeded random model of a type, in which every norm and bias matters; None where it would be large."""
    small, cls = config(kind), getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])
    with torch.device("meta"):
        if sum(p.numel() for p in cls(small).parameters()) > LARGE:
            return None
    torch.manual_seed(0)
    model = cls(small).float().eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, float(parameter.mean()), 0.2)
    model.generation_config.eos_token_id = 257
    return model


def lens(kind: str) -> dl.Lens:
    """The same as a depthlens handle."""
    model = build(kind)
    assert model is not None
    return dl.Lens(model, tiny.tokenizer(), kind)


def logprobs(lens: dl.Lens, path: str | None, backend: str = "torch") -> torch.Tensor:
    """Log-likelihoods of the answers under the baseline and `ABLATE`."""
    return scores(lens, expand(ABLATE, lens.dims), path=path, backend=backend)


def scores(lens: dl.Lens, conditions: Iterable, asked: list = ASKED, **options) -> torch.Tensor:
    """Log-likelihoods of answers under conditions, or their texts. Shape [condition, answer]."""
    under = [dl.parse_condition(c).validate(lens.dims) if isinstance(c, str) else c for c in conditions]
    rows = dl.Engine(lens, progress=False, **options).loglikelihood(asked, under)
    return torch.tensor([[answer.logprob for answer in row] for row in rows])


def taken(kind: str) -> tuple[str, ...]:
    """How a type is taken, why not better, and how far a walk is from whole passes."""
    small = config(kind)
    if small.get_text_config() is not small:
        return "not tried", "reads more than text"
    try:
        model = build(kind)
        if model is None:
            return "not tried", "a tiny one cannot be configured"
        lens = dl.Lens(model, tiny.tokenizer(), kind)
        found = walk_check.found(lens)
    except dl.UserError as e:
        return "refused", str(e).removesuffix("; it is not supported")
    if found.fault is None:
        apart = float((logprobs(lens, "wavefront") - logprobs(lens, "padded_rows")).abs().max())
        return "walked", "" if found.adds else MORE, f"{apart:.0e}"
    why = found.fault if found.adds else f"{found.fault}; {MORE}"
    return "whole passes" if found.separable else "whole passes, layers only", why


def main() -> None:
    """Write the table of the page, and the version in what stands above it."""
    warnings.simplefilter("ignore")
    logging.set_verbosity(logging.CRITICAL)
    head, found = PAGE.read_text().split(TABLE)[0], {}
    for kind, name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()):
        of_text = f"{kind}_text"
        if name in found or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(of_text) == name:
            continue
        try:
            found[name] = taken(kind)
        except Exception as e:  # noqa: BLE001 - whatever a class raises when it is built small goes into the table
            found[name] = "not tried", f"a tiny one cannot be built ({type(e).__name__})"
        print(name, *found[name], flush=True)
    rows = [f"| {' | '.join((name, *about, *[''] * (3 - len(about))))} |\n" for name, about in found.items()]
    head = re.sub(r"transformers [\d.]+\d", f"transformers {transformers.__version__}", head)
    PAGE.write_text(f"{head}{TABLE}|---|---|---|---|\n{''.join(rows)}")


if __name__ == "__main__":
    main()
