"""Layers, attention, output projections, MLPs and widths of a loaded model: what `structure` found, with real modules.

``bind`` checks their shapes, so that a model that was changed is an error and not a wrong number.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_outputs import MoeModelOutputWithPast

from depthlens.ablations import Dims
from depthlens.errors import UserError
from depthlens.models import experts
from depthlens.models.placement import moved, place_of
from depthlens.models.structure import Family, find, widths

if TYPE_CHECKING:  # slow to import
    from transformers import PreTrainedModel


@runtime_checkable
class AttentionLayout(Protocol):
    """Which keys each token of a batch sees: the model's attention modules call it."""

    def attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `depthlens.engine.tree_attention.Layout.attention`."""
        ...


@runtime_checkable
class TokenLayout(AttentionLayout, Protocol):
    """The same with the position of each token in its sequence, of shape [1, pos]."""

    position_ids: Tensor


@dataclass(frozen=True)
class Architecture:
    """A family bound to one model: its real modules and sizes."""

    family: Family
    dims: Dims
    d_key: int  # width of a query or key head; under latent attention not d_head, that of a value
    embed: nn.Embedding
    layers: tuple[nn.Module, ...]
    attn_norm: tuple[nn.Module, ...]
    attn: tuple[nn.Module, ...]
    o_proj: tuple[nn.Module, ...]  # linear ones; of a layer with another mixer in place of attention an empty one
    mlp_norm: tuple[nn.Module, ...]
    mlp: tuple[nn.Module, ...]
    routers: tuple[experts.Router | None, ...]  # None: the layer has no experts
    rotary: nn.Module | None
    final_norm: nn.Module
    unembed: nn.Module
    rotary_types: tuple[str, ...] = ()  # of each layer, where layers turn queries and keys in several ways

    def step(
        self,
        layer: int,
        x: Float[Tensor, "row pos d_model"],
        layout: TokenLayout,
        rotary: Any,
        keep: Int[Tensor, " kept"] | None = None,
    ) -> tuple[Float[Tensor, "row kept d_model"], Float[Tensor, "row kept d_model"], Float[Tensor, "row kept d_model"]]:
        """Take residual streams through one layer: ``resid_mid = x + attn_out``, ``resid_post = resid_mid + mlp_out``.

        Args:
            layer: Layer number.
            x: Residual streams before the layer.
            layout: Positions of the tokens and which keys they see.
            rotary: What `rotary` makes of these positions.
            keep: Positions whose outputs are computed; None: all.

        Returns:
            ``attn_out``, ``mlp_out`` and ``resid_post``, where the layer is; whatever is elsewhere is moved there.
        """
        device = place_of(self.layers[layer])
        rotary = moved(self.angles_at(rotary, layer), device)
        x, layout, keep = moved(x, device), moved(layout, device), moved(keep, device)
        attn_out = hidden(
            self.attn[layer](
                hidden_states=self.attn_norm[layer](x),
                attention_mask=None,
                position_embeddings=rotary,
                position_ids=layout.position_ids,
                layout=layout,
            )
        )
        if keep is not None:
            x, attn_out = x[:, keep], attn_out[:, keep]
        resid_mid = x + attn_out
        # some mixtures of experts give all tokens in one row
        mlp_out = hidden(self.mlp[layer](self.mlp_norm[layer](resid_mid))).reshape(resid_mid.shape)
        return attn_out, mlp_out, resid_mid + mlp_out

    def call(
        self, layer: int, x: Float[Tensor, "row pos d_model"], layout: TokenLayout, rotary: Any
    ) -> Float[Tensor, "row pos d_model"]:
        """Residual streams after one layer, which is called as a whole; see `step`, which takes its parts."""
        device = place_of(self.layers[layer])
        x, layout, rotary = moved(x, device), moved(layout, device), moved(self.angles_at(rotary, layer), device)
        about = {"position_embeddings": rotary, "position_ids": layout.position_ids, "layout": layout}
        return hidden(self.layers[layer](x, attention_mask=None, **about))

    def angles(self, x: Float[Tensor, "row pos d_model"], position_ids: Int[Tensor, "#row pos"]) -> Any:
        """What `step` calls ``rotary``, for tokens at these positions."""
        device = place_of(self.embed)
        assert self.rotary is not None, "a model without a rotary embedding is not walked"
        x, position_ids = moved(x, device), moved(position_ids, device)
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
        return self.unembed(moved(normed, place_of(self.unembed)))


def bind(model: nn.Module) -> Architecture:
    """Find the parts of a Hugging Face causal language model and check their shapes.

    Raises:
        UserError: parts are missing, cannot be told apart, or do not have the expected shapes; or hooks of one layer
            could not act on it alone, because modules are compiled or in several layers.
    """
    _refuse_compiled(model)
    family = find(model)
    whole: Any = model
    config = whole.config.get_text_config()
    layers = tuple(cast(nn.ModuleList, model.get_submodule(family.layers)))
    mixers = dict(family.mixers)
    none = nn.Identity()
    o_proj = tuple(none if i in mixers else layer.get_submodule(family.o_proj) for i, layer in enumerate(layers))
    n_heads, d_model = config.num_attention_heads, config.hidden_size
    # o_proj reads n_heads heads side by side; for latent attention (DeepSeek) that is the value width
    d_head = widths(next(projection for projection in o_proj if projection is not none))[0] // n_heads
    # latent attention decompresses one key and one value per query head: nothing is shared
    shares = not hasattr(config, "kv_lora_rank")
    n_kv_heads = getattr(config, "num_key_value_heads", n_heads) if shares else n_heads
    mlp = tuple(layer.get_submodule(family.mlp) for layer in layers)
    routers = tuple(experts.find(part, d_model) for part in mlp)
    n_experts = tuple(router.n_experts if router else 0 for router in routers)
    arch = Architecture(
        family=family,
        dims=Dims(
            len(layers), n_heads, n_kv_heads, d_model, d_head, n_experts if any(n_experts) else (), tuple(mixers)
        ),
        d_key=config.qk_nope_head_dim + config.qk_rope_head_dim if not shares else d_head,
        embed=cast(nn.Embedding, model.get_submodule(family.embed)),
        layers=layers,
        attn_norm=tuple(layer.get_submodule(family.attn_norm) for layer in layers if family.attn_norm),
        attn=tuple(layer.get_submodule(family.mixes(i)) for i, layer in enumerate(layers)),
        o_proj=o_proj,
        mlp_norm=tuple(layer.get_submodule(family.mlp_norm) for layer in layers if family.mlp_norm),
        mlp=mlp,
        routers=routers,
        rotary=model.get_submodule(family.rotary) if family.rotary else None,
        rotary_types=_rotary_types(model, family, config),
        final_norm=model.get_submodule(family.final_norm),
        unembed=model.get_submodule(family.unembed),
    )
    _refuse_shared(type(model).__name__, layers)
    _check(type(model).__name__, config, arch)
    return arch


def _refuse_compiled(model: nn.Module) -> None:
    """Refuse compiled modules: what runs may have been made before there were hooks."""
    for name, module in model.named_modules():
        runs = module, vars(module).get("forward")
        if module._compiled_call_impl is not None or any(hasattr(run, "_torchdynamo_orig_callable") for run in runs):
            fault = f"{name or type(model).__name__} is compiled, so that hooks may not reach what it runs"
            raise UserError(f"{fault}; give the model as it was before torch.compile")


def _refuse_shared(name: str, layers: tuple[nn.Module, ...]) -> None:
    """Refuse a module that is in two layers: removed from one it would be gone from both."""
    first: dict[int, int] = {}
    for i, layer in enumerate(layers):
        for path, module in layer.named_modules():
            if first.setdefault(id(module), i) != i and any(True for _ in module.parameters()):
                fault = f"{name}: layers {first[id(module)]} and {i} share {path or 'one module'}"
                fix = f"give layer {i} copy.deepcopy(MODULE, {{id(model.config): model.config}}), with its layer_idx"
                raise UserError(f"{fault}, so that neither can be removed alone; {fix}")


def _rotary_types(model: nn.Module, family: Family, config: Any) -> tuple[str, ...]:
    """Which angles each layer uses, where the rotary embedding makes several."""
    rotary = model.get_submodule(family.rotary) if family.rotary else None
    several = rotary is not None and "layer_type" in inspect.signature(rotary.forward).parameters
    return tuple(config.layer_types) if several else ()


def _check(name: str, config: Any, arch: Architecture) -> None:
    dims = arch.dims

    def expect(what: str, value: object, expected: object) -> None:
        if value != expected:
            raise UserError(f"{name}: {what} is {value}, expected {expected}; it was changed, or is not supported")

    expect("number of layers", dims.n_layers, config.num_hidden_layers)
    expect("n_heads modulo n_kv_heads", dims.n_heads % dims.n_kv_heads, 0)
    expect("width of the embedding", arch.embed.weight.shape[1], dims.d_model)
    slots = {getattr(attn, "layer_idx", i) for i, attn in enumerate(arch.attn)}
    if lacking := sorted({*range(dims.n_layers)} - slots):
        fault = f"{name}: no attention has layer_idx {lacking[0]}, by which keys and values of texts are kept apart"
        raise UserError(f"{fault}; set layer_idx of each attention to the number of its layer")
    for i, o_proj in enumerate(arch.o_proj):
        if i in dims.headless:
            continue
        inputs, outputs = widths(o_proj)
        expect(f"o_proj output of layer {i}", outputs, dims.d_model)
        expect(f"o_proj input of layer {i}", inputs, dims.n_heads * dims.d_head)


def rotary_settings(config: Any) -> list[dict[str, Any]]:
    """How a configuration says that rotary angles are made; for each kind of layers, where these differ."""
    said: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    return [one for one in said.values() if isinstance(one, dict)] or [said]


def head(model: PreTrainedModel, states: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_vocab"]:
    """Logits as the model's own forward makes them from the states after its last norm, scaled or capped as it does."""
    body = body_of(model)
    own = vars(body).get("forward")  # None: that of its class
    made = MoeModelOutputWithPast(last_hidden_state=states[:, None])
    made.cross_attentions = None  # which GPT-2 passes on
    body.forward = lambda *args, **kwargs: made
    try:
        tokens = torch.zeros(len(states), 1, dtype=torch.long, device=states.device)
        return model(input_ids=tokens, use_cache=False).logits[:, 0]  # a row each, as a donor's unembedding counts them
    finally:
        if own is None:
            del body.forward
        else:
            body.forward = own


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
