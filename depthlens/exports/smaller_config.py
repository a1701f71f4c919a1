"""The configuration of a model without some of its layers, checked against the layers that stay.

Configurations tell layers apart by lists with one entry a layer (``layer_types``), by lists of layer numbers
(``mlp_only_layers``), and by how many of the first layers are of a kind (``first_k_dense_replace``). Each is cut to the
layers that stay. An empty model of the new configuration shows whether that was enough: its layers must be what those
that stay are, module by module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from depthlens.errors import UserError
from depthlens.models.architectures import bind
from depthlens.models.lens import Lens

# settings that count the first layers of a kind
FIRST_LAYERS = ("first_k_dense_replace", "max_window_layers")
NUMBER_OF_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_SIZES = ("in_features", "out_features")
_PLAIN = (bool, int, float, str, type(None))


def skeleton(lens: Lens, kept: Sequence[int], n_kv_heads: int, n_gone: int = 0) -> PreTrainedModel:
    """An empty model (on the meta device) of the layers that stay, with a configuration of its own.

    Args:
        lens: The whole model.
        kept: Numbers of the layers that stay, ascending; one that runs twice is there twice.
        n_kv_heads: Key/value heads that each of them keeps.
        n_gone: Experts that each of those with experts loses.

    Raises:
        UserError: the configuration cannot say which kind each layer is once others are gone.
    """
    config = _cut(lens, kept, n_kv_heads, n_gone)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.generation_config = lens.model.generation_config
    layers = bind(model).layers
    for new, old in enumerate(kept):
        whole = lens.arch.layers[old]
        difference = _difference(layers[new], whole)
        as_wide = n_kv_heads == lens.dims.n_kv_heads and not n_gone
        if not difference and as_wide and _shapes(layers[new]) != _shapes(whole):
            difference = "its weights have other shapes"
        if difference:
            fault = f"without the removed layers, the configuration of {lens.name!r} makes layer {old} another one"
            raise UserError(f"{fault} ({difference}); export another condition")
    return model


def _cut(lens: Lens, kept: Sequence[int], n_kv_heads: int, n_gone: int) -> PreTrainedConfig:
    config: Any = lens.model.config
    entries = config.to_dict()
    n_layers, dims = lens.dims.n_layers, lens.dims
    of_text = entries if config.get_text_config() is config else entries["text_config"]
    for name, value in of_text.items():
        if name in FIRST_LAYERS and isinstance(value, int):
            of_text[name] = sum(layer < value for layer in kept)
        elif "layer" in name and isinstance(value, list):
            of_text[name] = _cut_list(value, kept, n_layers)
        elif n_gone and name in NUMBER_OF_EXPERTS and value == max(dims.n_experts):
            of_text[name] = value - n_gone
    of_text["num_hidden_layers"] = len(kept)
    if n_kv_heads < dims.n_kv_heads:
        of_text["num_attention_heads"] = n_kv_heads * (dims.n_heads // dims.n_kv_heads)
        of_text |= {"num_key_value_heads": n_kv_heads, "head_dim": dims.d_head}
    entries.pop("quantization_config", None)  # of a .gguf file, whose weights were dequantised on loading
    made = type(config).from_dict(entries)
    made.architectures = [type(lens.model).__name__]
    made.dtype = lens.dtype
    return made


def _cut_list(value: list, kept: Sequence[int], n_layers: int) -> list:
    """A list with one entry a layer, or of layer numbers; any other one as it is."""
    numbers = all(isinstance(x, int) and not isinstance(x, bool) and 0 <= x < n_layers for x in value)
    if numbers and value == sorted(set(value)) and (len(value) != n_layers or n_layers > 2):
        return [new for new, old in enumerate(kept) if old in value]
    return [value[old] for old in kept] if len(value) == n_layers else value


def _shapes(layer: nn.Module) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in layer.named_parameters()}


def _difference(made: nn.Module, whole: nn.Module) -> str | None:
    """The first module of a layer that is of another class or holds another plain value than in the whole model."""
    its = dict(whole.named_modules())
    if [name for name, _ in made.named_modules()] != list(its):
        return "it has other parts"
    for name, module in made.named_modules():
        if type(module) is not type(its[name]):
            return f"{name} is a {type(module).__name__} and not a {type(its[name]).__name__}"
        for key, value in vars(module).items():
            # where a layer is; and sizes, which the shapes of weights tell
            other = any(what in key for what in ("layer_idx", "layer_id", "heads", "experts"))
            other |= key in ("training", *_SIZES)
            if isinstance(value, _PLAIN) and not other and value != vars(its[name]).get(key):
                return f"{name or 'it'} has {key} {value!r} and not {vars(its[name]).get(key)!r}"
    return None
