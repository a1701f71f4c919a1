"""Which experts the routers of a mixture choose, counted over the tokens of texts.

A removal costs little where an expert is seldom chosen, and where another one does the same; the counts tell the two
apart. The share of an expert is the number of tokens that pass it by the number of tokens: over the experts of a layer
the shares add up to the number of experts that each token passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy
import torch

from depthlens.analysis.findings import DescribedTable
from depthlens.analysis.means import mean
from depthlens.errors import UserError
from depthlens.experiments.texts import Texts, encoded, measured, named
from depthlens.models.architectures import Routing, body_of, replaced_forwards
from depthlens.models.lens import Lens, one_thread
from depthlens.store.answer_cache import Where
from depthlens.store.parts import DEFAULT


@one_thread
def expert_choices(
    lens: Lens,
    texts: Texts = None,
    *,
    limit: int | None = None,
    max_tokens: int = 256,
    store: Where = DEFAULT,
    progress: bool = True,
) -> DescribedTable:
    """How many tokens each expert of a mixture is chosen for.

    Args:
        lens: A loaded model with experts.
        texts: Any texts, or the name of a set: ``embedded`` or ``c4`` (`depthlens.experiments.texts`); None: the
            embedded ones. The prompts of a task tell what a removal may cost there.
        limit: Only the first so many; ``c4`` needs it.
        max_tokens: Of longer texts, only the first so many tokens are read.
        store: Where the numbers of single texts are found and kept; see `depthlens.layer_sweep`.
        progress: Show a bar.

    Returns:
        One row an expert: ``layer``, ``expert``, ``condition`` (its removal, such as L5.E17), ``tokens`` (that pass
        it), ``share`` (of all tokens), ``ci_low`` and ``ci_high`` (its 95% interval over texts), and ``n``
        (texts). The interval of an expert that no text chooses has no width, and says nothing of other texts.

    Raises:
        UserError: a model without experts, weights that are on a server, or texts that cannot be read.
    """
    rows = encoded(lens, texts, limit, max_tokens, "a count of chosen experts", walked=False)
    dims = lens.dims
    if not dims.n_experts:
        raise UserError(f"model {lens.name!r} has no experts; give a mixture of experts")
    experts = [(layer, expert) for layer, n in enumerate(dims.n_experts) for expert in range(n)]
    names = [f"L{layer}.E{expert}" for layer, expert in experts]
    how: dict[str, Any] = {"store": store, "progress": progress, "method": "experts that are chosen"}
    counts, record = measured(lens, rows, names, lambda i: _counts(lens, rows[i]), "experts", **how)
    lengths = np.array([len(row) for row in rows])
    share = mean(counts, bounded=False) / mean(lengths, bounded=False)
    low, high = np.clip(share.interval(), 0, 1)
    tokens = counts.sum(0).astype(int)
    table = pd.DataFrame(experts, columns=["layer", "expert"]).assign(condition=names, tokens=tokens)
    table = table.assign(share=share.value, ci_low=low, ci_high=high, n=len(rows))
    read = {"source": named(texts), "n": len(rows), "tokens": int(lengths.sum())}
    record |= {"made_by": "expert_choices", "texts": read, "max_tokens": max_tokens}
    return DescribedTable(table, _sentences(table, int(lengths.sum())), record)


@torch.no_grad()
def _counts(lens: Lens, tokens: Sequence[int]) -> np.ndarray:
    """Tokens of a text that pass each expert, layer by layer."""
    routers = {layer: router for layer, router in enumerate(lens.arch.routers) if router}
    routings = {layer: Routing(lens.dims.n_experts[layer]) for layer in routers}
    with replaced_forwards(routings[layer].around(router) for layer, router in routers.items()):
        body_of(lens.model)(input_ids=torch.tensor([list(tokens)], device=lens.device), use_cache=False)
    counts = []
    for layer, routing in routings.items():
        if routing.chosen is None:
            raise UserError(f"layer {layer} of {lens.name!r} chooses its experts in another way than by topk")
        counts.append(routing.chosen.flatten().bincount(minlength=routing.n_experts).cpu().numpy())
    return np.concatenate(counts).astype(float)


def _sentences(table: pd.DataFrame, n_tokens: int) -> list[str]:
    """What the counts say."""
    n_never = int((table["tokens"] == 0).sum())
    never = f"{n_never} of {len(table)} experts were chosen for none of {n_tokens} tokens"
    # a layer's experts by the effective number of them: exp of the entropy of their shares
    layers = table.groupby("layer")["tokens"].agg(used=lambda n: np.exp(scipy.stats.entropy(n)), n="size")
    least = (layers["used"] / layers["n"]).idxmin()
    used, n = layers.loc[least]
    return [
        f"{never}.",
        f"Layer {least} uses its experts least evenly: as {used:.1f} of {n:.0f} equally used ones would be.",
    ]
