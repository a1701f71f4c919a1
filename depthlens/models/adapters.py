"""Adapters of PEFT: merged into their base, W + (alpha / r) B A, after which it is a model like any other.

``BASE+ADAPTER`` names any base with any adapter, and a folder that peft wrote names the base itself
(`depthlens.models.names`). Such an adapter is merged in memory, in the type of the base's weights.

The embedded adapters (LoRA, a few MB each) travel with the package under ``data/adapters/<name>``;
``data/train_adapters.py`` trained them, and a README.md in each folder says on what. On first use such an adapter is
merged into its base by peft in float32 and saved as plain safetensors in the user cache. So fingerprints, reading from
disk layer by layer and taking layers out of it as a donor work as for every folder. The folder's name has a hash of
adapter and base.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import errors as hub
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from depthlens import paths
from depthlens.errors import UserError
from depthlens.models import embedded
from depthlens.models.names import ADAPTER_FILES as FILES
from depthlens.progress import quiet

if TYPE_CHECKING:  # slow to import
    from transformers import PreTrainedModel

BASE = "smollm2-135m"

NOT_FITTING = (SafetensorError, ValueError, KeyError, TypeError, RuntimeError)

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
    log.warning("merging the adapter of %s into its base (once)", name)
    with quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, use_safetensors=True)
        try:
            model = applied(model, adapter)
        except NOT_FITTING as e:
            raise _damaged(name, adapter, e) from e
        model.config._name_or_path = name
        model.save_pretrained(out)
        AutoTokenizer.from_pretrained(base).save_pretrained(out)
    return out


def applied(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """A model with the adapter of a folder merged into its weights, in place; its modules are of their own classes.

    Raises:
        ValueError, KeyError, TypeError, RuntimeError, SafetensorError: the adapter is damaged, does not fit, or is not
            of a kind that weights can take up.
    """
    from peft import PeftConfig, PeftModel  # slow to import

    config = PeftConfig.from_pretrained(str(adapter))
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise ValueError(f"{config.peft_type} adds tokens, and weights cannot take it up")
    merged: Any = PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True)
    return merged


def with_adapter(model: PreTrainedModel, adapter: str, name: str) -> PreTrainedModel:
    """A model with any adapter merged into it.

    Args:
        model: The base.
        adapter: Folder or hub id.
        name: What the sum is called, for errors.

    Raises:
        UserError: the adapter cannot be had, or does not fit.
    """
    folder = Path(adapter).expanduser()
    try:
        if not folder.is_dir():
            files = [hf_hub_download(adapter, file) for file in FILES]
            folder = Path(files[0]).parent
        return applied(model, folder)
    except (OSError, hub.HTTPError) as e:
        raise UserError(f"model {name!r}: the adapter {adapter!r} cannot be had ({_first(e)}); give another") from e
    except NOT_FITTING as e:
        fault = f"model {name!r}: the adapter {adapter!r} does not fit it ({_first(e)})"
        raise UserError(f"{fault}; give the base that it was trained on") from e


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__  # peft's first line only says that there is a second


def _damaged(name: str, adapter: Path, error: Exception) -> UserError:
    return UserError(f"model {name!r}: its adapter in {adapter} is damaged ({_first(error)}); install depthlens again")
