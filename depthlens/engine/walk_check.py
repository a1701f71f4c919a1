"""Whether a walk layer by layer computes what the model computes: told by numbers, and by how long texts are.

The fast path calls the layers that `depthlens.models.architectures` found one after another, each with a layout of
tokens. Three short texts that begin alike take both ways, through the model and as one tree through the layers. Where a
layer that is called so computes something else (capped scores, attention sinks, another mixer, an attention kernel that
is not right on this device), or where a model was changed by hand, whole passes with hooks answer instead. Where a
layer does not add what its attention and its MLP give to its input (multipliers, norms after a part), removing one of
them is right only if the layer without both returns its input, which is tried as well.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from depthlens.ablations import Ablation, Condition
from depthlens.backends.row_edits import RowEdits
from depthlens.engine import prefix_tree
from depthlens.engine.prefix_tree import Pack
from depthlens.engine.tree_attention import Keys, Layout, Queries, Values, Z, walking
from depthlens.errors import UserError
from depthlens.models.architectures import hidden, rotary_settings, wide
from depthlens.models.lens import Lens
from depthlens.models.placement import moved, weights_state

log = logging.getLogger(__name__)

N_TOKENS = 12  # of each text
# largest difference of a token's vector from the model's, as a share of its norm: kernels sum in other orders
CLOSE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
# settings of configurations that let a token see fewer tokens than all before it
WINDOWS = ("sliding_window", "attention_chunk_size", "index_topk")


Texts = Float[Tensor, "text pos d_model"]  # residual streams


class Found(NamedTuple):
    """What a trial found.

    Attributes:
        fault: What a walk over layers does not compute; None: it computes what the model does.
        adds: Whether each layer adds what its attention and its MLP give to its input.
        separable: Whether each layer without attention and MLP returns its input.
    """

    fault: str | None = None
    adds: bool = True
    separable: bool = True


class Call(NamedTuple):
    """A layer that was called in the model's own forward pass.

    Attributes:
        layer: Its number.
        args: What it was called with.
        kwargs: What it was called with by name.
        given: The residual stream before it, brought to where the layer is.
        output: What it gave.
        added: What its attention and its MLP gave, added up.
    """

    layer: int
    args: tuple
    kwargs: dict[str, Any]
    given: Texts
    output: Texts
    added: Tensor


_found_before: WeakKeyDictionary[Lens, tuple[tuple, Found]] = WeakKeyDictionary()


def require(lens: Lens, what: str, *, adds: bool = False) -> None:
    """Raise a `UserError` where the model cannot be walked, or its layers have to add their parts; ``what`` says so."""
    tried = found(lens)
    not_added = "a layer does more than add what its attention and its MLP give"
    if fault := tried.fault or (not_added if adds and not tried.adds else None):
        raise UserError(f"{what} walks through the layers of {lens.name!r}, and {fault}; use another method")


def require_parts(lens: Lens, tried: Found, conditions: Iterable[Condition]) -> None:
    """Raise a `UserError` where a condition asks for what hooks cannot do to parts that are not added as they are."""
    for condition in conditions if not tried.adds else ():
        for a in condition.ablations:
            if a.site in ("attn", "mlp") and a.mode in ("mean", "resample", "noise"):
                fault = f"{lens.name!r} changes what its attention or its MLP gives before it is added"
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
    state = () if lens.stream else _state(lens)
    if lens not in _found_before or _found_before[lens][0] != state:
        _found_before[lens] = state, _try(lens)
        if fault := _found_before[lens][1].fault:
            log.warning("model %s: %s; each row takes a whole pass, which is slower", lens.name, fault)
    return _found_before[lens][1]


def _state(lens: Lens) -> tuple:
    """What differs after a module, a hook, a weight, a plain value or the configuration was changed."""

    def mark(key: str, value: Any) -> Any:
        if isinstance(value, bool | int | float | str | None):
            return value
        return len(value) if isinstance(value, dict) else id(value) if key == "forward" else None

    modules = tuple((id(m), *(mark(*item) for item in vars(m).items())) for m in lens.model.modules())
    return modules, weights_state(lens.model), lens.model.config.to_json_string()


@torch.no_grad()
def _try(lens: Lens) -> Found:
    arch, close = lens.arch, CLOSE[lens.dtype]
    n = min(N_TOKENS, window_of(lens) or N_TOKENS)  # so few that every layer sees them all
    drawn = [i * 7919 % len(arch.embed.weight) for i in range(1, 3 * n + 1)]
    texts = [drawn[:k] + drawn[i * n + k : (i + 1) * n] for i, k in enumerate((n, n // 2, n * 3 // 4))]
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
            fault = fault or _fault(lens, layer, x, call.output, pack)
            if call.added.shape != call.output.shape or _apart(call.given + call.added, call.output, close):
                adds = False
                removed = Condition((Ablation(call.layer, "attn"), Ablation(call.layer, "mlp")))
                with RowEdits([removed], lens, None).hooked(call.layer):
                    without = hidden(arch.layers[call.layer](*call.args, **call.kwargs))
                separable &= not _apart(without, call.given, close)
        x = call.output
    if _apart(arch.logits(x), logits, close):
        raise UserError(f"{refused}: its logits are not those that its final norm and its head give")
    return Found(fault, adds, separable)


def _calls(lens: Lens, tokens: Int[Tensor, "text pos"]) -> tuple[list[Call], Float[Tensor, "text pos d_vocab"]]:
    """Every call of a layer in the model's own forward pass, and its logits."""
    calls: list[Call] = []

    def note(layer: int, parts: dict[str, Tensor], module: nn.Module, args: tuple, kwargs: Any, output: Any) -> None:
        # experts may give all tokens in one row
        added = sum((part.reshape(*tokens.shape, -1) for part in parts.values()), torch.zeros(()))
        given = moved(args[0] if args else kwargs["hidden_states"], hidden(output).device)
        calls.append(Call(layer, args, kwargs, given, hidden(output), added))

    with ExitStack() as stack:
        for i, layer in enumerate(lens.arch.layers):
            noted = partial(note, i, stack.enter_context(lens.arch.sublayers(i)))
            stack.callback(layer.register_forward_hook(noted, with_kwargs=True).remove)
        logits = lens.model(input_ids=tokens, use_cache=False).logits
    return calls, logits


