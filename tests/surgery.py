"""An independent reference for every kind of condition: the part is cut out of a copy of the model, by no hook.

Whole layers, attention and MLPs give way to modules that return what is put in place; heads to zeroed columns of
``o_proj`` and what these would have multiplied, added to its output.
"""

from __future__ import annotations

import copy

import tiny
import torch
from torch import nn


def rough_lens(family: str, **changes: object):
    """A tiny model whose norms, biases and routing corrections are not the ones and zeros that they start as."""
    lens = tiny.lens(family, **changes)
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in [*lens.model.named_parameters(), *lens.model.named_buffers()]:
            if "norm" in name:
                p.copy_(0.5 + torch.rand(p.shape, generator=g))
            elif name.endswith("bias"):
                p.copy_(0.2 * torch.randn(p.shape, generator=g))
    return lens


class Layer(nn.Module):
    """Its output is its input, plus what a layer adds on average."""

    def __init__(self, mean):
        super().__init__()
        self.mean = mean

    def forward(self, hidden_states, *args, **kwargs):
        return hidden_states + self.mean


class Sublayer(nn.Module):
    """The same contribution at every position, in the form the sublayer has it."""

    def __init__(self, mean, with_weights: bool):
        super().__init__()
        self.mean, self.with_weights = mean, with_weights

    def forward(self, hidden_states, *args, **kwargs):
        out = torch.zeros_like(hidden_states) + self.mean
        return (out, None) if self.with_weights else out


class Head(nn.Module):
    """``o_proj`` without one head, plus what it makes of a given z [pos or 1, d_head]."""

    def __init__(self, o_proj, head, z):
        super().__init__()
        d_head = z.shape[-1]
        columns = slice(head * d_head, (head + 1) * d_head)
        self.inner = o_proj
        while not isinstance(o_proj, nn.Linear):  # a head of this layer was cut before
            o_proj = o_proj.inner
        self.added = z @ o_proj.weight.data[:, columns].T
        o_proj.weight.data[:, columns] = 0

    def forward(self, z):
        return self.inner(z) + self.added[[self._place(p) for p in range(z.shape[1])]]

    def _place(self, position):
        """The same position of the reference; past its end it is read again from its second token on."""
        n = len(self.added)
        while position >= n > 1:
            position -= n - 1
        return min(position, n - 1)


def cut(lens, condition, means):
    """A copy of ``lens.model`` under a condition."""
    model = copy.deepcopy(lens.model)
    for a in condition.ablations:
        layer, by_mean = model.model.layers[a.layer], a.mode == "mean"
        if a.site == "layer":
            model.model.layers[a.layer] = Layer(means.layer[a.layer] if by_mean else 0.0)
        elif a.site == "attn":
            layer.self_attn = Sublayer(means.attn[a.layer] if by_mean else 0.0, with_weights=True)
        elif a.site == "mlp":
            layer.mlp = Sublayer(means.mlp[a.layer] if by_mean else 0.0, with_weights=False)
        else:
            group = range(a.index, a.index + 1) if a.site == "head" else lens.dims.query_heads(a.index)
            for head in group:
                z = torch.zeros(1, lens.dims.d_head)
                if a.mode == "mean":
                    z = means.z[a.layer, head][None]
                elif a.mode == "resample":
                    z = means.sample[a.layer, :, head]
                layer.self_attn.o_proj = Head(layer.self_attn.o_proj, head, z)
    return model
