"""Errors between a model's name and its files, each as one line with the fix."""

from __future__ import annotations

import errno
from multiprocessing import TimeoutError as NoAnswer

from huggingface_hub import errors as hub

from depthlens.errors import UserError


def explain(name: str, error: Exception, offline: bool) -> UserError:
    """One line for what transformers and the hub raise.

    Args:
        name: The model that was asked for.
        error: What was raised; it and all that it came from are looked at.
        offline: Whether the hub was not to be asked (HF_HUB_OFFLINE).
    """
    chain: list[BaseException] = []
    e: BaseException | None = error
    while e is not None and e not in chain:
        chain.append(e)
        e = e.__cause__ or e.__context__
    text = str(error)
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(x, kinds) for x in chain)

    if has(hub.GatedRepoError) or "gated repo" in text:
        return UserError(
            f"model {name!r} is gated: accept its licence on its hub page, then set HF_TOKEN or run 'hf auth login'"
        )
    offline = offline or has(hub.OfflineModeIsEnabled)
    if offline and (has(hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) or "onnect" in text):
        fault = f"model {name!r} is not in the local cache and HF_HUB_OFFLINE=1"
        return UserError(f"{fault}; unset it, or give a directory")
    if any(isinstance(x, OSError) and x.errno == errno.ENOSPC for x in chain):
        fault = f"model {name!r} cannot be stored: no space left on the device"
        return UserError(f"{fault}; free some, or set HF_HOME to a folder on another")
    if has(hub.RevisionNotFoundError) or "not a valid git identifier" in text:
        fault = f"model {name!r} has no such revision on the hub"
        return UserError(f"{fault}; give a branch, tag or commit that its page lists")
    if has(hub.RepositoryNotFoundError) or "not a valid model identifier" in text:
        fault = f"model {name!r} does not exist on the hub, or is private"
        return UserError(f"{fault}; check the spelling or set HF_TOKEN")
    if has(hub.RemoteEntryNotFoundError):
        return UserError(f"model {name!r} has no config.json on the hub; download its file and give the path instead")
    if has(NoAnswer):
        fault = f"model {name!r} cannot be reached: the hub does not answer in time"
        return UserError(f"{fault}; check the network, set HF_HUB_ETAG_TIMEOUT to more seconds, or give a directory")
    unanswered = any(isinstance(x, hub.HTTPError) and not hasattr(x, "response") for x in chain)
    if unanswered or has(hub.LocalEntryNotFoundError, ConnectionError) or "couldn't connect" in text:
        fault = f"model {name!r} cannot be reached: no connection to the hub"
        return UserError(f"{fault}; check the network or give a directory")
    if "custom code" in text:
        fault = f"model {name!r} brings code of its own, which depthlens never runs"
        return UserError(f"{fault}; give one whose class is in transformers")
    if "backend tokenizer" in text:
        return UserError(f"model {name!r} has no tokenizer files; save its tokenizer into the same folder")
    if "safetensors" in text and "no file named" in text:
        return UserError(f"model {name!r} has no safetensors weights; pickled weights are never read")
    elsewhere = "load the model from the hub or a folder"
    fix = elsewhere if "gguf" in first.lower() else "check the name, or get its files again"
    return UserError(f"model {name!r} cannot be read: {first.rstrip('.')}; {fix}")
