"""Hooks of the torch backend: the model is whole again, and means take the place of what a part adds."""

import pytest
import tiny
import torch
from by_hand import recorded, under

from depthlens.ablations import parse_condition
from depthlens.engine.references import measure_means

TOKENS = torch.randint(0, 256, (1, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["llama-gqa", "qwen3-moe", "deepseek-v3"])
def lens(request):
    return tiny.lens(request.param)


def by_class(seen):
    """Means of what was seen of two texts: of first tokens and of all others."""
    first, rest = (torch.cat([of[0, at] for of in seen]).mean(0) for at in (slice(1), slice(1, None)))
    return torch.stack([first, rest])


def test_mean_ablation_puts_the_mean_of_the_tokens_class_in_place(lens):
    prompt, answer = TOKENS[0].tolist(), [9, 8, 7]
    means = measure_means(lens, [[*prompt, *answer], [1, 2, 3, 4]], "two texts")
    seen = {"layer": [], "attn": [], "mlp": [], "z": []}
    a = lens.arch
    modules = {"layer": a.layers[1], "attn": a.attn[1], "mlp": a.mlp[1], "z": a.o_proj[1]}
    for text in ([*prompt, *answer], [1, 2, 3, 4]):
        for site, (args, out) in recorded(lens, text, modules)[0].items():
            seen[site].append((args[0] if site == "z" else out - args[0] if site == "layer" else out).double())
    for site in ("layer", "attn", "mlp", "z"):
        wanted = by_class(seen[site])
        assert torch.allclose(means.mean[site][1].flatten(1).double(), wanted, atol=1e-5), site
        assert (wanted[0] - wanted[1]).abs().max() > 0.01
    received, length = [], TOKENS.shape[1]
    with under(lens, [parse_condition("L1.H2@mean")], means, torch.arange(length)[None]):
        handle = lens.arch.o_proj[1].register_forward_pre_hook(lambda m, a: received.append(a[0]))
        lens.model(TOKENS)
        handle.remove()
    got = received[0].unflatten(-1, (lens.dims.n_heads, lens.dims.d_head))
    assert torch.allclose(got[0, :, 2], means.mean["z"][1, :, 2][[0] + [1] * (length - 1)])
