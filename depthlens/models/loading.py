"""From a name to a model that can be taken apart: ``load(name) -> Lens``.

A name is an alias (``depthlens models`` lists them), an organism (`depthlens.organisms`), a Hugging Face hub id, a
directory or a ``.gguf`` file.
Weights are read from safetensors or GGUF only: nothing downloaded is ever executed or unpickled.
"""

from __future__ import annotations

import logging
import os
import struct
from typing import Any

import torch
from huggingface_hub import errors as hub
from huggingface_hub import is_offline_mode
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
)
from transformers.utils import logging as hf_logging

from depthlens.errors import UserError, unknown
from depthlens.models import adapters, embedded, sources
from depthlens.models.families import supported
from depthlens.models.hub_errors import explain
from depthlens.models.lens import Lens
from depthlens.models.offload import Checkpoint, Stream
from depthlens.models.registry import NAMED, Named, table
from depthlens.organisms import builder

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = ("auto", "cpu", "cuda", "mps")
__all__ = ["DEVICES", "DTYPES", "NAMED", "Lens", "Named", "load", "table"]


def load(
    name: str | os.PathLike[str],
    *,
    dtype: str = "auto",
    device: str = "auto",
    offload: str | None = None,
    remote: bool | str = False,
) -> Lens:
    """Load a model by alias, hub id, directory or ``.gguf`` file.

    Args:
        name: What to load.
        dtype: ``auto`` (float32 on a CPU, else the checkpoint's own), ``float32``, ``bfloat16``, ``float16``.
        device: ``auto`` (cuda, else mps, else cpu), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        offload: ``disk``: the layers stay in their safetensors files and are read as a sweep walks through them, which
            needs memory for two of them (see `depthlens.models.offload`). None: the whole model is in memory.
        remote: True: the weights stay on NDIF, or on the server that NDIF_HOST names, and sweeps run there through
            nnsight; NDIF asks for a key (NDIF_API_KEY). ``"local"`` loads the model and simulates such a server here,
            to try a script without one (see `depthlens.models.remote`).

    Raises:
        UserError: the name cannot be found or read, is not a supported architecture, dtype or device do not exist here,
            or a remote model cannot be reached. The message says what to do.
    """
    if not isinstance(dtype, str) or dtype not in ("auto", *DTYPES):
        raise unknown("dtype", dtype, ["auto", *DTYPES])
    if offload not in (None, "disk"):
        raise UserError(f"offload {offload!r}: give 'disk', or leave it out to hold the whole model in memory")
    where = _device(device)
    name = os.fspath(name) if isinstance(name, os.PathLike) else name
    if remote not in (False, True, "local"):
        raise UserError(f"remote {remote!r}: give True, 'local' to simulate a server here, or leave it out")
    if remote and offload:
        raise UserError(f"offload {offload!r} is for weights that are read here; leave it or remote out")
    if remote:
        from depthlens.models import remote as server  # slow to import
    if remote == "local":
        return Lens(str(name), *server.simulated(load(name, dtype=dtype, device=device)))
    if remote and (dtype, device) != ("auto", "auto"):
        raise UserError(f"dtype {dtype!r} and device {device!r} of a remote model are the server's; leave them out")
    if isinstance(name, str) and builder.is_name(name):
        if offload:
            raise UserError(f"offload {offload!r}: model {name!r} is built in memory; leave offload out")
        if remote:
            raise UserError(f"model {name!r} is built here and on no server; leave remote out, or give 'local'")
        built = builder.build(**vars(builder.parse(name)))
        return Lens(name, built.model.to(where, DTYPES.get(dtype, torch.float32)), built.tokenizer)
    found = sources.find(name, weights=not remote)
    found = found if remote else sources.probe(found)  # a server's models are its own to know
    made = {"embedded": embedded.smollm2, "adapter": lambda: adapters.merged(name)}
    folder, gguf = str(made[found.kind]()) if found.kind in made else found.place, found.gguf
    if remote:
        if gguf:
            raise UserError(f"model file {name!r}: a server holds models by hub id; give that, or remote='local'")
        served = server.find(folder)  # before anything is downloaded
    if offload and gguf:
        fix = "convert it once with dl.load(name).model.save_pretrained(folder) where there is memory for it"
        raise UserError(f"model file {name!r}: layers can be read from safetensors only; {fix}")
    # left to itself, transformers asks on the terminal whether to run code that came with a model
    source: dict[str, object] = {"trust_remote_code": False} | ({"gguf_file": gguf} if gguf else {})
    source |= {"local_files_only": True} if found.only_cached else {}
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # what it would report is checked below, in one line
    hf_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder, **source)
        named = [_class(config)] if gguf else config.architectures or ["(not named in config.json)"]
        supported(named[0])
        tokenizer = AutoTokenizer.from_pretrained(folder, **source)
        wanted = DTYPES[dtype] if dtype != "auto" else _auto_dtype(where)
        if remote:
            held = server.skeleton(folder, config, tokenizer, None)
        elif offload:
            checkpoint = Checkpoint(folder, config)
            model, loaded = checkpoint.skeleton(wanted)
        else:
            model, loaded = AutoModelForCausalLM.from_pretrained(
                folder,
                use_safetensors=None if gguf else True,
                dtype=wanted,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **source,
            )
    except UserError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError, struct.error, hub.HTTPError) as e:
        raise explain(name, e, is_offline_mode()) from e
    except (MemoryError, RuntimeError) as e:
        if isinstance(e, RuntimeError) and "allocate memory" not in str(e):
            raise
        raise UserError(f"model {name!r} does not fit into memory; try dtype=bfloat16 or offload=disk") from e
    finally:
        hf_logging.set_verbosity(verbosity)
        hf_logging.enable_progress_bar()
    if remote:
        return Lens(name, held._module, tokenizer, remote=server.Remote(held, served))
    _refuse_unfilled(name, loaded)
    try:
        stream = Stream(model, checkpoint, where) if offload else None
        if not stream:
            model.to(where)
    except torch.cuda.OutOfMemoryError as e:
        fault = f"model {name!r} does not fit into the memory of {where}"
        raise UserError(f"{fault}; try dtype=bfloat16, offload=disk or device=cpu") from e
    return Lens(name, model, tokenizer, stream)


