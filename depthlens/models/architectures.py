"""Where the parts of a decoder-only model are, found by its structure: no class of models is named here.

Embedding and unembedding come from transformers' accessors. The layers are the longest list of blocks, a layer's
attention is the child that holds a projection from its heads to the residual stream, and its MLP is the other child
with matrices. A hybrid model has layers in which another mixer of tokens takes the place of attention: whatever stands
there. What cannot be told apart is refused by name. Whether a walk through these parts computes what the model computes
is another question, which `depthlens.engine.walk_check` answers with numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.pytorch_utils import Conv1D

from depthlens.ablations import Dims
from depthlens.errors import UserError
from depthlens.models.placement import moved, place_of

if TYPE_CHECKING:  # slow to import
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Family:
    """Module paths, from the model for the first five and from a layer for the rest.

    A layer that has not exactly two norms has no path of theirs, a model without rotary angles none of these.
    ``per_head`` and ``per_kv_head`` are projections of the attention whose output is one slice a query head, or a
    key/value head; without any, queries, keys and values share one projection. Whatever else an attention holds is
    shared by all heads. ``mixers`` are the layers of a hybrid whose tokens another module than ``attn`` mixes, and its
    path: it has no heads that could be removed.
    """

    embed: str
    layers: str
    rotary: str
    final_norm: str
    unembed: str
    attn_norm: str
    attn: str
    o_proj: str
    mlp_norm: str
    mlp: str
    per_head: tuple[str, ...] = ()
    per_kv_head: tuple[str, ...] = ()
    mixers: tuple[tuple[int, str], ...] = ()

    def mixes(self, layer: int) -> str:
        """Path, from a layer, of what mixes its tokens."""
        return dict(self.mixers).get(layer, self.attn)


class Architecture:
    """The parts of a Hugging Face causal language model, and its sizes.

    Attributes:
        model: The model.
        family: Paths of its parts.
        dims: Its sizes.
        d_key: Width of a query or key head; under latent attention not d_head, that of a value.
        embed, layers, attn, o_proj, mlp, rotary, final_norm, unembed: Its modules, of most one a layer. A layer with
            another mixer in place of attention has an empty ``o_proj``.
        rotary_types: Of each layer, where layers turn queries and keys in several ways.

    Raises:
        UserError: parts are missing, cannot be told apart, are compiled or in several layers.
    """

    def __init__(self, model: nn.Module) -> None:
        _refuse_compiled(model)
        self.model: PreTrainedModel = cast("PreTrainedModel", model)
        self.family = family = find(self.model)
        config: Any = self.model.config.get_text_config()
        self.layers = layers = tuple(cast(nn.ModuleList, model.get_submodule(family.layers)))
        _refuse_shared(type(model).__name__, layers)
        self.embed = cast(nn.Embedding, model.get_submodule(family.embed))
        self.final_norm, self.unembed = map(model.get_submodule, (family.final_norm, family.unembed))
        self.mlp = tuple(layer.get_submodule(family.mlp) for layer in layers)
        self.attn = tuple(layer.get_submodule(family.mixes(i)) for i, layer in enumerate(layers))
        slots = {getattr(part, "layer_idx", i) for i, part in enumerate(self.attn)}
        if lacking := sorted({*range(len(layers))} - slots):
            fault = f"{type(model).__name__}: no attention has layer_idx {lacking[0]}"
            fix = "set layer_idx of each attention to the number of its layer"
            raise UserError(f"{fault}, by which keys and values of texts are kept apart; {fix}")
        mixers = dict(family.mixers)
        o_proj = (nn.Identity() if i in mixers else x.get_submodule(family.o_proj) for i, x in enumerate(layers))
        self.o_proj = tuple(o_proj)
        n_heads = config.num_attention_heads
        # o_proj reads n_heads heads side by side; for latent attention (DeepSeek) that is the value width
        projection: Any = next(projection for i, projection in enumerate(self.o_proj) if i not in mixers)
        d_head = (projection.nx if isinstance(projection, Conv1D) else projection.in_features) // n_heads
        # latent attention decompresses one key and one value per query head: nothing is shared
        latent = hasattr(config, "kv_lora_rank")
        self.d_key = config.qk_nope_head_dim + config.qk_rope_head_dim if latent else d_head
        n_kv_heads = n_heads if latent else getattr(config, "num_key_value_heads", n_heads)
        self.dims = Dims(len(layers), n_heads, n_kv_heads, config.hidden_size, d_head, tuple(mixers))
        self.rotary: Any = model.get_submodule(family.rotary) if family.rotary else None
        several = self.rotary and "layer_type" in inspect.signature(self.rotary.forward).parameters
        self.rotary_types = tuple(config.layer_types) if several else ()

    def call(
        self, layer: int, x: Float[Tensor, "row pos d_model"], layout: Any, keep: Int[Tensor, " kept"] | None = None
    ) -> Float[Tensor, "row pos d_model"]:
        """Take residual streams through one layer.

        Args:
            layer: Layer number.
            x: Residual streams before the layer.
            layout: Which keys each token sees (`depthlens.engine.tree_attention.Layout`), its ``position_ids``, and in
                ``rotary`` what `angles` makes of these.
            keep: Positions whose outputs are used; the MLP computes no others. None: all.

        Returns:
            Residual streams after it, where the layer is; whatever is elsewhere is moved there.
        """
        device = place_of(self.layers[layer])
        x, rotary, positions = moved((x, self.angles_at(layout.rotary, layer), layout.position_ids), device)
        about = {"position_embeddings": rotary, "position_ids": positions, "layout": layout}
        with replaced_forwards([] if keep is None else [self._mlp_at(layer, moved(keep, device))]):
            return hidden(self.layers[layer](x, attention_mask=None, **about))

    def _mlp_at(self, layer: int, keep: Int[Tensor, " kept"]) -> tuple[nn.Module, Callable[..., Any]]:
        """The MLP of a layer, and a forward that computes some positions and gives zeros at all others."""
        forward = self.mlp[layer].forward

        def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            if args or kwargs or x.dim() != 3:
                return forward(x, *args, **kwargs)
            output, full = forward(x[:, keep]), torch.zeros_like(x)
            full[:, keep] = hidden(output).reshape(len(x), len(keep), -1)  # experts may give all tokens in one row
            return with_hidden(output, full)

        return self.mlp[layer], call

    def sublayers(self, layer: int) -> AbstractContextManager[dict[str, Tensor]]:
        """Within the context what attention (``attn``) and MLP (``mlp``) of a layer gave when it was last called."""
        return outputs_of({"attn": self.attn[layer], "mlp": self.mlp[layer]})

    def angles(self, x: Float[Tensor, "row pos d_model"], position_ids: Int[Tensor, "#row pos"]) -> Any:
        """What a layout has as ``rotary``, for tokens at these positions."""
        x, position_ids = moved((x, position_ids), place_of(self.embed))
        if not self.rotary_types:
            return self.rotary(x, position_ids=position_ids)
        found = {kind: self.rotary(x, position_ids=position_ids, layer_type=kind) for kind in {*self.rotary_types}}
        return tuple(found[kind] for kind in self.rotary_types)

    def angles_at(self, rotary: Any, layer: int) -> Any:
        """Those of `angles` that a layer uses."""
        return rotary[layer] if self.rotary_types else rotary

    def logits(self, x: Float[Tensor, "*pos d_model"]) -> Float[Tensor, "*pos d_vocab"]:
        """Logits of final residual streams, before the last norm."""
        normed = self.final_norm(moved(x, place_of(self.final_norm, x.device)))
        return head(self.model, moved(normed.flatten(0, -2), place_of(self.unembed))).unflatten(0, x.shape[:-1])


def find(model: PreTrainedModel) -> Family:
    """Find the parts of a causal language model, whose weights may be on the meta device; see `Architecture`."""
    modules = dict(model.named_modules())
    lists = [path for path, module in modules.items() if isinstance(module, nn.ModuleList)]
    outer = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    if not outer:
        raise _fault(model, "no list of layers", [])
    layers = max(outer, key=lambda path: len(modules[path]))
    above, _, own = layers.rpartition(".")
    children = [name for name, _ in modules[above].named_children()]
    norms, after = _norms(modules[above]), children[children.index(own) :]
    final_norm = _one(model, "final norm", [name for name in norms if name in after] or norms)
    rotary = [name for name in children if "rotary" in _kind(modules[above].get_submodule(name))]
    paths = {id(module): path for path, module in modules.items()}
    ends = [paths.get(id(part)) for part in (model.get_input_embeddings(), model.get_output_embeddings())]
    if None in ends:
        raise _fault(model, "no embedding or no unembedding", [])
    prefix = f"{above}." if above else ""
    angles = prefix + rotary[0] if len(rotary) == 1 else ""
    in_layers = _in_layers(model, layers, cast(nn.ModuleList, modules[layers]))
    return Family(str(ends[0]), layers, angles, prefix + final_norm, str(ends[1]), **in_layers)


def _in_layers(model: nn.Module, layers: str, blocks: nn.ModuleList) -> dict[str, Any]:
    """The paths that lead from a layer with attention, and the layers that have another mixer in its place."""
    found: dict[int, dict[str, Any]] = {}
    for i, block in enumerate(blocks):
        with suppress(UserError):
            found[i] = _in_layer(model, f"{layers}.{i}", block)
    if not found:
        _in_layer(model, f"{layers}.0", blocks[0])  # says what is missing
    # linear attention may look alike, but shares no keys and values among heads
    first = next((i for i, paths in found.items() if paths["per_kv_head"]), min(found))
    one, mixers = found[first], []
    like = type(blocks[first].get_submodule(one["attn"]))
    for i, block in enumerate(blocks):
        if found.get(i) != one:
            left = [name for name in _matrices(block) if name not in (*_norms(block), one["mlp"])]
            # an attention that was changed is no mixer
            if one["mlp"] not in _matrices(block) or len(left) != 1 or type(block.get_submodule(left[0])) is like:
                _in_layer(model, f"{layers}.{i}", block)
                raise _fault(model, f"parts of layers {first} and {i} that are not alike", [])
            mixers.append((i, left[0]))
    return one | {"mixers": tuple(mixers)}


def _norms(module: nn.Module) -> list[str]:
    return [name for name, child in module.named_children() if "norm" in _kind(child)]


def _matrices(layer: nn.Module) -> list[str]:
    return [name for name, child in layer.named_children() if any(p.ndim > 1 for p in child.parameters())]


def _in_layer(model: nn.Module, where: str, layer: nn.Module) -> dict[str, Any]:
    """The paths of a `Family` that lead from a layer."""
    children, norms = dict(layer.named_children()), _norms(layer)
    found = [
        (name, path)
        for name, child in children.items()
        for path, module in child.named_modules()
        # what transformers' classes call it; an adapter of peft has the projection that it adds to inside
        if path.rpartition(".")[2] in ("o_proj", "out_proj", "dense", "c_proj")
        and isinstance(getattr(module, "base_layer", module), nn.Linear | Conv1D)
        and "atten" in _kind(child)
    ]
    attn = _one(model, f"attention in {where}", [*dict(found)])
    o_proj = _one(model, f"output projection in {where}.{attn}", [path for _, path in found])
    mlp = _one(model, f"MLP in {where}", [name for name in _matrices(layer) if name not in (attn, *norms)])
    attn_norm, mlp_norm = norms if len(norms) == 2 else ("", "")
    named = dict(children[attn].named_modules())
    per_head = tuple(name for name in ("q_proj", "q_b_proj") if name in named)
    per_kv_head = tuple(name for name in ("k_proj", "v_proj", "kv_b_proj") if name in named)
    paths = {"attn_norm": attn_norm, "attn": attn, "o_proj": f"{attn}.{o_proj}", "mlp_norm": mlp_norm, "mlp": mlp}
    return {**paths, "per_head": per_head, "per_kv_head": per_kv_head}


def _kind(module: nn.Module) -> str:
    return type(module).__name__.lower()


def _one(model: nn.Module, what: str, names: list[str]) -> str:
    if len(names) != 1:
        raise _fault(model, f"{'no' if not names else 'more than one'} {what}", names)
    return names[0]


def _fault(model: nn.Module, what: str, names: list) -> UserError:
    found = f" ({', '.join(map(str, names))})" if names else ""
    return UserError(f"{type(model).__name__} has {what}{found}; it is not supported")


def _refuse_compiled(model: nn.Module) -> None:
    """Refuse compiled modules: what runs may have been made before there were hooks."""
    for name, module in model.named_modules():
        runs = module, vars(module).get("forward")
        if module._compiled_call_impl is not None or any(hasattr(run, "_torchdynamo_orig_callable") for run in runs):
            fault = f"{name or type(model).__name__} is compiled, so that hooks may not reach what it runs"
            raise UserError(f"{fault}; give the model as it was before torch.compile")


def _refuse_shared(name: str, layers: tuple[nn.Module, ...]) -> None:
    """Refuse a module that is in two layers: removed from one it would be gone from both."""
    first: dict[nn.Module, int] = {}
    for i, layer in enumerate(layers):
        for path, module in layer.named_modules():
            if first.setdefault(module, i) != i and any(True for _ in module.parameters()):
                fault = f"{name}: layers {first[module]} and {i} share {path or 'one module'}"
                raise UserError(f"{fault}, so that neither can be removed alone; give layer {i} a copy of its own")


@contextmanager
def outputs_of(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Within the context what modules gave when they were last called, by the names that they are given here."""
    given: dict[str, Tensor] = {}

    def keep(module: nn.Module, args: tuple, output: Any, *, name: str) -> None:
        given[name] = hidden(output)

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(module.register_forward_hook(partial(keep, name=name)))
        yield given


