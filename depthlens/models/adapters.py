"""Embedded models with a trained adapter: merged once, then a model like any other.

The adapters (LoRA, a few MB each) travel with the package under ``data/adapters/<name>``; ``data/train_adapters.py``
trained them, and a README.md in each folder says on what. On first use an adapter is merged into its base
by peft, W + (alpha / r) B A in float32, and saved as plain safetensors in the user cache. So fingerprints, reading from
disk layer by layer and taking layers out of it as a donor work as for every folder. The folder's name has a hash of
adapter and base.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging

from depthlens import paths
from depthlens.errors import UserError
from depthlens.models import embedded

BASE = "smollm2-135m"
FILES = ("adapter_config.json", "adapter_model.safetensors")

log = logging.getLogger(__name__)


def merged(name: str) -> Path:
    """Folder with an embedded adapter merged into its base, made on the first call.

    Raises:
        UserError: the adapter's files are missing or damaged, or the base or the merged model cannot be had or written.
    """
    adapter = paths.data_dir() / "adapters" / name
    for file in FILES:
        if not (adapter / file).is_file():
            raise UserError(f"model {name!r}: its adapter lacks {adapter / file}; install depthlens again")
    try:
        base_name = json.loads((adapter / FILES[0]).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except ValueError as e:
        raise _damaged(name, adapter, e) from e
    if base_name != BASE:
        raise UserError(f"model {name!r}: its adapter is for {base_name!r}, not for {BASE!r}; install depthlens again")
    digest = hashlib.sha256(embedded.SHA256.encode())
    for file in FILES:
        digest.update((adapter / file).read_bytes())

    def build(work: Path) -> Path:
        return merge(embedded.smollm2(), adapter, work / "model", name)

    return embedded.made_once(f"{name}-{digest.hexdigest()[:12]}", build, f"model {name!r}", "0.6 GB")


def merge(base: Path, adapter: Path, out: Path, name: str) -> Path:
    """Merge an adapter into the model of a folder and save the sum, with the base's tokenizer, to another.

    Args:
        base: Folder of the model that the adapter was trained on.
        adapter: Folder of the adapter, as peft saves it.
        out: Folder to write.
        name: What the model is called, for its configuration and for errors.

    Raises:
        UserError: the adapter is damaged or does not fit the base.
    """
    from peft import PeftModel  # slow to import

    log.warning("merging the adapter of %s into its base (once)", name)
    hf_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, use_safetensors=True)
        try:
            wrapped = PeftModel.from_pretrained(model, adapter)
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as e:
            raise _damaged(name, adapter, e) from e
        model = wrapped.merge_and_unload()
        model.config._name_or_path = name
        model.save_pretrained(out)
        AutoTokenizer.from_pretrained(base).save_pretrained(out)
    finally:
        hf_logging.enable_progress_bar()
    return out


def _damaged(name: str, adapter: Path, error: Exception) -> UserError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = " ".join(lines[:2]) or type(error).__name__  # peft's first line only says that there is a second
    return UserError(f"model {name!r}: its adapter in {adapter} is damaged ({reason}); install depthlens again")
