"""The torch backend against a hand-written forward pass, and what its hooks do to heads and means."""

import pytest
import tiny
import torch
from by_hand import recorded

from depthlens.ablations import BASELINE, parse_condition
from depthlens.backends.torch import TorchBackend
from depthlens.engine.references import measure_means
from depthlens.errors import UserError

# float32 rounding of one matmul order against another, over five layers with activations of order 10
SURGERY_TOLERANCE = 2e-4

TOKENS = torch.randint(0, 256, (1, 9), generator=torch.Generator().manual_seed(0))


def logits(lens, *conditions, means=None):
    """Logits of TOKENS under each condition, one batch. Shape [condition, pos, d_vocab]."""
    rows = TOKENS.repeat(len(conditions), 1)
    wanted = [range(TOKENS.shape[1])] * len(rows)
    out, _ = TorchBackend(lens, means).forward(rows, torch.ones_like(rows), list(conditions), positions=wanted)
    return torch.stack(out)


def is_hooked(lens):
    return "has hooks on" in (lens.identify().obstacle or "")


@pytest.fixture(scope="module", params=["llama-gqa", "qwen3-moe", "deepseek-v3"])
def lens(request):
    return tiny.lens(request.param)


def test_baseline_is_the_model_itself(lens):
    assert torch.equal(logits(lens, BASELINE)[0], lens.model(TOKENS).logits[0])


def test_model_is_whole_again_after_the_context_and_after_an_exception(lens):
    before = logits(lens, BASELINE)
    backend = TorchBackend(lens)
    with pytest.raises(RuntimeError, match="stop"), backend.ablate([parse_condition("L1"), parse_condition("L2.H1")]):
        assert is_hooked(lens)
        raise RuntimeError("stop")
    for text, said in (("L9", "layer 9 does not exist"), ("L1.attn@mean", "needs the means")):
        with pytest.raises(UserError, match=said), backend.ablate([parse_condition("L1"), parse_condition(text)]):
            pass
    assert not is_hooked(lens)
    assert torch.equal(before, logits(lens, BASELINE))


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
    with TorchBackend(lens, means).ablate([parse_condition("L1.H2@mean")], torch.arange(length)[None]):
        handle = lens.arch.o_proj[1].register_forward_pre_hook(lambda m, a: received.append(a[0]))
        lens.model(TOKENS)
        handle.remove()
    got = received[0].unflatten(-1, (lens.dims.n_heads, lens.dims.d_head))
    assert torch.allclose(got[0, :, 2], means.mean["z"][1, :, 2][[0] + [1] * (length - 1)])


def rms(x, weight, eps):
    return x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weight


def rotate(x, theta):
    """Rotary embedding by complex multiplication. Shape [pos, n_heads, d_head]."""
    pos, _, d = x.shape
    angle = torch.arange(pos)[:, None] * theta ** (-torch.arange(0, d, 2) / d)
    spun = torch.complex(x[..., : d // 2], x[..., d // 2 :]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat([spun.real, spun.imag], -1)


def by_hand(lens, skip=(), no_attn=(), no_mlp=(), no_heads=()):
    """A LLaMA-like forward pass written out, with parts left out. Shape [pos, d_vocab]."""
    cfg, w = lens.model.config, {k: v for k, v in lens.model.state_dict().items()}
    d, n, n_kv = lens.dims.d_head, lens.dims.n_heads, lens.dims.n_kv_heads
    theta = cfg.rope_parameters["rope_theta"]
    x = w["model.embed_tokens.weight"][TOKENS[0]]
    causal = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    for i in range(cfg.num_hidden_layers):
        if i in skip:
            continue
        p = f"model.layers.{i}."

        def lin(name, v, p=p):
            return v @ w[p + name + ".weight"].T + w.get(p + name + ".bias", 0)

        h = rms(x, w[p + "input_layernorm.weight"], cfg.rms_norm_eps)
        q, k, v = (lin(f"self_attn.{s}_proj", h).view(len(x), -1, d) for s in "qkv")
        if p + "self_attn.q_norm.weight" in w:
            q = rms(q, w[p + "self_attn.q_norm.weight"], cfg.rms_norm_eps)
            k = rms(k, w[p + "self_attn.k_norm.weight"], cfg.rms_norm_eps)
        q, k = rotate(q, theta), rotate(k, theta)
        z = torch.zeros(len(x), n, d)
        for head in range(n):
            if (i, head) in no_heads:
                continue
            group = head // (n // n_kv)
            scores = (q[:, head] @ k[:, group].T / d**0.5).masked_fill(~causal, -torch.inf)
            z[:, head] = scores.softmax(-1) @ v[:, group]
        if i not in no_attn:
            x = x + lin("self_attn.o_proj", z.flatten(1))
        h = rms(x, w[p + "post_attention_layernorm.weight"], cfg.rms_norm_eps)
        if i not in no_mlp:
            x = x + lin("mlp.down_proj", torch.nn.functional.silu(lin("mlp.gate_proj", h)) * lin("mlp.up_proj", h))
    return rms(x, w["model.norm.weight"], cfg.rms_norm_eps) @ w["lm_head.weight"].T


@pytest.mark.parametrize("family", ["llama-gqa", "llama-mqa", "qwen2", "qwen3"])
def test_conditions_equal_a_hand_written_forward_pass(family):
    lens = tiny.lens(family)
    cases = {
        "baseline": {},
        "L2": {"skip": [2]},
        "L1-3": {"skip": [1, 2, 3]},
        "L3.attn": {"no_attn": [3]},
        "L0.mlp": {"no_mlp": [0]},
        "L1.H2": {"no_heads": [(1, 2)]},
        "L4.KV0": {"no_heads": [(4, h) for h in lens.dims.query_heads(0)]},
        "L0.H3+L2.mlp+L3": {"no_heads": [(0, 3)], "no_mlp": [2], "skip": [3]},
    }
    for text, parts in cases.items():
        drift = (logits(lens, parse_condition(text))[0] - by_hand(lens, **parts)).abs().max().item()
        assert drift < SURGERY_TOLERANCE, f"{family} {text}: drift {drift:.2e}, bound {SURGERY_TOLERANCE:.0e}"
