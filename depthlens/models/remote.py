"""Models that a server holds: nnsight's remote execution, on NDIF or on a server of the ``ndif`` package.

The weights stay there; here are configuration, tokenizer and the module tree on the meta device. A trace travels as the
text of its ``with`` block, the values that the block names and the paths of modules, and what it saves comes back.
The server has torch, transformers and nnsight, and nothing of this package.

``remote="local"`` tries this without a server: nnsight writes a trace as for a server, reads it again with everything
but such packages hidden, and runs it in this process over a model that was loaded as ever and that nothing else sees.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, TypeVar

import httpx
import nnsight
import torch
from nnsight.intervention.backends.local import LocalSimulationBackend
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
from nnsight.schema.config import CONFIG
from nnsight.schema.response import ResponseModel, Status
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME, cached_file
from websocket import WebSocketException

from depthlens import provenance
from depthlens.errors import UserError, first_line
from depthlens.models import fingerprint
from depthlens.models.lens import Lens
from depthlens.models.structure import find as find_structure

log = logging.getLogger(__name__)

NDIF = "https://api.ndif.us"  # asks for a key; a server of one's own need not
GET_A_KEY = "get one at https://login.ndif.us, then set NDIF_API_KEY or run 'nnsight login'"
PAUSES = (1.0, 10.0)  # seconds before a trace is sent again whose connection broke
_COMPARED = ("nnsight", "torch", "transformers")
T = TypeVar("T")


class Overfull(torch.OutOfMemoryError):
    """The server ran out of memory or time over a trace: a smaller one may do."""


@dataclass(frozen=True)
class Served:
    """A model as a server offers it.

    Attributes:
        host: The server's address.
        key: The server's own name of the model: wrapper class, hub id, revision and task.
        versions: Of python, nnsight, torch and transformers there, as far as the server reports them.
        api_key: The NDIF key, if there is one.
    """

    host: str
    key: str
    versions: dict[str, str]
    api_key: str | None = field(default=None, repr=False)


@dataclass
class Traffic:
    """What went to and fro: traces sent, and bytes of what they carried and brought back (none in a simulation)."""

    traces: int = 0
    sent: int = 0
    received: int = 0


class Remote:
    """The way to a model's weights that are not here.

    Args:
        model: nnsight's model; its modules are on the meta device, except in a simulation.
        served: What the server offers; None simulates one here.

    Attributes:
        dtype: Of the residual stream there.
        device: Where it ends there.
        traffic: What was sent and received so far.

    Raises:
        UserError: no connection, or the server refuses the key or the model.
    """

    def __init__(self, model: nnsight.TransformersModel, served: Served | None) -> None:
        self.model = model
        self.served = served
        self.traffic = Traffic()
        self.dtype, self.device = self.attempt(self._look)

    def _look(self, backend: Any) -> tuple[torch.dtype, str]:
        """One token through the model: what a record says of it, and whether it answers at all."""
        norm = attrgetter(find_structure(self.model._module).final_norm)(self.model)
        tokens = torch.zeros(1, 1, dtype=torch.long)
        with torch.no_grad(), self.model.trace(input_ids=tokens, use_cache=False, backend=backend):
            states = norm.output
            about = nnsight.save([states.dtype, str(states.device)])
        return about[0], about[1]

    def identify(self, name: str) -> fingerprint.Identity:
        """Which model it is: by name, server and configuration; of a simulated server by its weights."""
        edited = "has edits made by nnsight" if self.model._edits else None
        if self.served is None:
            module = self.model._module  # nnsight leaves objects in it that cannot be written down
            digest = fingerprint.of_config(module.config, fingerprint.of_model(module).fingerprint)
        else:
            digest = fingerprint.of_config(self.model._module.config, name, self.served.host, self.served.key)
        return fingerprint.Identity(f"remote:{digest}", edited)

    def describe(self) -> dict[str, Any]:
        """What a record must hold of the server."""
        if self.served is None:
            return {"host": "local", "versions": {"nnsight": provenance.version("nnsight")}}
        return {"host": self.served.host, "key": self.served.key, "versions": self.served.versions}

    def attempt(self, trace: Callable[[Any], T], bar: tqdm | None = None) -> T:
        """Run a trace; one whose connection breaks is sent again.

        Args:
            trace: Enters one trace with the nnsight backend that it is given.
            bar: Shows what the server says of the job.

        Raises:
            Overfull: the server ran out of memory or time.
            UserError: no connection, or the server refuses the key or the job.
        """
        if self.served is None:
            self.traffic.traces += 1
            paths = list(sys.path)
            try:
                return trace(LocalSimulationBackend(self.model))
            finally:
                sys.path[:] = paths  # the simulation puts them back in another order
        served = self.served
        for pause in (*PAUSES, None):
            backend = Sending(served, self.model.attn_implementation, self.traffic, bar)
            self.traffic.traces += 1
            try:
                return trace(backend)
            except RemoteError as error:
                if not isinstance(error.__cause__, httpx.TransportError):
                    if (refusal := _refusal(served, error)) is None:
                        raise
                    raise refusal from error
                broken: Exception = error
            except (OSError, WebSocketException, httpx.HTTPError) as error:
                broken = error
            if pause is not None:
                time.sleep(pause)
        raise _unreachable(served.host, broken) from broken


def _refusal(served: Served, error: RemoteError) -> Exception | None:
    """What to raise for what the server answers; None for a traceback: our block failed there, which is a bug."""
    text = str(error)
    response = getattr(error.__cause__, "response", None)
    if "out of memory" in text or "exceeded the execution timeout" in text:
        return Overfull(text.strip().splitlines()[-1])
    if "Traceback (most recent call last)" in text:
        return None
    reason = first_line(error) or "no reason given"
    if "API key" in text or (response is not None and response.status_code in (401, 403)):
        return UserError(f"{served.host} refuses the NDIF API key ({reason}); {GET_A_KEY}")
    return UserError(f"{served.host} did not run {served.key.partition(':')[2]} ({reason}); try again later")


class Sending(RemoteBackend):
    """nnsight's own way to a server; counts bytes, and reports to a progress bar instead of the terminal."""

    def __init__(self, served: Served, kernel: str, traffic: Traffic, bar: tqdm | None) -> None:
        env = {"attn_implementation": kernel}  # else it is what the request before asked for
        super().__init__(served.key, host=served.host, api_key=served.api_key, env=env)
        self.display.enabled = False
        self.traffic, self.bar = traffic, bar

    def send(self, request: Any, blob: bytes) -> Any:
        self.traffic.sent += len(blob)
        return super().send(request, blob)

    def finalize(self, content: bytes) -> Any:
        self.traffic.received += len(content)
        return super().finalize(content)

    def note(self, response: ResponseModel) -> bool:
        if response.status is Status.LOG:
            log.info("%s: %s", self.host, response.description)
        elif self.bar is not None:
            self.bar.set_postfix_str(response.status.value.lower())
        return super().note(response)


def find(source: str) -> Served:
    """Ask the server for a model by hub id.

    Raises:
        UserError: no key for NDIF, no connection, or the server does not serve the model.
    """
    host = (os.environ.get("NDIF_HOST") or CONFIG.API.HOST).rstrip("/")
    api_key = os.environ.get("NDIF_API_KEY") or CONFIG.API.APIKEY
    if not api_key and host == NDIF:
        raise UserError(f"remote=True needs an NDIF API key; {GET_A_KEY}; remote='local' tries a script without one")
    models = _deployed(_ask(host, "/status"))
    deployments = [m for m in models if m["repo_id"].lower() == source.lower()]
    if not deployments:
        names = sorted({m["repo_id"] for m in models})
        served = f"it serves {', '.join(names[:8])}" if names else "it serves no language model now"
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise UserError(f"model {source!r} is not served by {host}; {served}{more}; nnsight.status() lists all")
    first = min(deployments, key=lambda m: m["application_state"] != "RUNNING")
    return Served(host, first["model_key"], _versions(_ask(host, "/env"), host), api_key)


def skeleton(
    source: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None
) -> nnsight.TransformersModel:
    """Model of nnsight with its modules on the meta device.

    Args:
        source: Directory or hub id; nothing is read from it but, where it is not given, how the model generates.
        config: The model's configuration.
        tokenizer: Copied, since nnsight pads on the left and sets a pad token.
        generation: What a prompt ends with, and so on; None reads it, where the model has it.
    """
    model = nnsight.TransformersModel(source, config=config, tokenizer=copy.deepcopy(tokenizer), task="text-generation")
    if generation is None and cached_file(source, GENERATION_CONFIG_NAME, _raise_exceptions_for_missing_entries=False):
        generation = GenerationConfig.from_pretrained(source)
    if generation is not None:
        model._module.generation_config = generation
    return model


def simulated(lens: Lens) -> Lens:
    """A loaded model as one that only a simulated server has."""
    model = skeleton(lens.name, lens.model.config, lens.tokenizer, lens.model.generation_config)._module
    return Lens(model, lens.tokenizer, lens.name, remote=Remote(lens.nnsight, None))


def _deployed(status: dict[str, Any]) -> list[dict[str, Any]]:
    """Causal language models that run on a server or are about to, each at its main revision."""
    deployed = []
    for name, about in status.get("deployments", {}).items():
        about = {"model_key": name, "application_state": "UNHEALTHY"} | about
        up = about.get("deployment_level") in ("HOT", "WARM") and about.get("repo_id")
        writes = about.get("task") in (None, "text-generation") and about.get("revision") in (None, "main")
        wrapper = about["model_key"].partition(":")[0].rpartition(".")[2]
        if up and writes and wrapper in ("TransformersModel", "LanguageModel"):
            deployed.append(about)
    return deployed


def _ask(host: str, path: str) -> dict[str, Any]:
    try:
        response = httpx.get(host + path, timeout=httpx.Timeout(10.0, read=60.0))
    except (httpx.HTTPError, httpx.InvalidURL) as e:
        raise _unreachable(host, e) from e
    try:
        answer = response.json()
    except json.JSONDecodeError:
        answer = None
    if response.is_success and isinstance(answer, dict):
        return answer
    detail = f": {answer['detail']}" if isinstance(answer, dict) and "detail" in answer else ""
    fix = "try again later, or set NDIF_HOST to another server"
    raise UserError(f"{host} does not answer as an NDIF server ({response.status_code}{detail}); {fix}")


def _unreachable(host: str, error: Exception) -> UserError:
    return UserError(f"no connection to {host} ({error}); check the network, or NDIF_HOST where the server is your own")


def _versions(there: dict[str, Any], host: str) -> dict[str, str]:
    packages = there.get("packages", {})
    versions = {name: packages[name] for name in _COMPARED if name in packages}
    for name, version in versions.items():
        here = provenance.version(name)
        if here and here.split(".")[:2] != version.split(".")[:2]:
            log.warning("%s runs %s %s, here it is %s: results may differ", host, name, version, here)
    python = there.get("python_version")
    return ({"python": python.split()[0]} if python else {}) | versions
