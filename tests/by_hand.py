"""What the library computes, written again by hand on the Hugging Face model."""

from __future__ import annotations

import tiny
import torch


def random_tokens(n, seed, alphabet=256):
    return tuple(torch.randint(0, alphabet, (n,), generator=torch.Generator().manual_seed(seed)).tolist())


def attentions(family, tokens):
    """Attention of every layer by the model's own eager kernel. Each of shape [n_heads, pos, pos]."""
    model = tiny.model(family)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return [a[0] for a in model(torch.tensor([list(tokens)]), output_attentions=True).attentions]


def logprobs(lens, tokens, heads=()):
    """Log-probability of each token but the first, with z of some heads zeroed by hand."""
    d = lens.dims.d_head

    def zero(head):
        def hook(module, args):
            z = args[0].clone()
            z[..., head * d : (head + 1) * d] = 0
            return (z,)

        return hook

    handles = [lens.arch.o_proj[layer].register_forward_pre_hook(zero(head)) for layer, head in heads]
    with torch.no_grad():
        found = lens.model(torch.tensor([list(tokens)])).logits[0].double().log_softmax(-1)
    for handle in handles:
        handle.remove()
    return found[:-1].gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0].numpy()
