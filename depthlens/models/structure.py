"""Where the parts of a decoder-only model are, found by its structure: no class of models is named here.

Embedding and unembedding come from transformers' accessors. The layers are the longest list of blocks, a layer's
attention is the child that holds a projection from its heads to the residual stream, and its MLP is the other child
with matrices. What cannot be told apart is refused by name. Whether a walk through these parts computes what the model
computes is another question, which `depthlens.engine.walk_check` answers with numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from depthlens.errors import UserError

# what transformers' classes call the projection from the heads to the residual stream
OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "dense", "c_proj")
PER_HEAD = ("q_proj", "q_b_proj")
PER_KV_HEAD = ("k_proj", "v_proj", "kv_b_proj")


@dataclass(frozen=True)
class Family:
    """Module paths, from the model for the first five and from a layer for the rest.

    A layer that has not exactly two norms has no path of theirs: which part each belongs to is not known.
    ``per_head`` and ``per_kv_head`` are projections of the attention whose output is one slice a query head, or a
    key/value head; without any, queries, keys and values share one projection. Whatever else an attention holds is
    shared by all heads.
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


def find(model: nn.Module) -> Family:
    """Find the parts of a Hugging Face causal language model; its weights may be on the meta device.

    Raises:
        UserError: a part is missing, or there are several where one is expected.
    """
    whole: Any = model
    paths = {id(module): path for path, module in model.named_modules()}
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and not _inside_a_list(model, path)
    ]
    if not lists:
        raise _fault(model, "no list of layers", lists)
    layers, blocks = max(lists, key=lambda found: len(found[1]))
    base = model.get_submodule(layers.rpartition(".")[0])
    above = layers.rpartition(".")[0] + "." if "." in layers else ""
    rotary = _one(model, "rotary embedding", [n for n, m in base.named_children() if "rotary" in _kind(m)])
    final_norm = _one(model, "final norm", [n for n, m in base.named_children() if "norm" in _kind(m)])
    ends = [paths.get(id(part)) for part in (whole.get_input_embeddings(), whole.get_output_embeddings())]
    if None in ends:
        raise _fault(model, "no embedding or no unembedding", [])
    found = [_in_layer(model, f"{layers}.{i}", block) for i, block in enumerate(blocks)]
    if other := next((i for i, one in enumerate(found) if one != found[0]), None):
        raise UserError(f"{type(model).__name__}: the parts of layers 0 and {other} are not alike; it is not supported")
    return Family(
        embed=str(ends[0]),
        layers=layers,
        rotary=above + rotary,
        final_norm=above + final_norm,
        unembed=str(ends[1]),
        **found[0],
    )


def _in_layer(model: nn.Module, where: str, layer: nn.Module) -> dict[str, Any]:
    """The paths of a `Family` that lead from a layer."""
    children = dict(layer.named_children())
    norms = [name for name, child in children.items() if "norm" in _kind(child)]
    projections = {name: _output_projections(child) for name, child in children.items() if "atten" in _kind(child)}
    attn = _one(model, f"attention in {where}", [name for name, inside in projections.items() if inside])
    o_proj = _one(model, f"output projection in {where}.{attn}", projections[attn])
    matrices = [name for name, child in children.items() if any(p.ndim > 1 for p in child.parameters())]
    mlp = _one(model, f"MLP in {where}", [name for name in matrices if name not in (attn, *norms)])
    attn_norm, mlp_norm = norms if len(norms) == 2 else ("", "")
    named = dict(children[attn].named_modules())
    return {
        "attn_norm": attn_norm,
        "attn": attn,
        "o_proj": f"{attn}.{o_proj}",
        "mlp_norm": mlp_norm,
        "mlp": mlp,
        "per_head": tuple(name for name in PER_HEAD if name in named),
        "per_kv_head": tuple(name for name in PER_KV_HEAD if name in named),
    }


def _output_projections(attention: nn.Module) -> list[str]:
    named = attention.named_modules()
    return [path for path, m in named if isinstance(m, nn.Linear) and path.rpartition(".")[2] in OUTPUT_PROJECTIONS]


def _inside_a_list(model: nn.Module, path: str) -> bool:
    parts = path.split(".")[:-1]
    return any(isinstance(model.get_submodule(".".join(parts[: i + 1])), nn.ModuleList) for i in range(len(parts)))


def _kind(module: nn.Module) -> str:
    return type(module).__name__.lower()


def _one(model: nn.Module, what: str, names: list[str]) -> str:
    if len(names) != 1:
        raise _fault(model, f"{'no' if not names else 'more than one'} {what}", names)
    return names[0]


def _fault(model: nn.Module, what: str, names: list) -> UserError:
    found = f" ({', '.join(map(str, names))})" if names else ""
    return UserError(f"{type(model).__name__} has {what}{found}; it is not supported")
