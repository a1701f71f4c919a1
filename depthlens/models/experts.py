"""The router of a mixture of experts, found by its structure as `depthlens.models.architectures` finds other parts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Router:
    """What chooses among the experts of a layer.

    Attributes:
        module: Its forward makes logits of all experts from each token's state, and chooses the experts.
        n_experts: How many there are; shared experts, which every token passes, are not counted.
    """

    module: nn.Module
    n_experts: int


def find(mlp: nn.Module, d_model: int) -> Router | None:
    """The router of an MLP; None where it has no experts, or where it is not clear what chooses among them.

    Experts are a list of blocks or a stack of matrices; the router is the child that holds little more than a matrix
    with a row for each.
    """
    counts = {len(m) for m in mlp.modules() if isinstance(m, nn.ModuleList)}
    counts |= {p.shape[0] for p in mlp.parameters() if p.ndim == 3}
    found = []
    for child in mlp.children():
        for n in counts:  # biases, of which there may be several, have one number for each expert
            if [tuple(p.shape) for p in child.parameters() if p.numel() > n] == [(n, d_model)]:
                found.append(Router(child, n))
    return found[0] if len(found) == 1 else None


def same_router(view: nn.Module, router: Router) -> nn.Module:
    """The module of a copy of the model that computes with the weights of a router."""
    weights = [p.data_ptr() for p in router.module.parameters()]
    alike = (m for m in view.modules() if type(m) is type(router.module))
    return next(m for m in alike if [p.data_ptr() for p in m.parameters()] == weights)
