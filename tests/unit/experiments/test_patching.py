"""Activation patching finds planted heads at their tokens, and equals hooks that are written by hand."""

import numpy as np
import organism_prompts
import pytest
import tiny
import torch

import depthlens as dl
from depthlens.errors import UserError
from depthlens.experiments.patching import patch

FOUND, NOTHING = 0.2, 0.15  # of the whole effect: planted heads share it, and noise heads have at most so much
LOGITS = 1e-4  # float32 sums in another order
QUIET = {"progress": False}


NIGHTLY = [pytest.param(seed, marks=pytest.mark.nightly) for seed in (1, 2)]


@pytest.mark.parametrize("direction", ["restore", pytest.param("break", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("seed", [0, *NIGHTLY])
@pytest.mark.parametrize(("task", "copying"), [("one_hop", "L2.H1"), ("two_hop", "L4.H3")])
def test_planted_heads_are_found_at_their_tokens_and_nothing_else(task, copying, seed, direction):
    """Two facts change subjects: the previous-token head carries it at both facts, the copying head at the end."""
    lens = dl.load(dl.organisms.Options(seed=seed).name, device="cpu")
    prompt = organism_prompts.sample(1, task, seed=seed)[0]
    words = prompt.text.split()
    facts = [i - 1 for i, word in enumerate(words) if word == "SEP"]
    place = prompt.answer_at - 1  # without <bos>
    other = next(i for i in facts if i not in (place, prompt.bridge_at - 1) and words[i] != prompt.answer)
    changed = list(words)
    changed[place - 1], changed[other - 1] = words[other - 1], words[place - 1]
    answers = prompt.answer, words[other]
    found = patch(lens, prompt.text, " ".join(changed), "heads", answer=answers, direction=direction, **QUIET)
    effects = found.table.set_index(["part", "position"])["effect"]
    at_end = copying, len(words)
    carriers = {at_end, ("L1.H2", place + 1), ("L1.H2", other + 1)}
    large = {*effects.index[effects.abs() > FOUND]}
    assert at_end in large and large <= carriers
    assert effects.drop([*carriers]).abs().max() < NOTHING


@pytest.mark.parametrize("parts", ["layers", "attn", "mlp", "heads"])
def test_every_cell_equals_a_hook(parts):
    lens = tiny.lens("llama-gqa")
    clean, corrupted, answers = "the cat sat", "the dog sat", ("a", "b")
    found = patch(lens, clean, corrupted, parts, answer=answers, **QUIET)
    rows = [torch.tensor([lens.tokenizer(text).input_ids]) for text in (clean, corrupted)]
    right, wrong = (lens.tokenizer(text).input_ids[0] for text in answers)

    def difference(tokens):
        with torch.no_grad():
            logits = lens.model(tokens).logits[0, -1]
        return float(logits[right] - logits[wrong])

    whole = [difference(row) for row in rows]
    assert found.differences.to_numpy()[0] == pytest.approx(whole, abs=LOGITS)
    names, n_pos, d_head = lens.dims.head_names, rows[0].shape[1], lens.dims.d_head
    for i, part in enumerate(found.parts):
        layer, head = (
            (names.index(part) // lens.dims.n_heads, names.index(part) % lens.dims.n_heads)
            if parts == "heads"
            else (i, 0)
        )
        block = lens.model.model.layers[layer]
        module = {"layers": block, "attn": block.self_attn, "mlp": block.mlp, "heads": block.self_attn.o_proj}[parts]
        columns = slice(head * d_head, (head + 1) * d_head) if parts == "heads" else slice(None)
        kept = {}

        def states(args, kwargs, output, parts=parts):
            x = args[0] if args else kwargs["hidden_states"]
            out = output[0] if isinstance(output, tuple) else output
            return x, (out - x if parts == "layers" else out)

        def keep(module, args, kwargs, output=None, states=states, kept=kept, parts=parts):
            kept["value"] = args[0].clone() if parts == "heads" else states(args, kwargs, output)[1].clone()

        register = module.register_forward_pre_hook if parts == "heads" else module.register_forward_hook
        hook = register(keep, with_kwargs=True)
        difference(rows[0])
        hook.remove()
        for at in range(n_pos):

            def put(module, args, kwargs, output=None, at=at, states=states, kept=kept, parts=parts, columns=columns):
                if parts == "heads":
                    z = args[0].clone()
                    z[:, at, columns] = kept["value"][:, at, columns]
                    return (z,), kwargs
                x, _ = states(args, kwargs, output)
                new = (output[0] if isinstance(output, tuple) else output).clone()
                new[:, at] = kept["value"][:, at] + (x[:, at] if parts == "layers" else 0)
                return (new, *output[1:]) if isinstance(output, tuple) else new

            hook = register(put, with_kwargs=True)
            by_hand = difference(rows[1])
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
    one = patch(lens, "the cat sat", "the dog sat", answer=("a", "b"), **QUIET)
    assert np.isnan(one.table["ci_low"]).all()
    pairs = [("the cat sat", "the dog sat"), ("the hen sat", "the fox sat")]
    answers = [likelier_first(lens, pair, told) for pair, told in zip(pairs, [("a", "b"), ("c", "d")], strict=True)]
    each = [patch(lens, *pair, answer=told, **QUIET) for pair, told in zip(pairs, answers, strict=True)]
    both = patch(lens, *zip(*pairs, strict=True), answer=answers, **QUIET)
    np.testing.assert_allclose(both.effect.value, np.mean([x.effect.value for x in each], axis=0), atol=1e-6)
    assert (both.table["ci_low"] <= both.table["effect"]).all() and np.isfinite(both.table["ci_low"]).all()


@pytest.mark.parametrize(
    ("clean", "corrupted", "options", "told"),
    [
        ("the cat", "the cats", {}, "7 and 8 tokens"),
        ("the cat", "the cat", {}, "give prompts that differ"),
        (["a", "b"], ["c"], {}, "2 clean and 1 corrupted"),
    ],
)
def test_what_cannot_be_patched_is_refused(clean, corrupted, options, told):
    with pytest.raises(UserError, match=told):
        patch(tiny.lens("llama-gqa"), clean, corrupted, **options, **QUIET)
