"""The one rule of verdicts, on estimates that are written by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest

from depthlens.claims.decision import (
    ABOVE,
    ALL,
    BELOW,
    DEEPER_LAYERS,
    DIFFERENT,
    MEAN,
    MIN_DOCS,
    SPARED,
    VIEWS,
    Estimate,
    Part,
    Spec,
)  # fmt: skip

UP = Spec("the effect", "units", 0.0, ABOVE, 0.1)
LESS = replace(UP, difference=True)
OTHERS = (DEEPER_LAYERS, SPARED, MEAN)


def part(low, high, *, spec=UP, n=100, seeds=3, others=None, **more):
    """An estimate in the middle of its interval; other views as it is unless they are given by effect."""
    effect = (low + high) / 2
    views = [Estimate(v.name, effect if others is None else e, low, high, n, seeds) for v, e in
             zip(OTHERS, others or (effect,) * 3, strict=True)]  # fmt: skip
    main = Estimate(ALL.name, effect, low, high, n, seeds, se=(high - low) / 4, critical=2.0)
    return Part(spec, main, tuple(views), **more)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (part(0.01, 0.9), "supported"),  # however wide
        (part(-0.9, -0.01), "contradicted"),
        (part(-0.02, 0.03), "undecided"),
        (part(-0.3, 0.4), "cannot judge"),
        (part(0.01, 0.9, n=MIN_DOCS - 1), "cannot judge"),
        (part(0.01, 0.9, seeds=2), "undecided"),
        (part(0.01, 0.9, others=(0.1, -0.001, 0.1)), "undecided"),
        (part(0.01, 0.9, others=(0.1, np.nan, 0.1)), "undecided"),
        (part(-0.9, -0.01, others=(-0.1, 0.001, -0.1)), "undecided"),
        (part(0.01, 0.9, p=0.2), "undecided"),
        (part(-0.9, -0.01, p_against=1.0), "undecided"),
        (part(0.01, 0.9, spec=replace(UP, side=BELOW)), "contradicted"),
        (part(-0.9, -0.01, spec=replace(UP, side=BELOW)), "supported"),
        (part(0.06, 0.9, spec=replace(UP, side=DIFFERENT, margin=0.05)), "supported"),
        (part(-0.9, -0.06, spec=replace(UP, side=DIFFERENT, margin=0.05)), "supported"),
        (part(0.01, 0.04, spec=replace(UP, side=DIFFERENT, margin=0.05)), "contradicted"),  # moved, but too little
        (part(0.01, 0.07, spec=replace(UP, side=DIFFERENT, margin=0.05)), "undecided"),
        (part(0.06, 0.9, spec=replace(UP, side=DIFFERENT, margin=0.05), others=(-0.5, -0.5, -0.5)), "undecided"),
        (part(0.01, 0.04, spec=replace(UP, side=DIFFERENT, margin=0.05), seeds=1), "undecided"),
        (part(0.01, 0.04, spec=replace(UP, side=DIFFERENT, margin=0.05), others=(0.01, 0.3, 0.01)), "undecided"),
        # a difference that is shown to be too small to matter, whatever its sign; not a threshold
        (part(-0.02, 0.03, spec=LESS), "contradicted"),
        (part(-0.02, 0.03, spec=replace(LESS, side=BELOW)), "contradicted"),
        (part(0.01, 0.03, spec=LESS), "supported"),
        (part(-0.02, 0.11, spec=LESS), "undecided"),
        (part(-0.02, 0.03, spec=LESS, others=(0.0, 0.2, 0.0)), "undecided"),
        (part(-0.02, 0.03, spec=LESS, seeds=1), "undecided"),
        (part(-0.09, -0.03, spec=LESS, seeds=1), "contradicted"),
        (part(-0.09, -0.03, spec=LESS, seeds=1, others=(-0.1, 0.05, -0.1)), "undecided"),  # a view disagrees in sign
    ],
)
def test_a_part_follows_the_rule(found, verdict):
    assert found.verdict == verdict
    again = Part.from_json(json.loads(json.dumps(found.as_json())))
    assert again.verdict == verdict and again.spec == found.spec and again.holds == found.holds


@pytest.mark.parametrize("side", [ABOVE, BELOW, DIFFERENT])
@pytest.mark.parametrize("ends", [(0.01, 0.9), (-0.9, -0.01), (-0.02, 0.03), (-0.3, 0.4)])
def test_what_counts_is_the_distance_from_the_threshold(ends, side):
    spec = replace(LESS, side=side)
    away = part(*(end + 5 for end in ends), spec=replace(spec, threshold=5.0))
    assert away.verdict == part(*ends, spec=spec).verdict


def test_what_is_missing_is_said():
    found = part(0.01, 0.9, seeds=1)
    lacks = replace(found, others=(*found.others[:1], Estimate(SPARED.name, why="sweep layers[1:]"), found.others[2]))
    assert lacks.missing == ("the view first token spared", "3 few-shot seeds") and lacks.verdict == "undecided"
    assert lacks.passes and lacks.holds == (ALL.name, DEEPER_LAYERS.name, MEAN.name)
    assert Part(UP, Estimate(why="run a sweep")).verdict == "cannot judge"


def test_views_follow_the_one_that_decides():
    assert UP.views == VIEWS
    deeper = replace(UP, main=DEEPER_LAYERS).views
    assert [v.name for v in deeper] == [v.name for v in (DEEPER_LAYERS, ALL, SPARED, MEAN)]
    assert [v.left_out for v in deeper] == [2, 0, 2, 2]
    assert replace(UP, main=None).views == ()


def test_the_plan_gives_80_percent_power_in_simulation():
    """A normal mean: at the promised number, 75% to 90% of samples with the effect that matters pass."""
    rng, sd, n = np.random.default_rng(0), 1.3, 50
    se = sd / np.sqrt(n)
    planned = replace(part(-0.1, 0.1), main=Estimate("", 0.02, -0.4, 0.4, n, 3, se, critical=2.0)).planned
    samples = UP.matters + sd * rng.standard_normal((1000, planned))
    low = samples.mean(1) - 1.96 * samples.std(1, ddof=1) / np.sqrt(planned)
    assert 0.75 <= (low > 0).mean() <= 0.9
    # three seeds that differ leave the width of the interval noisy, and are planned for; documents do not lower theirs
    some, most = (replace(part(-0.3, 0.4).main, se_documents=part(-0.3, 0.4).main.se / times) for times in (2, 4))
    assert Part(UP, some).needed > part(-0.3, 0.4).needed
    assert Part(UP, most).needed is None and Part(UP, most).needs_seeds and not Part(UP, some).needs_seeds
    assert part(-0.3, 0.4).needed == part(-0.3, 0.4).planned > 100
    for se in (0.0, np.nan):
        assert Part(UP, replace(part(-0.3, 0.4, n=20).main, se=se)).needed is None, "there is no noise to plan with"
    assert part(-0.02, 0.03).needed is None, "there are enough documents"
    assert part(-30.0, 40.0).needed is None, "more than a hundred times as many"
