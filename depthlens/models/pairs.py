"""Pairs of models that differ in their weights alone: named ones, and the check of any two models.

A donor must have the base model's class, sizes, weights by name and shape, settings of its layers, and vocabulary:
every token that text is made of has the same number, and the merges are the same. Then a layer of one model works in
the other. Some differences are harmless and are recorded, because distilled models have them: added (special) tokens
with other names, another chat template, another splitting of text before the merges, a longer context (other rotary
frequencies), untied embeddings. Text is always encoded by the base model's tokenizer.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from depthlens import arguments
from depthlens.ablations import ROUNDED, WEIGHTS, Condition
from depthlens.errors import UserError, unknown
from depthlens.models import loading, names, quantised
from depthlens.models.lens import Donor, Lens, one_thread

log = logging.getLogger(__name__)
# settings of a configuration in which a donor may differ: they change no layer, or rotary angles alone
HARMLESS = {"max_position_embeddings", "tie_word_embeddings", "initializer_range", "use_cache", "pretraining_tp"}
HARMLESS |= {"rope_parameters", "attention_dropout", "max_window_layers"}
EMBEDDINGS = {"embed": ("embed",), "unembed": ("final_norm", "unembed")}  # the modules of a site without a layer


@dataclass(frozen=True)
class Pair:
    """A model and one that was made from it by training on solutions with steps.

    Attributes:
        base: Name for `depthlens.load`.
        distilled: Name for `depthlens.load`.
    """

    base: str
    distilled: str


PAIRS: dict[str, Pair] = {
    "smollm2-135m": Pair("smollm2-135m-direct", "smollm2-135m-cot"),
    "llama-8b": Pair("llama-3.1-8b", "deepseek-r1-llama-8b"),
    "qwen-1.5b": Pair("qwen2.5-math-1.5b", "deepseek-r1-qwen-1.5b"),
    "qwen-7b": Pair("qwen2.5-math-7b", "deepseek-r1-qwen-7b"),
    "qwen3-8b": Pair("qwen3-8b-base", "deepseek-r1-qwen3-8b"),
    "llama-70b": Pair("llama-3.3-70b-instruct", "deepseek-r1-llama-70b"),
}


def pair(name: str) -> Pair:
    """A named pair.

    Raises:
        UserError: there is none of that name.
    """
    if name not in PAIRS:
        raise unknown("pair", name, PAIRS)
    return PAIRS[name]


@one_thread
def with_donor(base: Lens, donor: str | os.PathLike[str] | Lens) -> Lens:
    """The same model with a donor, for conditions such as ``L12@donor``.

    Args:
        base: A loaded model; it stays as it is.
        donor: A name, read layer by layer from its safetensors files in the base's dtype and onto its device (whole, if
            the base was quantised on loading or is on several); or a loaded model, in memory or offloaded.

    Returns:
        A second handle on the base's weights, whose ``donor`` is set.

    Raises:
        UserError: the two are no pair; the message names the difference.
    """
    arguments.loaded(base)
    base.needs_weights("@donor")
    donor = load_donor(base, donor)
    joined = copy.copy(base)
    joined.donor = compare(base, donor)
    return joined


def load_donor(base: Lens, donor: str | os.PathLike[str] | Lens) -> Lens:
    """A donor by name, or as it was loaded; see `with_donor`."""
    if isinstance(donor, Lens):
        donor.bind()
        return donor
    source, devices = names.find(donor), [str(device) for device in base.devices]
    dtype, device = str(base.dtype).removeprefix("torch."), ",".join(devices)
    whole = source.kind == "organism" or source.adapter or source.gguf or base.quantize or len(devices) > 1
    return loading.load(donor, dtype=dtype, device=device, quantize=base.quantize, offload=None if whole else "disk")


def warn_of_embeddings(donor: Donor, conditions: Sequence[Condition]) -> None:
    """Warn where embedding or unembedding differ and no condition takes them: all layers are not the donor then.

    Args:
        donor: From `with_donor`.
        conditions: All that are run.
    """
    taken = {a.site for c in conditions for a in c.ablations}
    left = [site for site in donor.own_embeddings if site not in taken]
    if left and any(c.uses("donor") for c in conditions):
        fix = f"add {' and '.join(f'{site}@donor' for site in left)}, or whole@donor, to take them along"
        log.warning("donor %r differs in %s too, which stay the base's; %s", donor.lens.name, " and ".join(left), fix)


def join_donor(
    lens: Lens, donor: str | os.PathLike[str] | Lens | None, conditions: Sequence[Condition], backend: str
) -> Lens:
    """The model with its donor, where conditions ask for one.

    Raises:
        UserError: conditions need a donor and there is none, or there is one that no condition uses.
    """
    joined = lens if donor is None else with_donor(lens, donor)
    require(joined, conditions, backend)
    if donor is not None and joined.donor is not None:
        name = joined.donor.lens.name
        if not any(c.uses("donor") for c in conditions):
            raise UserError(f"donor {name!r} is used by @donor conditions only; give both, or neither")
        warn_of_embeddings(joined.donor, conditions)
    return joined


def require(lens: Lens, conditions: Sequence[Condition], backend: str = "torch") -> None:
    """Refuse a condition that this model, its donor or the backend cannot do."""
    if lens.dims.headless and backend == "transformer_lens":
        fault = f"{lens.name!r} has layers without attention, which {backend!r} has no hooks for"
        raise UserError(f"{fault}; use 'torch'")
    for condition, fault in _faults(lens, conditions, backend):
        raise UserError(f"condition {condition} {fault}")


def _faults(lens: Lens, conditions: Sequence[Condition], backend: str) -> Iterator[tuple[Condition, str]]:
    """What cannot be done with each condition."""
    family, name, method = lens.arch.family, repr(lens.name), quantised.method_of(lens.model.config)
    fused = {site for site in ("head", "kv") if not family.per_head or (site == "kv" and not family.per_kv_head)}
    adapted = any(hasattr(part, "base_layer") for part in lens.model.modules())
    for condition in conditions:
        other = [a for a in condition.ablations if a.mode in WEIGHTS]
        if method and condition.uses(*ROUNDED):
            yield condition, f"rounds weights, and those of {name} are quantised ({method}); load it with plain weights"
        only_torch = other or any(a.mode == "twice" or a.site == "expert" for a in condition.ablations)
        if backend != "torch" and only_torch:
            yield condition, "can be computed by backend 'torch' only; use that"
        if adapted and other:
            yield condition, f"puts other weights in place, and {name} has adapters of peft; merge them first"
        if lens.donor is None and condition.uses("donor"):
            yield condition, "takes weights from a donor; give donor=NAME (on the command line --donor NAME)"
        if any(a.site in ("layer", "attn") and a.layer in lens.dims.headless for a in other):
            yield condition, "takes weights that are not only used by calls of modules; name MLPs, or other layers"
        if any(a.site in fused for a in other):
            shared = f"and one matrix of {name} makes queries, keys and values of all"
            yield condition, f"takes weights of heads, {shared}; name whole attentions, e.g. L3.attn@{other[0].mode}"


def compare(base: Lens, donor: Lens) -> Donor:
    """Check that two models are a pair.

    Args:
        base: A loaded model.
        donor: Another, of the same dtype and on the same device.

    Returns:
        The donor, with its harmless differences.

    Raises:
        UserError: naming the first difference that makes them no pair.
    """
    base.needs_weights("a comparison with another model")
    donor.needs_weights("a donor")
    models = f"base {base.name!r} and donor {donor.name!r}"
    if donor.model is base.model:
        raise UserError(f"{models} are one loaded model; load the donor apart")
    if not base.arch.family.attn_norm:
        raise UserError(f"the layers of {base.name!r} have not one norm each before attention and MLP: no donor's fit")
    added = [{i: str(token) for i, token in m.tokenizer.added_tokens_decoder.items()} for m in (base, donor)]
    about = [_facts(lens, {*added[0], *added[1]}) for lens in (base, donor)]
    for fact in {**about[0], **about[1]}:
        of_base, of_donor = (facts.get(fact, "missing") for facts in about)
        if of_base != of_donor:
            fault = f"{models} are no pair: {fact} is {of_base} in the base, {of_donor} in the donor"
            raise UserError(f"{fault}; a donor differs in its weights alone")

    def differs(part: str) -> bool:
        return not all(map(torch.equal, *(getattr(m.arch, part).parameters() for m in (base, donor))))

    notes = []
    embeddings = tuple(site for site, parts in EMBEDDINGS.items() if any(map(differs, parts)))
    own_rotary = _rotary(base) != _rotary(donor)
    if embeddings:
        taken = "+".join(f"{site}@donor" for site in embeddings)
        notes.append(f"{' and '.join(embeddings)} differ; a condition takes them along by {taken}")
    if own_rotary:
        notes.append("rotary frequencies differ; they go with whole layers and attentions")
    if renamed := [i for i in sorted({*added[0], *added[1]}) if added[0].get(i) != added[1].get(i)]:
        notes.append(f"{len(renamed)} added tokens differ, e.g. token {renamed[0]}")
    if base.tokenizer.chat_template != donor.tokenizer.chat_template:
        notes.append("chat templates differ; prompts are wrapped by the base's")
    return Donor(donor, tuple(notes), embeddings, own_rotary)


def _facts(lens: Lens, added: Collection[int]) -> dict[str, object]:
    """What must be equal in two models of a pair, by name; of tokens all but the added ones."""
    config: Any = lens.model.config.get_text_config()
    settings = type(config)().to_dict().keys() - PreTrainedConfig().to_dict().keys() - HARMLESS
    weights = {key: quantised.shape_of(weight) for key, weight in lens.model.named_parameters(remove_duplicate=False)}
    tokens = sorted((i, token) for token, i in lens.tokenizer.get_vocab().items() if i not in added)
    return {
        "class": type(lens.model).__name__,
        **{key: getattr(config, key, None) for key in sorted(settings)},
        **{f"shape of {key}": shape for key, shape in weights.items()},
        "dtype": str(lens.dtype).removeprefix("torch."),
        "device": str(lens.device),
        **{f"device of layer {layer}": str(lens.device_of(layer)) for layer in range(lens.dims.n_layers)},
        **{f"token {i}": repr(token) for i, token in tokens},
    }


def _rotary(lens: Lens) -> tuple[object, ...]:
    """What the rotary angles are made from."""
    rotary = lens.arch.rotary
    frequencies = {name: tensor.tolist() for name, tensor in rotary.named_buffers()} if rotary else {}
    return frequencies, getattr(rotary, "attention_scaling", None), getattr(rotary, "rope_type", None)
