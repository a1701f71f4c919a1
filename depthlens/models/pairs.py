"""Pairs of models that differ in their weights alone: named ones, and the check of any two models.

A donor must have the base model's class, sizes, weights by name and shape, settings of its layers, and vocabulary:
every token that text is made of has the same number, and the merges are the same. Then a layer of one model works in
the other. Some differences are harmless and are recorded, because distilled models have them: added (special) tokens
with other names, another chat template, another splitting of text before the merges, a longer context (other rotary
frequencies), untied embeddings. Text is always encoded by the base model's tokenizer.
"""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from depthlens import arguments
from depthlens.ablations import ROUNDED, WEIGHTS, Condition
from depthlens.errors import UserError, unknown
from depthlens.models import fingerprint, loading, names, quantised
from depthlens.models.lens import Donor, Lens, one_thread

log = logging.getLogger(__name__)
Same = Callable[[str, object, object], None]  # refuses two values that differ


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
        donor: A name, read layer by layer from its safetensors files in the base's dtype and onto its device (quantised
            as a whole, if the base was on loading); or a loaded model, in memory or offloaded.

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
    if len(base.devices) > 1:
        where = ",".join(map(str, base.devices))
        raise UserError(
            f"donor {str(donor)!r} would be read onto one device, and base {base.name!r} is spread over {where}; "
            f"give donor=dl.load({str(donor)!r}, device={where!r})"
        )
    source = names.find(donor)
    no_files = source.kind == "organism" or source.adapter  # of weights as they are to be
    dtype = str(base.dtype).removeprefix("torch.")
    held = no_files or base.quantize is not None
    device, offload = str(base.device), None if held else "disk"
    return loading.load(donor, dtype=dtype, device=device, quantize=base.quantize, offload=offload)


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
    rounded = next((c for c in conditions if c.uses(*ROUNDED)), None)
    if rounded and (method := quantised.method_of(lens.model.config)):
        fault = f"condition {rounded} rounds weights, and those of {lens.name!r} are quantised ({method})"
        raise UserError(f"{fault}; load the model with plain weights")
    if rounded and backend != "torch":
        raise UserError(f"condition {rounded} computes with rounded weights; use backend 'torch'")
    other = next((c for c in conditions if c.uses(*WEIGHTS)), None)
    if other and any(hasattr(part, "base_layer") for part in lens.model.modules()):
        fault = f"condition {other} puts other weights in place, and {lens.name!r} has adapters of peft beside its own"
        raise UserError(f"{fault}; merge them first")
    twice = next((c for c in conditions if c.uses("twice")), None)
    if twice and backend != "torch":
        raise UserError(f"condition {twice} runs a layer twice; use backend 'torch'")
    asked = next((c for c in conditions if c.uses("donor")), None)
    if asked and (lens.donor is None or backend != "torch"):
        fix = "give donor=NAME (on the command line --donor NAME)" if backend == "torch" else "use backend 'torch'"
        raise UserError(f"condition {asked} takes weights from a donor; {fix}")
    taken = ((c, a.layer) for c in conditions for a in c.ablations if a.mode in WEIGHTS and a.site in ("layer", "attn"))
    if part := next((c for c, layer in taken if layer in lens.dims.headless), None):
        fault = f"condition {part}: what mixes tokens there uses its weights in other ways than by calling modules"
        raise UserError(f"{fault}; name MLPs, or layers with attention")
    if lens.dims.headless and backend == "transformer_lens":
        raise UserError(
            f"{lens.name!r} has layers without attention, which backend {backend!r} has no hooks for; use 'torch'"
        )
    family = lens.arch.family
    fused = {site for site in ("head", "kv") if not family.per_head or (site == "kv" and not family.per_kv_head)}
    of_heads = (c for c in conditions for a in c.ablations if a.mode in WEIGHTS and a.site in fused)
    if part := next(of_heads, None):
        fault = f"condition {part}: one matrix of {lens.name!r} makes queries, keys and values of all heads"
        raise UserError(f"{fault}; name whole attentions, e.g. L3.attn@{part.ablations[0].mode}")


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
    names = f"base {base.name!r} and donor {donor.name!r}"

    def same(what: str, of_base: object, of_donor: object) -> None:
        if of_base != of_donor:
            fault = f"{names} are no pair: {what} {of_base} in the base, {of_donor} in the donor"
            raise UserError(f"{fault}; a donor differs in its weights alone")

    if not base.arch.attn_norm:
        raise UserError(f"the layers of {base.name!r} have not one norm each before attention and MLP: no donor's fit")
    if donor.model is base.model:
        raise UserError(f"{names} are one loaded model; load the donor apart")
    _compare_modules(same, base, donor)
    notes = _compare_tokenizers(same, base.tokenizer, donor.tokenizer)
    same("dtype is", *(str(lens.dtype).removeprefix("torch.") for lens in (base, donor)))
    same("device is", *(str(lens.device) for lens in (base, donor)))
    for layer in range(base.dims.n_layers):
        same(f"device of layer {layer} is", *(str(lens.device_of(layer)) for lens in (base, donor)))
    embeddings = tuple(
        site
        for site, parts in (("embed", ["embed"]), ("unembed", ["final_norm", "unembed"]))
        if not all(_equal_weights(getattr(base.arch, name), getattr(donor.arch, name)) for name in parts)
    )
    own_rotary = _rotary(base) != _rotary(donor)
    if own_rotary:
        notes.insert(0, "rotary frequencies differ; they go with whole layers and attentions")
    if embeddings:
        taken = "+".join(f"{site}@donor" for site in embeddings)
        notes.insert(0, f"{' and '.join(embeddings)} differ; a condition takes them along by {taken}")
    return Donor(donor, tuple(notes), embeddings, own_rotary)


