"""TransformerLens: conditions through the hook points of a `TransformerBridge`.

Sites and hook points: layer, ``hook_resid_pre`` and ``hook_resid_post``; attn, ``hook_attn_out``; mlp,
``hook_mlp_out``; head and KV group, ``attn.hook_z``. The bridge computes attention step by step (its eager kernel, so
that every hook point exists), which makes it an implementation of its own and slower than the others.

Keys and values are cached for generation. TransformerLens 4.3 looks for the cache under the names that transformers
had before 5.24, does not find it there and decodes as if there were no prompt. So the cache goes in under another name
that the bridge reads, ``layer_past``. Whether it was filled is checked after every step: latent attention (DeepSeek)
fills none, and writes no texts here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from depthlens.backends.row_edits import Means, RowEdits
from depthlens.backends.torch import Backend, Rows, States
from depthlens.errors import UserError
from depthlens.models.lens import Lens, bridge

Hook = tuple[str, Callable[..., Tensor | None]]


class TransformerLensBackend(Backend):
    """Applies conditions with the hooks of a bridge of its own, so that hooks on ``lens.bridge`` do not matter."""

    name = "transformer_lens"

    def __init__(self, lens: Lens, means: Means | None = None) -> None:
        super().__init__(lens, means)
        self.bridge = bridge(lens)

    def _states(self, edits: RowEdits, tokens: Rows, kwargs: dict[str, Any]) -> States:
        final: list[Tensor] = []
        hooks = [*self._hooks(edits), ("ln_final.hook_out", lambda states, hook: final.append(states))]
        cache, n_cached = kwargs["cache"], kwargs["attention_mask"].shape[1]
        if cache is not None:
            kwargs |= {"layer_past": cache}
        with self.bridge.hooks(fwd_hooks=hooks):
            self.bridge(tokens, logits_to_keep=1, **kwargs)  # the last position: others are unembedded elsewhere
        if cache is not None and cache.get_seq_length() != n_cached:
            fault = f"TransformerLens kept keys and values of {cache.get_seq_length()} tokens, not of {n_cached}"
            raise UserError(f"model {self.lens.name}: {fault}; write texts with another backend")
        return final[0]

    def _hooks(self, edits: RowEdits) -> list[Hook]:
        hooks: list[Hook] = []
        before: dict[int, Tensor] = {}  # what layers get
        for layer in edits.layers:
            at, block = edits.at(layer), f"blocks.{layer}"
            if "layer" in at:
                get = partial(lambda x, hook, layer: before.update({layer: x}), layer=layer)
                put = partial(lambda x, hook, layer, edit: edit(x, before.pop(layer)), layer=layer, edit=at["layer"])
                hooks += [(f"{block}.hook_resid_pre", get), (f"{block}.hook_resid_post", put)]
            for site in {"attn", "mlp"} & {*at}:
                hooks.append((f"{block}.hook_{site}_out", lambda value, hook, edit=at[site]: edit(value)))
            if "z" in at:
                # the bridge splits z into heads by d_model, which is not where latent attention has them
                hooks.append((f"{block}.attn.hook_z", lambda z, hook, edit=at["z"]: edit(z.flatten(2)).view(z.shape)))
        return hooks