def _fault(lens: Lens, layer: int, x: Texts, output: Texts, pack: Pack) -> str | None:
    """Why a layer that is called by itself, with the texts as a tree, does not make of ``x`` what the model makes."""
    arch, dims = lens.arch, lens.dims
    if layer in dims.headless:
        return f"layer {layer} mixes its tokens in another way than by attention"
    if arch.rotary is None:
        return "its tokens learn where they stand in another way than by a rotary embedding"
    n_keys: list[int] = []
    layout = Layout(pack, lens.device_of(layer), lambda layer, row, key, value: n_keys.append(len(key)))
    layout.rows, paths = [0], torch.tensor(pack.paths, device=output.device)
    tree = output.new_empty(1, pack.n_tokens, dims.d_model)
    tree[0, paths] = moved(x, output.device)
    # the last layer is asked for some positions only
    some, keep = (slice(-1, None), paths[:, -1]) if layer == dims.n_layers - 1 else (slice(None), None)
    try:
        with walking(lens.model):
            alone = arch.call(layer, tree, layout, arch.angles(tree, layout.position_ids), keep)[0, paths]
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as e:  # arguments or shapes do not fit
        return f"layer {layer} cannot be called by itself ({type(e).__name__})"
    if _apart(alone[:, some], output[:, some], CLOSE[lens.dtype]):
        return f"layer {layer} computes something else when it is called by itself"
    if n_keys != [dims.n_kv_heads]:
        return f"layer {layer} has more than one attention, or other key heads than the configuration says"
    return None


def _apart(found: Float[Tensor, "text pos width"], wanted: Float[Tensor, "text pos width"], close: float) -> bool:
    """Whether some token's vector differs; vectors that are not finite on either side are for others to report."""
    found, wanted = wide(found), wide(moved(wanted, found.device))
    share = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1).clamp(min=1e-12)
    return bool((share > close).any())


class CausalRows:
    """Rows of equal length, padded on the right: every token sees itself and those before it.

    A layout for `depthlens.models.architectures.Architecture.call`. Unlike a tree's, its attention can be
    differentiated.

    Attributes:
        position_ids: Shape [1, pos].
    """

    def __init__(self, n_pos: int, device: torch.device) -> None:
        self.position_ids: Tensor = torch.arange(n_pos, device=device)[None]

    def attention(self, layer: int, query: Queries, key: Keys, value: Values, scale: float) -> Z:
        """See `depthlens.engine.tree_attention.Layout.attention`."""
        shared = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=shared)


def window_of(lens: Lens) -> int | None:
    """Tokens up to which every layer lets a token see all tokens before it; None: no bound."""
    config = lens.model.config.get_text_config()
    return min((n for name in WINDOWS if (n := getattr(config, name, None))), default=None)


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
