"""A condition written as a Hugging Face checkpoint: layers are left out, and removed parts of others have no weights.

What a condition does to activations is done to weights. A skipped layer is left out, and the layers above it move
down. Attention or MLP that adds nothing has weights of zero, and so have the columns of ``o_proj`` that read a removed
head. What is scaled (``*0.9``) has its output matrix scaled. Layers that run twice are there twice. Weights that are
rounded (``@int4``) are stored in the dtype of the model. So the logits are those of the condition.

An empty model of the cut configuration (`depthlens.models.names.of_layers`) shows whether it tells layers apart: its
layers must be what those that stay are, module by module. `hf_scores` says what lm-eval's own ``hf`` model makes of a
checkpoint, beside the scores of its condition.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from depthlens import __version__, arguments
from depthlens.ablations import Ablation, Condition, modes, parse_condition, routes
from depthlens.analysis.numbers.words import bounds
from depthlens.analysis.result.results import Result
from depthlens.engine import walk_check
from depthlens.errors import UserError
from depthlens.models import in_force, quantised
from depthlens.models.architectures import outputs_of
from depthlens.models.fingerprint import kind_of
from depthlens.models.lens import Lens, one_thread
from depthlens.models.names import of_layers
from depthlens.paths import writing_to
from depthlens.progress import quiet
from depthlens.tasks import harness

SHARD_BYTES = 4 << 30  # of one file
_WHERE = ("layer_idx", "layer_id", "training")  # what a module says of itself beside its kind


@dataclass(frozen=True)
class Export:
    """A checkpoint that was written.

    Attributes:
        folder: Where it is.
        layers: Numbers, in the whole model, of the layers that it has.
        n_parameters: Of the checkpoint; those that are zero are among them.
        n_zero: Parameters that were set to zero.
        n_whole: Parameters of the whole model.

    Example:
        >>> made = dl.export(lens, "L3", "without_layer_3")
        >>> made.layers
        (0, 1, 2, 4, 5)
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
        lens: A loaded model. A copy of the weights of its layers is made in memory.
        condition: What is removed, e.g. ``L8-11`` or ``L3+L5.mlp``.
        out: A folder that does not exist or is empty.
        result: A sweep of the same model in which the condition was scored: the card then says what it cost.

    Returns:
        What was written: weights (safetensors), configuration, tokenizer, README.md and, where whole layers were
        removed, ``mergekit.yml``, which makes the same checkpoint.

    Raises:
        UserError: a condition that weights cannot express or that leaves no layer, a model whose weights are remote or
            quantised, a result of another model or without the condition, or a folder that cannot be written.

    Example:
        >>> made = dl.export(lens, "L3+L5.mlp", "smaller")
        >>> dl.load("smaller").dims.n_layers
        5
    """
    lens.needs_weights("an export")
    chosen = condition if isinstance(condition, Condition) else parse_condition(condition)
    chosen.validate(lens.dims)
    _refuse(lens, chosen)
    walked = walk_check.found(lens)
    walk_check.require_parts(lens, walked, [chosen])
    if fault := walked.foreign or ("is ablated here" if in_force.entered(lens.model) else None):
        raise UserError(f"model {lens.name!r} {fault}, which no checkpoint holds; export it without")
    cost = _cost(lens, chosen, result)
    folder = empty_folder(out)
    kept = routes.of(chosen, lens.dims.n_layers).layers
    smaller = _skeleton(lens, kept)
    weights, n_zero = _weights(lens, chosen, kept)
    made = Export(folder, kept, smaller.num_parameters(), n_zero, lens.model.num_parameters())
    with writing_to(folder, SafetensorError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        # written beside it and renamed at the end, so that no half checkpoint has its name
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work, quiet():
            whole = Path(work) / "model"
            smaller.save_pretrained(whole, state_dict=weights, max_shard_size=SHARD_BYTES)
            lens.tokenizer.save_pretrained(whole)
            _write_card(whole, lens, chosen, made, cost)
            os.replace(whole, folder)
    return made


def _refuse(lens: Lens, condition: Condition) -> None:
    if not condition:
        raise UserError("condition baseline removes nothing; give one that does, e.g. L8-11")
    for a in condition.ablations:
        if a.site not in modes.of(a.mode).exported or not a.everywhere:
            raise UserError(f"condition {condition}: {a} cannot be written into weights; export a removal, e.g. L1.mlp")
    if not routes.of(condition, lens.dims.n_layers).layers:
        raise UserError(f"condition {condition} leaves no layer of {lens.name!r}; keep one")
    if method := quantised.method_of(lens.model.config):
        raise UserError(f"model {lens.name!r} is quantised ({method}); export its unquantised one, then quantise that")


def empty_folder(out: str | Path) -> Path:
    """The path of a folder that can be made, or a `UserError` that says why it cannot."""
    arguments.check(out=str(out))
    folder = Path(out).expanduser().absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{str(out)!r} exists and is not an empty folder; name a new one")
    return folder


def _skeleton(lens: Lens, kept: Sequence[int]) -> PreTrainedModel:
    """An empty model (on the meta device) of the layers that stay, with a configuration of its own."""
    made = of_layers(lens.model.config, kept)
    vars(made).pop("quantization_config", None)  # of a .gguf file, whose weights were dequantised on loading
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made, dtype=lens.dtype)
    model.generation_config = lens.model.generation_config
    for layer, old in zip(model.get_submodule(lens.arch.family.layers).children(), kept, strict=True):
        if _parts(layer) != _parts(lens.arch.layers[old]):
            fault = f"without the removed layers, the configuration of {lens.name!r} makes layer {old} another one"
            raise UserError(f"{fault}; export another condition")
    return model


def _parts(layer: nn.Module) -> tuple[Any, Any]:
    """The modules of a layer with their plain settings, and the shapes of its weights, wherever it stands."""
    kinds = [(name, kind_of(part, without=_WHERE)) for name, part in layer.named_modules()]
    return kinds, [(name, weight.shape) for name, weight in layer.named_parameters()]


def _weights(lens: Lens, condition: Condition, kept: Sequence[int]) -> tuple[dict[str, Tensor], int]:
    """The weights of a checkpoint by name, those of layers as copies, and how many were set to zero."""
    prefix, n_zero = lens.arch.family.layers + ".", 0
    found = {name: weight for name, weight in lens.model.state_dict().items() if not name.startswith(prefix)}
    for new, old in enumerate(kept):
        with lens.resident(old):
            weights = {k: w.to("cpu", copy=True) for k, w in lens.arch.layers[old].state_dict().items()}
        n_zero += _edit(lens, old, weights, [a for a in condition.ablations if a.layer == old])
        found |= {f"{prefix}{new}.{name}": weight for name, weight in weights.items()}
    return found, n_zero


def _edit(lens: Lens, layer: int, weights: dict[str, Tensor], ablations: Sequence[Ablation]) -> int:
    """Round and scale weights of a layer in place, set those of removed parts to zero; returns how many these are."""
    family, dims = lens.arch.family, lens.dims
    paths = {"layer": "", "attn": family.mixes(layer) + ".", "mlp": family.mlp + "."}
    parts = {site: [w for name, w in weights.items() if name.startswith(path)] for site, path in paths.items()}
    for a in ablations:
        for weight in parts[a.site] if modes.of(a.mode).bits else ():
            weight.copy_(quantised.rounded(weight, a.mode))
    sites = {a.site for a in ablations if a.kind == "removal"} & {"attn", "mlp"}
    removed = [weight for site in sites for weight in parts[site] if weight.is_floating_point()]
    for a in ablations:
        if a.kind == "change" and a.site in ("attn", "mlp"):
            path = paths[a.site] + _output_matrix(lens, a)
            for weight in (w for name, w in weights.items() if name in (f"{path}.weight", f"{path}.bias")):
                weight.mul_(a.factor)
    factors: dict[int, float] = {}  # by head; its own comes over that of its group, and removal is 0
    for a in sorted(ablations, key=lambda a: a.site, reverse=True):
        if a.site in ("head", "kv"):
            heads = dims.query_heads(a.index) if a.site == "kv" else [a.index]
            factors |= dict.fromkeys(heads, 0.0 if a.kind == "removal" else a.factor)
    if factors and "attn" not in sites:
        axis = 0 if isinstance(lens.arch.o_proj[layer], Conv1D) else 1  # of its inputs
        by_head = weights[f"{family.o_proj}.weight"].unflatten(axis, (dims.n_heads, dims.d_head))
        removed += [by_head.select(axis, head) for head, factor in factors.items() if not factor]
        for head, factor in factors.items():
            by_head.select(axis, head).mul_(factor)
    for weight in removed:
        weight.zero_()
    return sum(weight.numel() for weight in removed)


def _output_matrix(lens: Lens, a: Ablation) -> str:
    """The matrix in an attention or MLP whose output is that of the part, by its path in it; the model says which.

    Raises:
        UserError: there is not one such matrix.
    """
    part = {"attn": lens.arch.attn, "mlp": lens.arch.mlp}[a.site][a.layer]
    read = {name: module for name, module in part.named_modules() if not name or isinstance(module, nn.Linear | Conv1D)}
    with outputs_of(read) as given, torch.no_grad():
        lens.model(torch.arange(4, device=lens.device)[None], use_cache=False)
    whole = given.pop("").flatten()
    found = [name for name, output in given.items() if torch.equal(output.flatten(), whole)]
    if len(found) != 1:
        fault = f"{a} of {lens.name!r} is not written by one matrix, so that no weights can be scaled"
        raise UserError(f"condition {a}: {fault}; scale heads, or export another condition")
    return found[0]


def _cost(lens: Lens, condition: Condition, result: Result | None) -> pd.DataFrame | None:
    """Rows of a sweep's summary that say what a condition cost; None without a sweep.

    Raises:
        UserError: the sweep is of another model, or did not score the condition.
    """
    if result is None:
        return None
    models = [part["model"] for part in result.record.get("parts", [result.record])]
    if lens.fingerprint not in [model["fingerprint"] for model in models]:
        names = ", ".join(model["name"] for model in models)
        raise UserError(f"the result is of {names}, and not of {lens.name!r} as it is now; sweep this model")
    rows = result.summary.query("condition == @condition", local_dict={"condition": str(condition)})
    if rows.empty:
        raise UserError(f"condition {condition} is not in the result; sweep it first")
    return rows


def _write_card(folder: Path, lens: Lens, condition: Condition, made: Export, cost: pd.DataFrame | None) -> None:
    """Write README.md and, for a condition of whole layers, mergekit.yml.

    Args:
        folder: Of the checkpoint.
        lens: The whole model.
        condition: What was removed.
        made: The checkpoint.
        cost: See `_cost`.
    """
    base = lens.name if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", lens.name) else None  # an id of the hub
    front = ModelCardData(library_name="transformers", tags=["depthlens", "pruned"], base_model=base)
    consecutive = (list(run) for _, run in groupby(enumerate(made.layers), lambda pair: pair[1] - pair[0]))
    runs = [(run[0][1], run[-1][1]) for run in consecutive]
    about: dict[str, Any] = {"lens": lens, "condition": condition, "made": made, "cost": cost, "bounds": bounds}
    about["stays"] = any(a.kind != "removal" for a in condition.ablations)
    about["left"] = ", ".join(f"{first}-{last}" if first < last else str(first) for first, last in runs)
    template = str(Path(__file__).with_name("model_card.md.j2"))
    card = ModelCard.from_template(front, template, short_name=Path(lens.name).name, version=__version__, **about)
    card.save(folder / "README.md")
    if all(a.site in ("layer", modes.BLOCK) and a.kind in ("removal", "repeat") for a in condition.ablations):
        slices = [{"sources": [{"model": lens.name, "layer_range": [first, last + 1]}]} for first, last in runs]
        recipe = {"slices": slices, "merge_method": "passthrough", "dtype": str(lens.dtype).removeprefix("torch.")}
        (folder / "mergekit.yml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


def hf_scores(folder: str | Path, result: Result, condition: str, *, device: str = "cpu") -> pd.DataFrame:
    """Score a checkpoint by lm-eval's ``hf`` on the documents of a sweep, beside the condition that it was made from.

    Tasks, examples, seed, chat template and dtype are those of the sweep. Nothing of depthlens computes here.

    Args:
        folder: What `depthlens.export` wrote.
        result: A sweep, of lm-eval's metrics, in which the condition was scored.
        condition: As its text.
        device: As torch names it.

    Returns:
        One row a task, metric and document: task, metric, doc_id, condition (its score), checkpoint (that of ``hf``).

    Raises:
        UserError: the result lacks the condition.

    Example:
        >>> made = dl.export(lens, "L3", "pruned")
        >>> scored = dl.hf_scores("pruned", result, "L3")
        >>> scored.columns.tolist()
        ['task', 'metric', 'doc_id', 'condition', 'checkpoint']
    """
    import lm_eval  # slow to import
    from lm_eval.models.huggingface import HFLM

    name, record = str(parse_condition(condition)), result.record
    docs = result.select(conditions=[name]).docs.query("condition == @name")
    thinks = {name: record[name] for name in ("think_end_token", "enable_thinking")}
    model = HFLM(pretrained=str(folder), dtype=record["model"]["dtype"], device=device, batch_size=8, **thinks)
    found: list[dict[str, Any]] = []
    for task, rows in docs.groupby("task", sort=False):
        scores: Any = lm_eval.simple_evaluate(
            model=model,
            tasks=[task],
            task_manager=harness.task_manager([task], record["include_path"]),
            num_fewshot=record["tasks"][task]["num_fewshot"],
            samples={str(task): sorted(map(int, rows["doc_id"].unique()))},
            fewshot_random_seed=record["seed"],
            bootstrap_iters=0,
            **{name: record[name] for name in ("apply_chat_template", "system_instruction", "gen_kwargs")},
        )
        for sample in scores["samples"][task]:
            of = {"task": task, "doc_id": sample["doc_id"]}
            for name in sample["metrics"]:  # a sweep adds the filter where a task has several
                both = (name, f"{name},{sample['filter']}")
                found += [of | {"metric": metric, "checkpoint": sample[name]} for metric in both]
    ours = docs[["task", "metric", "doc_id", "value"]].rename(columns={"value": "condition"})
    return ours.merge(pd.DataFrame(found), on=["task", "metric", "doc_id"]).astype({"checkpoint": float})
