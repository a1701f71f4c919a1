"""Where the parts of a decoder-only model are, found by its structure: no class of models is named here.

Embedding and unembedding come from transformers' accessors. The layers are the longest list of blocks, a layer's
attention is the child that holds a projection from its heads to the residual stream, and its MLP is the other child
with matrices. A hybrid model has layers in which another mixer of tokens takes the place of attention: whatever stands
there. What cannot be told apart is refused by name. Whether a walk through these parts computes what the model computes
is another question, which `depthlens.engine.walk_check` answers with numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from depthlens.errors import UserError

# what transformers' classes call the projection from the heads to the residual stream
OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "dense", "c_proj")
PER_HEAD = ("q_proj", "q_b_proj")
PER_KV_HEAD = ("k_proj", "v_proj", "kv_b_proj")


@dataclass(frozen=True)
class Family:
    """Module paths, from the model for the first five and from a layer for the rest.

    A layer that has not exactly two norms has no path of theirs: which part each belongs to is not known. A model whose
    tokens learn where they stand in another way has none of a rotary embedding.
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
    rotary = [n for n, m in base.named_children() if "rotary" in _kind(m)]
    if len(rotary) > 1:
        raise _fault(model, "more than one rotary embedding", rotary)
    children = [name for name, _ in base.named_children()]
    after = children[children.index(layers.rpartition(".")[2]) :]
    norms = [n for n, m in base.named_children() if "norm" in _kind(m)]
    final_norm = _one(model, "final norm", [n for n in norms if n in after] or norms)
    ends = [paths.get(id(part)) for part in (whole.get_input_embeddings(), whole.get_output_embeddings())]
    if None in ends:
        raise _fault(model, "no embedding or no unembedding", [])
    found, mixers = _in_layers(model, layers, blocks)
    return Family(
        embed=str(ends[0]),
        layers=layers,
        rotary=above + rotary[0] if rotary else "",
        final_norm=above + final_norm,
        unembed=str(ends[1]),
        mixers=mixers,
        **found,
    )


def _in_layers(
    model: nn.Module, layers: str, blocks: nn.ModuleList
) -> tuple[dict[str, Any], tuple[tuple[int, str], ...]]:
    """The paths that lead from a layer with attention, and the layers that have another mixer in its place."""
    found: list[dict[str, Any] | None] = []
    faults: dict[int, UserError] = {}
    for i, block in enumerate(blocks):
        try:
            found.append(_in_layer(model, f"{layers}.{i}", block))
        except UserError as e:
            found.append(None)
            faults[i] = e
    known = [one for one in found if one]
    if not known:
        raise faults[0]
    # linear attention may look alike, but shares no keys and values among heads
    one = next((one for one in known if one["per_kv_head"]), known[0])
    like = type(blocks[found.index(one)].get_submodule(one["attn"]))
    mixers = []
    for i, block in enumerate(blocks):
        if found[i] != one:
            left = [name for name in _matrices(block) if name not in _norms(block) and name != one["mlp"]]
            there = one["mlp"] in _matrices(block) and len(left) == 1
            if not there or type(block.get_submodule(left[0])) is like:  # an attention that was changed is no mixer
                fault = f"{type(model).__name__}: the parts of layers {found.index(one)} and {i} are not alike"
                raise faults.get(i) or UserError(f"{fault}; it is not supported")
            mixers.append((i, left[0]))
    return one, tuple(mixers)


def _norms(layer: nn.Module) -> list[str]:
    return [name for name, child in layer.named_children() if "norm" in _kind(child)]


def _matrices(layer: nn.Module) -> list[str]:
    return [name for name, child in layer.named_children() if any(p.ndim > 1 for p in child.parameters())]


def _in_layer(model: nn.Module, where: str, layer: nn.Module) -> dict[str, Any]:
    """The paths of a `Family` that lead from a layer."""
    children, norms = dict(layer.named_children()), _norms(layer)
    projections = {name: _output_projections(child) for name, child in children.items() if "atten" in _kind(child)}
    attn = _one(model, f"attention in {where}", [name for name, inside in projections.items() if inside])
    o_proj = _one(model, f"output projection in {where}.{attn}", projections[attn])
    mlp = _one(model, f"MLP in {where}", [name for name in _matrices(layer) if name not in (attn, *norms)])
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
    kinds = (nn.Linear, Conv1D)
    # an adapter of peft has the projection that it adds to inside
    linear = [path for path, m in named if isinstance(getattr(m, "base_layer", m), kinds)]
    return [path for path in linear if path.rpartition(".")[2] in OUTPUT_PROJECTIONS]


def widths(projection: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer, which GPT-2 keeps the other way round."""
    if isinstance(projection, Conv1D):
        return projection.nx, projection.nf
    linear: Any = projection  # an adapter of peft says its widths as `nn.Linear` does
    return linear.in_features, linear.out_features


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
