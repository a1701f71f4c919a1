"""A loaded model: the module, its tokenizer, and where its parts are."""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from tempfile import TemporaryDirectory
from threading import RLock
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from depthlens import arguments, progress
from depthlens.ablations import Dims, modes
from depthlens.errors import UserError
from depthlens.models import architectures, fingerprint, in_force, quantised
from depthlens.models.placement import held, place_of, twin

if TYPE_CHECKING:  # slow to import
    from nnsight import TransformersModel
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

    from depthlens.models.remote import Remote

NO_GENERATION = "an offloaded model is read whole once for every token; load it without offload, or score given answers"
P = ParamSpec("P")
T = TypeVar("T")
ALONE = RLock()  # of the one thread that works with models: hooks and the attention kernel are state of modules


@dataclass(eq=False, repr=False)
class Lens:
    """A loaded model, its tokenizer, and where its parts are.

    `depthlens.load` makes one by name. A model that you have loaded, changed or trained yourself is one by
    ``Lens(model, tokenizer)``.

    Attributes:
        model: The Hugging Face module; it is put into evaluation mode, and no gradients are asked for.
        tokenizer: The Hugging Face tokenizer.
        name: The name it was loaded by, for tables and records; "": that of the model's folder or class.
        stream: Of a model that was loaded with ``offload="disk"`` the folder of weights that transformers makes from
            several in a file, such as stacked experts; else None.
        remote: The way to a model that was loaded with ``remote``, whose ``model`` has no weights; else None.
        quantize: How its weights were quantised on loading; None: not then. See `depthlens.load`.
        donor: The model that ``@donor`` conditions take parts from (`depthlens.models.pairs.with_donor`); else None.
        own_rotary: Whether the donor's rotary frequencies differ; they go with whole layers and attentions.
        waited: Seconds in which layers were read from disk, so far.
        arch: Layers, attention, ``o_proj`` and MLP modules.

    One thread at a time works with models, whatever number of threads and of Lenses there are: others wait. Calls of
    ``model`` by hand do not wait, except where a condition is in force on it; what is done to it for a sweep in another
    thread may end them in an error.

    Raises:
        UserError: a part of the model cannot be found, or it is no causal language model of transformers.

    Example:
        >>> lens
        Lens('organism': LlamaForCausalLM, n_layers=6, n_heads=4, n_kv_heads=4, d_model=256, float32 on cpu)
        >>> mine = dl.Lens(lens.model, lens.tokenizer, "mine")
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str = ""
    stream: TemporaryDirectory[str] | None = None
    remote: Remote | None = None
    donor: Lens | None = None
    quantize: str | None = None
    own_rotary: bool = field(default=False, init=False)
    waited: float = field(default=0.0, init=False)
    arch: architectures.Architecture = field(init=False)
    _views: dict[Callable[[Lens], Any], tuple[Any, Any]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        from transformers import PreTrainedModel

        if not isinstance(self.model, PreTrainedModel) or not isinstance(self.tokenizer, PreTrainedTokenizerBase):
            found = f"{type(self.model).__name__} and {type(self.tokenizer).__name__}"
            within = "; of one of peft model.merge_and_unload(), of a compiled one model._orig_mod"
            raise UserError(f"Lens of {found}; give a causal language model of transformers and its tokenizer{within}")
        self.name = self.name or self.model.name_or_path or type(self.model).__name__
        self.bind()
        self.model.eval().requires_grad_(False)

    @property
    def dims(self) -> Dims:
        return self.arch.dims

    @property
    def device(self) -> torch.device:
        """Where tokens are embedded; those for a remote model start out from the CPU."""
        return torch.device("cpu") if self.remote else place_of(self.arch.embed)

    def device_of(self, layer: int) -> torch.device:
        """Where a layer computes; its weights may be in a file meanwhile."""
        return place_of(self.arch.layers[layer])

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All devices that compute, each once, in the order of the walk."""
        parts = () if self.remote else (*self.arch.layers, self.arch.final_norm, self.arch.unembed)
        return (*dict.fromkeys((self.device, *(place_of(part, self.device) for part in parts))),)

    @property
    def dtype(self) -> torch.dtype:
        return self.remote.dtype if self.remote else self.arch.embed.weight.dtype

    @property
    def max_length(self) -> int:
        """Tokens that the model reads at once, as lm-eval finds it; configurations without a limit name none."""
        from lm_eval.models.utils import resolve_max_length  # slow to import

        return int(resolve_max_length(self.model.config, self.tokenizer))

    def needs_weights(self, what: str) -> None:
        """Raise a `UserError` where the weights are remote; ``what`` needs them here."""
        if self.remote:
            raise UserError(f"{what} needs the weights of {self.name!r} here; load it without remote")

    @contextmanager
    def resident(self, layer: int) -> Iterator[None]:
        """Within the context a layer's weights are in memory; only an offloaded model has to read them."""
        start = time.monotonic()
        with held(self.arch.layers[layer]):
            self.waited += time.monotonic() - start
            yield

    def bind(self) -> None:
        """Find the parts of the model, and of its donor, again: some may have been replaced since.

        Raises:
            UserError: they are no longer those of its architecture, or torch casts types automatically.
        """
        if any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda", "mps")):
            fix = "leave it, and load the model with dtype=bfloat16"
            raise UserError(f"torch.autocast is on, which changes scores; {fix}")
        self.arch = architectures.Architecture(self.model)
        entered = [one.lens for one in in_force.entered(self.model) if one.lens is not self]
        with in_force.aside():
            for other in ([self.donor] if self.donor else []) + entered:
                other.bind()

    def not_finite(self, condition: object) -> UserError:
        """The error for an answer under a condition that is not finite: it would spread silently into means.

        Overflow (float16, now and then bfloat16) and broken weights give NaN or infinite log-probabilities.
        """
        fault = f"model {self.name!r} gives numbers that are not finite under {condition}"
        return UserError(f"{fault} ({str(self.dtype).removeprefix('torch.')}); use dtype=float32, or other weights")

    def identify(self) -> fingerprint.Identity:
        """Which model this is as it is now: of every weight and whatever else decides what it computes."""
        with ALONE:
            identity = self.remote.identify(self.name) if self.remote else fingerprint.of_model(self.model)
        config, kernel = self.model.generation_config, self.model.config._attn_implementation
        settings = fingerprint.settings(config, self.tokenizer, kernel)
        if entered := in_force.entered(self.model):
            settings["ablated"] = "; ".join(one.address() for one in entered)
        keys = modes.keys({name for one in entered for name in one.condition.modes})
        if unkeyed := next((name for name, key in keys.items() if key is None), None):
            identity = replace(identity, obstacle=f"is ablated by mode {unkeyed!r}, whose function has no key")
        return replace(identity, settings=settings)

    @property
    def fingerprint(self) -> str:
        """Equal for models that compute the same, wherever they were loaded from; taken anew at every call.

        Of a remote model no weight is read: ``remote:`` and a hash of configuration, name and server.
        """
        return self.identify().fingerprint

    @property
    def bridge(self) -> TransformerBridge:
        """A TransformerLens `TransformerBridge` over the same weights, made on first use; ``model`` stays as it is.

        Another one is made after a module of ``model`` was replaced. A weight that is written to changes in both. A
        hook of yours on ``model`` is not on it.

        Raises:
            UserError: TransformerLens does not support the architecture, or the weights are not in memory.
        """
        return self._view(bridge)

    @property
    def nnsight(self) -> TransformersModel:
        """An nnsight `TransformersModel` over the same weights, made as `bridge` is; ``model`` stays as it is.

        Of a remote model it is the one that sweeps use: ``model = lens.nnsight``, then ``with model.trace(prompt,
        remote=True):`` (a block that names ``lens`` would send it).

        Raises:
            UserError: the weights are not in memory.
        """
        return self.remote.model if self.remote else self._view(wrap)

    def _view(self, make: Callable[[Lens], Any]) -> Any:
        """What a library makes of the model, made again where `fingerprint.state_of` says that it is another one."""
        with ALONE:
            state = fingerprint.state_of(self.model, copied=True)
            if make not in self._views or self._views[make][0] != state:
                self._views[make] = state, make(self)
        return self._views[make][1]

    def describe(self, fingerprint: str | None = None) -> dict[str, object]:
        """What a record must hold to name this model again; its fingerprint, where it was taken already, is given."""
        return {
            "name": self.name,
            "class": type(self.model).__name__,
            "fingerprint": self.fingerprint if fingerprint is None else fingerprint,
            "n_parameters": self.model.num_parameters(),
            "dims": vars(self.dims),
            "dtype": str(self.dtype).removeprefix("torch."),
            "quantize": self.quantize,
            "quantization": quantised.method_of(self.model.config),
            "device": self.remote.device if self.remote else ",".join(map(str, self.devices)),
            "gpu": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None,
            "offload": "disk" if self.stream else None,
            "remote": {"host": self.remote.host, "key": self.remote.key} if self.remote else None,
            "attention_kernel": self.model.config._attn_implementation,
            "ablated": "; ".join(str(one.condition) for one in in_force.entered(self.model)) or None,
        }

    def __repr__(self) -> str:
        sizes = ", ".join(f"{k}={getattr(self.dims, k)}" for k in ("n_layers", "n_heads", "n_kv_heads", "d_model"))
        about = self.describe("")
        where = self.remote.host if self.remote else about["device"]
        return f"Lens({self.name!r}: {about['class']}, {sizes}, {about['dtype']} on {where})"


