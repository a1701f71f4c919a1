"""Models larger than memory: layers stay in their safetensors files and are read one ahead of the walk.

Embedding, final norm and unembedding stay in memory. A layer's weights are in memory while it is in use, and a thread
reads those of the next layer meanwhile. So a walk over the layers (`depthlens.engine.wavefront`) needs memory for two
layers and the activations, and reads each layer once. A layer that is called as a module (``lens.model(...)``, rows,
means) is read for the call.

Transformers processes the weights of one layer as it does those of a whole model. `from_pretrained` builds the model on
the meta device from the names and shapes in the files, so that missing, spare and mismatched weights are found before
anything is read. `convert_and_load_state_dict_in_model` renames weights, stacks experts, converts the dtype and moves
the result to the device. Accelerate's disk offload is not used, because its hooks read a module's weights for every
call (for every chunk of a layer), and it first writes experts to disk again in the form that the model has.

On CUDA the thread puts a layer that it has read into pinned memory and sends it on a stream of its own, beside what is
computed (`Copies`). No GPU has run this yet: it is tested with a made-up device.

Files are read with ``pread``. Mapping them into memory would reserve the whole file, which the system refuses where
memory is limited. A layer whose experts are stored one by one takes about twice its size while they are stacked.
"""

from __future__ import annotations

import copy
import functools
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from depthlens.errors import UserError
from depthlens.models import fingerprint
from depthlens.models.structure import find as find_structure
from depthlens.progress import quiet

# also raised before a sweep starts
_STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Stored:
    """A tensor in a file, read when indexed; not safetensors' own slice, which for a moment holds it twice."""

    def __init__(self, file: Any, key: str) -> None:
        self.file, self.key = file, key
        about = file.get_slice(key)
        self.shape, self.dtype = about.get_shape(), about.get_dtype()

    def __getitem__(self, index: Any) -> Tensor:
        return self.file.get_tensor(self.key)[index]


class Checkpoint:
    """The safetensors files of a model: names, shapes and dtypes; the weights are read when asked for.

    Args:
        source: Directory or hub id; from the hub the files are downloaded.
        config: The model's configuration.
        revision: Of a hub id; None: its main one.

    Raises:
        UserError: the weights are stored in a form that cannot be read so.
        OSError: there are no safetensors files.
    """

    def __init__(self, source: str, config: PreTrainedConfig, *, revision: str | None = None) -> None:
        self.config = copy.deepcopy(config)
        self.paths: list[str] = []
        self.tensors: dict[str, Stored] = {}  # by name in the files
        for path in _files(source, {"revision": revision} if revision else {}):
            self.paths.append(path)
            file = safe_open(path, framework="pt", backend="pread")
            self.tensors |= {key: Stored(file, key) for key in file.keys()}
        for key, stored in self.tensors.items():
            if stored.dtype not in _STORED:
                fix = f"only {', '.join(_STORED)} can be read here; convert it once to one of these"
                raise UserError(f"model {source!r}: its weight {key} is stored as {stored.dtype}; {fix}")

    def skeleton(self, dtype: torch.dtype | str) -> tuple[PreTrainedModel, dict[str, Any]]:
        """The model on the meta device, and what `from_pretrained` reports about its weights."""
        empty = {
            key: torch.empty(stored.shape, dtype=_STORED[stored.dtype], device="meta")
            for key, stored in self.tensors.items()
        }
        return self._model(empty, dtype, device_map="meta")

    def _model(
        self, weights: Mapping[str, Any], dtype: torch.dtype | str, **options: Any
    ) -> tuple[PreTrainedModel, dict[str, Any]]:
        model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(self.config)]
        return model_class.from_pretrained(
            None,
            config=self.config,
            state_dict=dict(weights),
            dtype=dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )


def _files(source: str, at: dict[str, Any]) -> list[str]:
    if single := cached_file(source, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False, **at):
        return [single]
    index = cached_file(source, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False, **at)
    if index is None:
        raise OSError(f"no file named {SAFE_WEIGHTS_NAME} or {SAFE_WEIGHTS_INDEX_NAME}")
    return get_checkpoint_shard_files(source, index, **at)[0]


