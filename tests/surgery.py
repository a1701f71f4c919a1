"""An independent reference for every kind of condition: parts of a copy of the model give way to modules, by no hook.

Whole layers, attention and MLPs give way to modules that compute them and return something else; ``o_proj`` to one that
adds head by head. The noise is drawn and scaled here again.
"""

from __future__ import annotations

import copy

import by_hand
import numpy as np
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


def noise(seed, layer, site, index, n, width):
    """What ``@noise`` draws at the first n positions, of shape [n, width]: 256 positions a generator."""
    number = ("layer", "attn", "mlp", "head", "kv").index(site)
    drawn = [
        np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, layer, number, index + 1, block])))
        for block in range(n // 256 + 1)
    ]
    return torch.tensor(np.concatenate([g.standard_normal((256, width), dtype=np.float32) for g in drawn]))[:n]


class Part(nn.Module):
    """A part that is another one at the positions from ``start`` on.

    Args:
        part: What is computed; None: nothing.
        start: First position.
        put: Put in place of what it adds, by class of the token, of shape [2, width], or by position; None: noise is
            added.
        noise: Noise by position.
    """

    def __init__(self, part, start, put, drawn):
        super().__init__()
        self.part, self.start, self.put, self.drawn = part, start, put, drawn

    def edit(self, added):
        """What is added instead. Shape [1, pos, width]."""
        position = torch.arange(added.shape[1])
        if self.put is None:
            drawn = self.drawn[position].to(added)
            new = added + drawn / drawn.norm(dim=-1, keepdim=True) * added.norm(dim=-1, keepdim=True)
        else:
            kinds = position.clamp(max=1)
            new = self.put[position if len(self.put) > 2 else kinds][None]
        return torch.cat([added[:, : self.start], new[:, self.start :]], 1)


class Layer(Part):
    def forward(self, hidden_states, *args, **kwargs):
        out = self.part(hidden_states, *args, **kwargs)
        return hidden_states + self.edit(out - hidden_states)


class Sublayer(Part):
    """In the form the sublayer has it."""

    def forward(self, *args, **kwargs):
        out = self.part(*args, **kwargs)
        return (self.edit(out[0]), None) if isinstance(out, tuple) else self.edit(out)


class Heads(nn.Module):
    """``o_proj`` of heads one by one: what each adds to the residual stream is computed alone and then summed."""

    def __init__(self, o_proj, n_heads):
        super().__init__()
        self.weight, self.bias = o_proj.weight, o_proj.bias
        self.columns = o_proj.weight.detach().unflatten(1, (n_heads, -1))  # [d_model, head, d_head]
        self.edits = []  # heads, start, what is put in place (a function of z and positions)

    def forward(self, z):
        z = z.unflatten(-1, (self.columns.shape[1], -1))
        added = torch.einsum("rphd,mhd->rphm", z, self.columns)
        for heads, start, put in self.edits:
            new = put(z[:, :, heads], self.columns[:, heads])
            added = added.clone()
            added[:, start:, heads] = torch.einsum("rphd,mhd->rphm", new, self.columns[:, heads])[:, start:]
        return added.sum(2) + (0 if self.bias is None else self.bias)


def wrapped(position, sample):
    """The same position of a sample; past its end it is read again from its second token on."""
    n = len(sample)
    while position >= n > 1:
        position -= n - 1
    return min(position, n - 1)


def new_z(lens, a, heads, means):
    """What takes the place of z of some heads, as a function of z and their columns."""

    def put(z, columns):
        n = z.shape[1]
        if a.mode == "mean":
            return means.mean["z"][a.layer][torch.arange(n).clamp(max=1)][:, heads][None]
        if a.mode == "resample":
            sample = means.sample["z"][a.layer]
            return sample[[wrapped(p, sample) for p in range(n)]][:, heads][None]
        if a.mode == "noise":
            drawn = noise(a.seed, a.layer, a.site, a.index, n, z.shape[2] * z.shape[3]).to(z).view(1, *z.shape[1:])
            size, wanted = (torch.einsum("rphd,mhd->rpm", x, columns).norm(dim=-1) for x in (drawn, z))
            return z + drawn * (wanted / size)[:, :, None, None]
        return torch.zeros_like(z)

    return put


def cut(lens, condition, means):
    """A copy of ``lens.model`` under a condition."""
    model = copy.deepcopy(lens.model)
    widest = 600
    for a in sorted(condition.ablations, key=lambda a: a.site == "layer"):  # a layer's parts before the layer
        layer = model.model.layers[a.layer]
        if a.site in ("head", "kv"):
            heads = [a.index] if a.site == "head" else list(lens.dims.query_heads(a.index))
            if not isinstance(layer.self_attn.o_proj, Heads):
                layer.self_attn.o_proj = Heads(layer.self_attn.o_proj, lens.dims.n_heads)
            layer.self_attn.o_proj.edits.append((heads, a.start, new_z(lens, a, heads, means)))
            continue
        put = drawn = None
        if a.mode == "noise":
            drawn = noise(a.seed, a.layer, a.site, a.index, widest, lens.dims.d_model)
        elif a.mode == "resample":
            sample = means.sample[a.site][a.layer]
            put = sample[[wrapped(p, sample) for p in range(widest)]]
        else:
            put = means.mean[a.site][a.layer] if a.mode == "mean" else torch.zeros(2, lens.dims.d_model)
        if a.site == "layer":
            model.model.layers[a.layer] = part = Layer(layer, a.start, put, drawn)
        else:
            name = {"attn": "self_attn", "mlp": "mlp"}[a.site]
            part = Sublayer(getattr(layer, name), a.start, put, drawn)
            setattr(layer, name, part)
    return model


def logits(lens, condition, means, tokens):
    """Logits of the model that was cut. Shape [pos, d_vocab]."""
    with torch.no_grad():
        return cut(lens, condition, means)(tokens[None], use_cache=False).logits[0]


def logprob(lens, condition, means, request):
    """Log-likelihood of a request by the model that was cut."""
    return by_hand.logprob(cut(lens, condition, means), request)
