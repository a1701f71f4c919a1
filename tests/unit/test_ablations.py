"""The condition grammar: parse_condition and print, canonical forms, and what is refused."""

import itertools
import random

import pytest

from depthlens.ablations import BASELINE, Ablation, Condition, Dims, expand, parse_condition
from depthlens.errors import UserError

DIMS = Dims(n_layers=6, n_heads=4, n_kv_heads=2, d_model=32, d_head=8)


@pytest.mark.parametrize(
    "text",
    [
        "baseline",
        "L0",
        "L12",
        "L12.attn",
        "L12.mlp",
        "L12.H3",
        "L12.KV1",
        "L8-11",
        "L3.H1+L9.H2",
        "L12.H3@mean",
        "L12.H3@resample",
        "L3.KV1@resample",
    ]
    + ["L4@mean", "L8-11@mean", "L2.attn+L2.mlp", "L0-1+L3+L5.KV0@mean", "L1.attn@mean+L1.mlp"],
)
def test_canonical_text_survives_a_round_trip(text):
    assert str(parse_condition(text)) == text


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("L9+L8", "L8-9"),
        ("L8-8", "L8"),
        ("L9.H2+L3.H1", "L3.H1+L9.H2"),
        (" L1 + L2 ", "L1-2"),
        ("L1+L2@mean", "L1+L2@mean"),
    ],
)
def test_other_spellings_print_canonically(text, canonical):
    assert str(parse_condition(text)) == canonical


def test_random_conditions_round_trip_and_are_hashable():
    rng = random.Random(0)
    parts = [Ablation(layer) for layer in range(6)]
    parts += [Ablation(layer, site, mode=m) for layer in range(6) for site in ("attn", "mlp") for m in ("zero", "mean")]
    parts += [Ablation(layer, "head", h) for layer in range(6) for h in range(4)]
    done = 0
    while done < 200:
        try:
            condition = Condition(tuple(rng.sample(parts, rng.randint(1, 5))))
        except UserError:  # overlapping parts are refused, tested below
            continue
        assert parse_condition(str(condition)) == condition
        assert hash(parse_condition(str(condition))) == hash(condition)
        done += 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("12", "cannot read '12'"),
        ("L12.H", "cannot read"),
        ("L12.heads", "cannot read"),
        ("L-1", "cannot read"),
        ("L3,L4", "cannot read"),
        ("L1+", "cannot read"),
        ("L3@zero", "unknown mode '@zero'"),
        ("L5-3", "runs backwards"),
        ("L3-5.attn", "whole layers"),
        ("L3+L3", "names one part twice"),
        ("L3+L3.H1", "L3.H1 has no effect of its own beside L3"),
        ("L3.attn+L3.H1", "no effect"),
        ("L3+L3@mean", "no effect"),
    ],
)
def test_malformed_conditions_are_refused(text, message):
    with pytest.raises(UserError, match=message.replace("+", r"\+")):
        parse_condition(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("L6", r"layer 6 does not exist; layers are 0\.\.5"),
        ("L0-6", "layer 6 does not exist"),
        ("L2.H4", r"head 4 does not exist; heads are 0\.\.3"),
        ("L2.KV2", r"KV group 2 does not exist; groups are 0\.\.1"),
        ("L2.KV1+L2.H3", "L2.H3 has no effect"),
    ],
)
def test_parts_the_model_does_not_have_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_condition(text).validate(DIMS)


def test_a_head_of_another_group_is_no_overlap():
    assert str(parse_condition("L2.KV1+L2.H1").validate(DIMS)) == "L2.H1+L2.KV1"


def test_an_ablation_with_a_mode_that_does_not_fit_is_refused():
    for site, mode in itertools.product(("layer", "attn"), ("skip", "zero")):
        if (site, mode) in (("layer", "skip"), ("attn", "zero")):
            assert Ablation(0, site, mode=mode) == Ablation(0, site)
        else:
            with pytest.raises(UserError, match="does not fit"):
                Ablation(0, site, mode=mode)
    with pytest.raises(UserError, match="index"):
        Ablation(0, "head")
    with pytest.raises(UserError, match="index"):
        Ablation(0, "attn", 3)


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        ("layers", 6),
        ("attn", 6),
        ("mlp", 6),
        ("heads", 24),
        ("kv", 12),
        ("blocks:3", 6 + 5 + 4),
        ("L1,L2.H3", 2),
    ],
)
def test_expand_puts_the_baseline_first_and_counts_right(spec, count):
    conditions = expand(spec, DIMS)
    assert conditions[0] is BASELINE
    assert len(conditions) == len(set(conditions)) == count + 1


def test_expand_mean_words_and_sequences():
    assert [str(c) for c in expand("attn@mean", DIMS)][:2] == ["baseline", "L0.attn@mean"]
    assert expand(["L1", parse_condition("L1"), "baseline"], DIMS) == [BASELINE, parse_condition("L1")]


@pytest.mark.parametrize("spec", ["layer", "blocks:0", "blocks:7", "blocks:x", "", "layers@median", "L1,L9"])
def test_expand_refuses(spec):
    with pytest.raises(UserError):
        expand(spec, DIMS)


def test_layer_head_and_first_layer_of_a_condition():
    assert (parse_condition("L3.H1").layer, parse_condition("L3.H1").head, parse_condition("L3.H1").first_layer) == (
        3,
        1,
        3,
    )
    assert (parse_condition("L3.attn+L3.mlp").layer, parse_condition("L3.attn").head) == (3, None)
    assert (parse_condition("L2-4").layer, parse_condition("L2-4").first_layer) == (None, 2)
    assert (BASELINE.layer, BASELINE.first_layer) == (None, None)
