"""States of the residual stream are those of the model's own forward pass, of whatever is in force."""

import numpy as np
import pytest
import tiny
import torch

import depthlens as dl

STATES = 1e-4  # float32 sums in another order
TEXTS = ["the cat sat", "a dog", "the cat sat"]


def by_hand(lens, position):
    """Before each layer and after the last, by hooks. Shape [text, depth, d_model]."""
    found = []
    for text, at in zip(TEXTS, position, strict=True):
        kept = []
        hooks = [
            layer.register_forward_pre_hook(lambda module, args, kept=kept: kept.append(args[0]))
            for layer in lens.arch.layers
        ]
        hooks += [lens.arch.final_norm.register_forward_pre_hook(lambda module, args, kept=kept: kept.append(args[0]))]
        with torch.no_grad():
            lens.model(**lens.tokenizer(text, return_tensors="pt"))
        for hook in hooks:
            hook.remove()
        found.append(torch.stack([x[0, at] for x in kept]).numpy())
    return np.stack(found)


@pytest.mark.parametrize("family", ["llama-gqa", "qwen3-moe"])
def test_states_are_those_of_a_forward_pass(family):
    lens = tiny.lens(family)
    found = dl.residual(lens, TEXTS, position=[-1, 1, 4])
    np.testing.assert_allclose(found.values, by_hand(lens, [-1, 1, 4]), atol=STATES)
    assert (found.depths, found.texts) == (tuple(range(lens.dims.n_layers + 1)), tuple(TEXTS))
    assert found.tokens == ("t", " ", "c")
    some = dl.residual(lens, TEXTS, [3, 1], [-1, 1, 4])
    np.testing.assert_array_equal(some.values, found.values[:, [3, 1]])


def test_a_condition_that_is_in_force_acts_on_them():
    lens = tiny.lens("llama-gqa")
    skip = lens.arch.layers[2].register_forward_hook(lambda module, args, output: args[0])
    skipped = by_hand(lens, [-1, -1, -1])
    skip.remove()
    with dl.ablated(lens, "L2"):
        without = dl.residual(lens, TEXTS)
    np.testing.assert_allclose(without.values, skipped, atol=STATES)
    assert not np.allclose(dl.residual(lens, TEXTS).values, skipped, atol=STATES)
