"""A loaded model: the module, its tokenizer, and where its parts are."""

from __future__ import annotations

import html
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import wraps
from tempfile import TemporaryDirectory
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedTokenizerBase

from depthlens import arguments
from depthlens.ablations import Condition, Dims
from depthlens.errors import UserError
from depthlens.models import architectures, fingerprint, quantised
from depthlens.models.placement import held, place_of, weights_state

if TYPE_CHECKING:  # slow to import
    from nnsight import TransformersModel
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

    from depthlens.models.remote import Remote

NO_GENERATION = (
    "to write text an offloaded model is read whole once for every token; "
    "load it without offload, or score given answers with a log-likelihood task"
)
P = ParamSpec("P")
T = TypeVar("T")
_locks: WeakKeyDictionary[PreTrainedModel, Any] = WeakKeyDictionary()
_looking_up = Lock()


@dataclass
class Offload:
    """What a model has whose layers stay on disk, see `depthlens.load`.

    Attributes:
        folder: Where transformers keeps weights that it makes from several in a file, such as stacked experts.
        waited: Seconds in which layers were read, so far.
    """

    folder: TemporaryDirectory[str]
    waited: float = 0.0


@dataclass(eq=False, repr=False)
class Lens:
    """A loaded model, its tokenizer, and where its parts are.

    `depthlens.load` makes one by name. A model that you have loaded, changed or trained yourself is one by
    ``Lens(model, tokenizer)``.

    Attributes:
        model: The Hugging Face module; it is put into evaluation mode, and no gradients are asked for.
        tokenizer: The Hugging Face tokenizer.
        name: The name it was loaded by, for tables and records; "": that of the model's folder or class.
        stream: About the layers of a model that was loaded with ``offload="disk"``; else None.
        remote: The way to a model that was loaded with ``remote``, whose ``model`` has no weights; else None.
        quantize: How its weights were quantised on loading; None: not then. See `depthlens.load`.
        donor: The model that ``@donor`` conditions take parts from (`depthlens.models.pairs.with_donor`); else None.
        arch: Layers, attention, ``o_proj`` and MLP modules.

    One thread at a time works with a model, whatever number of threads and of Lenses there are: others wait.

    Raises:
        UserError: a part of the model cannot be found, or it is no causal language model of transformers.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str = ""
    stream: Offload | None = None
    remote: Remote | None = None
    donor: Donor | None = None
    quantize: str | None = None
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
        if self.remote:
            return (self.device,)
        parts = (self.arch.embed, *self.arch.layers, self.arch.final_norm, self.arch.unembed)
        return (*dict.fromkeys(place_of(part, self.device) for part in parts),)

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

    def needs_heads(self, what: str) -> None:
        """Raise a `UserError` where a layer has no attention heads; ``what`` reads those of every layer."""
        if self.dims.headless:
            layers = ", ".join(f"L{layer}" for layer in self.dims.headless[:4])
            raise UserError(f"{what} reads attention heads of every layer, and {self.name!r} has none in {layers} ..")

    @contextmanager
    def resident(self, layer: int) -> Iterator[None]:
        """Within the context a layer's weights are in memory; only an offloaded model has to read them."""
        start = time.monotonic()
        with held(self.arch.layers[layer]):
            if self.stream:
                self.stream.waited += time.monotonic() - start
            yield

    def bind(self) -> None:
        """Find the parts of the model, and of its donor, again: some may have been replaced since.

        Raises:
            UserError: they are no longer those of its architecture, or torch casts types automatically.
        """
        if any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda", "mps")):
            fix = "leave it, and load the model with dtype=bfloat16"
            raise UserError(f"torch.autocast is on, which changes scores; {fix}")
        self.arch = architectures.bind(self.model)
        if self.donor:
            self.donor.lens.bind()

    def not_finite(self, condition: object) -> UserError:
        """The error for an answer under a condition that is not finite: it would spread silently into means.

        Overflow (float16, now and then bfloat16) and broken weights give NaN or infinite log-probabilities.
        """
        fault = f"model {self.name!r} gives numbers that are not finite under {condition}"
        half = "use dtype=float32, or " if self.dtype.itemsize < 4 else ""
        fix = f"{half}get its weights again"
        return UserError(f"{fault} ({str(self.dtype).removeprefix('torch.')}); {fix}")

    def identify(self) -> fingerprint.Identity:
        """Which model this is as it is now: of every weight and whatever else decides what it computes."""
        with exclusive(self):
            identity = self.remote.identify(self.name) if self.remote else fingerprint.of_model(self.model)
        kernel = self.model.config._attn_implementation
        return replace(identity, settings=fingerprint.settings(self.model.generation_config, self.tokenizer, kernel))

    @property
    def fingerprint(self) -> str:
        """Equal for models that compute the same, wherever they were loaded from; taken anew at every call.

        Of a remote model no weight is read: ``remote:`` and a hash of configuration, name and server.
        """
        return self.identify().fingerprint

    @property
    def bridge(self) -> TransformerBridge:
        """A TransformerLens `TransformerBridge` over the same weights, made on first use; ``model`` stays as it is.

        Another one is made after a module of ``model`` was replaced. A weight that is written to changes in both.

        Raises:
            UserError: TransformerLens does not support the architecture, or the weights are not in memory.
        """
        from depthlens.models.library_views import bridge

        return self._view(bridge)

    @property
    def nnsight(self) -> TransformersModel:
        """An nnsight `TransformersModel` over the same weights, made as `bridge` is; ``model`` stays as it is.

        Of a remote model it is the one that sweeps use: ``model = lens.nnsight``, then ``with model.trace(prompt,
        remote=True):`` (a block that names ``lens`` would send it).

        Raises:
            UserError: the weights are not in memory.
        """
        if self.remote:
            return self.remote.model
        from depthlens.models.library_views import wrap

        return self._view(wrap)

    def _view(self, make: Callable[[Lens], Any]) -> Any:
        """What a library makes of the model, made again after a module, or the storage of a weight, was replaced."""
        with exclusive(self):
            state = [id(module) for module in self.model.modules()], [where for where, _ in weights_state(self.model)]
            if make not in self._views or self._views[make][0] != state:
                self._views[make] = state, make(self)
        return self._views[make][1]

    def describe(self, fingerprint: str | None = None) -> dict[str, object]:
        """What a record must hold to name this model again; its fingerprint, where it was taken already, is given."""
        return {
            "name": self.name,
            "class": type(self.model).__name__,
            "fingerprint": self.fingerprint if fingerprint is None else fingerprint,
            "n_parameters": sum(map(quantised.n_weights, self.model.parameters())),
            "dims": vars(self.dims),
            "dtype": str(self.dtype).removeprefix("torch."),
            "quantize": self.quantize,
            "quantization": quantised.described(self.model, self.quantize),
            "device": self.remote.device if self.remote else ",".join(map(str, self.devices)),
            "offload": "disk" if self.stream else None,
            "remote": {"host": self.remote.host, "key": self.remote.key} if self.remote else None,
            "attention_kernel": self.model.config._attn_implementation,
        }

    def __repr__(self) -> str:
        sizes = ", ".join(f"{k}={getattr(self.dims, k)}" for k in ("n_layers", "n_heads", "n_kv_heads", "d_model"))
        about = self.describe("")
        where = self.remote.host if self.remote else about["device"]
        return f"Lens({self.name!r}: {about['class']}, {sizes}, {about['dtype']} on {where})"

    def _repr_html_(self) -> str:
        about = vars(self.dims) | self.describe("") | {"donor": self.donor and self.donor.lens.name}
        rows = {key: value for key, value in about.items() if isinstance(value, int | str) and value and key != "name"}
        cells = "".join(f'<tr><th scope="row">{k}</th><td>{html.escape(str(v))}</td></tr>' for k, v in rows.items())
        following = '<p>next: <code>dl.layer_sweep(lens, ["capitals_continuation"], limit=40)</code></p>'
        return f"<p>Lens <b>{html.escape(self.name)}</b></p><table>{cells}</table>{following}"


