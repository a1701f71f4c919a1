"""Activation patching finds planted heads at their tokens, and equals hooks that are written by hand."""

import itertools

import model_classes
import numpy as np
import pytest
import tiny
import torch
from by_hand import recorded
from refusals import refused

import depthlens as dl
from depthlens.models.architectures import hidden

LOGITS = 1e-4  # float32 sums in another order
QUIET = {"progress": False}


TRIED = [("layers", "restore"), ("attn", "break"), ("mlp", "restore"), ("heads", "break")]


@pytest.mark.parametrize(("parts", "direction"), TRIED)
def test_every_cell_equals_a_hook(parts, direction):
    lens = tiny.lens("llama-gqa")
    a, d = lens.arch, lens.dims.d_head
    modules = {"layers": a.layers, "attn": a.attn, "mlp": a.mlp, "heads": a.o_proj}[parts]
    pair, answers = ("the cat sat", "the dog sat"), ("a", "b")
    found = dl.patch(lens, *pair, parts, answer=answers, direction=direction, **QUIET)
    source, target = pair[:: 1 if direction == "restore" else -1]
    assert ("".join(found.sources), "".join(found.tokens)) == (source, target)
    source, target = (lens.tokenizer(text).input_ids for text in (source, target))
    right, wrong = (lens.tokenizer(text).input_ids[0] for text in answers)
    kept, logits = recorded(lens.model, source, dict(enumerate(modules)))

    def difference(logits):
        return float(logits[-1, right] - logits[-1, wrong])

    whole = [difference(logits), difference(recorded(lens.model, target, {})[1])]
    columns = ["clean", "corrupted"][:: 1 if direction == "restore" else -1]
    assert found.differences[columns].to_numpy()[0] == pytest.approx(whole, abs=LOGITS)
    assert found.top(3)["effect"].abs().tolist() == sorted(found.table["effect"].abs())[:-4:-1], "of either sign"
    for (i, part), at in itertools.product(enumerate(found.parts), range(len(source))):
        layer, head = divmod(lens.dims.head_names.index(part), lens.dims.n_heads) if parts == "heads" else (i, 0)
        (read, wrote), columns = kept[layer], slice(head * d, (head + 1) * d)

        def put_head(module, args, read=read, at=at, columns=columns):
            z = args[0].clone()
            z[:, at, columns] = read[0][:, at, columns]
            return (z,)

        def put(module, args, output, read=read, wrote=wrote, at=at):
            new = hidden(output).clone()
            new[:, at] = wrote[:, at] + (args[0][:, at] - read[0][:, at] if parts == "layers" else 0)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        module = modules[layer]
        hook = module.register_forward_pre_hook(put_head) if parts == "heads" else module.register_forward_hook(put)
        by_hand = difference(recorded(lens.model, target, {})[1])
        hook.remove()
        ours = whole[1] + found.effect.value[i, at] * (whole[0] - whole[1])
        assert ours == pytest.approx(by_hand, abs=LOGITS), (part, at)


def likelier_first(lens, pair, answers):
    """Two answers, first that which the clean prompt makes likelier than the corrupted one does."""
    right, wrong = (lens.tokenizer(text).input_ids[0] for text in answers)
    with torch.no_grad():
        logits = [lens.model(**lens.tokenizer(text, return_tensors="pt")).logits[0, -1] for text in pair]
    clean, corrupted = (float(x[right] - x[wrong]) for x in logits)
    return answers if clean > corrupted else answers[::-1]


def test_a_mean_over_pairs_has_intervals_and_one_pair_has_none():
    lens = tiny.lens("llama-gqa")
    one = dl.patch(lens, "the cat sat", "the dog sat", answer=("a", "b"), **QUIET)
    assert np.isnan(one.table["ci_low"]).all()
    pairs = [("the cat sat", "the dog sat"), ("the hen sat", "the fox sat")]
    answers = [likelier_first(lens, pair, told) for pair, told in zip(pairs, [("a", "b"), ("c", "d")], strict=True)]
    each = [dl.patch(lens, *pair, answer=told, **QUIET) for pair, told in zip(pairs, answers, strict=True)]
    both = dl.patch(lens, *zip(*pairs, strict=True), answer=answers, **QUIET)
    gaps = both.differences["clean"] - both.differences["corrupted"]  # W9: a pair without a difference has no weight
    wanted = np.average([x.effect.value for x in each], axis=0, weights=gaps)
    np.testing.assert_allclose(both.effect.value, wanted, atol=1e-5)
    assert one.table["p_adjusted"].isna().all() and both.table["p_adjusted"].between(0, 1).all()
    assert "p_adjusted" not in " ".join(one.describe()) and "(not shown, p_adjusted = " in " ".join(both.describe())
    assert (both.table["ci_low"] <= both.table["effect"]).all() and np.isfinite(both.table["ci_low"]).all()


