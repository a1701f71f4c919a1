"""From a name to a model that can be taken apart: ``load(name) -> Lens``.

A name is an alias (``depthlens models`` lists them), an organism (`depthlens.organisms`), a Hugging Face hub id, with a
revision where one is named (``EleutherAI/pythia-70m@step1000``), a directory or a ``.gguf`` file; ``NAME[:4]`` is the
first four layers of one.
`depthlens.models.names` finds what it names. Weights are read
from safetensors or GGUF only: nothing downloaded is ever executed or unpickled.
"""

from __future__ import annotations

import copy
import logging
import os
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from depthlens import arguments, progress
from depthlens.errors import UserError
from depthlens.models import embedded, names, placement, quantised
from depthlens.models.architectures import bind, find, rotary_settings
from depthlens.models.lens import Lens, Offload
from depthlens.models.names import Source, explained
from depthlens.organisms import builder, weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

DTYPES = {name: getattr(torch, name) for name in arguments.DTYPES if name != "auto"}
ELSEWHERE = "load the model from the hub or a folder"  # where transformers does not read all of a .gguf file


def load(
    name: str | os.PathLike[str],
    *,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str | None = None,
    offload: str | None = None,
    remote: bool | str = False,
) -> Lens:
    """Load a model by alias, hub id, directory or ``.gguf`` file.

    Args:
        name: What to load.
        dtype: ``auto`` (float32 on a CPU, else the checkpoint's own), ``float32``, ``float64``, ``bfloat16``,
            ``float16``.
        device: ``auto`` (cuda, else mps, else cpu), ``cpu``, ``cuda``, ``cuda:N``, ``mps``, or several GPUs
            (``cuda:0,cuda:1``), over which whole layers are spread. ``auto`` spreads them over all GPUs where the
            first has no room for the model (see `depthlens.models.placement`).
        quantize: ``int8``, ``int4`` or ``nf4``: linear layers keep their weights in so many bits, through torchao or
            bitsandbytes (see `depthlens.models.quantised`). None: as the checkpoint has them, which may be quantised.
        offload: ``disk``: the layers stay in their safetensors files and are read as a sweep walks through them, which
            needs memory for one of them. None: the whole model is in memory.
        remote: True: the weights stay on NDIF, or on the server that NDIF_HOST names, and sweeps run there through
            nnsight; NDIF asks for a key (NDIF_API_KEY). ``"local"`` loads the model and simulates such a server here,
            to try a script without one (see `depthlens.models.remote`).

    Raises:
        UserError: the name cannot be found or read, is not a supported architecture, dtype or device do not exist here,
            or a remote model cannot be reached. The message says what to do.
    """
    arguments.check(dtype=dtype, quantize=quantize, offload=offload, device=device, remote=remote)
    places = placement.torch_devices(device)
    source = names.find(name)
    _refuse(source, dtype, device, quantize, offload, remote)
    if remote == "local":
        from depthlens.models.remote import simulated  # slow to import

        return simulated(load(name, dtype=dtype, quantize=quantize, device=device))
    with progress.working(f"loading {name}"), explained(source.name):
        if source.kind == "organism":
            organism = weights.build(**vars(builder.parse(source.name)))
            cast(nn.Module, organism.model).to(places[0], DTYPES.get(dtype, torch.float32))
            return Lens(organism.model, organism.tokenizer, source.name)
        if remote:
            from depthlens.models.remote import connected, require_key  # slow to import

            require_key()  # before anything is downloaded
            return connected(source, *_read_config(source)[:2])
        chosen = DTYPES.get(dtype, torch.float32 if places[0].type == "cpu" else "auto")
        return _load_here(source, places, chosen, quantize, bool(offload), "," in device)


def _refuse(
    source: Source, dtype: str, device: str, quantize: str | None, offload: str | None, remote: bool | str
) -> None:
    """Refuse options that exclude each other, or that this kind of model cannot have."""
    away, several = remote is True, "," in device
    others = "several devices, an adapter, a .gguf file or an organism; leave one out"
    made = source.kind == "organism" or source.gguf or source.adapter
    foreign = source.kind != "hub" or source.adapter or source.revision or source.layers or quantize
    if offload and (remote or several or made):
        raise UserError(f"offload {offload!r} reads layers of files onto one device: not with remote, {others}")
    if quantize and (offload or several or made):
        raise UserError(f"quantize {quantize!r} is done while files are read: not with offload, {others}")
    if away and (foreign or (dtype, device) != ("auto", "auto")):
        raise UserError("remote=True: a server has main revisions of the hub, in its own dtype; leave all else out")


