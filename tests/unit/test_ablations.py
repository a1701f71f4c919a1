"""The condition grammar: parse_condition and print, canonical forms, and what is refused."""

import itertools
import random

import pytest
from refusals import refused

from depthlens.ablations import BASELINE, Ablation, Condition, Dims, expand, parse_condition
from depthlens.errors import UserError

DIMS = Dims(n_layers=6, n_heads=4, n_kv_heads=2, d_model=32, d_head=8)


CANONICAL = """
baseline L0 L12 L12.H3 L8-11 L3.H1+L9.H2 L12.H3@mean L3.KV1@resample L12@resample L8-11[1:]@resample L4@mean L8-11@mean
L2.attn+L2.mlp L0-1+L3+L5.KV0@mean L1.attn@mean+L1.mlp L12[1:] L12.attn[1:] L12.H3[1:]@mean L8-11[1:] L2.mlp[17:]@noise3
embed@donor embed@donor+unembed@donor+L0-4@donor L2.H1+L2@donor L0-1+L3-4@donor L4@noise L8-11[1:]@noise12 L3.KV0@noise
L1[1:]+L2 L1-2[1:]+L3-4[2:] L2.H1+L2[1:] L12.KV1[1:]@resample (L1-3)x2 L1*0.9 L1[1:]*1e-05 L1.KV0[2]*0.1 L1.H0*-0.5 L1*0
""".split()
OTHERWISE = {
    **{"L9+L8": "L8-9", "L9.H2+L3.H1": "L3.H1+L9.H2", " L1 + L2 ": "L1-2", "L1[0:]": "L1"},
    **{"(L2-2)x2": "L2x2", "L4+(L1-3)x2": "(L1-3)x2+L4", "L1*0.90": "L1*0.9", "L2*2.0+L1*2": "L1-2*2"},
    **{"L1.H0*-.5": "L1.H0*-0.5", "L1*-0": "L1*0"},
    **{"L1[01:]@noise0": "L1[1:]@noise", "L2[1:]+L1[1:]": "L1-2[1:]", "L2[1:]+L2.H1": "L2.H1+L2[1:]"},
}


@pytest.mark.parametrize(("text", "canonical"), [*zip(CANONICAL, CANONICAL, strict=True), *OTHERWISE.items()])
def test_a_condition_prints_canonically(text, canonical):
    assert str(parse_condition(text)) == canonical


def test_random_conditions_round_trip_and_are_hashable():
    rng = random.Random(0)
    parts = [Ablation(layer) for layer in range(6)]
    parts += [Ablation(layer, site, mode=m) for layer in range(6) for site in ("attn", "mlp") for m in ("zero", "mean")]
    parts += [Ablation(layer, "head", h) for layer in range(6) for h in range(4)]
    parts += [Ablation(layer, start=n) for layer in range(6) for n in (1, 2)]
    parts += [Ablation(layer, "head", 1, "noise", n, seed) for layer in range(6) for n in (0, 1) for seed in (0, 3)]
    done = 0
    while done < 200:
        try:
            condition = Condition(tuple(rng.sample(parts, rng.randint(1, 5))))
        except UserError:  # overlapping parts are refused, tested below
            continue
        assert parse_condition(str(condition)) == condition
        assert hash(parse_condition(str(condition))) == hash(condition)
        done += 1


