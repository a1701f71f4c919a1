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
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from depthlens import arguments, progress
from depthlens.errors import UserError
from depthlens.models import adapters, devices, embedded, names, placement, quantised
from depthlens.models.architectures import bind, rotary_settings
from depthlens.models.lens import Lens
from depthlens.models.names import Source, explained
from depthlens.organisms import builder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

DTYPES = {name: getattr(torch, name) for name in arguments.DTYPES if name != "auto"}
HALF = ("bfloat16", "float16")
ELSEWHERE = "load the model from the hub or a folder"  # where transformers does not read all of a .gguf file
SLOW = 2.0  # times as long as float32: worth a warning, where half the memory is seldom what was wanted


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
            needs memory for two of them (see `depthlens.models.offload`). None: the whole model is in memory.
        remote: True: the weights stay on NDIF, or on the server that NDIF_HOST names, and sweeps run there through
            nnsight; NDIF asks for a key (NDIF_API_KEY). ``"local"`` loads the model and simulates such a server here,
            to try a script without one (see `depthlens.models.remote`).

    Raises:
        UserError: the name cannot be found or read, is not a supported architecture, dtype or device do not exist here,
            matrix products on the device are wrong, or a remote model cannot be reached. The message says what to do.
    """
    arguments.check(dtype=dtype, quantize=quantize, offload=offload, device=device)
    places = devices.torch_devices(device)
    place = places[0]
    if remote not in (False, True, "local"):
        raise UserError(f"remote {remote!r}: give True, 'local' to simulate a server here, or leave it out")
    if remote and offload:
        raise UserError(f"offload {offload!r} is for weights that are read here; leave it or remote out")
    if offload and "," in device:
        raise UserError(f"offload {offload!r} reads layers onto one device, and {device!r} are several; name one")
    if remote == "local":
        from depthlens.models.remote import simulated  # slow to import

        return simulated(load(name, dtype=dtype, quantize=quantize, device=device))
    if remote and (dtype, device) != ("auto", "auto"):
        raise UserError(f"dtype {dtype!r} and device {device!r} of a remote model are the server's; leave them out")
    if remote and quantize:
        raise UserError(f"quantize {quantize!r}: how a remote model keeps its weights is the server's; leave it out")
    if place.type == "mps":
        devices.check_linear(place)
    source = names.find(name)
    if quantize:
        _refuse_to_quantise(source, quantize, offload, device)
    with progress.working(f"loading {name}"):
        return _load(source, places, dtype, quantize, offload, remote=bool(remote), spread="," in device)


def _load(
    source: Source,
    places: list[torch.device],
    dtype: str,
    quantize: str | None,
    offload: str | None,
    *,
    remote: bool,
    spread: bool,
) -> Lens:
    place = places[0]
    if source.kind == "organism":
        if offload:
            raise UserError(f"offload {offload!r}: model {source.name!r} is built in memory; leave offload out")
        if remote:
            raise UserError(f"model {source.name!r} is built here and on no server; leave remote out, or give 'local'")
        return _build_organism(source, place, DTYPES.get(dtype, torch.float32))
    if remote:
        return _load_remote(_with_folder(source))
    if source.adapter and offload:
        fix = "save the sum once with dl.load(name).model.save_pretrained(folder) where there is memory for it"
        raise UserError(f"model {source.name!r}: an adapter is merged in memory; {fix}, or leave offload out")
    source = _with_folder(source)
    chosen = DTYPES[dtype] if dtype in DTYPES else devices.auto_dtype(place)
    if place.type == "cpu" and dtype in HALF and (times := devices.times_float32(DTYPES[dtype])) > SLOW:
        log.warning("%s products take %.0f times as long as float32 on this CPU; leave dtype out", dtype, times)
    if offload:
        return _load_offloaded(source, place, chosen)
    return _load_whole(source, places, chosen, quantize, spread=spread)


def _refuse_to_quantise(source: Source, scheme: str, offload: str | None, device: str) -> None:
    """Refuse what cannot be quantised on loading."""
    fault = f"quantize {scheme!r}: "
    if source.kind == "organism":
        raise UserError(f"{fault}model {source.name!r} is built with plain weights; leave quantize out")
    if source.gguf or source.adapter:
        what = "the weights of a .gguf file are" if source.gguf else "the sum of base and adapter is"
        fix = "save it with dl.load(name).model.save_pretrained(folder), and load the folder"
        raise UserError(f"{fault}{what} made in memory; {fix}, or leave quantize out")
    if offload:
        raise UserError(f"{fault}offload {offload!r} reads layers as their files have them; leave one of the two out")
    if "," in device:
        raise UserError(f"{fault}a quantised model is on one device, and {device!r} are several; name one")


def _build_organism(source: Source, device: torch.device, dtype: torch.dtype) -> Lens:
    organism = builder.build(**vars(builder.parse(source.name)))
    cast(nn.Module, organism.model).to(device, dtype)
    return Lens(organism.model, organism.tokenizer, source.name)


def _load_whole(
    source: Source, places: list[torch.device], dtype: torch.dtype | str, quantize: str | None, *, spread: bool
) -> Lens:
    """A model from a directory, the hub or a .gguf file, with all its weights in memory.

    On the first device, or over all of them, if the first has no room or if it is asked for with ``spread``.
    """
    with explained(source.name):
        config, tokenizer = _read_config(source)
        options = source.options | ({"config": config} if source.layers else {})
        quantised.require_readable(source.name, config)
        stored_as = quantised.method_of(config)
        if quantize and stored_as:
            fault = f"model {source.name!r} is quantised already ({stored_as})"
            raise UserError(f"quantize {quantize!r}: {fault}; leave it out")
        if quantize:
            options["quantization_config"] = quantised.configuration(quantize, _widths(config), places[0], dtype)
        there = bool(quantize or (stored_as and not spread))
        if there:
            options["device_map"] = {"": places[0]}  # bitsandbytes makes its weights where they are to be
        model, info = _read(source, dtype, options)
    _refuse_unfilled(source, info)
    if source.gguf:
        _refuse_unread(source, model)
    quantised.settle(model)
    vars(model).pop("hf_quantizer", None)  # has done its work; the store could not tell what it does
    if source.adapter:
        model = adapters.with_adapter(model, source.adapter, source.name)
    with _fitting(source.name, places):
        if not there:
            if spread or (len(places) > 1 and placement.n_bytes(model) > placement.room(places)[0]):
                placement.spread(source.name, model, places)
            else:
                model.to(places[0])
    return Lens(model, tokenizer, source.name, quantize=quantize, stored_as=stored_as)


def _read(source: Source, dtype: torch.dtype | str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A model as transformers reads it, and what it reports about the weights."""
    if source.gguf:
        from transformers import GgufConfig  # slow to import

        options |= {"quantization_config": GgufConfig(dequantize=True)}
    loader: Any = AutoModelForCausalLM  # its types leave out what output_loading_info returns
    return loader.from_pretrained(
        source.place,
        use_safetensors=None if source.gguf else True,
        dtype=dtype,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **options,
    )


