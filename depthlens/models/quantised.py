"""Models whose weights are stored in a few bits: how they are made on loading, and what their tensors hold.

- ``int8``: each row of a matrix has one scale (torchao, ``Int8WeightOnlyConfig``);
- ``int4``: groups of 32 to 128 weights have one (torchao; on a GPU ``Int4WeightOnlyConfig``, elsewhere
  ``IntxWeightOnlyConfig``, which stores a byte a weight, because torchao has no packed kernel there);
- ``nf4``: groups of 64 weights, levels by quantiles of the normal distribution (bitsandbytes; Dettmers et al. 2023,
  arXiv 2305.14314).

transformers quantises all linear layers but the unembedding while it reads a checkpoint, and loads checkpoints that
were quantised before. Inputs and outputs of layers keep the model's dtype, so that conditions, which act on these,
are as exact as in any model. Only what reads weights has to know.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from depthlens import arguments
from depthlens.errors import UserError

if TYPE_CHECKING:  # slow to import
    from transformers import PreTrainedModel

SCHEMES = dict(zip(arguments.SCHEMES, ("torchao", "torchao", "bitsandbytes"), strict=True))  # and each one's library
GROUPS = (128, 64, 32)  # sizes that int4 tries
INSTALL = "pip install 'depthlens[quantize]'"


def configuration(scheme: str, widths: Sequence[int], device: torch.device, dtype: torch.dtype | str) -> Any:
    """What transformers' loaders call ``quantization_config``.

    Args:
        scheme: One of `SCHEMES`.
        widths: Inputs of the model's linear layers.
        device: Where the model computes.
        dtype: In what it computes; ``auto``: bfloat16 where the library has to be told.

    Raises:
        UserError: the library is not installed, or the widths have no common group.
    """
    library = SCHEMES[scheme]
    if not installed(library):
        raise UserError(f"quantize {scheme!r} needs {library}, which is not installed; {INSTALL}")
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if scheme == "nf4":
        compute = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    if scheme == "int8":
        return TorchAoConfig(Int8WeightOnlyConfig())
    size = next((n for n in GROUPS if all(width % n == 0 for width in widths)), None)
    if size is None:
        wide = next(width for width in widths if width % GROUPS[-1])
        raise UserError(f"quantize 'int4' needs widths that are multiples of {GROUPS[-1]}, not {wide}; use 'int8'")
    if device.type == "cuda":
        return TorchAoConfig(Int4WeightOnlyConfig(group_size=size, int4_packing_format="tile_packed_to_4d"))
    four_bits: Any = vars(torch)["int4"]  # which torch's stubs lack
    return TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=four_bits, granularity=PerGroup(size)))


def settle(model: nn.Module) -> None:
    """Let bitsandbytes' layers keep what they hold: their first call would pack it anew for some processors.

    What such a processor computes, and the fingerprint, would differ from those of others, and before and after it.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module).update(support_avx512bf16_for_cpu=False, compute_type_is_set=True)


def installed(library: str) -> bool:
    """Whether a library is there; nothing is imported."""
    try:
        importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def method_of(config: Any) -> str | None:
    """How a configuration says that the weights are quantised (``torchao``, ``gptq`` ..); None: they are not.

    Those of a .gguf file are dequantised on loading.
    """
    method = settings_of(config).get("quant_method")
    return None if method in (None, "gguf") else str(getattr(method, "value", method))


def settings_of(config: Any) -> dict[str, Any]:
    """How a configuration says that the weights are quantised; empty where it does not."""
    said = getattr(config, "quantization_config", None)
    return dict(said if isinstance(said, dict) else said.to_dict()) if said else {}


def require_readable(name: str, config: Any) -> None:
    """Refuse a checkpoint that transformers would take for one of plain weights.

    Raises:
        UserError: naming the method that it does not know.
    """
    method = method_of(config)
    if method is not None and method not in _readable():
        fault = (
            f"model {name!r} is quantised by {method!r}, which transformers {transformers.__version__} does not read"
        )
        raise UserError(f"{fault}; load a checkpoint of it in another form")


def _readable() -> set[str]:
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    return {*AUTO_QUANTIZER_MAPPING, *SCHEMES.values()}  # its names for bitsandbytes' are longer


