"""Two models that differ in their weights alone: which ones are named, and whether two given ones are such a pair.

A donor must have the base model's class, sizes, weights by name and shape, settings of its layers, and vocabulary:
every token that text is made of under the same number, joined by the same merges. Then a layer of one can stand in the
other. Some differences do no harm and are noted, since distilled models have them: added (special) tokens under other
names, another chat template, splitting of text before the merges, a longer context (other rotary frequencies), untied
embeddings. Text is always encoded by the base model's tokenizer.
"""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import nn

from depthlens import arguments
from depthlens.ablations import Condition
from depthlens.errors import UserError, unknown
from depthlens.models import loading
from depthlens.models.lens import Donor, Lens
from depthlens.organisms import builder

log = logging.getLogger(__name__)


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


def with_donor(base: Lens, donor: str | os.PathLike[str] | Lens) -> Lens:
    """The same model with a donor beside it, for conditions such as ``L12@donor``.

    Args:
        base: A loaded model; it stays as it is.
        donor: A name, read layer by layer from its safetensors files in the base's dtype and onto its device; or a
            loaded model, in memory or offloaded.

    Returns:
        A second handle on the base's weights, whose ``donor`` is set.

    Raises:
        UserError: the two are no pair; the message names the difference.
    """
    arguments.loaded(base)
    base.needs_weights("@donor")
    donor = load_donor(base, donor)
    together = copy.copy(base)
    together.donor = compare(base, donor)
    return together


def load_donor(base: Lens, donor: str | os.PathLike[str] | Lens) -> Lens:
    """A donor by name, or as it was loaded; see `with_donor`."""
    if isinstance(donor, Lens):
        return donor
    built = isinstance(donor, str) and builder.is_name(donor)  # has no files to read from
    dtype = str(base.dtype).removeprefix("torch.")
    return loading.load(donor, dtype=dtype, device=str(base.device), offload=None if built else "disk")


def warn_of_embeddings(lens: Lens, conditions: Sequence[Condition]) -> None:
    """Say where embedding or unembedding differ and no condition takes them along: then all layers are not the donor.

    Args:
        lens: From `with_donor`.
        conditions: All that are run.
    """
    taken = {a.site for c in conditions for a in c.ablations}
    left = [end for end in lens.donor.own_embeddings if end not in taken]
    if left and any(c.uses_donor for c in conditions):
        fix = f"add {' and '.join(f'{end}@donor' for end in left)}, or whole@donor, to take them along"
        log.warning(
            "donor %r differs in %s too, which stay the base's; %s", lens.donor.lens.name, " and ".join(left), fix
        )


def join_donor(
    lens: Lens,
    donor: str | os.PathLike[str] | Lens | None,
    conditions: Sequence[Condition],
    backend: str,
) -> Lens:
    """The model with its donor, where conditions ask for one; nothing asked for is ignored."""
    both = lens if donor is None else with_donor(lens, donor)
    require(both, conditions, backend)
    if donor is not None:
        if not any(c.uses_donor for c in conditions):
            raise UserError(f"donor {both.donor.lens.name!r} is used by @donor conditions only; give both, or neither")
        warn_of_embeddings(both, conditions)
    return both


