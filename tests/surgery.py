"""Tiny models of which every part matters, and an independent reference of them under every kind of condition."""

import by_hand
import plain_conditions
import tiny
import torch


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


def cut(lens, condition, means):
    """A copy of ``lens.model`` under a condition."""
    return plain_conditions.cut(lens.model, plain_conditions.edits(condition, lens, means))


def logits(lens, condition, means, tokens):
    """Logits of the model that was cut. Shape [pos, d_vocab]."""
    with torch.no_grad():
        return cut(lens, condition, means)(tokens[None], use_cache=False).logits[0]


def logprob(lens, condition, means, request):
    """Log-likelihood of a request by the model that was cut."""
    return by_hand.logprob(cut(lens, condition, means), request)