def one_thread(function: Callable[P, T]) -> Callable[P, T]:
    """A function of a loaded model, which no two threads run at once: others wait. The same thread may enter again.

    What is no loaded model is refused. Where the function takes ``**options``, its signature names them, so that Tab in
    a notebook offers them.
    """
    signature = inspect.signature(function)
    model = next(iter(signature.parameters))

    @wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> T:
        with ALONE:
            arguments.loaded(args[0] if args else kwargs.get(model))
            return function(*args, **kwargs)

    if "options" in signature.parameters:
        own = {name: parameter for name, parameter in signature.parameters.items() if name != "options"}
        named = {n: inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=...) for n in arguments.OPTIONS}
        vars(alone).update(__signature__=signature.replace(parameters=[*(own | named | own).values()]))
    return alone


def _shared_copy(lens: Lens, library: str) -> PreTrainedModel:
    """A second module tree over the same weights, for a library that changes the modules it is given.

    TransformerLens replaces submodules and switches the attention kernel; nnsight puts controllers on every module.
    Applied to ``lens.model`` itself, they would change what it returns. So they get a deep copy, without hooks, whose
    parameters share the storage of the original's. The copy costs the module objects and the rotary frequencies, and a
    weight that is changed in place changes for all.

    Args:
        lens: A loaded model.
        library: What needs it, for the error.

    Raises:
        UserError: the weights are not in memory.
    """
    lens.needs_weights(library)
    weights = [*lens.model.parameters()]
    if len(lens.devices) > 1 or any(weight.is_meta for weight in weights):
        raise UserError(f"{library} needs {lens.name!r} whole in memory on one device; use backend 'torch'")
    # new Parameter objects: moving or casting the copy then leaves the original where it is
    own = (w if quantised.is_quantised(w) else nn.Parameter(w.detach(), w.requires_grad) for w in weights)
    model: PreTrainedModel = twin(lens.model, dict(zip(map(id, weights), own, strict=True)))
    # a model built from its configuration does not name its class there, and libraries look it up
    model.config.architectures = [type(lens.model).__name__]
    return model