def _refuse_unfilled(name: str, loaded: dict[str, Any]) -> None:
    """Refuse a model some of whose weights the file did not give: transformers fills them at random."""
    for key, found, wanted in sorted(loaded["mismatched_keys"]):
        raise UserError(
            f"model {name!r}: its weight {key} has shape {list(found)}, its config.json wants {list(wanted)}; "
            "get the whole model again"
        )
    if missing := sorted(loaded["missing_keys"]):
        raise UserError(
            f"model {name!r} lacks {len(missing)} of the weights that its config.json wants, "
            f"e.g. {missing[0]}; get the whole model again"
        )
    if spare := sorted(loaded["unexpected_keys"]):
        log.warning("model %r: %d weights in the file are not used, e.g. %s", name, len(spare), spare[0])


def _class(config: object) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, config.model_type)


def _device(device: str) -> torch.device:
    if not isinstance(device, str):
        raise unknown("device", device, [*DEVICES, "cuda:N"])
    if device == "auto":
        apple = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if apple else "cpu"
    kind, _, index = device.partition(":")
    if kind not in DEVICES or (index and not (kind == "cuda" and index.isdigit())):
        raise unknown("device", device, [*DEVICES, "cuda:N"])
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device!r}: torch finds no CUDA GPU here; use device=cpu")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise UserError(f"device {device!r}: there are {torch.cuda.device_count()} GPUs, numbered from 0")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("device 'mps': torch finds no Apple GPU here; use device=cpu")
    return torch.device(device)


def _auto_dtype(device: torch.device) -> torch.dtype | str:
    return torch.float32 if device.type == "cpu" else "auto"
