"""How a condition is applied: one protocol, one small file per library. Here is only which there are.

A backend turns token rows and one condition per row into logits. It knows nothing of tasks or of the engine that
makes the batches.
"""

from __future__ import annotations

from depthlens import arguments
from depthlens.backends.row_edits import Means
from depthlens.backends.torch import Backend, TorchBackend
from depthlens.errors import UserError
from depthlens.models import in_force
from depthlens.models.lens import Lens


def get(name: str, lens: Lens, means: Means | None = None) -> Backend:
    """The backend of a given name over a loaded model.

    Raises:
        UserError: for a name that is not a backend, or a model that the backend does not support.
    """
    arguments.check(backend=name)
    if name != "torch" and not lens.remote and (found := in_force.foreign(lens.model)):
        raise UserError(f"model {lens.name!r} {found}; backend {name!r} has modules of its own, use 'torch'")
    if name == "transformer_lens":
        from depthlens.backends.transformer_lens import TransformerLensBackend

        return TransformerLensBackend(lens, means)
    if name == "nnsight" or lens.remote:
        from depthlens.backends.nnsight import NnsightBackend

        return NnsightBackend(lens, means)
    return TorchBackend(lens, means)
