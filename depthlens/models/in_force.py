"""What is in force on a model beside its weights; the one place that knows.

Before a run it answers one of three things:

- nothing is;
- conditions of `depthlens.ablated` are (`entered`): `depthlens.backends.row_edits` adds them to every row, whatever
  walks or calls the model;
- something that is not ours is (`foreign`): a hook, a replaced forward, training mode. What it does may depend on the
  position, the length or the batch, and may change at any time. So each row is a whole pass of its own through the
  model as it is, and no answer is kept.

Conditions belong to the thread, or to the task of an event loop, that entered them. They may be left in any order.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from torch import nn

from depthlens.ablations import modes

if TYPE_CHECKING:
    from depthlens.ablations import Condition
    from depthlens.models.lens import Lens

# whose code does what its version says; anything else may change between two runs
LIBRARIES = {"torch", "transformers", "accelerate", "peft", "torchao", "bitsandbytes", "depthlens", "builtins", "numpy"}
LIBRARIES |= {"kernels"}  # whose modes transformers keeps on a model
LIBRARIES |= sys.stdlib_module_names - {"__main__"}


@dataclass(eq=False)
class Entered:
    """A condition under which a model runs.

    Attributes:
        lens: The model, with its donor.
        condition: Of all rows.
        means: What ``@resample`` puts in place of a part.
        prompt: Token ids of the prompt that ``@resample`` takes it from, if there is one.
        left: Whether its context has ended, perhaps in another thread.
    """

    lens: Lens
    condition: Condition
    means: Any
    prompt: Sequence[int] | None = None
    left: bool = False

    def address(self) -> str:
        """All that decides what it does, for a store."""
        donor = self.lens.donor.fingerprint if self.lens.donor and self.condition.uses("donor") else None
        keys = modes.keys(self.condition.modes)
        return f"{self.condition} {self.prompt} {donor}" + (f" {keys}" if keys else "")


ENTERED: ContextVar[tuple[Entered, ...]] = ContextVar("entered", default=())


def entered(model: nn.Module) -> tuple[Entered, ...]:
    """The conditions under which a model runs here, those first that were entered first."""
    return tuple(one for one in ENTERED.get() if one.lens.model is model and not one.left)


@contextmanager
def aside() -> Iterator[None]:
    """Within the context no condition is in force: those of every row are in place already."""
    token = ENTERED.set(())
    try:
        yield
    finally:
        ENTERED.reset(token)


def foreign(model: nn.Module) -> str | None:
    """What is in force on a model and not ours, as a sentence without its subject; None: nothing is."""
    if nn.modules.module._has_any_global_hook():
        return "runs under global hooks of torch"
    for name, module in model.named_modules():
        kind, what = type(module), name or type(module).__name__
        if module.training and (not kind.__module__.startswith("torch.nn.") or "dropout" in kind.__name__.lower()):
            return f"is in training mode ({what}); call model.eval()"
        if kind.__name__ == "Linear8bitLt":
            return f"has {what} of bitsandbytes' LLM.int8, which rounds activations by what is in a batch"
        if any(home(hook) not in LIBRARIES for key in _hooks(module) for hook in vars(module)[key].values()):
            return f"has hooks on {what}"
        own = vars(module).get("forward")
        of_class = getattr(own, "__func__", None) is kind.forward  # as in a copy that was made under a condition
        if own is not None and not of_class and home(own) not in ("accelerate", "depthlens"):
            return f"has a forward method of its own in {what}"
    return None


@contextmanager
def without_hooks(model: nn.Module) -> Iterator[None]:
    """Within the context no hook of a model runs: what the model itself computes is tried."""
    with ExitStack() as stack:
        for hooks in (vars(module)[key] for module in model.modules() for key in _hooks(module)):
            stack.enter_context(patch.dict(hooks, clear=True))
        yield


def _hooks(module: nn.Module) -> list[str]:
    """The attributes in which torch keeps hooks on calls of a module."""
    return [key for key in vars(module) if key.startswith(("_forward_", "_backward_")) and key.endswith("hooks")]


def home(value: Any) -> str:
    """The package in which a class or function was written; of anything else that of its class."""
    value = getattr(value, "func", value)  # of a partial one
    value = getattr(value, "__func__", value)
    if not isinstance(value, type) and "__name__" in (found := getattr(value, "__globals__", {})):
        return str(found["__name__"]).partition(".")[0]
    return (value if isinstance(value, type) else type(value)).__module__.partition(".")[0]