@pytest.mark.parametrize("direction", ["restore", "break"])
def test_what_is_compared_is_named_with_its_numbers(direction):
    """In what is printed, in the sentences and in the figure."""
    lens = dl.load("organism", device="cpu")
    clean, corrupted = "Ada Ben SEP Cleo Dora SEP QA Cleo", "Ada Dora SEP Cleo Ben SEP QA Cleo"
    found = dl.patch(lens, clean, corrupted, direction=direction, **QUIET)
    (right, wrong, *values) = found.differences.loc[0]
    assert (right.strip(), wrong.strip()) == ("Dora", "Ben") and values[0] > 0 > values[1]
    named = f"log-probability of {right!r} minus that of {wrong!r}"
    numbers = f": {values[0]:.2f} on the clean prompt, {values[1]:.2f} on the corrupted one"
    title = found.plot().get_suptitle().replace("-\n", "-").replace("\n", " ")
    assert all(named + numbers in text for text in (repr(found), found.describe()[-1], title))
    twice = dl.patch(lens, [clean] * 2, [corrupted] * 2, direction=direction, **QUIET)
    assert f"{named} (mean of 2 pairs, of which this is the first){numbers}" in repr(twice)


@pytest.mark.parametrize(("family", "direction"), [("llama-gqa", "restore"), ("qwen3", "break")])
@pytest.mark.parametrize("parts", ["q", "k", "v"])
def test_queries_keys_and_values_equal_hooks_on_their_projections(parts, family, direction):
    """A key or value belongs to a KV group, and changes what later tokens read; norms and rotary come after."""
    lens = tiny.lens(family)
    d, modules = lens.dims.d_head, [attn.get_submodule(f"{parts}_proj") for attn in lens.arch.attn]
    pair, answers = ("the cat sat", "the dog sat"), ("a", "b")
    found = dl.patch(lens, *pair, parts, answer=answers, direction=direction, **QUIET)
    right, wrong = (lens.tokenizer(text).input_ids[0] for text in answers)
    by_metric = dl.patch(
        lens, *pair, parts, metric=lambda x: x[:, -1, right] - x[:, -1, wrong], direction=direction, **QUIET
    )
    source, target = (lens.tokenizer(text).input_ids for text in pair[:: 1 if direction == "restore" else -1])
    kept, logits = recorded(lens.model, source, dict(enumerate(modules)))
    whole = [float(x[-1, right] - x[-1, wrong]) for x in (logits, recorded(lens.model, target, {})[1])]
    gap = whole[0] - whole[1]  # an effect is a share of it: as logits, both have the same tolerance whatever the gap
    np.testing.assert_allclose(gap * found.effect.value, gap * by_metric.effect.value, atol=LOGITS)
    n_heads = lens.dims.n_heads if parts == "q" else lens.dims.n_kv_heads
    assert found.effect.value.shape == (lens.dims.n_layers * n_heads, len(source))
    for (i, part), at in itertools.product(enumerate(found.parts), range(len(source))):
        layer, head = divmod(i, n_heads)
        assert part == f"L{layer}.{'H' if parts == 'q' else 'KV'}{head}.{parts}"

        def put(module, args, output, at=at, wrote=kept[layer][1], columns=slice(head * d, (head + 1) * d)):
            new = output.clone()
            new[:, at, columns] = wrote[:, at, columns]
            return new

        hook = modules[layer].register_forward_hook(put)
        logits = recorded(lens.model, target, {})[1]
        hook.remove()
        ours = whole[1] + found.effect.value[i, at] * gap
        assert ours == pytest.approx(float(logits[-1, right] - logits[-1, wrong]), abs=LOGITS), (part, at)
    assert np.abs(found.effect.value).max() > 100 * LOGITS


def test_what_cannot_be_patched_inside_attention_is_refused():
    gated, pair = model_classes.lens("laguna"), ("the cat sat", "the dog sat")
    refused("write something else than attention gives; patch heads", dl.patch, gated, *pair, "q", **QUIET)
    lens = tiny.lens("llama-gqa")
    refused("answers of one token are compared", dl.patch, lens, *pair, "k", answer=("abc", "b"), **QUIET)
