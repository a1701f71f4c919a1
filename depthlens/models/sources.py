"""Which model a name means, and whether depthlens can take that model apart: known before anything heavy runs.

A mistake in a name should not cost the import of torch, an index of tasks or the download of a tokenizer. So `find`
looks at local files, and `probe` asks the hub for ``config.json`` alone, once and for at most `SECONDS`. The hub's own
client asks six times with pauses of up to 8 seconds, for every file.
"""

from __future__ import annotations

import json
import logging
import os
import struct
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import TimeoutError as NoAnswer
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from depthlens.ablations import Dims
from depthlens.errors import UserError, unknown
from depthlens.models.families import known
from depthlens.models.registry import NAMED
from depthlens.organisms import options

log = logging.getLogger(__name__)

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")  # what peft writes
SECONDS = 3.0  # for the hub to answer, unless HF_HUB_ETAG_TIMEOUT says otherwise


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        name: As it was given.
        kind: ``organism``, ``embedded``, ``adapter``, ``folder``, ``gguf`` or ``hub``.
        place: Folder, or hub id; "" for what is built or made on first use.
        gguf: Name of the file in the folder, where that is to be read.
        revision: Branch, tag or commit of the hub; None: its main one.
        only_cached: The hub is not asked, or gave no answer: files come from its local cache.
        adapter: Folder or hub id of an adapter that is merged into it; None: none is.
    """

    name: str
    kind: str
    place: str = ""
    gguf: str | None = None
    revision: str | None = None
    only_cached: bool = False
    adapter: str | None = None


def find(name: Any, *, weights: bool = True) -> Source:
    """Which model a name means; for local files, also whether the class is one that depthlens knows.

    Args:
        name: Alias, organism, hub id, directory or ``.gguf`` file. ``ID@REVISION`` is a branch, tag or commit of a
            model on the hub. ``BASE+ADAPTER`` is any of these with an adapter of PEFT, a folder or hub id; a folder
            that peft wrote names its base itself.
        weights: Whether a directory must hold weights.

    Raises:
        UserError: it means nothing, or a folder or file that cannot be used.
    """
    name = os.fspath(name) if isinstance(name, os.PathLike) else name
    if not isinstance(name, str) or not name.strip():
        kinds = "an alias (see 'depthlens models'), a hub id, a directory or a .gguf file"
        raise UserError(f"model {name!r}: give {kinds}")
    if options.is_name(name):
        return Source(name, "organism")
    for row in NAMED:
        if row.alias == name:
            made = row.source in ("embedded", "adapter")
            return Source(name, row.source) if made else Source(name, "hub", row.source)
    base, plus, adapter = name.rpartition("+")
    try:
        if plus and not Path(name).expanduser().exists():
            return _with_adapter(name, base, adapter, weights)
        return _on_disk(name, Path(name).expanduser(), weights) or _on_hub(name)
    except (OSError, ValueError) as e:  # a name that is too long for a path, or a folder that may not be read
        if isinstance(e, UserError):
            raise
        raise UserError(f"model {name!r} cannot be read: {getattr(e, 'strerror', None) or e}; give another") from e


def _with_adapter(name: str, base: str, adapter: str, weights: bool) -> Source:
    """A base with an adapter that is to be merged into it."""
    folder = Path(adapter).expanduser()
    if not adapter.strip() or not base.strip():
        raise UserError(f"model {name!r}: give a base and an adapter, such as owner/name+path/to/adapter")
    if folder.is_dir():
        if missing := [file for file in ADAPTER_FILES if not (folder / file).is_file()]:
            raise UserError(f"adapter {adapter!r} holds no {missing[0]}; save it with peft's save_pretrained")
    elif adapter.startswith((".", "/", "~")) or adapter.count("/") != 1:
        raise UserError(f"adapter {adapter!r} does not exist; give a folder that peft wrote, or a hub id owner/name")
    found = find(base, weights=weights)
    if found.kind == "organism" or found.adapter:
        raise UserError(f"model {name!r}: {base!r} takes no adapter; give a folder, a hub id or a .gguf file")
    return replace(found, name=name, adapter=adapter)


def _base_of(name: str, file: Path) -> str:
    """The base that the configuration of an adapter names."""
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as e:
        raise UserError(f"adapter {name!r} cannot be read: its {file.name} is not JSON ({e}); get it again") from e
    if not base:
        raise UserError(f"adapter {name!r} names no base; give BASE+{name}")
    return str(base)


def _on_hub(name: str) -> Source:
    """A hub id, or an alias of one, with or without a revision."""
    model, at, revision = name.partition("@")
    if not at:
        return Source(name, "hub", name)
    if not model.strip() or not revision.strip():
        raise UserError(f"model {name!r}: give a model and a revision, such as owner/name@main")
    found = find(model)
    if found.kind != "hub":
        raise UserError(f"model {name!r}: only models of the hub have revisions, and {model!r} is of another kind")
    return replace(found, name=name, revision=revision)


def _on_disk(name: str, path: Path, weights: bool) -> Source | None:
    """A folder or file; None for what can only be a hub id."""
    if name.endswith(".gguf"):
        if not path.is_file():
            raise UserError(f"model file {name!r} does not exist; give the path of a .gguf file")
        _known_gguf(name, path)
        return Source(name, "gguf", str(path.parent), path.name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            if (path / ADAPTER_FILES[0]).is_file():
                return _with_adapter(name, _base_of(name, path / ADAPTER_FILES[0]), name, weights)
            raise UserError(f"directory {name!r} holds no config.json; give a folder written by save_pretrained")
        if weights and not list(path.glob("*.safetensors")):
            raise UserError(
                f"directory {name!r} holds no .safetensors weights; convert them with "
                "model.save_pretrained(folder), since pickled weights are never read"
            )
        _known_class(name, path / "config.json")
        return Source(name, "folder", str(path))
    if path.exists():
        raise UserError(f"model {name!r} is a file but not a .gguf file; give a directory or a .gguf file")
    if name.startswith((".", "/", "~")) or name.partition("@")[0].count("/") > 1:
        raise UserError(f"model directory {name!r} does not exist; give a folder written by save_pretrained")
    if "/" not in name and "@" not in name:
        fix = "'depthlens models' lists all; a hub id is owner/name"
        raise unknown("model", name, [row.alias for row in NAMED], fix)
    return None


@cache
def probe(source: Source) -> Source:
    """Ask the hub for the configuration of a model that is there, and refuse a class that depthlens does not know.

    An answer of the hub is remembered.

    Returns:
        The source, with ``only_cached`` settled.

    Raises:
        UserError: the model is not there, is gated, cannot be reached in time, or is of another class.
    """
    if source.kind != "hub":
        return source
    from huggingface_hub import errors as hub  # not quick to import, and of no use to models that are here
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        is_offline_mode,
        try_to_load_from_cache,
    )

    from depthlens.models.hub_errors import explain

    seconds = _seconds(os.environ.get("HF_HUB_ETAG_TIMEOUT", SECONDS))
    file, only_cached = (source.place, "config.json"), is_offline_mode()
    at: dict[str, Any] = {"revision": source.revision} if source.revision else {}
    try:
        if not only_cached:
            try:
                # a name server that is silent has no timeout but that of a thread which nobody waits for
                with ThreadPool(1) as pool:
                    pool.apply_async(get_hf_file_metadata, (hf_hub_url(*file, **at),), {"timeout": seconds}).get(
                        seconds
                    )
            except (hub.HTTPError, ConnectionError, NoAnswer) as e:
                if getattr(e, "response", None) is not None:
                    raise  # it is an answer
                if not isinstance(try_to_load_from_cache(*file, **at), str):
                    raise
                log.warning("model %r: no answer from the hub; what its local cache holds is used", source.name)
                only_cached = True
        config = hf_hub_download(*file, local_files_only=only_cached, **at)
    except (OSError, ValueError, hub.HTTPError, NoAnswer) as e:
        raise explain(source.name, e, is_offline_mode()) from e
    _known_class(source.name, Path(config))
    return replace(source, only_cached=only_cached)


def dims(source: Source) -> Dims | None:
    """Sizes of a model by its configuration; None where they are known only once the model is loaded."""
    if source.kind not in ("folder", "hub"):
        return None
    from transformers import AutoConfig  # `_known_class` imported transformers

    at = {"revision": source.revision} if source.revision else {}
    try:
        config = AutoConfig.from_pretrained(source.place, local_files_only=True, **at).get_text_config()
    except OSError:  # no configuration in the local cache
        return None
    n_layers, n_heads = (getattr(config, name, None) for name in ("num_hidden_layers", "num_attention_heads"))
    if not (isinstance(n_layers, int) and isinstance(n_heads, int)):  # a list, one for each layer
        return None
    n_kv_heads = getattr(config, "num_key_value_heads", None)
    n_kv_heads = n_kv_heads if isinstance(n_kv_heads, int) else n_heads
    experts = (getattr(config, name, None) for name in ("num_local_experts", "num_experts", "n_routed_experts"))
    n_experts = [next((n for n in experts if n), 0)] * n_layers
    return Dims(n_layers, n_heads, n_kv_heads, config.hidden_size, config.hidden_size // n_heads, n_experts)


def _seconds(setting: str | float) -> float:
    try:
        return float(setting)
    except ValueError:
        raise UserError(f"HF_HUB_ETAG_TIMEOUT {setting!r}: give a number of seconds") from None


def _known_class(name: str, path: Path) -> None:
    """Refuse a configuration that is none, or of a class that transformers does not have."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        fault = f"model {name!r} cannot be read: its config.json is not JSON ({e})"
        raise UserError(f"{fault}; get the whole model again") from e
    if not isinstance(config, dict) or not config.get("model_type"):
        fault = f"model {name!r} cannot be read: its config.json names no model_type"
        raise UserError(f"{fault}; give a folder written by save_pretrained")
    named = config.get("architectures")
    class_name = str(named[0]) if isinstance(named, list) and named else "(not named in config.json)"
    try:
        known(class_name)
    except UserError:
        if config.get("auto_map"):
            fix = "give one whose class is in transformers"
            raise UserError(f"model {name!r} brings code of its own, which depthlens never runs; {fix}") from None
        raise


def _known_gguf(name: str, path: Path) -> None:
    """Refuse a file that is not GGUF, or that does not say how large the model is."""
    with path.open("rb") as file:
        head = file.read(1 << 25)  # more than the vocabulary takes
    try:
        magic, _, n_tensors, n_keys = struct.unpack_from("<4sIQQ", head)
        if magic != b"GGUF" or not n_keys:
            raise ValueError("it does not begin as one")
        if not n_tensors or b".block_count" not in head:  # from it transformers would build a model of 7B parameters
            raise ValueError("it holds no weights, or does not say how many layers it has")
    except (struct.error, ValueError) as e:
        raise UserError(f"model file {name!r} cannot be read: it is not a GGUF file ({e}); get it again") from e
