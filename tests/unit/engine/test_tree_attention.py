"""Attention over packed prefix trees: every kernel equals one masked softmax."""

import pytest
import torch
from trees import random_sequences, sees

from depthlens.engine import tree_attention
from depthlens.engine.prefix_tree import build, pack
from depthlens.engine.tree_attention import Layout, fused

CPU = torch.device("cpu")
TOLERANCE = 1e-5  # float32 softmax of outputs of about 1, in another order, or in two parts


def drawn(n_rows, n, d_value=8, heads=(4, 2), dtype=torch.float32):
    """Queries, keys and values of n_rows rows of n tokens."""
    g = torch.Generator().manual_seed(0)
    shapes = (n_rows, heads[0], n, 8), (n_rows, heads[1], n, 8), (n_rows, heads[1], n, d_value)
    return [torch.randn(*shape, generator=g).to(dtype) for shape in shapes]


def plain(q, k, v, scale, visible):
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return (q @ k.transpose(-1, -2) * scale).masked_fill(~visible, -torch.inf).softmax(-1) @ v


PACKS = {
    "prefix and branches": lambda: next(pack(random_sequences(3), 10_000)),
    "no prefix": lambda: build([(1, 2, 3), (1, 2), (4, 5, 6), (4, 5, 7)], range(4)),
    "one sequence": lambda: build([tuple(range(9))], [0]),
    "one token": lambda: build([(5,)], [0]),
    "several blocks": lambda: build([(*range(200), i, *[7] * (i + 9), j) for i in range(5) for j in (1, 2)], range(10)),
    "prompts that do not branch": lambda: build([(*range(60),), (*range(100, 155),), (*range(200, 209),)], range(3)),
    "in no order": lambda: build(random_sequences(4), [17, 3, 30, 8, 21, 2, 39, 11]),
}


@pytest.mark.parametrize("d_value", [8, 6])  # on a CPU equal widths take the fused kernel, others the written-out path
@pytest.mark.parametrize("name", PACKS)
def test_tree_attention_equals_one_masked_softmax(name, d_value):
    p = PACKS[name]()
    q, k, v = drawn(3, p.n_tokens, d_value)
    layout = Layout(p, CPU)
    for rows in (1, 3):
        got = layout.attention(0, q[:rows], k[:rows], v[:rows], 0.3)
        assert got.shape == (rows, 4, p.n_tokens, d_value)
        assert torch.allclose(got, plain(q[:rows], k[:rows], v[:rows], 0.3, sees(p)), atol=TOLERANCE)
    for before in {p.n_prefix // 2, min(p.n_prefix, p.n_tokens - 1)} - {0}:  # tokens that all rows have in common
        k[:, :, :before], v[:, :, :before] = k[:1, :, :before], v[:1, :, :before]
        later = Layout(p, CPU, before={0: (k[0], v[0])}, n_before=before)
        got = later.attention(0, *(x[:, :, before:] for x in (q, k, v)), 0.3)
        assert torch.allclose(got, plain(q, k, v, 0.3, sees(p))[:, :, before:], atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("d_value", "masked"), [(64, False), (48, True)])
def test_calls_of_cuda_kernels_fit_their_signatures_and_shapes(dtype, d_value, masked):
    """No GPU is at hand: on the meta device torch checks arguments and computes shapes, not values."""
    q, k = torch.empty(2, 4, 50, 64, dtype=dtype, device="meta"), torch.empty(2, 4, 70, 64, dtype=dtype, device="meta")
    v = torch.empty(2, 4, 70, d_value, dtype=dtype, device="meta")
    mask = torch.empty(2, 1, 1, 72, dtype=dtype, device="meta")[..., :70] if masked else None
    out, lse = fused(q, k, v, 0.1, mask, False)
    assert (out.shape, out.dtype) == ((2, 4, 50, d_value), dtype)
    assert (lse.shape, lse.dtype) == ((2, 4, 50), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("d_value", [8, 12])
def test_a_cpu_gets_the_fused_kernel_and_unequal_widths_the_written_out_one(dtype, d_value, monkeypatch):
    q, k, v = (x[:, :2] for x in drawn(2, 20, d_value, dtype=dtype))
    wanted = plain(*(x.double() for x in (q, k, v)), 0.3, torch.ones(20, 20, dtype=torch.bool))
    out, _ = tree_attention.attend(q, k, v, 0.3)
    assert (out.double() - wanted).abs().max() < {torch.float16: 1e-2, torch.bfloat16: 5e-2}.get(dtype, TOLERANCE)
    monkeypatch.setattr(tree_attention, "fused", None)
    assert d_value == 8 or tree_attention.attend(q, k, v, 0.3)[0].equal(out)