def _compare_modules(same: Same, base: Lens, donor: Lens) -> None:
    """Refuse two models whose modules differ in more than their weights."""
    same("class is", type(base.model).__name__, type(donor.model).__name__)
    for size, value in vars(base.dims).items():
        same(f"{size} is", value, getattr(donor.dims, size))
    same("rows of the embedding (vocabulary size) are", *(len(lens.arch.embed.weight) for lens in (base, donor)))
    shapes = [{key: quantised.shape_of(t) for key, t in _kept(lens)} for lens in (base, donor)]
    for key in [*shapes[0], *shapes[1]]:
        same(f"shape of {key} is", *(shape.get(key, "missing") for shape in shapes))
    # read by attention at run time, not kept in a module (DeepSeek)
    same("rope_interleave is", *(getattr(lens.model.config, "rope_interleave", None) for lens in (base, donor)))
    for layer, its_layer in zip(_computing(base), _computing(donor), strict=True):
        for (name, module), (_, its_module) in zip(layer.named_modules(), its_layer.named_modules(), strict=True):
            name = name or type(layer).__name__
            same(f"a module {name} is", _kind(module), _kind(its_module))
            for key, value in _settings(module).items():
                same(f"{key} of {name} is", value, _settings(its_module).get(key))


def _computing(lens: Lens) -> list[nn.Module]:
    return [*lens.arch.layers, lens.arch.final_norm]


def _kept(lens: Lens) -> list[tuple[str, Tensor]]:
    """Weights and buffers of a checkpoint, each under all of its names."""
    kept = lens.model.state_dict().keys()
    return [(name, tensor) for name, tensor in fingerprint.named_tensors(lens.model) if name in kept]


def _kind(module: nn.Module) -> str:
    """Name of a module's class; a linear layer is one however it keeps its weights."""
    return "Linear" if quantised.is_linear(module) else type(module).__name__


def _settings(module: nn.Module) -> dict[str, object]:
    """Numbers and words that a module computes by; dropout and padding matter in training only."""
    if quantised.is_linear(module):
        return {"bias": module.bias is not None}
    plain = (bool, int, float, str, type(None))
    idle = {"training", "attention_dropout", "padding_idx", "p"}
    return {k: v for k, v in vars(module).items() if isinstance(v, plain) and not k.startswith("_") and k not in idle}


def _equal_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def _rotary(lens: Lens) -> tuple[object, ...]:
    """What the rotary angles are made from."""
    rotary = lens.arch.rotary
    frequencies = {name: tensor.tolist() for name, tensor in rotary.named_buffers()} if rotary else {}
    return frequencies, getattr(rotary, "attention_scaling", None), getattr(rotary, "rope_type", None)


def _compare_tokenizers(same: Same, base: PreTrainedTokenizerBase, donor: PreTrainedTokenizerBase) -> list[str]:
    """Refuse two tokenizers that encode text as different tokens; return harmless differences."""
    added = [{i: str(t) for i, t in tok.added_tokens_decoder.items()} for tok in (base, donor)]
    pieces = [{i: t for t, i in tok.get_vocab().items()} for tok in (base, donor)]
    for i in sorted({*pieces[0], *pieces[1]} - {*added[0], *added[1]}):
        same(f"token {i} is", *(repr(p[i]) if i in p else "missing" for p in pieces))
    # a token of text in one model that is an added one in the other
    for i in sorted({*added[0]} ^ {*added[1]}):
        text = [p[i] for p in pieces if i in p]
        if len(text) == 2:
            same(f"token {i} is", *map(repr, text))
    notes = []
    renamed = [i for i in sorted({*added[0], *added[1]}) if added[0].get(i) != added[1].get(i)]
    if renamed:
        i = renamed[0]
        of_base, of_donor = (f"{a[i]!r}" if i in a else "absent" for a in added)
        notes.append(f"{len(renamed)} added tokens differ, e.g. {i} is {of_base} in the base, {of_donor} in the donor")
    parts = [json.loads(tok.backend_tokenizer.to_str()) for tok in (base, donor) if hasattr(tok, "backend_tokenizer")]
    if len(parts) == 2:
        merges = [[" ".join(m) if isinstance(m, list) else m for m in p["model"].get("merges") or []] for p in parts]
        for n, pair_of_merges in enumerate(zip_longest(*merges)):
            same(f"merge {n} of the tokenizer is", *map(repr, pair_of_merges))
        for part in ("normalizer", "pre_tokenizer"):
            if parts[0][part] != parts[1][part]:
                notes.append(f"the tokenizers' {part} differ; text is encoded by the base's")
    if base.chat_template != donor.chat_template:
        notes.append("chat templates differ; prompts are wrapped by the base's")
    return notes
