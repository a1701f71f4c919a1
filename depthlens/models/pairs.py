"""Pairs of models that differ in their weights alone: the check of any two, and what needs the second one.

A donor must have the base model's class, sizes, weights by name and shape, settings of its layers, and vocabulary:
every token that text is made of has the same number, and the merges are the same. Then a layer of one model works in
the other. Some differences are harmless, and distilled models have them: added (special) tokens with other names,
another chat template, another splitting of text before the merges, a longer context (other rotary frequencies), untied
embeddings. Text is always encoded by the base model's tokenizer, and wrapped by its chat template.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Sequence
from typing import Any

from transformers import PreTrainedConfig

from depthlens.ablations import Condition, modes
from depthlens.errors import UserError
from depthlens.models import in_force, loading, names, quantised
from depthlens.models.lens import Lens, one_thread

# settings of a configuration in which a donor may differ: they change no layer, or rotary angles alone
HARMLESS = {"max_position_embeddings", "tie_word_embeddings", "initializer_range", "use_cache", "pretraining_tp"}
HARMLESS |= {"rope_parameters", "attention_dropout", "max_window_layers"}


@one_thread
def with_donor(base: Lens, donor: str | os.PathLike[str] | Lens) -> Lens:
    """The same model with a donor, for conditions such as ``L12@donor``.

    Embedding and unembedding stay the base's but under conditions that take them, too (``embed@donor``,
    ``unembed@donor``; ``whole@donor`` is the donor itself).

    Args:
        base: A loaded model; it stays as it is.
        donor: A name, read layer by layer from its safetensors files in the base's dtype and onto its device (whole, if
            the base was quantised on loading or is on several); or a loaded model, in memory or offloaded.

    Returns:
        A second handle on the base's weights, whose ``donor`` is set.

    Raises:
        UserError: the two are no pair; the message names the first difference.

    Example:
        >>> pair = dl.with_donor(base, donor)
        >>> dl.next_token(pair, "The capital of Denmark is", ["L2@donor", "L3.H1@donor"]).columns.tolist()
        ['baseline', 'L2@donor', 'L3.H1@donor']
    """
    base.needs_weights("a comparison with another model or @donor")
    if isinstance(donor, Lens):
        donor.bind()
    else:
        source, device = names.find(donor), ",".join(map(str, base.devices))
        whole = source.kind == "organism" or source.adapter or base.quantize or "," in device
        dtype, offload = str(base.dtype).removeprefix("torch."), None if whole else "disk"
        donor = loading.load(donor, dtype=dtype, device=device, quantize=base.quantize, offload=offload)
    donor.needs_weights("a donor")
    models = f"base {base.name!r} and donor {donor.name!r}"
    if donor.model is base.model:
        raise UserError(f"{models} are one loaded model; load the donor apart")
    if not base.arch.family.attn_norm:
        raise UserError(f"the layers of {base.name!r} have not one norm each before attention and MLP: no donor's fit")
    added = {i for lens in (base, donor) for i in lens.tokenizer.added_tokens_decoder}
    of_base, of_donor = (_facts(lens, added) for lens in (base, donor))
    for fact in of_base | of_donor:
        if of_base.get(fact) != of_donor.get(fact):
            found = f"{of_base.get(fact, 'missing')} in the base, {of_donor.get(fact, 'missing')} in the donor"
            raise UserError(f"{models} are no pair: {fact} is {found}; a donor differs in its weights alone")
    joined = copy.copy(base)
    joined.donor, joined.own_rotary = donor, _rotary(base) != _rotary(donor)
    return joined


def join_donor(
    lens: Lens, donor: str | os.PathLike[str] | Lens | None, conditions: Sequence[Condition], backend: str
) -> Lens:
    """The model with its donor, where conditions ask for one.

    Raises:
        UserError: conditions need a donor and there is none, or there is one that no condition uses.
    """
    joined = lens if donor is None else with_donor(lens, donor)
    require(joined, conditions, backend)
    if donor is not None and joined.donor and not any(c.uses("donor") for c in conditions):
        raise UserError(f"donor {joined.donor.name!r} is used by @donor conditions only; give both, or neither")
    return joined


def require(lens: Lens, conditions: Sequence[Condition], backend: str = "torch") -> None:
    """Refuse a condition, one that is in force among them, that this model, its donor or the backend cannot do."""
    entered = [(one.lens, one.condition) for one in in_force.entered(lens.model)]
    for of, condition in [*((lens, condition) for condition in conditions), *entered]:
        if fault := _fault(of, condition, backend):
            raise UserError(f"condition {condition} {fault}")


def _fault(lens: Lens, condition: Condition, backend: str) -> str | None:
    """What cannot be done with a condition."""
    family, name, method = lens.arch.family, repr(lens.name), quantised.method_of(lens.model.config)
    other = [a for a in condition.ablations if a.kind == "weights"]
    fused = {site for site in ("head", "kv") if not family.per_head or (site == "kv" and not family.per_kv_head)}
    if lens.dims.headless and backend == "transformer_lens":
        return f"meets layers of {name} without attention, which {backend!r} has no hooks for; use 'torch'"
    if method and any(modes.of(a.mode).bits for a in other):
        return f"rounds weights, and those of {name} are quantised ({method}); load it with plain weights"
    if backend != "torch" and any(a.kind in ("weights", "repeat") for a in condition.ablations):
        return "can be computed by backend 'torch' only; use that"
    if lens.remote and not all(modes.of(name).remote for name in condition.modes):
        return "is not done remotely; use @mean, or nothing to remove, or load the model without remote"
    if lens.donor is None and condition.uses("donor"):
        return "takes weights from a donor; give donor=NAME (on the command line --donor NAME)"
    if other and any(hasattr(part, "base_layer") for part in lens.model.modules()):
        return f"puts other weights in place, and {name} has adapters of peft; merge them first"
    if any(a.site in ("layer", "attn") and a.layer in lens.dims.headless for a in other):
        return "takes weights that are not only used by calls of modules; name MLPs, or other layers"
    if any(a.site in fused for a in other):
        return f"takes weights of heads, and {name} has queries, keys and values of all in one matrix; name attentions"
    return None


def _facts(lens: Lens, added: Collection[int]) -> dict[str, object]:
    """What must be equal in two models of a pair, by name; of tokens all but the added ones."""
    config: Any = lens.model.config.get_text_config()
    settings = type(config)().to_dict().keys() - PreTrainedConfig().to_dict().keys() - HARMLESS
    facts: dict[str, object] = {"class": type(lens.model).__name__}
    facts |= {key: getattr(config, key, None) for key in sorted(settings)}
    weights = lens.model.named_parameters(remove_duplicate=False)
    facts |= {f"shape of {key}": quantised.shape_of(weight) for key, weight in weights}
    facts["dtype"] = str(lens.dtype).removeprefix("torch.")
    facts |= {f"device of layer {layer}": str(lens.device_of(layer)) for layer in range(lens.dims.n_layers)}
    tokens = sorted((i, token) for token, i in lens.tokenizer.get_vocab().items() if i not in added)
    return facts | {f"token {i}": repr(token) for i, token in tokens}


def _rotary(lens: Lens) -> tuple[object, ...]:
    """What the rotary angles are made from."""
    rotary = lens.arch.rotary
    frequencies = {name: tensor.tolist() for name, tensor in rotary.named_buffers()} if rotary else {}
    return frequencies, getattr(rotary, "attention_scaling", None), getattr(rotary, "rope_type", None)