@contextmanager
def replaced_forwards(forwards: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Within the context these modules have another ``forward``, where this thread calls them."""
    with ExitStack() as stack:
        for module, forward in forwards:
            put_forward(stack, module, here(forward, module.forward))
        yield


@dataclass(eq=False)
class _Put:
    """Another forward of a module; a copy of the module has that of its class, on itself."""

    module: nn.Module
    forward: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo[id(self.module)]
        return MethodType(type(copied).forward, copied)


def put_forward(stack: ExitStack, module: nn.Module, forward: Callable[..., Any]) -> None:
    """Give a module another ``forward`` until a stack is closed."""
    own = {name: value for name, value in vars(module).items() if name == "forward"}  # none: that of its class
    put: Callable[..., Any] = _Put(module, forward)
    module.forward = put

    def restore() -> None:
        if vars(module).get("forward") is put:  # else the user has put another one in place meanwhile
            del module.forward
            vars(module).update(own)

    stack.callback(restore)


def here(call: Callable[..., Any], otherwise: Callable[..., Any] = lambda *args, **kwargs: None) -> Callable[..., Any]:
    """A function that does in this thread what one does, and in others what the other does: modules are shared."""
    mine = get_ident()
    return lambda *args, **kwargs: (call if get_ident() == mine else otherwise)(*args, **kwargs)


def rotary_settings(config: Any) -> list[dict[str, Any]]:
    """How a configuration says that rotary angles are made; for each kind of layers, where these differ."""
    said: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    return [one for one in said.values() if isinstance(one, dict)] or [said]


def head(model: PreTrainedModel, states: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_vocab"]:
    """Logits as the model's own forward makes them from the states after its last norm, scaled or capped as it does."""
    made = MoeModelOutputWithPast(last_hidden_state=states[:, None])
    made.cross_attentions = None  # which GPT-2 passes on
    tokens = torch.zeros(len(states), 1, dtype=torch.long, device=states.device)
    with replaced_forwards([(body_of(model), lambda *args, **kwargs: made)]):
        return model(input_ids=tokens, use_cache=False).logits[:, 0]  # a row each, as a donor's unembedding counts them


def body_of(model: PreTrainedModel) -> nn.Module:
    """The model below its unembedding, also where its class names another prefix than it has (Llama 4)."""
    return model.base_model if model.base_model is not model else next(model.children())


def wide(x: Tensor) -> Tensor:
    """``x`` in the type that sums and logarithms are taken in; see `wide_type`."""
    return x.to(wide_type(x.dtype))


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """float32, and float64 of a model that computes in it."""
    return torch.promote_types(dtype, torch.float32)


def hidden(output: Tensor | tuple) -> Tensor:
    """The hidden states of a block's output, which is a tensor or a tuple that starts with it."""
    return output[0] if isinstance(output, tuple) else output


def with_hidden(output: Tensor | tuple, value: Tensor) -> Tensor | tuple:
    """``output`` with its hidden states replaced."""
    return (value, *output[1:]) if isinstance(output, tuple) else value
