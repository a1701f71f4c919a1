"""Mixtures of experts: where their routers are, and experts that are removed from rows of a batch.

A removed expert gets no logit from its router, which cannot choose it. In its place the router chooses the next best
one, and the weights of those chosen are made as the model makes them: from the logits that are left. This is what the
model would compute if the expert and its row of the router were deleted. The other way, a weight of zero after the
choice, would let the token pass fewer experts than the model is made for.

A router scores all experts with one product and chooses with ``topk``, in whatever class. Between the two a model may
add a bias that only the choice sees (DeepSeek V3); there a removed expert is as far away as in the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from depthlens.ablations import Ablation

_SCORES = (F.linear, torch.Tensor.add, torch.add)
_CHOICES = (torch.topk, torch.Tensor.topk)


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
    # biases, of which there may be several, have one number for each expert
    found = [
        Router(child, n)
        for child in mlp.children()
        for n in counts
        if [tuple(p.shape) for p in child.parameters() if p.numel() > n] == [(n, d_model)]
    ]
    return found[0] if len(found) == 1 else None


class Routing(TorchFunctionMode):
    """Within the context a router cannot choose the experts that are masked, and what it chooses is kept.

    Args:
        n_experts: Experts that the router chooses among.
        removed: Which each token must do without. One row, or one position, serves all. Shape [row, pos, n_experts];
            None: no token must.

    Attributes:
        chosen: The experts that the last choice among all experts took. Shape [token, k]; None: there was none.
    """

    def __init__(self, n_experts: int, removed: Bool[Tensor, "#row #pos n_experts"] | None = None) -> None:
        super().__init__()
        self.n_experts = n_experts
        self.removed = removed
        self.chosen: Int[Tensor, "token k"] | None = None

    def around(self, router: nn.Module) -> tuple[nn.Module, Callable[..., Any]]:
        """A router and a forward of it that runs within the context."""
        forward = router.forward

        def call(*args: Any, **kwargs: Any) -> Any:
            with self:
                return forward(*args, **kwargs)

        return router, call

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _CHOICES and args[0].shape[-1] == self.n_experts:
            chosen = func(self._without(args[0]), *args[1:], **kwargs)[1]
            self.chosen = chosen.flatten(0, -2)
            # where fewer experts are left than a token passes, a removed one is chosen with the weight that it has: 0
            return torch.return_types.topk((args[0].gather(-1, chosen), chosen))
        found = func(*args, **kwargs)
        if func in _SCORES and isinstance(found, Tensor) and found.shape[-1] == self.n_experts:
            return self._without(found)
        return found

    def _without(self, scores: Float[Tensor, "*token n_experts"]) -> Float[Tensor, "*token n_experts"]:
        if self.removed is None:
            return scores
        rows, positions, n_experts = self.removed.shape
        tokens = scores.numel() // n_experts
        if positions == 1:
            removed = self.removed.expand(-1, tokens // rows, -1)
        else:
            removed = self.removed.repeat(tokens // (rows * positions), 1, 1)
        return scores.masked_fill(removed.reshape(scores.shape), -torch.inf)


def removed(
    ablations: Sequence[tuple[int, Ablation]],
    n_rows: int,
    n_experts: int,
    position_ids: Int[Tensor, "#row pos"] | None,
    device: torch.device,
) -> Bool[Tensor, "#row #pos n_experts"]:
    """Which experts of a layer each token must do without; one position serves all where none is given.

    Args:
        ablations: Of experts of the layer, each with its row.
        n_rows: Rows of the batch; one serves batches of any size.
        n_experts: Of the layer.
        position_ids: Where the tokens stand, if an ablation spares the first ones.
        device: Where the layer is.
    """
    starts = torch.full((n_rows, 1, n_experts), torch.iinfo(torch.long).max)  # positions that no token has
    for row, a in ablations:
        starts[row, 0, a.index] = a.start
    starts = starts.to(device)
    return starts == 0 if position_ids is None else position_ids[:, :, None] >= starts