def _widths(config: PreTrainedConfig) -> list[int]:
    """Inputs of the linear layers of a model's blocks."""
    with torch.device("meta"):
        layers = bind(AutoModelForCausalLM.from_config(copy.deepcopy(config))).layers
    return sorted({m.in_features for layer in layers for m in layer.modules() if isinstance(m, nn.Linear)})


def _load_offloaded(source: Source, device: torch.device, dtype: torch.dtype | str) -> Lens:
    """A model from a directory or the hub whose layers stay in their files."""
    if source.gguf:
        fix = "convert it once with dl.load(name).model.save_pretrained(folder) where there is memory for it"
        raise UserError(f"model file {source.name!r}: layers can be read from safetensors only; {fix}")
    from depthlens.models.offload import Checkpoint, Stream  # slow to import

    with explained(source.name):
        config, tokenizer = _read_config(source)
        if method := quantised.method_of(config):
            raise UserError(f"model {source.name!r} is quantised ({method}); offload reads plain weights, leave it out")
        checkpoint = Checkpoint(source.place, config, revision=source.revision)
        model, info = checkpoint.skeleton(dtype)
    _refuse_unfilled(source, info)
    with _fitting(source.name, [device]):
        stream = Stream(model, checkpoint, device)
    return Lens(model, tokenizer, source.name, stream)


def _load_remote(source: Source) -> Lens:
    """A model whose weights are on a server."""
    from depthlens.models import remote  # slow to import

    if source.adapter:
        raise UserError(f"model {source.name!r}: a server has its own weights; leave the adapter or remote out")
    if source.gguf or source.layers:
        raise UserError(f"model {source.name!r}: a server holds whole models by hub id; give that, or remote='local'")
    if source.revision:
        raise UserError(
            f"model {source.name!r}: a server holds main revisions; leave {source.revision!r} or remote out"
        )
    served = remote.find(source.place)  # before anything is downloaded
    with explained(source.name):
        config, tokenizer = _read_config(source)
        skeleton = remote.skeleton(source.place, config, tokenizer, None)
    return Lens(skeleton._module, tokenizer, source.name, remote=remote.Remote(skeleton, served))


def _with_folder(source: Source) -> Source:
    """The source with the folder of an embedded model, which is made on first use."""
    if source.kind == "embedded":
        return replace(source, place=str(embedded.smollm2()))
    if source.kind == "adapter":
        return replace(source, place=str(adapters.merged(re.split(r"[+[]", source.name)[0])))
    return source


def _read_config(source: Source) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Configuration and tokenizer of a model whose parts can be found, which an empty one shows."""
    config = names.configuration(source)
    if config is None:
        config = AutoConfig.from_pretrained(source.place, **source.options)
        config = names.with_first_layers(config, source.layers)
    with torch.device("meta"):
        bind(AutoModelForCausalLM.from_config(copy.deepcopy(config)))
    return config, AutoTokenizer.from_pretrained(source.place, **source.options)


@contextmanager
def _fitting(name: str, places: list[torch.device]) -> Iterator[None]:
    """Within the context GPUs that are too small for a model end in one line."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as e:
        fault = f"model {name!r} does not fit into the memory of {', '.join(map(str, places))}"
        raise UserError(f"{fault}; try dtype=bfloat16, offload=disk or device=cpu") from e


def _refuse_unfilled(source: Source, loaded: dict[str, Any]) -> None:
    """Refuse a model some of whose weights the file did not give: transformers fills them at random."""
    name, about, fix = source.name, "its config.json wants", "get the whole model again"
    if source.gguf:
        about, fix = "transformers takes it to have", ELSEWHERE
    for key, shape, expected in sorted(loaded["mismatched_keys"]):
        raise UserError(f"model {name!r}: its weight {key} has shape {list(shape)}, {about} {list(expected)}; {fix}")
    if missing := sorted(loaded["missing_keys"]):
        fault = f"model {name!r} lacks {len(missing)} of the weights that {about}, e.g. {missing[0]}"
        raise UserError(f"{fault}; {fix}")
    if not source.layers and (spare := sorted(loaded["unexpected_keys"])):
        log.warning("model %r: %d weights in the file are not used, e.g. %s", name, len(spare), spare[0])


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