class Copies:
    """Weights on their way to a GPU, on a stream of their own.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def send(self, weight: Tensor) -> Tensor:
        """A weight on the GPU, where it arrives later; from pinned memory the copy does not hold up this thread."""
        with torch.cuda.stream(self.stream):
            return weight.pin_memory().to(self.device, non_blocking=True)

    def receive(self, weights: Iterable[Tensor]) -> None:
        """Let what is computed from now on wait for these weights, and their memory stay until it has used them."""
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.stream)
        for weight in weights:
            weight.record_stream(computing)


def copies_to(device: torch.device) -> Copies | None:
    """What sends weights to a device; None where they are loaded there at once."""
    return Copies(device) if device.type == "cuda" else None


class Stream:
    """Brings a model's layers into memory and out again; everything else is read at once and stays.

    Args:
        model: What `Checkpoint.skeleton` built, nothing missing.
        checkpoint: Its files.
        device: Where the weights go.

    Attributes:
        layer_bytes: Size of the largest layer in memory.
        waited: Seconds in which a layer was waited for, so far.

    Raises:
        UserError: a part of the model is neither in the files nor computed from the configuration.
    """

    def __init__(self, model: PreTrainedModel, checkpoint: Checkpoint, device: torch.device) -> None:
        self.model = model
        self.tensors = checkpoint.tensors
        self._paths = checkpoint.paths
        self._read_as: tuple[Any, list[tuple[str, bytes]]] = ((), [])  # state of the files, checksums of the layers
        self._prefix = find_structure(model).layers + "."
        self.layers = tuple(cast(nn.ModuleList, model.get_submodule(self._prefix.removesuffix("."))))
        self._thread = ThreadPoolExecutor(1, "depthlens-offload")
        self._ahead: tuple[int, Future[None]] | None = None
        self._in_use: set[int] = set()
        self.waited = 0.0
        self._mapping = cast("list[WeightConverter | WeightRenaming]", get_model_conversion_mapping(model))
        self._copies = copies_to(device)
        self._loading = LoadStateDictConfig(
            dtype=model.dtype,
            # a map that names the disk makes transformers read one tensor at a time; no weight's name starts with "-"
            device_map={"": device, "-": "disk"},
            weight_mapping=self._mapping,
        )
        # a layer that is out of memory has these again: module, name of its weight, the weight on the meta device
        self._meta: list[list[tuple[nn.Module, str, Tensor]]] = [
            [
                (module, name, tensor)
                for module in layer.modules()
                for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            ]
            for layer in self.layers
        ]
        self.layer_bytes = max(sum(tensor.nbytes for _, _, tensor in weights) for weights in self._meta)
        self._keys = self._by_layer()
        self._fill(device)
        for i, layer in enumerate(self.layers):
            self._read_when_called(i, layer)

    def _layer_of(self, key: str) -> int | None:
        """Layer of an entry of the model's state dict; None for what is always held."""
        inside = key.startswith(self._prefix)
        return int(key.removeprefix(self._prefix).partition(".")[0]) if inside else None

    def _by_layer(self) -> dict[int | None, list[str]]:
        """Names in the files by the layer that they end up in."""
        renamings = [entry for entry in self._mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in self._mapping if isinstance(entry, WeightConverter)]
        state = self.model.state_dict()
        keys: dict[int | None, list[str]] = {}
        for key in self.tensors:
            renamed, _ = rename_source_key(key, renamings, converters, self.model.base_model_prefix, state)
            if target := next((name for name in (renamed, key) if name in state), None):
                keys.setdefault(self._layer_of(target), []).append(key)
        return keys

    def _fill(self, device: torch.device) -> None:
        """Read what is always held; compute the rotary frequencies, which no file holds."""
        family = find_structure(self.model)
        if family.rotary:
            rotary = self.model.get_submodule(family.rotary)
            self.model.set_submodule(family.rotary, type(rotary)(self.model.config).to(device))
        missing = self._load(self._keys[None])
        if self._copies:
            self._loading = replace(self._loading, device_map={"": torch.device("cpu"), "-": "disk"})  # of layers
        self.model.tie_weights(missing_keys=missing, recompute_mapping=False)
        stored = self.model.state_dict().keys()
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            in_layer = self._layer_of(name) is not None
            if tensor.is_meta and not (in_layer and name in stored):
                fix = "load it without offload"
                raise UserError(f"{type(self.model).__name__}: {name} is not in the files of the model; {fix}")

    def _load(self, keys: list[str]) -> set[str]:
        """Put weights from the files into the model; returns the names of all others."""
        tensors = {key: self.tensors[key] for key in keys}
        with quiet():
            info, _ = convert_and_load_state_dict_in_model(self.model, tensors, self._loading)
        return info.missing_keys

    def read(self, layer: int) -> None:
        """Bring a layer into memory."""
        try:
            missing = self._load(self._keys[layer])
            if left := [key for key in missing if self._layer_of(key) == layer]:
                raise RuntimeError(f"layer {layer} was read without {left}")
            self.layers[layer].requires_grad_(False)
            if self._copies:
                for module, name, meta in self._meta[layer]:
                    sent = self._copies.send(getattr(module, name).detach())
                    is_parameter = isinstance(meta, nn.Parameter)
                    setattr(module, name, nn.Parameter(sent, requires_grad=False) if is_parameter else sent)
        except BaseException:
            self.drop(layer)
            raise

    def drop(self, layer: int) -> None:
        """Take a layer out of memory."""
        for module, name, tensor in self._meta[layer]:
            setattr(module, name, tensor)

    @contextmanager
    def resident(self, layer: int, following: int | None = None) -> Iterator[None]:
        """Within the context a layer's weights are in memory, and those of the following layer are being read.

        Args:
            layer: Layer number.
            following: The layer that will be asked for next; None: the one above, if there is one.
        """
        if layer in self._in_use:
            yield
            return
        start = time.monotonic()
        if not self._take(layer):
            self.read(layer)
        if self._copies:
            self._copies.receive(getattr(module, name) for module, name, _ in self._meta[layer])
        self.waited += time.monotonic() - start
        self._in_use.add(layer)
        following = layer + 1 if following is None else following
        try:
            if following < len(self.layers):
                self._ahead = (following, self._thread.submit(self.read, following))
            yield
        except BaseException:
            self._take(None)
            raise
        finally:
            self._in_use.remove(layer)
            self.drop(layer)

    def _take(self, layer: int | None) -> bool:
        """Wait for the layer that is being read ahead; drop it if it is another layer than this one."""
        if self._ahead is None:
            return False
        ahead, future = self._ahead
        error = future.exception()  # waits
        self._ahead = None
        if ahead == layer and error is not None:
            raise error
        if ahead != layer and error is None:
            self.drop(ahead)
        return ahead == layer

    def wait(self) -> None:
        """Wait for the layer that is being read ahead, if there is one."""
        if self._ahead is not None:
            self._ahead[1].exception()

    def checksums(self) -> list[tuple[str, bytes]]:
        """Checksums of every parameter and buffer; the layers are read once, and again when a file was changed."""
        named = dict(fingerprint.named_tensors(self.model))
        by_layer: dict[int | None, list[str]] = {}
        for name in named:
            by_layer.setdefault(self._layer_of(name), []).append(name)
        state = sorted(by_layer.items(), key=str), [_state(path) for path in self._paths]
        if self._read_as[0] != state:
            of_layers: list[tuple[str, bytes]] = []
            for layer in range(len(self.layers)):
                with self.resident(layer):
                    names = by_layer.get(layer, [])
                    of_layers += fingerprint.checksums((n, self.model.get_parameter_or_buffer(n)) for n in names)
            self._read_as = state, of_layers
        outside = [(name, named[name]) for name in by_layer.get(None, [])]
        return self._read_as[1] + fingerprint.checksums(outside)

    def _read_when_called(self, i: int, layer: nn.Module) -> None:
        """A layer that is called whole, outside a walk, has its weights during the call."""
        forward = layer.forward

        @functools.wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.resident(i):
                return forward(*args, **kwargs)

        layer.forward = fingerprint.ours(call)


def _state(path: str) -> tuple[int, ...]:
    """What of a file changes when it is written to or replaced; the time of a change cannot be set back."""
    about = os.stat(path)
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns
