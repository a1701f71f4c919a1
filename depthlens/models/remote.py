"""Models that a server holds: nnsight's remote execution, on NDIF or on a server of the ``ndif`` package.

The weights stay there; here are configuration, tokenizer and the module tree on the meta device. A trace travels as the
text of its ``with`` block, the values that the block names and the paths of modules, and what it saves comes back.
The server has torch, transformers and nnsight, and nothing of this package.

``remote="local"`` tries this without a server: nnsight writes a trace as for a server, reads it again with everything
but such packages hidden, and runs it in this process over a model that was loaded as ever and that nothing else sees.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import nnsight
import torch
from nnsight.intervention.backends.local import LocalSimulationBackend
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
from nnsight.schema.config import CONFIG
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME, cached_file
from websocket import WebSocketException

from depthlens.errors import UserError
from depthlens.models import fingerprint
from depthlens.models.architectures import find
from depthlens.models.lens import Lens
from depthlens.models.names import Source

NDIF = "https://api.ndif.us"  # asks for a key; a server of one's own need not


class Remote:
    """The way to a model's weights that are not here.

    Args:
        model: nnsight's model; its modules are on the meta device, except in a simulation.
        simulated: Whether a server is simulated here.

    Attributes:
        dtype: Of the residual stream there.
        device: Where it ends there.

    Raises:
        UserError: no connection, or the server refuses the key or the model.
    """

    def __init__(self, model: nnsight.TransformersModel, *, simulated: bool = False) -> None:
        self.model = model
        self.host = "local" if simulated else CONFIG.API.HOST.rstrip("/")
        self.key = "" if simulated else model.to_model_key()
        self.dtype, self.device = self.attempt(self._look)

    def _look(self, backend: Any) -> tuple[torch.dtype, str]:
        """One token through the model: what a record says of it, and whether it answers at all."""
        norm = attrgetter(find(self.model._module).final_norm)(self.model)
        tokens = torch.zeros(1, 1, dtype=torch.long)
        with self.model.trace(input_ids=tokens, use_cache=False, backend=backend):
            states = norm.output
            about = nnsight.save([states.dtype, str(states.device)])
        return about[0], about[1]

    def identify(self, name: str) -> fingerprint.Identity:
        """Which model it is: by name, server and configuration; of a simulated server by its weights."""
        edited = "has edits made by nnsight" if self.model._edits else None
        module = self.model._module
        # nnsight leaves objects in a module that cannot be written down
        what = [name, self.host, self.key] if self.key else [fingerprint.of_model(module).fingerprint]
        return fingerprint.Identity(f"remote:{fingerprint.of_config(module.config, *what)}", edited)

    @torch.no_grad()
    def attempt(self, trace: Callable[[Any], Any]) -> Any:
        """Run a trace.

        Args:
            trace: Enters one trace with the nnsight backend that it is given.

        Raises:
            torch.OutOfMemoryError: the server ran out of memory or time.
            UserError: no connection, or the server refuses the key or the job.
        """
        if not self.key:
            return trace(LocalSimulationBackend(self.model))
        # the kernel: else it is what the request before asked for
        backend = RemoteBackend(self.key, env={"attn_implementation": self.model.attn_implementation})
        backend.display.enabled = False  # a bar is shown
        try:
            return trace(backend)
        except (OSError, WebSocketException, RemoteError) as error:
            said = str(error).strip().rpartition("\n")[2]  # of a traceback the last line
            if "out of memory" in str(error) or "exceeded the execution timeout" in str(error):
                raise torch.OutOfMemoryError(said) from error
            raise UserError(f"{self.host} did not run {self.key}: {said}; run the same again to go on") from error


def require_key() -> None:
    """Refuse to ask NDIF without a key.

    Raises:
        UserError: there is none.
    """
    if not CONFIG.API.APIKEY and CONFIG.API.HOST.rstrip("/") == NDIF:
        fix = "get one at https://login.ndif.us, then set NDIF_API_KEY or run 'nnsight login'"
        raise UserError(f"remote=True needs an NDIF API key; {fix}; remote='local' tries a script without one")


def connected(source: Source, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> Lens:
    """A model of the hub that a server has, with its modules on the meta device.

    Args:
        source: Of the hub; nothing is read from it but how the model generates.
        config: The model's configuration.
        tokenizer: The model's tokenizer.
    """
    model = _skeleton(source.place, config, tokenizer)
    if cached_file(source.place, GENERATION_CONFIG_NAME, _raise_exceptions_for_missing_entries=False):
        model._module.generation_config = GenerationConfig.from_pretrained(source.place)
    return Lens(model._module, tokenizer, source.name, remote=Remote(model))


def simulated(lens: Lens) -> Lens:
    """A loaded model as one that only a simulated server has."""
    module = _skeleton(lens.name, lens.model.config, lens.tokenizer)._module
    module.generation_config = lens.model.generation_config
    return Lens(module, lens.tokenizer, lens.name, remote=Remote(lens.nnsight, simulated=True))


def _skeleton(place: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> nnsight.TransformersModel:
    """Of the tokenizer a copy, since nnsight pads on the left and sets a pad token."""
    return nnsight.TransformersModel(place, config=config, tokenizer=copy.deepcopy(tokenizer), task="text-generation")
