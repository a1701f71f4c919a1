"""How workers get the driver's model, and what is said where they hold another one."""

from __future__ import annotations

import os
from pathlib import Path

from depthlens.cluster.worker import Proof, Recipe
from depthlens.errors import UserError
from depthlens.models import names
from depthlens.models.lens import Lens
from depthlens.models.placement import n_bytes

FIX = "lens.model.save_pretrained(FOLDER) and lens.tokenizer.save_pretrained(FOLDER)"


def recipe_of(lens: Lens, gpus: float) -> Recipe:
    """How a worker that has so many GPUs gets a model that is loaded here."""
    return Recipe(
        name=lens.name,
        load=_everywhere(lens.name),
        dtype=str(lens.dtype).removeprefix("torch."),
        # a worker sees its own GPUs only, numbered from 0
        device=lens.device.type if gpus <= 1 else ",".join(f"cuda:{i}" for i in range(int(gpus))),
        quantize=lens.quantize,
        offload="disk" if lens.stream else None,
        n_bytes=0 if lens.stream else n_bytes(lens.model),
        donor=recipe_of(lens.donor.lens, gpus) if lens.donor else None,
    )


def _everywhere(name: str) -> str:
    """A name that means the same in another working directory."""
    try:
        source = names.find(name)
    except UserError:  # a model that was made here; the worker says what it makes of the name
        return name
    if source.adapter:
        base, _, adapter = name.rpartition("+") if "+" in name and not Path(name).exists() else ("", "", name)
        there = Path(adapter).expanduser()
        return (f"{_everywhere(base)}+" if base else "") + (str(there.resolve()) if there.is_dir() else adapter)
    if source.kind not in ("folder", "gguf"):
        return name
    return str(Path(os.fspath(name)).expanduser().resolve())


def refuse_other(name: str, where: str, found: Proof, wanted: Proof) -> None:
    """Refuse a worker whose software or model is not the driver's.

    Args:
        name: Of the model.
        where: The worker's machine, or "workers".
        found: The worker's proof.
        wanted: The driver's.

    Raises:
        UserError: naming the first difference.
    """
    for what, version in wanted.versions.items():
        other = found.versions.get(what)
        if other != version:
            fault = f"a worker on {where} has {what} {other or '(none)'}, this process has {version}"
            raise UserError(f"{fault}; install the same versions on every machine")
    for what, here, there in (
        ("", wanted.fingerprint, found.fingerprint),
        ("donor of ", wanted.donor or "", found.donor or ""),
    ):
        if here != there:
            fault = f"{what}model {name!r} is another on the {where} (fingerprint {there[:8]}, here {here[:8]})"
            raise UserError(f"{fault}; if it was changed here, save it where they see it, with {FIX}, and load that")
    settings = dict(found.settings)
    for setting, value in wanted.settings:
        if settings.get(setting) != value:
            fault = f"model {name!r}: {setting} is {value} here and {settings.get(setting)} on the {where}"
            raise UserError(f"{fault}; save it where they see it, with {FIX}, and load that")