def compare(base: Lens, donor: Lens) -> Donor:
    """Check that two models are a pair.

    Args:
        base: A loaded model.
        donor: Another, of the same dtype and on the same device.

    Returns:
        The donor, with what is to be noted.

    Raises:
        UserError: naming the first difference that makes them none.
    """
    base.needs_weights("a comparison with another model")
    donor.needs_weights("a donor")
    names = f"base {base.name!r} and donor {donor.name!r}"

    def same(what: str, one: object, other: object) -> None:
        if one != other:
            fault = f"{names} are no pair: {what} {one} in the base, {other} in the donor"
            raise UserError(f"{fault}; a donor differs in its weights alone")

    if donor.model is base.model:
        raise UserError(f"{names} are one loaded model; load the donor apart")
    same("class is", type(base.model).__name__, type(donor.model).__name__)
    for size, value in vars(base.dims).items():
        same(f"{size} is", value, getattr(donor.dims, size))
    same("rows of the embedding (vocabulary size) are", *(len(lens.arch.embed.weight) for lens in (base, donor)))
    shapes = [{key: list(t.shape) for key, t in lens.model.state_dict().items()} for lens in (base, donor)]
    for key in [*shapes[0], *shapes[1]]:
        same(f"shape of {key} is", *(shape.get(key, "missing") for shape in shapes))
    # read by attention at run time, not kept in a module (DeepSeek)
    same("rope_interleave is", *(getattr(lens.model.config, "rope_interleave", None) for lens in (base, donor)))
    for one, other in zip(_computing(base), _computing(donor), strict=True):
        for (name, mine), (_, its) in zip(one.named_modules(), other.named_modules(), strict=True):
            same(f"a module {name or type(one).__name__} is", type(mine).__name__, type(its).__name__)
            for key, value in _settings(mine).items():
                same(f"{key} of {name or type(one).__name__} is", value, _settings(its).get(key))
    added = _compare_tokenizers(same, base.tokenizer, donor.tokenizer)
    same("dtype is", *(str(lens.dtype).removeprefix("torch.") for lens in (base, donor)))
    same("device is", *(str(lens.device) for lens in (base, donor)))
    ends = tuple(end for end in ("embed", "unembed") if not _equal_end(base.arch, donor.arch, end))
    turned = _rotary(base) != _rotary(donor)
    notes = [f"{' and '.join(ends)} differ; a condition takes them along by {'+'.join(f'{e}@donor' for e in ends)}"]
    notes = notes * bool(ends) + ["rotary frequencies differ; they go with whole layers and attentions"] * turned
    return Donor(donor, (*notes, *added), ends, turned)


def _computing(lens: Lens) -> list[nn.Module]:
    return [*lens.arch.layers, lens.arch.final_norm]


def _settings(module: nn.Module) -> dict[str, object]:
    """Numbers and words that a module computes by; dropout and padding act in training only."""
    plain = (bool, int, float, str, type(None))
    idle = {"training", "attention_dropout", "padding_idx", "p"}
    return {k: v for k, v in vars(module).items() if isinstance(v, plain) and not k.startswith("_") and k not in idle}


def _equal_end(one: Any, other: Any, end: str) -> bool:
    names = ("embed",) if end == "embed" else ("final_norm", "unembed")
    return all(
        torch.equal(a, b)
        for name in names
        for a, b in zip(getattr(one, name).parameters(), getattr(other, name).parameters(), strict=True)
    )


def _rotary(lens: Lens) -> tuple[object, ...]:
    """What the rotary angles are made from."""
    rotary = lens.arch.rotary
    frequencies = {name: tensor.tolist() for name, tensor in rotary.named_buffers()}
    return frequencies, getattr(rotary, "attention_scaling", None), getattr(rotary, "rope_type", None)


def _compare_tokenizers(same: Any, base: Any, donor: Any) -> list[str]:
    """Refuse two tokenizers that make other tokens of text; return harmless differences."""
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
        one, other = (f"{a[i]!r}" if i in a else "absent" for a in added)
        notes.append(f"{len(renamed)} added tokens differ, e.g. {i} is {one} in the base, {other} in the donor")
    parts = [json.loads(tok.backend_tokenizer.to_str()) for tok in (base, donor) if hasattr(tok, "backend_tokenizer")]
    if len(parts) == 2:
        merges = [[" ".join(m) if isinstance(m, list) else m for m in p["model"].get("merges") or []] for p in parts]
        for n, (one, other) in enumerate(zip_longest(*merges)):
            same(f"merge {n} of the tokenizer is", repr(one), repr(other))
        for part in ("normalizer", "pre_tokenizer"):
            if parts[0][part] != parts[1][part]:
                notes.append(f"the tokenizers' {part} differ; text is encoded by the base's")
    if base.chat_template != donor.chat_template:
        notes.append("chat templates differ; prompts are wrapped by the base's")
    return notes


def require(lens: Any, conditions: Sequence[Condition], backend: str = "torch") -> None:
    """Refuse a condition that asks for a donor where there is none, or where the backend cannot transplant."""
    asked = next((c for c in conditions if c.uses_donor), None)
    if asked and (lens.donor is None or backend != "torch"):
        fix = "give donor=NAME (on the command line --donor NAME)" if backend == "torch" else "use backend 'torch'"
        raise UserError(f"condition {asked} takes weights from a donor; {fix}")
