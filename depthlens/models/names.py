"""What the name of a model means: an alias, a hub id, a folder, a ``.gguf`` file, an organism.

`find` looks at this machine only and imports nothing slow, so that a mistake in a name costs no time. `configuration`
has transformers read ``config.json``, for which it may ask the hub, before any weights are.
"""

from __future__ import annotations

import csv
import json
import os
import re
import struct
from collections import namedtuple
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

from depthlens import paths, progress
from depthlens.errors import UserError, unknown
from depthlens.organisms import builder

ADAPTER = "adapter_config.json"  # what peft writes
GIVE = "give an alias (see 'depthlens models'), a hub id, a directory or a .gguf file"


# the table of named models, and one row of it
Named = namedtuple("Named", ("alias", "source", "family", "size", "role"))
NAMED = [Named(**row) for row in csv.DictReader((paths.data_dir() / "models.csv").read_text("utf-8").splitlines())]


# what may follow a name, by attribute of `Source`; no organism has any, and no model but those of the hub a revision
PARTS = {"layers": r"(.+)\[:(\d+)\]", "adapter": r"(.*)\+(.*)", "revision": r"([^@]*)@(.*)"}
FORMS = "give owner/name@revision of the hub, model+adapter, or model[:4] of a file, a folder or the hub"


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        name: As it was given.
        kind: ``organism``, ``embedded``, ``folder``, ``gguf`` or ``hub``.
        place: Folder, file, or hub id; "" for what is built or made on first use.
        revision: Branch, tag or commit of the hub; None: its main one.
        adapter: Folder or hub id of an adapter that is merged into it; None: none is.
        layers: How many of its layers are loaded, from the first on, at most; None: all.
    """

    name: str
    kind: str
    place: str = ""
    revision: str | None = None
    adapter: str | None = None
    layers: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of ``from_pretrained`` beside the place."""
        # left to itself, transformers asks on the terminal whether to run code that came with a model
        return {"trust_remote_code": False, "revision": self.revision or "main"}


def find(name: Any) -> Source:
    """Which model a name means.

    Args:
        name: Alias, organism, hub id, directory or ``.gguf`` file. ``ID@REVISION`` is a branch, tag or commit of a
            model on the hub. ``BASE+ADAPTER`` is any of these with an adapter of PEFT, a folder or hub id; a folder
            that peft wrote names its base itself. ``NAME[:4]`` is any of these without the layers above the fourth.

    Raises:
        UserError: it can mean nothing.
    """
    name = os.fspath(name) if isinstance(name, os.PathLike) else name
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"model {name!r}: {GIVE}")
    path = Path(name).expanduser()
    if builder.is_name(name):
        builder.parse(name)  # which refuses options that do not exist
        return Source(name, "organism")
    for part, pattern in () if path.exists() else PARTS.items():
        if found := re.fullmatch(pattern, name):
            whole = find(found[1])
            value: Any = int(found[2]) if part == "layers" else found[2].strip()
            lacks = whole.kind == "organism" or (part == "revision" and whole.kind != "hub")
            if lacks or getattr(whole, part) or not value:
                raise UserError(f"model {name!r}: {part} {found[2]!r} of {found[1]!r} does not exist; {FORMS}")
            return replace(whole, name=name, **{part: value})
    if row := next((row for row in NAMED if row.alias == name), None):
        if "/" in row.source:
            return Source(name, "hub", row.source)
        adapter = str(paths.data_dir() / "adapters" / name) if row.source == "adapter" else None
        return Source(name, "embedded", adapter=adapter)
    if (path / ADAPTER).is_file() and not (path / "config.json").is_file():
        base = json.loads((path / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
        return replace(find(base), name=name, adapter=name)
    if path.is_dir():
        return Source(name, "folder", str(path))
    if name.endswith(".gguf") and path.is_file():
        return Source(name, "gguf", str(path))
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(".gguf"):
        raise UserError(f"model {name!r} is no directory and no .gguf file; {GIVE}")
    if "/" not in name:
        fix = "no folder here has this name, and a hub id is owner/name; 'depthlens models' lists the names"
        raise unknown("model", name, [row.alias for row in NAMED], fix)
    return Source(name, "hub", name)


def first_layers(name: str, n_layers: int) -> str:
    """The name of a model's first layers; of a model that is not cut its own name."""
    cut = f"{name}[:{n_layers}]"
    with suppress(UserError):
        return find(cut).name
    return name


def configuration(source: Source) -> Any:
    """What ``config.json`` of a folder or of the hub says; None of models that are made here.

    Raises:
        UserError: it cannot be had.
    """
    if source.kind not in ("folder", "hub"):
        return None
    from transformers import AutoConfig  # slow to import

    with explained(source.name):
        config = AutoConfig.from_pretrained(source.place, **source.options)
    n_layers = config.get_text_config().num_hidden_layers
    return of_layers(config, range(source.layers)) if source.layers and source.layers < n_layers else config


def of_layers(config: Any, kept: Sequence[int]) -> Any:
    """A configuration of some of its layers.

    Configurations tell layers apart by lists with one entry a layer (``layer_types``), by lists of layer numbers
    (``mlp_only_layers``), and by how many of the first layers are of a kind (``first_k_dense_replace``).

    Args:
        config: Of the whole model.
        kept: Numbers of the layers that stay, in order; one that runs twice is there twice.
    """
    entries = config.to_dict()
    n_layers = config.get_text_config().num_hidden_layers
    of_text = entries if config.get_text_config() is config else entries["text_config"]
    for name, value in of_text.items():
        if name in ("first_k_dense_replace", "max_window_layers") and isinstance(value, int):
            of_text[name] = sum(layer < value for layer in kept)
        elif "layer" in name and isinstance(value, list):
            of_text[name] = _list_of_layers(value, kept, n_layers)
    of_text["num_hidden_layers"] = len(kept)
    return type(config).from_dict(entries)


def _list_of_layers(value: list, kept: Sequence[int], n_layers: int) -> list:
    """A list with one entry a layer, or of layer numbers; any other one as it is."""
    numbers = all(isinstance(x, int) and not isinstance(x, bool) and 0 <= x < n_layers for x in value)
    if numbers and value == sorted(set(value)) and (len(value) != n_layers or n_layers > 2):
        return [new for new, old in enumerate(kept) if old in value]
    return [value[old] for old in kept] if len(value) == n_layers else value


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Within the context transformers is silent, and what it and the hub raise about a model ends in one line."""
    from huggingface_hub.errors import HTTPError
    from safetensors import SafetensorError

    files = (HTTPError, OSError, SafetensorError, struct.error)
    try:
        with progress.quiet():
            yield
    except UserError:
        raise
    except (*files, ImportError, LookupError, MemoryError, RuntimeError, ValueError) as e:
        if isinstance(e, MemoryError) or re.search("allocate memory|out of memory", str(e)):
            raise UserError(f"model {name!r} does not fit into memory; try dtype=bfloat16 or offload=disk") from e
        said = shorten(str(e), 300, placeholder=" ...").rstrip(".")
        raise UserError(f"model {name!r} cannot be loaded: {said or type(e).__name__}") from e
