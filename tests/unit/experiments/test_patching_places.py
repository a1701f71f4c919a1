"""Patching of the residual stream, with a metric of one's own, and at named positions of prompts of unlike length."""

import numpy as np
import pytest
import tiny
import torch
from by_hand import recorded

from depthlens.experiments.patching import patch
from depthlens.models.architectures import hidden

LOGITS = 1e-4  # float32 sums in another order
QUIET = {"progress": False}
PAIRS = (["the cat sat", "a big hen ran"], ["the old dog sat", "the fox ran"])  # the tiny tokenizer reads bytes
SUBJECT = [((4, 7), (8, 11)), ((6, 9), (4, 7))]  # cat and dog, hen and fox
PLACES = {"subject": SUBJECT, "end": [-1, -1]}
A, B = 64, 65  # token ids


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("llama-gqa")


def surprise(logits):
    """How likely an "a" is after the last token, beside what is thought at the one before it."""
    return logits[:, -1].log_softmax(-1)[:, A] - 0.3 * logits[:, -2, B]


def by_hand(lens, source, target, parts, layer, read, put):
    """The metric, and the difference of two answers, where positions ``put`` have what ``read`` has on the source."""
    source, target = (lens.tokenizer(text).input_ids for text in (source, target))
    module = lens.arch.layers[layer] if parts == "resid" else lens.arch.mlp[layer]
    kept, _ = recorded(lens.model, source, {"part": module})
    (before, wrote) = kept["part"]

    def before_layer(module, args):
        x = args[0].clone()
        x[:, put] = before[0][:, read]
        return (x, *args[1:])

    def after_mlp(module, args, output):
        new = hidden(output).clone()
        new[:, put] = wrote[:, read]
        return new

    hook = module.register_forward_pre_hook(before_layer) if parts == "resid" else None
    hook = hook or module.register_forward_hook(after_mlp)
    _, logits = recorded(lens.model, target, {})
    hook.remove()
    return float(surprise(logits[None])), float(logits[-1, A] - logits[-1, B])


def positions(entry, text):
    """Positions of an entry in one text."""
    n = len(text)
    return [n - 1] if entry == -1 else [*range(*entry)]


@pytest.mark.parametrize("direction", ["restore", "break"])
@pytest.mark.parametrize("parts", ["resid", "mlp"])
def test_named_positions_of_prompts_of_unlike_length_equal_hooks(lens, parts, direction):
    """With a metric over positions and with answers; the sum over pairs of what moves, over the whole difference."""
    turn = 1 if direction == "restore" else -1
    options = {"positions": PLACES, "direction": direction, **QUIET}
    by_metric = patch(lens, *PAIRS, parts, metric=surprise, **options)
    by_answer = patch(lens, *PAIRS, parts, answer=("a", "b"), **options)
    both = [pair[::turn] for pair in zip(*PAIRS, strict=True)]
    wholes = np.array([[by_hand(lens, text, text, parts, 0, [0], [0]) for text in pair] for pair in both])
    gaps = (wholes[:, 0] - wholes[:, 1]).sum(0)  # of the metric, and of the answers
    assert by_metric.parts[:2] == (("L0.resid_pre", "L1.resid_pre") if parts == "resid" else ("L0.mlp", "L1.mlp"))
    for place, (name, entries) in enumerate(PLACES.items()):
        for layer in range(lens.dims.n_layers):
            moved = np.zeros(2)
            for pair, entry, base in zip(both, entries, wholes[:, 1], strict=True):
                spans = entry[::turn] if isinstance(entry, tuple) else (entry, entry)
                read, put = (positions(at, text) for at, text in zip(spans, pair, strict=True))
                moved += np.array(by_hand(lens, *pair, parts, layer, read, put)) - base
            ours = [found.effect.value[layer, place] for found in (by_metric, by_answer)]
            np.testing.assert_allclose(
                ours * np.abs(gaps), moved * np.sign(gaps), atol=LOGITS, err_msg=f"{name} L{layer}"
            )


def test_named_places_stand_in_table_sentences_and_figure(lens):
    found = patch(lens, *PAIRS, "mlp", metric=surprise, positions=PLACES, **QUIET)
    assert [lens.tokenizer(text).input_ids for text in "ab"] == [[A], [B]]
    assert found.table["position"].unique().tolist() == ["subject", "end"]
    assert (found.tokens, found.sources) == (("dog", "t"), ("cat", "t")), "of the first pair"
    clean, corrupted = found.differences[["clean", "corrupted"]].mean()
    said = f"surprise (mean of 2 pairs): {clean:.2f} on the clean prompt, {corrupted:.2f} on the corrupted one"
    title = found.plot().get_suptitle().replace("\n", " ")
    assert all(said in text for text in (repr(found), found.describe()[-1], title))
    assert any("at end ('t')" in line or "at subject ('dog', from 'cat')" in line for line in found.describe())
    labels = [label.get_text() for label in found.plot().axes[0].get_xticklabels()]
    assert labels == ["subject dog←cat", "end t"]


def test_a_metric_of_all_positions_equals_answers(lens):
    """The whole residual stream of all tokens but the last moves the same, whatever compares the prompts."""
    pair, answers = ("the cat sat", "the dog sat"), ("a", "b")
    right, wrong = (lens.tokenizer(text).input_ids[0] for text in answers)
    for parts in ("layers", "heads", "resid"):
        one = patch(lens, *pair, parts, answer=answers, **QUIET)
        two = patch(lens, *pair, parts, metric=lambda x: x[:, -1, right] - x[:, -1, wrong], **QUIET)
        gap = one.differences["clean"].mean() - one.differences["corrupted"].mean()  # an effect is a share of it
        np.testing.assert_allclose(gap * one.effect.value, gap * two.effect.value, atol=LOGITS)


def test_shorter_prompts_begin_with_rows_that_are_no_numbers(lens):
    seen = []

    def note(logits):
        seen.append(logits)
        return logits[:, -1, 0]

    patch(lens, *PAIRS, metric=note, positions={"end": [-1, -1]}, **QUIET)
    clean, longest = seen[0], max(map(len, PAIRS[0]))
    assert clean.shape[:2] == (2, longest)
    assert clean.isnan().all(-1).sum(-1).tolist() == [longest - len(text) for text in PAIRS[0]]
    for row, text in zip(clean, PAIRS[0], strict=True):
        with torch.no_grad():
            own = lens.model(**lens.tokenizer(text, return_tensors="pt")).logits[0]
        torch.testing.assert_close(row[-len(text) :], own, atol=LOGITS, rtol=0)


def test_that_nothing_is_found_is_said(lens):
    one = patch(lens, "the cat sat", "the dog sat", "heads", answer=("a", "b"), **QUIET)
    assert one.table["effect"].abs().max() > 0.1 and "No patch" not in repr(one) + " ".join(one.describe())
    nothing = patch(lens, "the cat sat", "the dog sat", "mlp", metric=surprise, positions={"the": [(0, 2)]}, **QUIET)
    assert nothing.effect.value.max() == 0
    assert nothing.describe()[0] == "No patch moves 0.1 of the difference." and nothing.describe()[0] in repr(nothing)
    many = patch(
        lens, ["the cat sat"] * 2, ["the dog sat"] * 2, metric=surprise, positions={"the": [(0, 2)] * 2}, **QUIET
    )
    assert many.describe()[0] == "No patch is shown to move the difference."
