"""The estimates behind the claims: their error rates through the whole of a claim's test, and their coverage."""

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from made_claims import EARLY, FEW, FLAT, LATE, N_LAYERS, NONE, THIRD, parts, sweeps
from scipy import stats as sps

from depthlens.claims import CLAIMS, estimates, layers
from depthlens.claims.decision import ALL, CONTRADICTED, SUPPORTED
from depthlens.claims.estimates import Draws
from depthlens.claims.verdicts import combined

N_BOOT = 200
BY_ID = {claim.id: claim for claim in CLAIMS}


def rate(claim, n_simulations, **world):
    """Share of simulations in which a claim is supported."""
    found = []
    for seed in range(n_simulations):
        of = sweeps(seed=[seed, 3], **world)
        found.append(combined(parts(claim, of, seed=seed, n_boot=N_BOOT)))
    return found.count(SUPPORTED) / n_simulations


# what is not so: damage that no claim is about, damage by token, formats lost
LONGER = {"rest": 0.4 * LATE, "reasoning": 1 - (1 - 0.4 * LATE) ** 3, "copying": 1 - (1 - 0.4 * LATE) ** 3}
NULLS = {
    "none": {"broken": NONE},
    "independent of the task": {"broken": LATE},
    "by token": {"broken": LONGER},
    "formats lost": {"broken": FEW, "formats": np.where(THIRD > 0, 0.5, 0.0)},
}


def test_equal_answers_under_both_protocols_are_no_difference():
    of = sweeps({"rest": FLAT}, seed=2)

    def as_written(sweep):
        return lambda suffix: [replace(p, task="written", label="written", floor=0.0) for p in sweep(suffix)]

    of["generation"] = [as_written(sweep) for sweep in of["letters"]]
    protocol, parsed = parts("C2", of, seed=0, n_boot=N_BOOT)
    assert {e.effect for e in (parsed.main, *parsed.others)} == {0.0}
    assert protocol.main.effect < 0, "a written score has a lower floor, so that the same loss is a smaller share of it"
    assert protocol.verdict == CONTRADICTED, "they are alike with one floor, too"


def test_a_lower_floor_alone_contradicts_nothing():
    """Layers break 0.35 of what is written and 0.3 of what is chosen; half of that is lost in the lower floor."""
    of = sweeps({"rest": LATE, "generation": np.where(THIRD > 0, 0.35, LATE)}, n=400, seed=2, alike=1.0, seed_sd=0.0)
    (protocol, _) = parts("C2", of, seed=0, n_boot=N_BOOT)
    assert replace(protocol, p_against=0.0).verdict == CONTRADICTED, "by its own floors alone"
    assert protocol.verdict != CONTRADICTED


def test_tasks_with_the_same_answers_do_not_vary_by_their_floors():
    of = sweeps({"rest": LATE}, seed=2)

    def renamed(sweep, name, floor):
        return lambda suffix: [replace(p, task=name, label=name, floor=floor) for p in sweep(suffix)]

    roles = [[renamed(s, name, floor) for s in of["letters"]] for name, floor in (("a", 0.25), ("b", 0.0), ("c", 0.25))]
    _, varies = layers.depth_trend(roles, seed=0, n_boot=N_BOOT)
    assert varies.passes and varies.verdict != SUPPORTED
    assert varies.missing == ("variation with one floor for all tasks",)


SOME = [("C2", "formats lost"), ("C3", "none"), ("C4", "by token"), ("C7", "none")]
ALL_PAIRS = product(("C2", "C3", "C4", "C6", "C7"), NULLS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("claim", "null", "n"),
    [*((*some, 4) for some in SOME), *(pytest.param(*pair, 12, marks=pytest.mark.nightly) for pair in ALL_PAIRS)],
)
def test_artefacts_do_not_support_a_claim(claim, null, n):
    """At most one: a look at every combination; `benchmarks/claim_errors.py` measures rates with 500 of each.

    The views are the same, so that none can keep a claim from being supported.
    """
    assert rate(claim, n, n=60, alike=1.0, **NULLS[null]) <= 1 / n


def test_damage_everywhere_does_not_support_that_few_layers_matter():
    assert rate("C1", 12, n=60, alike=1.0, broken=FLAT) == 0


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, pytest.param(8, marks=pytest.mark.nightly)])
@pytest.mark.parametrize(
    ("claim", "world"),
    [
        ("C1", {"broken": FEW}),
        ("C2", {"broken": {"rest": FEW, "generation": np.where(THIRD > 0, 0.45, 0.5)}}),
        ("C3", {"broken": {"rest": 0.7 * EARLY, "text": FLAT}}),
        (
            "C4",
            {"broken": {"rest": 0.8 * EARLY, "reasoning": LATE, "reasoning_choice": LATE, "reasoning_tokens": LATE}},
        ),
        ("C6", {"broken": {"rest": EARLY, "reasoning_choice": LATE}}),
        ("C7", {"broken": {"rest": 0.8 * EARLY, "retrieval": 0.3 * EARLY}}),
    ],
)
def test_large_true_effects_are_found(claim, world, n):
    assert rate(claim, n, n=250, **world) >= (6 / 8 if n == 8 else 1 / 2)


