"""Whether a walk layer by layer computes what the model computes, told by numbers: a few tokens take both ways.

The fast path takes residual streams through the parts that `depthlens.models.architectures` found, and so do some
experiments. A model whose layers do more than add attention and MLP to the stream (multipliers, norms after a part,
both parts at once) computes something else. If its layers, called as wholes with a layout of tokens, compute what they
do in the model, the fast path calls them so. Where they do not (capped scores, attention sinks, another mixer), or
where a model was changed by hand, whole passes with hooks answer instead. Where parts are not added as they are,
removing attention or MLP is right only if a layer without both returns its input, which is tried as well.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from depthlens.ablations import Condition
from depthlens.engine.plain_rows import CausalRows, window_of
from depthlens.engine.tree_attention import walking
from depthlens.errors import UserError
from depthlens.models.architectures import head, hidden, wide, with_hidden
from depthlens.models.lens import Lens
from depthlens.models.placement import moved, place_of, weights_state

log = logging.getLogger(__name__)

N_TOKENS = 12
# largest difference of a token's vector from the model's, as a share of its norm: kernels sum in other orders
CLOSE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
# what a module raises that is called with arguments, or on shapes, which it does not expect
NOT_CALLABLE = (TypeError, ValueError, AttributeError, LookupError, RuntimeError, NotImplementedError)


@dataclass(frozen=True)
class Found:
    """What a trial found.

    Attributes:
        fault: What a walk over layers does not compute; None: it computes what the model does.
        parts: What a walk through attention and MLP of each layer does not compute; None: as above.
        separable: Whether each layer without attention and MLP returns its input.
        plain: Whether logits are what the unembedding gives.
    """

    fault: str | None = None
    parts: str | None = None
    separable: bool = True
    plain: bool = True


# a layer that was called: its number, arguments, and what it gave
Call = tuple[int, tuple, dict[str, Any], Tensor]
_found_before: WeakKeyDictionary[Lens, tuple[tuple, Found]] = WeakKeyDictionary()


def require(lens: Lens, what: str, *, parts: bool = True) -> None:
    """Raise a `UserError` where the model cannot be walked, or not through its ``parts``; ``what`` needs that."""
    tried = found(lens)
    if fault := tried.fault or (tried.parts if parts else None):
        raise UserError(f"{what} walks through the layers of {lens.name!r}, and {fault}; use another method")


def require_plain(lens: Lens, what: str) -> None:
    """Raise a `UserError` where logits are scaled or capped; ``what`` takes them from the unembedding."""
    if not found(lens).plain:
        raise UserError(f"{what} reads the unembedding of {lens.name!r}, whose logits are more than it gives")


def require_parts(lens: Lens, tried: Found, conditions: Iterable[Condition]) -> None:
    """Raise a `UserError` where a condition asks for what hooks cannot do to parts that are not added as they are."""
    why = tried.fault or tried.parts
    if why is None:
        return
    for condition in conditions:
        for a in condition.ablations:
            if a.site in ("attn", "mlp") and a.mode in ("mean", "resample", "noise"):
                fault = f"{lens.name!r} may change what its attention and MLP give before it is added ({why})"
                raise UserError(f"condition {condition}: {fault}; remove the part, or use @{a.mode} on the layer")
            if a.site in ("attn", "mlp", "head", "kv") and not tried.separable:
                fault = f"a layer of {lens.name!r} without attention and MLP does not return its input"
                raise UserError(f"condition {condition}: {fault}; remove whole layers")


def found(lens: Lens) -> Found:
    """Whether a model is walked; a server's model is taken for granted.

    A model is tried again only after a module, a hook, a weight or a setting of it was changed. An offloaded one, all
    of whose layers are read for it, is tried once.

    Raises:
        UserError: a layer is passed twice, or the logits are not those that the head makes of the normed states, which
            no backend could tell.
    """
    if lens.remote:
        return Found()
    state = _state(lens)
    if lens not in _found_before or _found_before[lens][0] != state:
        _found_before[lens] = state, _try(lens)
    return _found_before[lens][1]


def _state(lens: Lens) -> tuple:
    """What differs after a module, a hook, a weight, a plain value or the configuration was changed."""
    if lens.stream:
        return ()
    modules = (
        (id(m), id(vars(m).get("forward")), len(m._forward_hooks), len(m._forward_pre_hooks))
        for m in lens.model.modules()
    )
    values = (
        (key, value)
        for m in lens.model.modules()
        for key, value in vars(m).items()
        if isinstance(value, bool | int | float | str | None)
    )
    return tuple(modules), weights_state(lens.model), tuple(values), lens.model.config.to_json_string()


@torch.no_grad()
def _try(lens: Lens) -> Found:
    arch, close = lens.arch, CLOSE[lens.dtype]
    n = min(N_TOKENS, window_of(lens) or N_TOKENS)  # so few that every layer sees them all
    tokens = torch.tensor([i * 7919 % len(arch.embed.weight) for i in range(1, n + 1)], device=lens.device)
    calls, logits = _calls(lens, tokens)
    order = [layer for layer, *_ in calls]
    if again := [layer for layer in order if order.count(layer) > 1]:
        what = f"layer {again[0]} is passed {order.count(again[0])} times, which no condition could tell apart"
        raise UserError(f"model {lens.name!r} ({type(lens.model).__name__}) is not supported: {what}")
    fault: str | None = None
    parts: str | None = None
    x, separable = arch.embed(tokens)[None], True
    for layer, args, kwargs, output in calls:
        given = args[0] if args else kwargs["hidden_states"]
        if _apart(x, given, close):
            fault = fault or f"layer {layer} gets something else than what the part before it gives"
        x = output
        with lens.resident(layer):
            if fault is None:
                fault, unlike = _compare(lens, layer, given, output)
                parts = parts or unlike
            if fault or parts:
                separable &= not _apart(_without_parts(lens, layer, args, kwargs), given, close)
    if order != [*range(lens.dims.n_layers)]:
        fault = fault or "its layers are not passed one after the other"
    plain = not _apart(arch.logits(x), logits, close)
    normed = arch.final_norm(moved(x, place_of(arch.final_norm, x.device)))
    if not plain and _apart(head(lens.model, moved(normed, logits.device)[0])[None], logits, close):
        what = "its logits are not those that its final norm and its head give"
        raise UserError(f"model {lens.name!r} ({type(lens.model).__name__}) is not supported: {what}")
    return Found(fault, fault or parts, separable, plain)


def _calls(lens: Lens, tokens: Int[Tensor, " pos"]) -> tuple[list[Call], Float[Tensor, "1 pos d_vocab"]]:
    """Every call of a layer in the model's own forward pass, and its logits."""
    calls: list[Call] = []

    def note(layer: int, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        calls.append((layer, args, kwargs, hidden(output)))

    with ExitStack() as stack:
        for i, layer in enumerate(lens.arch.layers):
            stack.callback(layer.register_forward_hook(partial(note, i), with_kwargs=True).remove)
        logits = lens.model(input_ids=tokens[None], use_cache=False).logits
    return calls, logits


def _without_parts(lens: Lens, layer: int, args: tuple, kwargs: dict[str, Any]) -> Float[Tensor, "1 pos d_model"]:
    """What a layer gives without what its attention and its MLP give."""
    with ExitStack() as stack:
        for part in (lens.arch.attn[layer], lens.arch.mlp[layer]):
            stack.callback(part.register_forward_hook(_nothing).remove)
        return hidden(lens.arch.layers[layer](*args, **kwargs))


def _compare(
    lens: Lens, layer: int, x: Float[Tensor, "1 pos d_model"], wanted: Float[Tensor, "1 pos d_model"]
) -> tuple[str | None, str | None]:
    """What a layer does not compute when it is called by itself, and what its parts do not."""
    arch, device, close = lens.arch, lens.device_of(layer), CLOSE[lens.dtype]
    if layer in arch.dims.headless:
        return f"layer {layer} mixes its tokens in another way than by attention", None
    if arch.rotary is None:
        return "its tokens learn where they stand in another way than by a rotary embedding", None
    layout = CountedRows(x.shape[1], device)
    try:
        rotary = moved(arch.angles(x, layout.position_ids), device)
        with walking(lens.model):
            whole = arch.call(layer, moved(x, device), layout, rotary)
    except NOT_CALLABLE as e:
        return f"layer {layer} cannot be called by itself ({type(e).__name__})", None
    if _apart(whole, wanted, close):
        return f"layer {layer} computes something else when it is called by itself", None
    if layout.calls.pop(layer, []) != [lens.dims.n_kv_heads]:
        return f"layer {layer} has more than one attention, or other key heads than the configuration says", None
    if not arch.attn_norm:
        return None, f"layer {layer} has other norms than one before attention and one before the MLP"
    unlike = f"layer {layer} computes something else than its input, attention and MLP added up"
    try:
        with walking(lens.model):
            found = arch.step(layer, moved(x, device), layout, rotary)[2]
    except NOT_CALLABLE:
        return None, unlike
    return None, unlike if _apart(found, wanted, close) or layout.calls.pop(layer, []) == [] else None


class CountedRows(CausalRows):
    """Causal rows that note how often a layer attends.

    Attributes:
        calls: Number of key heads of each call, by layer.
    """

    def __init__(self, n_pos: int, device: torch.device) -> None:
        super().__init__(n_pos, device)
        self.calls: dict[int, list[int]] = {}

    def attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `CausalRows.attention`."""
        self.calls.setdefault(layer, []).append(key.shape[1])
        return super().attention(layer, query, key, value, scale)


def _nothing(module: nn.Module, args: tuple, output: Any) -> Any:
    return with_hidden(output, torch.zeros_like(hidden(output)))


def _apart(found: Float[Tensor, "1 pos width"], wanted: Float[Tensor, "1 pos width"], close: float) -> bool:
    """Whether some token's vector differs; vectors that are not finite on either side are for others to report."""
    found, wanted = wide(found), wide(moved(wanted, found.device))
    share = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1).clamp(min=1e-12)
    return bool((share > close).any())
