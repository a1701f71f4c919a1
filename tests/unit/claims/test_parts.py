"""A part of a claim: the state of its interval, the part that decides, and its sentence."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from made_results import profile
from refusals import refused

import depthlens as dl
from depthlens.analysis.numbers.means import Ratio, mean
from depthlens.claims import parts
from depthlens.claims.parts import APART, AT_LEAST, MOVED, OPEN, REVERSED, SHOWN, SIGN, SMALLER, UNDER, Estimate, Part
from depthlens.errors import UserError

COSTS = parts.Question("Removing {name} costs {effect}", parts.ANSWERS, 0.1)


def part(low, high, *, claim=AT_LEAST, why="", **more):
    """A part whose effect is in the middle of its interval."""
    return Part(COSTS._replace(claim=claim), Estimate((low + high) / 2, low, high, 120, why), **more)


@pytest.mark.parametrize(("low", "high", "claim", "wanted"), [
    (0.1, 0.2, AT_LEAST, SHOWN), (0.3, 9.0, AT_LEAST, SHOWN),  # however wide
    (0.1, np.inf, AT_LEAST, SHOWN), (0.01, 0.2, AT_LEAST, SIGN), (0.01, 0.09, AT_LEAST, SMALLER),
    (-0.02, 0.09, AT_LEAST, SMALLER), (-np.inf, 0.09, AT_LEAST, SMALLER), (-0.2, -0.01, AT_LEAST, REVERSED),
    (-0.02, 0.2, AT_LEAST, OPEN),
    (-0.2, 0.09, UNDER, SHOWN), (0.01, 0.09, UNDER, SHOWN), (0.1, 0.2, UNDER, REVERSED), (0.01, 0.2, UNDER, OPEN),
    (0.1, 0.2, MOVED, SHOWN), (-0.2, -0.1, MOVED, SHOWN), (0.01, 0.2, MOVED, SIGN), (-0.2, -0.01, MOVED, SIGN),
    (-0.05, 0.05, MOVED, SMALLER), (-0.09, -0.01, MOVED, SMALLER), (-0.02, 0.2, MOVED, OPEN), (-0.2, 0.3, MOVED, OPEN),
    (0.1, 0.2, APART, SHOWN), (-0.2, -0.01, APART, SMALLER),
])  # fmt: skip
def test_an_interval_has_its_state(low, high, claim, wanted):
    assert parts.state(low, high, 0.1, claim) == wanted == part(low, high, claim=claim).state


def holds(truth, matters, claim):
    """The states that are true of an effect."""
    size = abs(truth) if claim == MOVED else truth
    if claim == UNDER:
        return {SHOWN} if size < matters else {REVERSED}
    return {SHOWN, SIGN} if size >= matters else {SIGN, SMALLER} if size > 0 else {SMALLER, REVERSED}


@pytest.mark.parametrize(("claim", "never"), [(AT_LEAST, ()), (UNDER, (SIGN, SMALLER)), (MOVED, (REVERSED,))])
def test_an_interval_that_contains_the_truth_says_nothing_that_is_false_of_it(claim, never):
    """V2: no truth is shown in one sample, and smaller or reversed in another."""
    grid = [x for x in np.linspace(-0.3, 0.3, 31) if min(abs(x), abs(abs(x) - 0.1)) > 1e-9]
    found = set()
    for low, truth, high in itertools.combinations(grid, 3):
        found.add(said := parts.state(low, high, 0.1, claim))
        assert said in {OPEN} | holds(truth, 0.1, claim), (low, truth, high)
    assert found == set(parts.STATES).difference(never)


def test_the_worst_part_decides_and_of_equal_ones_the_nearest_to_failing():
    shown, sure, sign, smaller = part(0.11, 0.15), part(0.5, 0.6), part(0.01, 0.2), part(0.01, 0.05)
    undecided, turned = part(-0.1, 0.2), part(-0.2, -0.1)
    for better, worse in itertools.pairwise([sure, shown, sign, undecided, smaller, turned]):
        assert parts.worst([better, worse]) is parts.worst([worse, better]) is worse
    little, less = part(0.05, 0.09, claim=UNDER), part(-0.01, 0.01, claim=UNDER)
    assert parts.worst([less, little]) is little
    against = part(-0.8, -0.7)
    assert parts.worst([turned, against]) is against, "of two reversed parts the one that is farther below"
    endless = part(0.2, np.inf)
    assert parts.worst([sure, endless]) is endless and parts.worst([endless, turned]) is turned
    nothing = parts.missing(COSTS, "not measured")
    assert nothing.state == OPEN and parts.worst([shown, nothing, undecided]) is nothing


def test_a_sentence_has_effect_interval_what_matters_and_n():
    costs = Part(parts.named(COSTS, "L3"), Estimate(0.15, 0.1, 0.2, 120))
    said = "Removing L3 costs 15% of the answers [10%, 20%]; the claim is at least 10% (n = 120)"
    assert costs.sentence == f"{said}."
    against = Part(costs.question, costs.main, but="random heads cost as much")
    assert against.state == OPEN and against.sentence == f"{said}, but random heads cost as much."
    assert part(0.1, 0.2, why="9 questions are too few").sentence.endswith("(n = 120), but 9 questions are too few.")


def test_what_matters_and_how_many_documents_would_decide_are_told():
    undecided = part(-0.02, 0.12)  # 0.05 with half of 0.14 around it, 0.05 from both ends of what is open
    assert [undecided.state_at(times) for times in (0.5, 1, 2)] == [OPEN, OPEN, SMALLER]
    needed = undecided.needed
    assert needed == 236, "120 * (0.07 / 0.05) ** 2, rounded up"
    assert undecided.sentence.endswith("at this estimate some 236 documents would decide.")
    assert replace(undecided, minutes=4.2).sentence.endswith("some 236 documents would decide, in 4 min more.")
    narrower = Part(undecided.question, Estimate(0.05, 0.0001, 0.0999, needed))
    assert narrower.state != OPEN
    assert part(-np.inf, 0.2).needed is None and part(0.2, 0.3).needed is None and "-∞" in part(-np.inf, 0.2).sentence


def test_several_ways_of_measuring_an_effect_have_to_agree():
    rng = np.random.default_rng(0)
    part_of, room, more = mean(rng.random(200) < 0.3), mean(rng.random(200) < 0.9), mean(rng.random(200) < 0.5)
    ways = [Ratio(part_of, room), Ratio(part_of, more)]
    ends = [way.interval(parts.LEVEL) for way in ways]
    both = Estimate.of(ways)
    assert (both.low, both.high) == (min(low for low, _ in ends), max(high for _, high in ends))


def test_views_stand_beside_and_what_has_no_value_says_why():
    values = np.random.default_rng(0).random(120)

    def of(view):
        if view == "unswept":
            raise UserError("sweep it")
        return [mean(values) / mean(np.zeros(120) if view == "nothing" else np.ones(120))]

    found = parts.part(COSTS, of, main="all", views=("unswept", "nothing"))
    assert found.main.effect == pytest.approx(values.mean()) and found.main.n == 120
    assert found.beside["unswept"].why == "sweep it" and "nothing is lost" in found.beside["nothing"].why


def test_a_claim_of_ones_own_is_judged_on_all_questions_and_on_each_half():
    rng = np.random.default_rng(0)
    base, lost = np.ones(80), (rng.random((80, 3)) < [0.5, 0.1, 0.0]).astype(float)
    losses = profile(base, base[:, None] - lost, 0.0)
    found = dl.claims.tested("L0 costs {effect} more", losses, ["L0"], ["L1", "L2"], at_least=0.1)
    assert found.main.effect == pytest.approx(lost[:, 0].mean() - lost[:, 1:].mean()) and found.state == SHOWN
    halves = [half.loss[:, 0].mean() - half.loss[:, 1:].mean() for half in losses.halves()]
    assert [one.effect for one in found.beside.values()] == pytest.approx(halves)
    among = dl.claims.tested("{effect}", losses, ["L0"], ["L0", "L1", "L2"], at_least=0.1).main
    assert among.effect == pytest.approx(lost[:, 0].mean() - lost.mean())
    nothing = dl.claims.tested("{effect}", losses, ["L2"], under=0.1)
    assert nothing.state == SHOWN and nothing.main.low < 0 < nothing.main.high, "what never failed may fail yet"


def test_the_best_condition_is_judged_where_it_was_not_chosen():
    base, noise = np.zeros(400), np.random.default_rng(1).normal(size=(400, 60))
    losses = profile(base, base[:, None] - noise, None)
    names = list(losses.conditions)
    best = dl.claims.tested("{effect}", losses, names, best=True, under=-0.05).main
    assert noise.mean(0).min() < -0.1, "the best of all looks good where it is chosen"
    assert best.low < 0 < best.high and best.n == 400
    first, other = (half.select(names) for half in losses.halves())
    picked = [
        tests.loss[:, chooses.loss.mean(0).argmin()].mean() for chooses, tests in ((first, other), (other, first))
    ]
    assert best.effect == pytest.approx(np.mean(picked))


@pytest.mark.parametrize("bounds", [{}, {"at_least": 0.1, "under": 0.1}])
def test_a_claim_has_one_bound_and_conditions_that_there_are(bounds):
    losses = profile(np.ones(40), np.ones((40, 2)), 0.0)
    refused("give one of them", dl.claims.tested, "{effect}", losses, ["L0"], **bounds)
    refused("unknown condition 'L7'", dl.claims.tested, "{effect}", losses, ["L7"], under=0.1)