REFUSED = {
    "12": "cannot read '12'",
    **dict.fromkeys(("L1*", "L1*x", "L1*0.5[1:]", "L1@scale"), "cannot read"),
    **dict.fromkeys(("(L1)x2", "(L1.H1-3)x2", "(L1-3)x3", "(L1-3)[1:]x2"), "cannot read"),
    **dict.fromkeys(("(L1-3)", "(L1-3)@mean"), "does not fit site 'block'; allowed: twice"),
    "(L3-1)x2": "block 3-1 runs backwards",
    "(L1-6)x2": r"layer 6 does not exist; layers are 0\.\.5",
    "(L0-2)x2+(L1-3)x2": r"blocks \(L0-2\)x2 and \(L1-3\)x2 overlap",
    "L1*2000000": "factor 2000000.0: give a number from -1e.06",
    "L1*0.5+L1": "names one part twice",
    "L3@zero": "cannot read 'L3@zero'; write .* @mean, @resample, @noise, @int8, @int4, @donor",
    "L5-3": "runs backwards",
    "L0-99999999": "cannot read 'L0-99999999'; write",
    **dict.fromkeys(("L3+L3", "L3+L3[1:]", "L3.H1@noise+L3.H1@noise1"), "names one part twice"),
    "L3[3]+L3[5]": r"names one part twice; name it once, at one stretch of positions as in \[3:6\], or give two cond",
    **dict.fromkeys(("L3[99999999999999999999]", "L3[:9223372036854775808]"), "ablation.s st.* from 0 to 9223"),
    "L3.H1+L3@noise+L4@donor": "@noise and @donor do not go together",
    "L3[5:2]": "positions 5 to 2 are none",
    **dict.fromkeys(("L3[]", "L3[-1:]", "L3@mean[1:]", "L3[1:].H1", ""), "cannot read|ablate '': give layers"),
    "L3@int3": "unknown mode 'int3'; did you mean int8, int4.* depthlens.mode names a function of yours",
    "layers@median": "unknown mode 'median'; did you mean mean",
    "layer": "unknown ablation 'layer'; did you mean layers",
    "L3[1:]@donor": r"L3\[1:\]@donor: start 1 does not fit site 'layer' and mode 'donor'; leave it out",
    "embed@noise": "mode 'noise' does not fit site 'embed'; allowed: donor",
    "L6": r"layer 6 does not exist; layers are 0\.\.5",
    "L2.H4": r"head 4 does not exist; heads are 0\.\.3",
    "L2.KV2": r"KV group 2 does not exist; KV groups are 0\.\.1",
    "whole[1:]@donor": "start 1 does not fit",
    "whole": "removal does not fit site 'embed'; allowed: donor",
    "L1.E0": "cannot read",
    **dict.fromkeys(("repeats@mean", "repeats[1:]", "repeats:2x2"), "a repeat has no mode and no position"),
    "repeats:7": "no such repeats in 6 layers; give repeats:N",
    "pairs:1": "no such pairs in 6 layers",
    **dict.fromkeys(("blocks:0", "layers:0", "mlp:x", "top:x[1:]"), "size '.' in"),
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_removed_is_refused(text):
    refused(REFUSED[text], expand, text, DIMS)


def test_an_ablation_with_a_mode_that_does_not_fit_is_refused():
    for site, mode in itertools.product(("layer", "attn"), ("skip", "zero")):
        if (site, mode) in (("layer", "skip"), ("attn", "zero")):
            assert Ablation(0, site, mode=mode) == Ablation(0, site)
        else:
            refused("does not fit", Ablation, 0, site, mode=mode)
    refused("block 3-2 is none of several layers", Ablation, 3, "block", 2, "twice")
    refused("factor 0.5 does not fit site 'layer' and mode 'mean'", Ablation, 1, mode="mean", factor=0.5)
    refused("index", Ablation, 0, "head")
    refused("index", Ablation, 0, "attn", 3)
    for options in ({"start": -1}, {"seed": -1}, {"seed": 2}, {"start": 1, "mode": "donor"}):
        refused("give a whole number from 0|does not fit site", Ablation, 1, **options)


WORDS = [
    ("layers", 6, "L0", "L5"), ("attn@mean", 6, "L0.attn@mean", "L5.attn@mean"), ("mlp", 6, "L0.mlp", "L5.mlp"),
    ("heads", 24, "L0.H0", "L5.H3"), ("kv[0:]@noise", 12, "L0.KV0@noise", "L5.KV1@noise"),
    ("blocks:3[1:]", 6 + 5 + 4, "L0[1:]", "L3-5[1:]"), ("blocks:9", 6 + 5 + 4 + 3 + 2 + 1, "L0", "L0-5"),
    ("pairs", 15, "L0-1", "L4-5"), ("pairs[1:]@mean", 15, "L0-1[1:]@mean", "L4-5[1:]@mean"),
    ("pairs:3", 3, "L1+L3", "L3+L5"), ("pairs:9", 15, "L0-1", "L4-5"), ("repeats", 15, "(L0-1)x2", "(L0-5)x2"),
    ("repeats:3", 4, "(L0-2)x2", "(L3-5)x2"), ("repeats:1", 6, "L0x2", "L5x2"),
    ("bottom", 6, "L0", "L0-5"), ("top@donor", 6, "L5@donor", "L0-5@donor"),
    ("top:4@donor", 2, "L2-5@donor", "L0-5@donor"), ("top:9@donor", 1, "L0-5@donor", "L0-5@donor"),
    ("bottom:2[1:]@mean", 3, "L0-1[1:]@mean", "L0-5[1:]@mean"), ("layers:3@mean", 3, "L1@mean", "L5@mean"),
    ("mlp:2[1:]*0.5", 2, "L1.mlp[1:]*0.5", "L4.mlp[1:]*0.5"),
    ("layers[1:]@mean", 6, "L0[1:]@mean", "L5[1:]@mean"), ("heads[1:]", 24, "L0.H0[1:]", "L5.H3[1:]"),
    ("attn[3:]@noise7", 6, "L0.attn[3:]@noise7", "L5.attn[3:]@noise7"), ("L1,L2.H3,L1,baseline", 2, "L1", "L2.H3"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "count", "first", "last"), WORDS)
def test_words_stand_for_conditions_behind_the_baseline(spec, count, first, last):
    conditions = expand(spec, DIMS)
    texts = [*map(str, conditions)]
    assert conditions[0] is BASELINE and len(texts) == len(set(texts)) == count + 1
    assert (texts[1], texts[-1]) == (first, last) and expand(texts, DIMS) == conditions


@pytest.mark.parametrize("n_layers", [1, 2, 3, 4, 30])
def test_so_many_layers_are_spread_evenly_over_the_depth_of_any_model(n_layers):
    dims = Dims(n_layers, 4, 2, 32, 8)
    for n in range(1, n_layers + 2):
        layers = [condition.layer for condition in expand(f"layers:{n}", dims)[1:]]
        assert layers == sorted(set(layers)) and len(layers) == min(n, n_layers)
        gaps = {b - a for a, b in itertools.pairwise([-1 - layers[0], *layers, 2 * n_layers - 1 - layers[-1]])}
        assert max(gaps) - min(gaps) <= 2, "as far from both ends as from one another, to within rounding"
    assert [str(c) for c in expand("layers:3", Dims(30, 9, 3, 576, 64))] == ["baseline", "L5", "L15", "L25"]


def test_layer_and_head_of_a_condition():
    condition = parse_condition("L3.H1")
    assert (condition.layer, condition.head) == (3, 1)
    assert (parse_condition("L3.attn+L3.mlp").layer, parse_condition("L3.attn").head) == (3, None)
    assert all(parse_condition(text).layer is None for text in ("L2-4", "(L1-3)x2")) and BASELINE.layer is None


def test_a_mode_that_is_not_known_here_is_read_so_that_results_of_others_are_and_no_model_runs_under_it():
    for text in ("L1@elsewhere", "L0-2[1:]@elsewhere+L3.H1[2]@elsewhere", "L2.KV0@elsewhere2"):
        assert str(parse_condition(text)) == text
        with pytest.raises(UserError, match="unknown mode 'elsewhere2?'"):
            expand(text, DIMS)
