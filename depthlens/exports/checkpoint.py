"""A condition written as a Hugging Face checkpoint: layers are left out, and removed parts of others have no weights.

What a condition does to activations is done to weights. A skipped layer is left out, and the layers above it move
down. Attention or MLP that adds nothing has weights of zero. The columns of ``o_proj`` that read a removed head are
zero; where every layer loses as many whole groups of heads, the groups are cut out of the projections, and the
configuration has fewer heads. Experts are cut out where every layer with experts loses as many. A layer that runs twice
is there twice. Weights that are rounded (``@int4``) are stored in the dtype of the model. So the logits
are those of the condition.

The weights go through memory a layer at a time, so that an offloaded model can be exported, too. Names are those of the
hub, which transformers' own conversions give back.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.pytorch_utils import Conv1D
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from depthlens import arguments
from depthlens.ablations import ROUNDED, Ablation, Condition, parse_condition
from depthlens.analysis.results import Result
from depthlens.engine import walk_check
from depthlens.errors import UserError
from depthlens.exports import model_card
from depthlens.exports.layer_lists import kept_layers, layer_lists
from depthlens.exports.smaller_config import skeleton
from depthlens.models import pairs, quantised
from depthlens.models.lens import Lens, one_thread
from depthlens.models.rounded_weights import rounded
from depthlens.paths import unwritable

if TYPE_CHECKING:  # slow to import
    from transformers import PreTrainedModel

LISTS = "layer_lists.json"
SHARD_BYTES = 4 << 30  # of one file, but for a layer that is larger


@dataclass(frozen=True)
class Export:
    """A checkpoint that was written.

    Attributes:
        folder: Where it is.
        layers: Numbers, in the whole model, of the layers that it has.
        n_parameters: Of the checkpoint; those that are zero are among them.
        n_zero: Parameters that were set to zero.
        n_whole: Parameters of the whole model.
    """

    folder: Path
    layers: tuple[int, ...]
    n_parameters: int
    n_zero: int
    n_whole: int

    def __str__(self) -> str:
        zero = f", {self.n_zero:,} of them set to zero" if self.n_zero else ""
        whole = f" (the whole model has {self.n_whole:,})"
        return f"{len(self.layers)} layers, {self.n_parameters:,} parameters{whole}{zero}"


@one_thread
def export(lens: Lens, condition: str | Condition, out: str | Path, *, result: Result | None = None) -> Export:
    """Write the model that a condition leaves as a Hugging Face checkpoint, with a model card.

    Args:
        lens: A loaded model; of an offloaded one the layers are read one by one.
        condition: What is removed, e.g. ``L8-11`` or ``L3+L5.mlp``.
        out: A folder that does not exist or is empty.
        result: A sweep of the same model in which the condition was scored: the card then says what it cost.

    Returns:
        What was written: weights (safetensors), configuration, tokenizer, README.md, ``layer_lists.json``
        (`depthlens.layer_lists`) and, where whole layers were removed, ``mergekit.yml``, which makes the same
        checkpoint.

    Raises:
        UserError: a condition that weights cannot express or that leaves no layer, a model whose weights are remote or
            quantised, a result of another model or without the condition, or a folder that cannot be written.
    """
    arguments.loaded(lens)
    lens.needs_weights("an export")
    if not isinstance(condition, str | Condition):
        raise UserError(f"condition {condition!r}: give a text such as 'L8-11'")
    chosen = (parse_condition(condition) if isinstance(condition, str) else condition).validate(lens.dims)
    _refuse(lens, chosen)
    pairs.require(lens, [chosen])
    walk_check.require_parts(lens, walk_check.found(lens), [chosen])
    cost = model_card.cost(lens, chosen, result)
    folder = empty_folder(out)
    kept = kept_layers(lens, chosen)
    smaller, cut = _smaller(lens, chosen, kept)
    needed = sum(w.nbytes for w in smaller.parameters())
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        if needed > free:
            fault = f"cannot write to {str(folder)!r}: the checkpoint has {needed / 1e9:.1f} GB"
            raise UserError(f"{fault}, and {free / 1e9:.1f} GB are free; name a folder on another disk")
        # written beside it and renamed at the end, so that no half checkpoint has its name
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work:
            made = Path(work) / "model"
            made.mkdir()
            n_zero = _write_weights(lens, smaller, chosen, kept, cut, made)
            smaller.config.save_pretrained(made)
            smaller.generation_config.save_pretrained(made)
            lens.tokenizer.save_pretrained(made)
            n_whole = sum(w.numel() for w in lens.model.parameters())
            found = Export(folder, tuple(kept), sum(w.numel() for w in smaller.parameters()), n_zero, n_whole)
            model_card.write(made, lens, chosen, str(found), kept, cost)
            (made / LISTS).write_text(json.dumps(layer_lists(lens, chosen), indent=2) + "\n", encoding="utf-8")
            os.replace(made, folder)
    except OSError as e:
        raise unwritable(folder, e) from e
    except SafetensorError as e:  # its own error for a full disk
        raise UserError(f"cannot write to {str(folder)!r}: {e}; name a folder on another disk") from e
    return found


def _refuse(lens: Lens, condition: Condition) -> None:
    if not condition:
        raise UserError("condition baseline removes nothing; give one that does, e.g. L8-11")
    for a in condition.ablations:
        removed = a.mode in ("skip", "zero", "twice") and not a.start
        if not removed and not (a.mode in ROUNDED and a.site in ("layer", "attn", "mlp")):
            what = f"[{a.start}:]" if a.start else f"@{a.mode}"
            fault = f"condition {condition}: what {a.site} {what} does cannot be written into weights"
            raise UserError(f"{fault}; export a removal, e.g. {str(a).removesuffix(a.suffix)}")
    if sum(a.mode == "skip" for a in condition.ablations) == lens.dims.n_layers:
        raise UserError(f"condition {condition} leaves no layer of {lens.name!r}; keep one")
    _n_gone(lens, condition)
    if method := quantised.method_of(lens.model.config):
        raise UserError(f"model {lens.name!r} is quantised ({method}); export its unquantised one, then quantise that")


def _n_gone(lens: Lens, condition: Condition) -> int:
    """Experts that every layer with experts loses, or a `UserError` that says why they cannot be cut out."""
    experts = [a for a in condition.ablations if a.site == "expert"]
    if not experts:
        return 0
    config: Any = lens.model.config.get_text_config()
    skipped = {a.layer for a in condition.ablations if a.mode == "skip"}
    lost = {i: sum(a.layer == i for a in experts) for i, n in enumerate(lens.dims.n_experts) if n and i not in skipped}
    fault = f"condition {condition}: its experts cannot be cut out of {lens.name!r}"
    if len({*lost.values()}) > 1:
        each = ", ".join(f"L{layer} {n}" for layer, n in lost.items())
        raise UserError(f"{fault}, because every layer must lose as many ({each}); name as many of each")
    n_gone, n_chosen = max(lost.values()), getattr(config, "num_experts_per_tok", 1)
    if (getattr(config, "n_group", 1) or 1) > 1:
        raise UserError(f"{fault}, because its router chooses by groups of equal size; export another condition")
    if max(lens.dims.n_experts) - n_gone < n_chosen:
        raise UserError(f"{fault}, because each token passes {n_chosen} of them; keep {n_chosen}")
    return n_gone


def empty_folder(out: str | Path) -> Path:
    """The path of a folder that can be made, or a `UserError` that says why it cannot."""
    arguments.check(out=str(out))
    folder = Path(out).expanduser().absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{str(out)!r} exists and is not an empty folder; name a new one")
    return folder


def _smaller(lens: Lens, condition: Condition, kept: Sequence[int]) -> tuple[PreTrainedModel, dict[int, list[int]]]:
    """The empty checkpoint, and which key/value heads are cut out of each layer; none where heads become zeros."""
    arch, dims, n_gone = lens.arch, lens.dims, _n_gone(lens, condition)
    gone = {layer: _groups(condition, layer, lens) for layer in kept}
    sizes = {len(groups) for groups in gone.values()}
    if not n_gone and len(sizes) == 1 and 0 < (n := sizes.pop()) < dims.n_kv_heads:
        if (arch.family.per_head, arch.family.per_kv_head) == (("q_proj",), ("k_proj", "v_proj")):
            try:
                smaller = skeleton(lens, kept, dims.n_kv_heads - n)
            except (UserError, StrictDataclassError):  # a class that cannot have so many heads
                return skeleton(lens, kept, dims.n_kv_heads), {layer: [] for layer in kept}
            made, old = smaller.get_submodule(f"{arch.family.layers}.0").state_dict(), kept[0]
            with lens.resident(old):
                shapes = {k: v.shape for k, v in _edited(lens, old, [], gone[old]).items()}
            if {k: v.shape for k, v in made.items()} == shapes:
                return smaller, gone
    return skeleton(lens, kept, dims.n_kv_heads, n_gone), {layer: [] for layer in kept}


def _fewer_experts(weights: dict[str, Tensor], of_smaller: dict[str, Tensor], gone: Sequence[int]) -> dict[str, Tensor]:
    """Weights of a layer without experts: along the axis in which they are larger than those of the checkpoint."""
    found = {}
    for name, w in weights.items():
        axes = [i for i, n in enumerate(of_smaller[name].shape) if gone and n == w.shape[i] - len(gone)]
        left = [i for i in range(w.shape[axes[0]]) if i not in gone] if axes else []
        found[name] = w.index_select(axes[0], torch.tensor(left, device=w.device)) if axes else w
    return found


def _groups(condition: Condition, layer: int, lens: Lens) -> list[int]:
    """Key/value heads of a layer all of whose query heads are removed one by one or as a group."""
    heads = _heads([a for a in condition.ablations if a.layer == layer], lens)
    return [kv for kv in range(lens.dims.n_kv_heads) if heads.issuperset(lens.dims.query_heads(kv))]


def _heads(ablations: Sequence[Ablation], lens: Lens) -> set[int]:
    of_groups = {h for a in ablations if a.site == "kv" for h in lens.dims.query_heads(a.index)}
    return of_groups | {a.index for a in ablations if a.site == "head"}  # no head is exported rounded


def _edited(lens: Lens, layer: int, ablations: Sequence[Ablation], cut: Sequence[int]) -> dict[str, Tensor]:
    """Weights of a layer by name; those of removed parts are zero, and key/value heads that are cut are gone."""
    family, dims = lens.arch.family, lens.dims
    paths = {"layer": "", "attn": family.mixes(layer) + ".", "mlp": family.mlp + "."}
    weights = dict(lens.arch.layers[layer].state_dict())
    for a in ablations:
        if a.mode in ROUNDED:
            weights |= {k: rounded(v, a.mode) for k, v in weights.items() if k.startswith(paths[a.site])}
    for part in {a.site for a in ablations if a.mode == "zero"} & {"attn", "mlp"}:
        of_part = {k: v for k, v in weights.items() if k.startswith(paths[part]) and v.is_floating_point()}
        weights |= {k: torch.zeros_like(v) for k, v in of_part.items()}
    reads = f"{family.o_proj}.weight"
    if heads := _heads(ablations, lens):
        axis = 0 if isinstance(lens.arch.o_proj[layer], Conv1D) else 1  # of its inputs
        by_head = weights[reads].unflatten(axis, (dims.n_heads, dims.d_head)).clone()
        by_head.index_fill_(axis, torch.tensor(sorted(heads), device=by_head.device), 0)
        weights[reads] = by_head.flatten(axis, axis + 1)
    if cut:
        kv = [i for i in range(dims.n_kv_heads) if i not in cut]
        queries = [h for i in kv for h in dims.query_heads(i)]
        weights[reads] = weights[reads].unflatten(1, (dims.n_heads, dims.d_head))[:, queries].flatten(1)
        for names, all_heads, left in (("q_proj",), dims.n_heads, queries), (("k_proj", "v_proj"), dims.n_kv_heads, kv):
            for key in [k for k in weights if k.split(".")[-2] in names]:
                weights[key] = weights[key].unflatten(0, (all_heads, dims.d_head))[left].flatten(0, 1)
    return weights


def _pieces(
    lens: Lens, smaller: PreTrainedModel, condition: Condition, kept: Sequence[int], cut: dict[int, list[int]]
) -> Iterator[tuple[dict[str, Tensor], int]]:
    """Weights by their names in the checkpoint, and how many were set to zero: first those outside the layers."""
    prefix = lens.arch.family.layers + "."
    whole = {k: v for k, v in lens.model.state_dict().items() if not k.startswith(prefix)}
    places = {source: whole[source].data_ptr() for source in whole}
    tied = getattr(smaller, "all_tied_weights_keys", None) or {}
    yield {k: v for k, v in whole.items() if k not in tied or places[k] != places.get(tied[k])}, 0
    for new, old in enumerate(kept):
        of_layer = [a for a in condition.ablations if a.layer == old]
        with lens.resident(old):
            weights = _edited(lens, old, of_layer, cut[old])
            before = _edited(lens, old, [a for a in of_layer if a.mode in ROUNDED], cut[old])
            gone = [a.index for a in of_layer if a.site == "expert"]
            its = smaller.get_submodule(f"{prefix}{new}").state_dict()
            weights, before = (_fewer_experts(w, its, gone) for w in (weights, before))
            edited = [k for k, w in weights.items() if w.data_ptr() != before[k].data_ptr()]
            n_zero = sum(int(((weights[k] == 0) & (before[k] != 0)).sum()) for k in edited)
            again = new > 0 and kept[new - 1] == old  # a file stores no weight under two names
            yield {f"{prefix}{new}.{k}": w.clone() if again else w for k, w in weights.items()}, n_zero


def _write_weights(
    lens: Lens,
    smaller: PreTrainedModel,
    condition: Condition,
    kept: Sequence[int],
    cut: dict[int, list[int]],
    folder: Path,
) -> int:
    """Write all weights; returns how many were set to zero."""
    files: list[list[str]] = []
    waiting: dict[str, Tensor] = {}
    n_zero = 0

    def write() -> None:
        save_file(waiting, folder / f"{len(files)}.safetensors", metadata={"format": "pt"})
        files.append(list(waiting))
        waiting.clear()

    for piece, zeros in _pieces(lens, smaller, condition, kept, cut):
        n_zero += zeros
        named = {k: _alone(v) for k, v in revert_weight_conversion(smaller, piece).items()}
        if waiting and sum(v.nbytes for v in (*waiting.values(), *named.values())) > SHARD_BYTES:
            write()
        waiting |= named
    write()
    if len(files) == 1:
        os.replace(folder / "0.safetensors", folder / SAFE_WEIGHTS_NAME)
        return n_zero
    index: dict[str, str] = {}
    for i, names in enumerate(files):
        name = f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
        os.replace(folder / f"{i}.safetensors", folder / name)
        index |= dict.fromkeys(names, name)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    about = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(about, indent=2), encoding="utf-8")
    return n_zero


def _alone(weight: Tensor) -> Tensor:
    """A weight on the CPU in memory of its own, as safetensors wants it."""
    there = weight.detach().cpu()
    alone = there.is_contiguous() and there.untyped_storage().nbytes() == there.nbytes
    return there if alone else there.contiguous().clone()
