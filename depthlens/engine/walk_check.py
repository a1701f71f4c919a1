"""Whether a walk layer by layer computes what the model computes: told by numbers, and by how long texts are.

The fast path calls the layers that `depthlens.models.architectures` found one after another, each with a layout of
tokens. Three texts that begin alike take both ways, through the model and as one tree through the layers, beside
another row. What attention writes is compared for every token, because in the residual stream, which is larger by far,
a wrong one would be lost in the rounding of half precision. Where a layer that is called so computes something else
(capped scores, attention sinks, another mixer, an attention kernel that is not right on this device), whole passes
with hooks answer instead. So they do where something that is not ours is in force on the model
(`depthlens.models.in_force`): no trial could speak for all lengths and batches then. Where a layer does not add what
its attention and its MLP give to its input (multipliers, norms after a part), removing one of them is right only if
the layer without both returns its input, which is tried as well.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from depthlens.ablations import Ablation, Condition
from depthlens.backends.row_edits import RowEdits
from depthlens.engine import prefix_tree, tree_attention, work
from depthlens.errors import UserError
from depthlens.models import fingerprint, in_force
from depthlens.models.architectures import hidden, rotary_settings, wide
from depthlens.models.lens import ALONE, Lens
from depthlens.models.placement import moved

log = logging.getLogger(__name__)

# of each text. On a CPU long texts would take as long as a small sweep; elsewhere kernels work in blocks of up to 128
CPU_TOKENS, TOKENS = 40, 256
# largest difference of a token's vector from the model's, as a share of its norm: kernels sum in other orders. Measured
# on the embedded model over all layers: what attention writes is apart by 1e-6, 0.009 and 0.001, and by 0.066 or more
# in every layer whose scores are scaled by 1.25.
CLOSE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.03, torch.float16: 0.01}
# the same of a whole residual stream, of most tokens: after rounding a token may choose another expert
CLOSE_STREAM = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
MOST = 0.9
# settings of configurations that let a token see fewer tokens than all before it, or scale what it sees by its place
WINDOWS = ("sliding_window", "attention_chunk_size", "index_topk", "floor_scale")


Texts = Float[Tensor, "text pos width"]  # residual streams, or logits


class Found(NamedTuple):
    """What a trial found.

    Attributes:
        fault: What a walk over layers does not compute; None: it computes what the model does.
        adds: Whether each layer adds what its attention and its MLP give to its input.
        separable: Whether each layer without attention and MLP returns its input.
        foreign: What is in force on the model that is not ours; then it is the fault.
    """

    fault: str | None = None
    adds: bool = True
    separable: bool = True
    foreign: str | None = None


class Call(NamedTuple):
    """A layer that was called in the model's own forward pass.

    Attributes:
        layer: Its number.
        args: What it was called with.
        kwargs: What it was called with by name.
        given: The residual stream before it, brought to where the layer is.
        output: What it gave.
        parts: What its attention (``attn``) and its MLP (``mlp``) gave.
    """

    layer: int
    args: tuple
    kwargs: dict[str, Any]
    given: Texts
    output: Texts
    parts: dict[str, Tensor]


_found_before: WeakKeyDictionary[Lens, tuple[tuple, Found]] = WeakKeyDictionary()
_said: WeakKeyDictionary[Lens, str] = WeakKeyDictionary()  # the fault that was told last


def require(lens: Lens, what: str, *, whole: bool = False) -> None:
    """Raise a `UserError` where ``what`` cannot be had of a model.

    Args:
        lens: A loaded model; it has to be one that is walked.
        what: In words.
        whole: It knows no conditions, and none may be in force.
    """
    tried = found(lens)
    if whole and in_force.entered(lens.model):
        raise UserError(f"{what} is of the whole model, and {lens.name!r} is ablated here; leave the context first")
    if tried.fault:
        raise UserError(f"{what} walks through the layers of {lens.name!r}, and {tried.fault}; use another method")


def require_parts(lens: Lens, tried: Found, conditions: Iterable[Condition]) -> None:
    """Raise a `UserError` where a condition asks for what hooks cannot do to parts that are not added as they are."""
    for condition in conditions if not tried.adds else ():
        for a in condition.ablations:
            if a.site in ("attn", "mlp") and a.kind in ("reference", "change"):
                fault = f"{lens.name!r} changes what its attention or its MLP gives before it is added"
                raise UserError(f"condition {condition}: {fault}; remove the part, or use @{a.mode} on the layer")
            if a.site in ("attn", "mlp", "head", "kv") and not tried.separable:
                fault = f"a layer of {lens.name!r} without attention and MLP does not return its input"
                raise UserError(f"condition {condition}: {fault}; remove whole layers")


def found(lens: Lens) -> Found:
    """Whether a model is walked; a server's model is taken for granted.

    A model is tried again only after something of it was changed (`depthlens.models.fingerprint.state_of`). An
    offloaded one, all of whose layers are read for it, is tried once.

    Raises:
        UserError: a layer is passed twice, or the logits are not those that the head makes of the normed states, which
            no backend could tell.
    """
    if lens.remote:
        return Found()
    foreign = in_force.foreign(lens.model)
    with ALONE, in_force.aside():
        state = () if lens.stream else fingerprint.state_of(lens.model)
        if lens not in _found_before or _found_before[lens][0] != state:
            with in_force.without_hooks(lens.model):
                _found_before[lens] = state, _try(lens, changed=foreign is not None)
        tried = _found_before[lens][1]
    if foreign:
        tried = tried._replace(fault=f"it {foreign}", foreign=foreign)
    if tried.fault and _said.get(lens) != tried.fault:
        _said[lens] = tried.fault
        log.warning("model %s: %s; each row takes a whole pass, which is slower", lens.name, tried.fault)
    return tried


@torch.no_grad()
def _try(lens: Lens, *, changed: bool) -> Found:
    """Try the model as it is; ``changed``: with forwards that are not its classes' own, which may make other logits."""
    arch = lens.arch
    n = CPU_TOKENS if lens.device.type == "cpu" else TOKENS
    # so few that every layer sees them all, and that a row of them is not scaled
    n = min(n, window_of(lens) or n, (longest_row(lens) or 2 * n) // 2, lens.max_length)
    drawn = [i * 7919 % len(arch.embed.weight) for i in range(1, 3 * n + 1)]
    texts = [drawn[:k] + drawn[i * n + k : (i + 1) * n] for i, k in enumerate((n, n * 9 // 16, n * 3 // 4))]
    pack = prefix_tree.build(texts, range(3))
    tokens = torch.tensor(texts, device=lens.device)
    calls, logits = _calls(lens, tokens)
    refused = f"model {lens.name!r} ({type(lens.model).__name__}) is not supported"
    passed = [call.layer for call in calls]
    if again := [layer for layer in passed if passed.count(layer) > 1]:
        times = f"layer {again[0]} is passed {passed.count(again[0])} times, which no condition could tell apart"
        raise UserError(f"{refused}: {times}")
    fault = None if len(calls) == lens.dims.n_layers else "its own forward pass leaves layers out"
    x, adds, separable = arch.embed(tokens), True, True
    for layer, call in enumerate(calls):
        with lens.resident(call.layer):
            fault = fault or _fault(lens, layer, x, call, pack)
            added = sum(call.parts.values(), torch.zeros(()))
            if added.shape != call.output.shape or _apart(call.given + added, call.output, CLOSE_STREAM):
                adds = False
                removed = Condition((Ablation(call.layer, "attn"), Ablation(call.layer, "mlp")))
                with RowEdits([removed], lens).hooked(call.layer):
                    without = hidden(arch.layers[call.layer](*call.args, **call.kwargs))
                separable &= not _apart(without, call.given, CLOSE_STREAM)
        x = call.output
    if not changed and _apart(arch.logits(x), logits, CLOSE_STREAM):
        raise UserError(f"{refused}: its logits are not those that its final norm and its head give")
    return Found(fault, adds, separable)


def _calls(lens: Lens, tokens: Int[Tensor, "text pos"]) -> tuple[list[Call], Texts]:
    """Every call of a layer in the model's own forward pass, and its logits."""
    calls: list[Call] = []

    def note(layer: int, parts: dict[str, Tensor], module: nn.Module, args: tuple, kwargs: Any, output: Any) -> None:
        of_parts = {name: part.reshape(*tokens.shape, -1) for name, part in parts.items()}  # of experts in one row
        given = moved(args[0] if args else kwargs["hidden_states"], hidden(output).device)
        calls.append(Call(layer, args, kwargs, given, hidden(output), of_parts))

    with ExitStack() as stack:
        for i, layer in enumerate(lens.arch.layers):
            noted = partial(note, i, stack.enter_context(lens.arch.sublayers(i)))
            stack.callback(layer.register_forward_hook(noted, with_kwargs=True).remove)
        logits = lens.model(input_ids=tokens, use_cache=False).logits
    return calls, logits


def _fault(lens: Lens, layer: int, x: Texts, call: Call, pack: prefix_tree.Pack) -> str | None:
    """Why a layer that is called by itself, with the texts as a tree, does not make of ``x`` what the model makes."""
    arch, dims, output = lens.arch, lens.dims, call.output
    if layer in dims.headless:
        return f"layer {layer} mixes its tokens in another way than by attention"
    if arch.rotary is None:
        return "its tokens learn where they stand in another way than by a rotary embedding"
    n_keys: list[int] = []
    layout = tree_attention.Layout(pack, lens.device_of(layer), lambda layer, row, key, value: n_keys.append(len(key)))
    layout.rows, paths = [0, 1], torch.tensor(pack.paths, device=output.device)
    tree = output.new_empty(pack.n_tokens, dims.d_model)
    tree[paths] = moved(x, output.device)
    # the last layer is asked for some positions only
    some, keep = (slice(-1, None), paths[:, -1]) if layer == dims.n_layers - 1 else (slice(None), None)
    try:
        with tree_attention.walking(lens.model), arch.sublayers(layer) as given:
            rows = torch.stack([tree.flip(0), tree])
            layout.rotary = arch.angles(rows, layout.position_ids)
            alone = arch.call(layer, rows, layout, keep)[1, paths]
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as e:  # arguments or shapes do not fit
        if work.of_memory(e) or not type(e).__module__.startswith("builtins"):
            raise  # the device or the compiler failed, which says nothing of the model
        said = str(e).partition("\n")[0]
        return f"layer {layer} cannot be called by itself ({type(e).__name__}: {said})"
    attn = given["attn"].reshape(2, pack.n_tokens, -1)[1, paths]
    if _apart(attn, call.parts["attn"], CLOSE, most=1.0) or _apart(alone[:, some], output[:, some], CLOSE_STREAM):
        return f"layer {layer} computes something else when it is called by itself"
    if n_keys != [dims.n_kv_heads] * 2:
        return f"layer {layer} has more than one attention, or other key heads than the configuration says"
    return None


def _apart(found: Texts, wanted: Texts, close: Mapping[torch.dtype, float], most: float = MOST) -> bool:
    """Whether tokens' vectors differ, of more than some; what is not finite on either side is for others to report.

    Args:
        found: One.
        wanted: The other.
        close: How much a vector may differ, as a share of its norm, by the type of the numbers.
        most: The share of tokens that must not.
    """
    tolerance = close[wanted.dtype]
    found, wanted = wide(found), wide(moved(wanted, found.device))
    norms = wanted.norm(dim=-1)
    # a vector of which little is left, since its parts cancel, is rounded as these are
    share = (found - wanted).norm(dim=-1) / norms.clamp(min=norms.mean() / 10).clamp(min=1e-12)
    return bool(share.nan_to_num(0, 0).flatten().sort().values[math.ceil(most * share.numel()) - 1] > tolerance)


def window_of(lens: Lens) -> int | None:
    """Tokens up to which every layer lets a token see all tokens before it; None: no bound."""
    config = lens.model.config.get_text_config()
    return min((n for name in WINDOWS if (n := getattr(config, name, None))), default=None)


def longest_row(lens: Lens) -> int | None:
    """Tokens of a row up to which no token is scaled by its place in it (Llama 4); a pack has more than a text."""
    return getattr(lens.model.config.get_text_config(), "floor_scale", None)


def refuse_scaled_angles(lens: Lens, longest: int) -> None:
    """Raise a `UserError` where texts are so long that their rotary angles follow the longest one of a batch."""
    config = lens.model.config.get_text_config()
    for said in rotary_settings(config):
        kind = said.get("rope_type", "")
        of_config = config.max_position_embeddings if kind == "dynamic" else None  # some configurations have none
        limit = said.get("original_max_position_embeddings") if kind == "longrope" else of_config
        if limit is not None and longest > limit:
            fault = f"{longest} tokens: beyond {limit} the rotary angles of {lens.name!r} ({kind}) change"
            raise UserError(f"{fault} for all texts of a batch, and so do their scores; give shorter texts")


def refuse_window(lens: Lens, longest: int, what: str) -> None:
    """Raise a `UserError` where the model's attention window is shorter than what these layouts let it see.

    Or where `refuse_scaled_angles` does.
    """
    refuse_scaled_angles(lens, longest)
    window = window_of(lens)
    if window is not None and longest > window:
        fault = f"{what} walk {longest} tokens, and the attention window is {window}"
        raise UserError(f"{fault}; give shorter prompts, or use another method")
