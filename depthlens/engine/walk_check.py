"""Whether a walk layer by layer computes what the model computes, told by numbers: a few tokens take both ways.

The fast path takes residual streams through the parts that `depthlens.models.structure` found, and so do some
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
from jaxtyping import Float
from torch import Tensor, nn

from depthlens.ablations import Condition
from depthlens.engine.plain_rows import CausalRows, window_of
from depthlens.engine.tree_attention import walking
from depthlens.errors import UserError
from depthlens.models.architectures import head, hidden, wide, with_hidden
from depthlens.models.lens import Lens
from depthlens.models.placement import moved, weights_state

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
    trial = Trial(lens)
    with ExitStack() as stack:
        for i, layer in enumerate(lens.arch.layers):
            before, after = partial(trial.before, i), partial(trial.after, i)
            stack.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(after, with_kwargs=True).remove)
        logits = lens.model(input_ids=trial.tokens[None], use_cache=False).logits
    depths = [*range(lens.dims.n_layers)]
    if len(trial.called) > len({*trial.called}):
        again = next(i for i in depths if trial.called.count(i) > 1)
        fault = f"layer {again} is passed {trial.called.count(again)} times, which no condition could tell apart"
        raise UserError(f"model {lens.name!r} ({type(lens.model).__name__}) is not supported: {fault}")
    if trial.called != depths:
        trial.fault = trial.fault or "its layers are not passed one after the other"
    plain = not _apart(lens.arch.logits(trial.x), logits, trial.close)
    normed = lens.arch.final_norm(trial.x)
    if not plain and _apart(head(lens.model, moved(normed, logits.device)[0])[None], logits, trial.close):
        fault = "its logits are not those that its final norm and its head give"
        raise UserError(f"model {lens.name!r} ({type(lens.model).__name__}) is not supported: {fault}")
    return Found(trial.fault, trial.fault or trial.parts, trial.separable, plain)


class Trial:
    """Hooks of the model's own forward pass, which take each layer's input through its parts as well.

    A layer of an offloaded model is in memory meanwhile, so that all are read once.

    Attributes:
        tokens: Shape [pos]; so few that every layer sees them all.
        close: See `CLOSE`.
        x: What comes next into a layer, or into the final norm.
        called: Layers in the order in which the model passes them.
        fault: What differs first where layers are called as wholes.
        parts: What differs first where they are taken apart.
        separable: See `Found`.
    """

    def __init__(self, lens: Lens) -> None:
        self.lens = lens
        n, n_words = min(N_TOKENS, window_of(lens) or N_TOKENS), len(lens.arch.embed.weight)
        self.tokens = torch.tensor([i * 7919 % n_words for i in range(1, n + 1)], device=lens.device)
        self.close = CLOSE[lens.dtype]
        self.fault: str | None = None
        self.parts: str | None = None
        self.separable = True
        self.layout = CountedRows(n, lens.device)
        self.x = lens.arch.embed(self.tokens)[None]
        self.called: list[int] = []
        self._held = ExitStack()
        self._inside = False

    def before(self, layer: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Compare what a layer gets with what left the one before it, or the embedding."""
        if self._inside:
            return
        self.called.append(layer)
        self._held.enter_context(self.lens.resident(layer))
        given = args[0] if args else kwargs["hidden_states"]
        if _apart(self.x, given, self.close):
            self.fault = self.fault or f"layer {layer} gets something else than what the part before it gives"
        self.x = given

    def after(self, layer: int, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """Compare what a layer gives with what its parts give."""
        if self._inside:
            return
        self._inside = True
        try:
            self.fault = self.fault or self._compare(layer, hidden(output))
        except NOT_CALLABLE as e:
            self.fault = f"layer {layer} cannot be called by itself ({type(e).__name__})"
        try:
            if self.fault or self.parts:
                self.separable &= self._is_separable(layer, args, kwargs)
        finally:
            self._inside = False
            self._held.close()
        self.x = hidden(output)

    def _is_separable(self, layer: int, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether the layer, called again without what attention and MLP give, returns its input."""
        with ExitStack() as stack:
            for part in (self.lens.arch.attn[layer], self.lens.arch.mlp[layer]):
                stack.callback(part.register_forward_hook(_nothing).remove)
            return not _apart(hidden(self.lens.arch.layers[layer](*args, **kwargs)), self.x, self.close)

    def _compare(self, layer: int, wanted: Float[Tensor, "1 pos d_model"]) -> str | None:
        """What the layer does not compute when it is called by itself; what its parts do not is noted."""
        arch, device = self.lens.arch, self.lens.device_of(layer)
        if layer in arch.dims.headless:
            return f"layer {layer} mixes its tokens in another way than by attention"
        if arch.rotary is None:
            return "its tokens learn where they stand in another way than by a rotary embedding"
        x, layout = moved(self.x, device), moved(self.layout, device)
        rotary = moved(arch.angles(x, layout.position_ids), device)
        with walking(self.lens.model):
            whole = arch.call(layer, x, layout, rotary)
        if _apart(whole, wanted, self.close):
            return f"layer {layer} computes something else when it is called by itself"
        if layout.calls.pop(layer, []) != [self.lens.dims.n_kv_heads]:
            return f"layer {layer} has more than one attention, or other key heads than the configuration says"
        self.parts = self.parts or self._compare_parts(layer, x, layout, rotary, wanted)
        return None

    def _compare_parts(
        self,
        layer: int,
        x: Float[Tensor, "1 pos d_model"],
        layout: CountedRows,
        rotary: Any,
        wanted: Float[Tensor, "1 pos d_model"],
    ) -> str | None:
        if not self.lens.arch.attn_norm:
            return f"layer {layer} has other norms than one before attention and one before the MLP"
        fault = f"layer {layer} computes something else than its input, attention and MLP added up"
        try:
            with walking(self.lens.model):
                found = self.lens.arch.step(layer, x, layout, rotary)[2]
        except NOT_CALLABLE:
            return fault
        return fault if _apart(found, wanted, self.close) or layout.calls.pop(layer, []) == [] else None


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