@dataclass(frozen=True, eq=False)
class Donor:
    """A model that fits a base model, see `depthlens.models.pairs.with_donor`.

    Attributes:
        lens: The donor, in memory or offloaded.
        notes: Where it differs from the base in more than weights, for the record.
        own_embeddings: Which of ``embed`` and ``unembed`` differ from the base's.
        own_rotary: Whether its rotary frequencies differ from the base's.
    """

    lens: Lens
    notes: tuple[str, ...]
    own_embeddings: tuple[str, ...]
    own_rotary: bool

    def resident(self, layer: int, layers: Sequence[int]) -> AbstractContextManager[None]:
        """Within the context a layer's weights are in memory, if it is one of ``layers``."""
        return self.lens.resident(layer) if layer in layers else nullcontext()


def donor_layers(conditions: Sequence[Condition]) -> list[int]:
    """Layers that take weights from the donor under some condition, sorted."""
    return sorted({a.layer for c in conditions for a in c.ablations if a.mode == "donor" and a.layer >= 0})


@contextmanager
def exclusive(*lenses: Lens) -> Iterator[None]:
    """Within the context no other thread works with these models: hooks and the attention kernel are state of a module.

    Other threads wait. The same thread may enter again.
    """
    with_donors = [*lenses, *(lens.donor.lens for lens in lenses if lens.donor)]
    models = {id(lens.model): lens.model for lens in with_donors}
    with ExitStack() as stack:
        for key in sorted(models):  # in one order: none waits for ever
            with _looking_up:
                lock = _locks.setdefault(models[key], RLock())
            stack.enter_context(lock)
        yield


def one_thread(function: Callable[P, T]) -> Callable[P, T]:
    """The function, which works with the models that it is given as `exclusive` says.

    Where it takes ``**options``, its signature names them, so that Tab in a notebook offers them.
    """

    @wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> T:
        with exclusive(*(given for given in (*args, *kwargs.values()) if isinstance(given, Lens))):
            return function(*args, **kwargs)

    signature = inspect.signature(function)
    if "options" in signature.parameters:
        own = {name: parameter for name, parameter in signature.parameters.items() if name != "options"}
        named = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=...)
            for name in arguments.OPTIONS
            if name not in own
        ]
        vars(alone).update(__signature__=signature.replace(parameters=[*own.values(), *named]))
    return alone