def described(model: PreTrainedModel, scheme: str | None, stored_as: str | None) -> str | None:
    """Scheme and library for a record, such as ``nf4 (bitsandbytes 0.50.2)``; None where nothing is quantised.

    Args:
        model: The model.
        scheme: As it was quantised on loading, if it was.
        stored_as: Method of its checkpoint, if that is quantised.
    """
    method = method_of(model.config)
    if method is None:
        return stored_as and f"dequantised ({stored_as})"
    kinds = sorted({type(w).__name__ for w in model.parameters() if is_quantised(w)})
    version = f" {importlib.metadata.version(method)}" if method in SCHEMES.values() else ""
    return f"{scheme or '+'.join(kinds) or 'as stored'} ({method}{version})"


def is_quantised(weight: Tensor) -> bool:
    """Whether a weight holds integers and scales, as torchao's and bitsandbytes' do."""
    module = type(weight).__module__
    return module.startswith(("torchao.", "bitsandbytes."))


def depends_on_batch(weight: Tensor) -> bool:
    """Whether a layer with this weight rounds activations by what else is in a batch (bitsandbytes' LLM.int8)."""
    return is_quantised(weight) and type(weight).__name__ == "Int8Params"


def tensors_of(weight: Tensor) -> list[Tensor]:
    """The plain tensors that a weight consists of; one that is not quantised is its own only one."""
    if not is_quantised(weight):
        return [weight]
    if hasattr(weight, "__tensor_flatten__"):
        names, _ = weight.__tensor_flatten__()
        return [getattr(weight, name) for name in names if getattr(weight, name) is not None]
    kept: Any = weight
    about = [kept.quant_state] if getattr(kept, "quant_state", None) is not None else []
    about += [kept.quant_state.state2] if about and kept.quant_state.state2 is not None else []
    scales = [value for state in about for value in vars(state).values() if isinstance(value, Tensor)]
    scales += [scale for scale in (getattr(kept, "SCB", None),) if scale is not None]
    return [weight.data, *scales]


def said(weight: Tensor) -> str:
    """What of a quantised weight is not in its tensors: its kind, shape and settings."""
    about: Any = ""
    if hasattr(weight, "__tensor_flatten__"):
        about = weight.__tensor_flatten__()[1]
    elif (state := getattr(weight, "quant_state", None)) is not None:
        about = state.quant_type, state.blocksize, tuple(state.shape), state.dtype
    return f"{type(weight).__qualname__} {tuple(weight.shape)} {weight.dtype} {about}"


def stored_bytes(weight: Tensor) -> int:
    """Bytes that a weight takes in memory."""
    return sum(tensor.nbytes for tensor in tensors_of(weight))


def shape_of(weight: Tensor) -> list[int]:
    """Shape of the numbers that a weight stands for; bitsandbytes stores two in a byte, and says how many bytes."""
    state = getattr(weight, "quant_state", None) if is_quantised(weight) else None
    return [*(weight if state is None else state).shape]


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer whose weights are plain or kept by one of the libraries."""
    return type(module) is nn.Linear or (isinstance(module, nn.Linear) and is_quantised(module.weight))


def n_weights(weight: Tensor) -> int:
    """Numbers that a weight stands for."""
    return math.prod(shape_of(weight))


def columns(projection: nn.Module, at: Sequence[int]) -> Tensor:
    """Columns of the weight of a linear layer, as what it does to unit vectors where it holds no plain numbers.

    Args:
        projection: The layer; no hook on it is called.
        at: Which inputs; of a range of them, plain numbers are not copied.

    Returns:
        Shape [out_features, len(at)].
    """
    module: Any = projection
    index = slice(at.start, at.stop, at.step) if isinstance(at, range) else list(at)
    if isinstance(module, Conv1D):
        return module.weight[index].T
    if type(module) is nn.Linear and not is_quantised(module.weight):
        return module.weight[:, index]
    dtype = module.bias.dtype if module.bias is not None else getattr(module, "compute_dtype", None)
    dtype = dtype or (module.weight.dtype if module.weight.is_floating_point() else torch.float32)
    units = torch.zeros(len(at), module.in_features, dtype=dtype, device=module.weight.device)
    units[range(len(at)), list(at)] = 1
    out = module.forward(units)
    return (out if module.bias is None else out - module.bias).T