def _load_here(
    source: Source, places: list[torch.device], dtype: Any, quantize: str | None, offload: bool, spread: bool
) -> Lens:
    """A model from a directory, the hub or a .gguf file.

    On the first device, or over all of them, if the first has no room or if it is asked for with ``spread``.
    """
    if source.kind == "embedded":  # made on first use
        source = replace(source, kind="folder", place=str(embedded.smollm2()))
    config, tokenizer, outline = _read_config(source)
    layers, stream = find(outline).layers, None
    options = {**source.options, "config": config}
    stored_as = quantised.method_of(config)
    if stored_as and quantize:
        raise UserError(f"quantize {quantize!r}: the model is quantised already ({stored_as}); leave it out")
    if stored_as:
        from transformers.quantizers import AutoHfQuantizer  # slow to import

        if not AutoHfQuantizer.supports_quant_method(config.quantization_config):  # it would take them for plain ones
            raise ValueError(f"transformers does not read weights that are quantised by {stored_as!r}")
    if quantize:
        part = outline.get_submodule(layers)
        options["quantization_config"] = quantised.configuration(quantize, part, places[0], dtype)
    elif source.gguf:
        options["quantization_config"] = GgufConfig(dequantize=True)
    # what is packed in few bits is packed where it computes
    whole = len(places) == 1 or quantize or (stored_as and not spread)
    if offload:
        stream = Offload(tempfile.TemporaryDirectory(prefix="depthlens-"))
        options |= {"device_map": _left_on_disk(outline, layers, str(places[0])), "offload_folder": stream.folder.name}
    elif whole:
        options["device_map"] = {"": places[0]}
    loader: Any = AutoModelForCausalLM  # its types leave out what output_loading_info returns
    model, loaded = loader.from_pretrained(
        source.place,
        use_safetensors=None if source.gguf else True,
        dtype=dtype,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **options,
    )
    _refuse_unfilled(source, loaded)
    if source.gguf:
        _refuse_unread(source, model)
    quantised.settle(model)
    if source.adapter:
        model = with_adapter(model, source.adapter)
    if not (offload or whole):
        if spread or model.get_memory_footprint() > placement.room(places[0]):
            placement.spread(model, bind(model).layers, places)
        else:
            model.to(places[0])
    return Lens(model, tokenizer, source.name, stream, quantize=quantize)


def _left_on_disk(outline: nn.Module, layers: str, device: str) -> dict[str, str]:
    """Where the parts of a model go whose layers stay on disk: whatever has weights of its own is on the device."""
    tensors = [*outline.named_parameters(remove_duplicate=False), *outline.named_buffers(remove_duplicate=False)]
    owners = [name.rpartition(".")[0] for name, _ in tensors if not name.startswith(f"{layers}.")]
    return {**dict.fromkeys(owners, device), layers: "disk"}


def with_adapter(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """A model with any adapter merged into its weights, W + (alpha / r) B A, in place; its modules stay of their class.

    Args:
        model: The base.
        adapter: Folder or hub id.

    Raises:
        OSError, ValueError, RuntimeError, LookupError: the adapter cannot be had, does not fit, or adds tokens.
    """
    from peft import PeftConfig, PeftModel  # slow to import

    place = str(Path(adapter).expanduser())
    if not Path(place).is_dir():
        place = snapshot_download(adapter, allow_patterns=[names.ADAPTER, "*.safetensors"])
    config = PeftConfig.from_pretrained(place)
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise ValueError(f"{config.peft_type} adds tokens, and weights cannot take it up")
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of peft's calls of transformers
        merged: Any = PeftModel.from_pretrained(model, place).merge_and_unload(safe_merge=True)
    return merged


def _read_config(source: Source) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase, nn.Module]:
    """Configuration, tokenizer and the modules without weights of a model whose parts can be found."""
    config = names.configuration(source) or AutoConfig.from_pretrained(source.place, **source.options)
    with torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    bind(outline)
    return config, AutoTokenizer.from_pretrained(source.place, **source.options), outline


def _refuse_unfilled(source: Source, loaded: dict[str, Any]) -> None:
    """Refuse a model some of whose weights the files did not give: transformers fills them at random."""
    wrong = [f"{key} has shape {[*there]}, not {[*wanted]}" for key, there, wanted in sorted(loaded["mismatched_keys"])]
    wrong += [f"{key} is missing" for key in sorted(loaded["missing_keys"])]
    if wrong:
        fix = ELSEWHERE if source.gguf else "get the whole model again"
        raise UserError(f"model {source.name!r}: its files lack {len(wrong)} of its weights, e.g. {wrong[0]}; {fix}")
    if not source.layers and (spare := sorted(loaded["unexpected_keys"])):
        log.warning("model %r: %d weights in the file are not used, e.g. %s", source.name, len(spare), spare[0])


def _refuse_unread(source: Source, model: PreTrainedModel) -> None:
    """Refuse a .gguf file that holds more of a model than transformers reads, which says nothing of it.

    Such are biases of an architecture that it takes to have none, and scales of rotary angles, as LLaMA 3.1's.
    """
    from transformers import modeling_gguf_pytorch_utils as reader  # slow to import
    from transformers.integrations.gguf import is_gguf_arch_supported, read_gguf_metadata

    metadata, names = read_gguf_metadata(str(Path(source.place) / cast(str, source.gguf)))
    architecture = metadata["general.architecture"]
    unread: set[str] = set()
    if not is_gguf_arch_supported(architecture):  # by the reader that reports what it leaves out
        processor = reader.TENSOR_PROCESSORS.get(architecture, reader.TensorProcessor)(config=model.config.to_dict())
        unread = {*names} - reader.get_gguf_hf_weights_map(model, processor).keys()
    if metadata.get(key := f"{architecture}.rope.scaling.type", "none") != "none":
        unread.add(key)
    if any(one.get("rope_type", "default") != "default" for one in rotary_settings(model.config)):
        # scaled as transformers knows the model
        unread = {name for name in unread if "rope" not in name}
    if unread:
        fault = f"model file {source.name!r}: transformers does not read its {min(unread)}, and scores would be others"
        raise UserError(f"{fault}; {ELSEWHERE}")
