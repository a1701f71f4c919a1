"""The estimates behind the claims: false-positive rates at every threshold, and the one rule of verdicts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_claims import EARLY, FIRST, FLAT, HALF, N_LAYERS, OWN, THIRD, heads, profile, transplants

from depthlens.analysis.recovery import transplant_recovery
from depthlens.analysis.results import Result
from depthlens.claims import estimates, verdicts
from depthlens.claims.decision import ABOVE, BELOW, DIFFERENT, Part, Spec

SIMULATIONS, N_BOOT = 200, 200
SPECS = [*estimates.SHALLOW.values()]


def c6_shift(rng):
    loss = np.where(THIRD == 0, 0.3, 0.1)
    one, other = profile(loss, rng, base=0.6, chance=0.0), profile(loss, rng, base=0.8, chance=0.0)
    return [estimates.moved([one], [other], seed=0, n_boot=N_BOOT)]


def c6_transplants(rng):
    table = transplant_recovery(*transplants(0.0, int(rng.integers(2**31)), n=100), n_boot=N_BOOT).table
    return [estimates.recovered(table, N_LAYERS)]


def c5(rng, costs):
    curve = heads(costs, int(rng.integers(2**31)))
    return estimates.separate(curve.tests, curve.excess, 40, OWN)


def test_costs_in_nats_are_said_to_be():
    curve = heads({"retrieval": 0.5, "reasoning": 0.5})
    for table in (curve.tests, curve.excess):
        table.loc[table["list"] == "reasoning", "metric"] = "answer_logprob"
    one, other = estimates.separate(curve.tests, curve.excess, 40, OWN)
    assert (one.spec.unit, other.spec.unit) == ("of the score", "nats")


OPTIONS = {"seed": 0, "n_boot": N_BOOT}
# every part of a claim exactly at its threshold while the others hold, so that nothing else prevents "supported"
NULLS = {
    "C1 median": lambda r: estimates.few_harmful([profile(np.where(FIRST, 0.55, 0.065), r)], **OPTIONS),
    "C1 first": lambda r: estimates.few_harmful([profile(np.full(N_LAYERS, 0.02), r)], **OPTIONS),
    "C2": lambda r: estimates.generation_costs_more(
        [profile(np.full(N_LAYERS, 0.13), r)],
        [profile(np.full(N_LAYERS, 0.12), r, base=0.6, chance=0.0)],
        **OPTIONS,
    ),
    "C3": lambda r: [
        estimates.shallow(SPECS[0], [profile(HALF, r)], **OPTIONS),
        estimates.shallow(SPECS[1], [profile(EARLY, r)], **OPTIONS),
    ],
    "C4": lambda r: estimates.reasoning_deeper([profile(HALF, r)], [profile(HALF, r, base=0.7)], **OPTIONS),
    "C4 two tasks": lambda r: estimates.reasoning_deeper(
        [profile(EARLY, r), profile(HALF, r)], [profile(HALF, r), profile(EARLY, r)], **OPTIONS
    ),
    "C5 one list": lambda r: c5(r, {"retrieval": 0.5, "reasoning": 0.0}),
    "C5 none": lambda r: c5(r, {"retrieval": 0.0, "reasoning": 0.0}),
    "C6 shift": c6_shift,
    "C6 transplants": c6_transplants,
    "C7": lambda r: estimates.depth_trend([profile(FLAT, r)], **OPTIONS),
}


def rates(null, seed=0):
    """How often each verdict is given where the truth lies at the threshold."""
    count = dict.fromkeys(verdicts.VERDICTS, 0)
    for i in range(SIMULATIONS):
        count[verdicts.combined(NULLS[null](np.random.default_rng([seed, i])))] += 1
    return {name: n / SIMULATIONS for name, n in count.items()}


@pytest.mark.parametrize("null", NULLS)
def test_a_claim_at_its_threshold_is_hardly_ever_supported(null):
    assert rates(null)["supported"] <= 0.05


def test_one_part_follows_the_one_rule():
    def part(low, high, side, **options):
        return Part(Spec("x", "u", 0.0, side, 0.1), (low + high) / 2, low, high, 100, ("t acc",), **options)

    for side, low, high, wanted in [
        (ABOVE, 0.01, 0.9, "supported"),
        (ABOVE, -0.9, -0.01, "contradicted"),
        (ABOVE, -0.05, 0.1, "undecided"),
        (ABOVE, -0.2, 0.1, "cannot judge"),
        (BELOW, -0.9, -0.01, "supported"),
        (BELOW, 0.01, 0.9, "contradicted"),
        (DIFFERENT, -0.03, -0.01, "supported"),
        (DIFFERENT, 0.2, 0.3, "supported"),
        (DIFFERENT, -0.05, 0.05, "contradicted"),
        (DIFFERENT, -0.05, 0.11, "undecided"),
        (DIFFERENT, -0.2, 0.3, "cannot judge"),
    ]:
        assert part(low, high, side).verdict == wanted, (side, low, high)
    assert part(0.01, 0.1, ABOVE, p=0.2).verdict == "undecided", "the interval is not enough where a test is asked for"
    assert part(0.5, 0.6, ABOVE, why="t: at chance").verdict == "cannot judge"
    assert part(-0.2, 0.2, ABOVE).needed == 400, "half the width needs four times the documents"
    assert part(-0.04, 0.06, ABOVE).needed == 2500, "0.05 wide on either side and 0.01 from the threshold"
    few = replace(part(0.01, 0.9, ABOVE), n=20)
    assert few.verdict == "cannot judge" and few.needed == 30, "below 30 documents no interval counts"
    assert part(-0.05, 0.05, ABOVE).needed is None, "no number of documents is known to do"
    assert part(0.01, 0.9, ABOVE).needed is None


def test_a_transplant_of_everything_is_no_transplant():
    own, donor = transplants(0.9, n=200)
    own = Result(own.docs.replace({"condition": {"L0-1@donor": f"L0-{N_LAYERS - 1}@donor"}}), own.record)
    part = estimates.recovered(transplant_recovery(own, donor, n_boot=N_BOOT).table, N_LAYERS)
    assert part.effect < 0.5, "only those that recover nothing are left"
    only = own.select(conditions=[f"L0-{N_LAYERS - 1}@donor"])
    assert "all layers" in estimates.recovered(transplant_recovery(only, donor, n_boot=N_BOOT).table, N_LAYERS).why