def bridge(lens: Lens) -> TransformerBridge:
    """A `TransformerBridge` over the weights of a loaded model.

    Whatever is done to it (hooks, compatibility mode, another device) leaves ``lens.model`` as it is.

    Raises:
        UserError: TransformerLens does not know the architecture, or the weights are not in memory.
    """
    with progress.quiet():  # the import changes transformers' level of logging
        from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
        from transformer_lens.model_bridge import TransformerBridge

    name = type(lens.model).__name__
    if name not in SUPPORTED_ARCHITECTURES:
        raise UserError(f"TransformerLens does not support {name}; use backend 'torch' or 'nnsight'")
    model = _shared_copy(lens, "TransformerLens")
    tokenizer = copy.deepcopy(lens.tokenizer)
    # else the bridge loads the tokenizer a second time, by its name, which a .gguf file does not allow
    tokenizer.init_kwargs = {"name_or_path": lens.name, **tokenizer.init_kwargs, "add_bos_token": True}
    made = TransformerBridge.boot_transformers(
        lens.name, hf_model=model, tokenizer=tokenizer, device=lens.device, dtype=lens.dtype
    )
    # strings are encoded as the tokenizer does, with a first token of its own where it adds one and no other
    made.cfg.default_prepend_bos = made.cfg.tokenizer_prepends_bos
    # with transformers 5.24 a step of `generate` would not see the cache, nor anything that was written before
    made.adapter.supports_kv_cache = False
    # folding norms replaces most weights, but stacked experts are scaled in place, where lens.model has them too
    if any(p.ndim > 2 for p in model.parameters()):
        made.adapter.supports_fold_ln = False  # type: ignore[attr-defined]  # its subclasses have it
    return made


def wrap(lens: Lens) -> TransformersModel:
    """An nnsight model over the weights of a loaded model.

    Whatever is done to it (edits, another device) leaves ``lens.model`` as it is.

    Raises:
        UserError: the weights are not in memory.
    """
    from nnsight import TransformersModel  # slow to import

    # nnsight pads on the left and sets a pad token: on a tokenizer of its own
    return TransformersModel(_shared_copy(lens, "nnsight"), tokenizer=copy.deepcopy(lens.tokenizer))