def test_layers_at_the_threshold_are_not_shown_to_be_harmless():
    """Every later layer costs exactly 10%: whether any is called harmless, through the whole test of C1."""
    broken = np.where(np.arange(N_LAYERS) < 2, 0.9, layers.SMALL_LOSS)
    shown = []
    for seed in range(20):
        of = sweeps(broken, n=100, seed=[seed, 1], seeds=1, seed_sd=0.0)
        part = layers.few_harmful({"letters": of["letters"]}, seed=seed, n_boot=N_BOOT)[0]
        shown.append(part.main.low > 0)
    assert np.mean(shown) <= 0.1, "2.5% are wanted of 16 layers together"


def test_how_many_hypotheses_are_false_is_hommels_bound():
    """By hand: m minus the largest subset that Simes' test does not reject."""
    rng, alpha = np.random.default_rng(0), 0.025

    def simes_accepts(p):
        return all(len(p) * x > (j + 1) * alpha for j, x in enumerate(sorted(p)))

    for _ in range(200):
        p = rng.random(6) ** rng.integers(1, 8)
        subsets = (s for size in range(1, 7) for s in combinations(p, size))
        assert layers.number_shown(p) == 6 - max((len(s) for s in subsets if simes_accepts(s)), default=0)
    assert layers.number_shown(np.array([0.001, 0.001, np.nan])) == 2, "what has no p-value is not shown"


@pytest.mark.parametrize("true", [0.0, 0.2])
def test_the_spread_between_tasks_is_covered(true):
    """Q-profile intervals of the standard deviation between 6 tasks whose estimates are correlated."""
    rng, n, m, hits, found = np.random.default_rng(0), 80, 6, 0, 0
    noise = 0.05 * np.linalg.cholesky(0.5 * np.eye(m) + 0.5)
    for _ in range(200):
        effects = 0.1 + true * rng.standard_normal(m) + noise @ rng.standard_normal(m)
        values = effects + rng.standard_normal((400, m)) @ noise.T
        drawn = np.vstack([effects, values])
        spread = layers.between_tasks(Draws(drawn, drawn, n, n, 3, (), ()), ALL)
        hits += spread.low <= true <= spread.high
        found += spread.low > 0
    assert 0.92 <= hits / 200 <= 1.0
    assert found / 200 <= 0.05 if true == 0 else found / 200 >= 0.8


def test_draws_without_a_score_above_the_floor_are_left_out_of_the_spread():
    rng = np.random.default_rng(0)
    effects = np.array([0.1, 0.3, 0.2])
    drawn = np.vstack([effects, effects + 0.05 * rng.standard_normal((400, 3))])
    expected = layers.between_tasks(Draws(drawn, drawn, 80, 80, 3, (), ()), ALL)
    nothing = np.full((5, 3), [np.nan, 0.1, 0.1])
    spread = layers.between_tasks(Draws(np.vstack([drawn, nothing]), drawn, 80, 80, 3, (), ()), ALL)
    assert spread == expected


def test_views_without_a_sweep_say_what_to_run():
    of = sweeps(FEW, n=40, seed=0)
    bare = {role: [lambda suffix, sweep=sweep: _bare(sweep, suffix) for sweep in found] for role, found in of.items()}
    (part, *_) = parts("C3", bare, seed=0, n_boot=N_BOOT)
    assert {e.view: e.n > 0 for e in part.others} == {
        "all layers": True,
        "first token spared": False,
        "mean ablation": False,
    }


def _bare(sweep, suffix):
    if suffix:
        raise estimates.UserError(f"sweep layers{suffix}")
    return sweep(suffix)


def test_the_effect_of_every_part_is_what_the_formula_says():
    """One seed and one view, by hand from the documents."""
    of = sweeps({"rest": EARLY, "reasoning": LATE}, n=50, seed=1, seeds=1)
    (written,) = of["reasoning"][0]("")
    (copied,) = of["copying"][0]("")
    deep = THIRD > 0

    def share(p):
        lost = (p.base[:, None] - p.values).mean(0)
        return lost[deep].sum() / lost.sum()

    copying, _, mostly = parts("C4", of, seed=0, n_boot=N_BOOT)
    assert copying.main.effect == pytest.approx(share(written) - share(copied))
    assert mostly.main.effect == pytest.approx(share(written))
    (letters,), (generated,) = of["letters"][0](""), of["generation"][0]("")
    protocol, parsed = parts("C2", of, seed=0, n_boot=N_BOOT)

    def relative(p, floor):
        return ((p.base[:, None] - p.values).mean(0) / (p.base.mean() - floor))[deep].mean()

    assert protocol.main.effect == pytest.approx(relative(generated, 0.0) - relative(letters, 0.25))
    read = generated.parsed[:, deep]
    pooled = [
        ((p.base[:, None] - p.values)[:, deep] * read).sum() / ((p.base - floor)[:, None] * read).sum()
        for p, floor in ((generated, 0.25), (letters, 0.25))  # a letter that can be parsed is one of the options
    ]
    assert parsed.main.effect == pytest.approx(pooled[0] - pooled[1])
    assert parsed.p_against == 1.0, "what cannot be parsed contradicts nothing"
    assert len(THIRD) == N_LAYERS and set(BY_ID) == {f"C{i}" for i in range(1, 8)}
    assert replace(protocol, others=()).main == protocol.main
    assert protocol.main.critical == pytest.approx(sps.t.ppf(0.975, 49))
