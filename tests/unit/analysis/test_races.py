"""What races decide: rarely anything wrong, both ways, the costliest of many, and nothing once a condition has left."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from depthlens.analysis import races
from depthlens.analysis.races import (
    CRITICAL,
    NOT_EXCLUDED,
    NOT_TOP,
    SPARED,
    TOP,
    UNDECIDED,
    Evidence,
    Race,
    TopEvidence,
)
from depthlens.errors import UserError

MARGIN, ALPHA = 0.1, 0.05


def binary(rng, mean, n, right=0.7):
    """Losses of parts with these means on n documents, of which the whole model answers some right."""
    mean = np.asarray(mean)
    flips = np.maximum(mean + 0.02, 0.06)
    known = rng.random((n, 1)) < right
    drawn = rng.random((n, len(mean)))
    return np.where(
        known, drawn < (flips + mean) / 2 / right, -(drawn < (flips - mean) / 2 / (1 - right)).astype(float)
    )


def run(losses, margin=MARGIN, wave=50):
    """The decisions of a race, and the documents that each took."""
    n = losses.shape[1]
    evidence, decided, seen = Evidence(n, margin, ALPHA), [UNDECIDED] * n, np.zeros(n, dtype=int)
    for start in range(0, len(losses), wave):
        if not (at := [i for i in range(n) if decided[i] == UNDECIDED]):
            break
        evidence.add(at, losses[start : start + wave][:, at])
        seen[at] = start + wave
        decided = [a if a != UNDECIDED else b for a, b in zip(decided, evidence.decisions(), strict=True)]
    return decided, seen


def test_both_decisions_and_early_ones_where_the_effect_is_large():
    mean = [0.6, 0.3, 0.0, 0.0, 0.02]
    decided, seen = run(binary(np.random.default_rng(0), mean, 2000))
    assert decided == [CRITICAL, CRITICAL, SPARED, SPARED, SPARED]
    assert seen[0] == 50 and max(seen[2:]) <= 500


@pytest.mark.parametrize(("n", "most"), [(30, 5), pytest.param(200, 19, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("mean", [0.0, MARGIN])
def test_family_wise_errors(mean, n, most):
    wrong = 0
    for seed in range(n):
        decided, _ = run(binary(np.random.default_rng(seed), [mean] * 10, 400))
        wrong += (CRITICAL if mean == 0 else SPARED) in decided
    assert wrong <= most  # 5% are allowed, and three standard errors more


def test_nothing_is_decided_from_nothing():
    evidence = Evidence(3, MARGIN, ALPHA)
    assert evidence.decisions() == [UNDECIDED] * 3
    evidence.add([0, 2], np.zeros((1, 2)))
    assert evidence.decisions() == [UNDECIDED] * 3


def top_race(losses, order, k, bound=1.0):
    evidence = TopEvidence(order, k, MARGIN, ALPHA, bound)
    used = 0
    for start in range(0, len(losses), 50):
        at = np.flatnonzero(evidence.left)
        evidence.add(at, losses[start : start + 50][:, at])
        used += 50 * len(at)
        if evidence.found:
            break
    return evidence, used


@pytest.mark.parametrize("guess", ["right", "reversed"])
def test_the_costliest_are_found(guess):
    rng = np.random.default_rng(1)
    mean = np.r_[rng.uniform(0.3, 0.6, 4), rng.uniform(0.0, 0.08, 36)]
    losses = binary(rng, mean, 2000)
    order = list(range(40)) if guess == "right" else list(range(39, -1, -1))
    evidence, used = top_race(losses, order, 4)
    decided = evidence.decisions()
    assert [i for i in range(40) if decided[i] == TOP] == [0, 1, 2, 3]
    assert set(decided[4:]) == {NOT_TOP}
    assert used < (0.15 if guess == "right" else 0.3) * losses.size


def test_equal_parts_end_by_the_margin():
    assert TopEvidence(range(6), 2, MARGIN, ALPHA, 2.0).decisions() == [UNDECIDED] * 6
    losses = binary(np.random.default_rng(2), [0.4] * 6, 2000)
    evidence, used = top_race(losses, list(range(6)), 2)
    assert evidence.found and sorted(evidence.decisions()) == [TOP] * 2 + [NOT_EXCLUDED] * 4
    assert used < losses.size


def test_the_costliest_are_rarely_lost():
    lost = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        evidence, _ = top_race(binary(rng, [0.3, 0.3] + [0.15] * 8, 600), [int(i) for i in rng.permutation(10)], 2)
        lost += evidence.found and set(evidence.best) != {0, 1}
    assert lost <= 6  # 2 are allowed; three standard errors are 4


def test_scores_outside_of_the_metric_are_refused():
    evidence = TopEvidence(range(2), 1, MARGIN, ALPHA, 1.0)
    evidence.add([0, 1], np.array([[0.0, 1.0], [-1.0, 0.0]]))
    with pytest.raises(UserError, match="two losses of one document differ by 1.5, and its metric allows 1 at most"):
        evidence.add([0, 1], np.array([[-0.5, 1.0]]))


def made(decisions, top=None):
    table = pd.DataFrame({"condition": [f"L{i}" for i in range(len(decisions))], "decision": decisions})
    table = table.assign(
        task="t", metric="acc", layer=0, head=1, n=20 + table.index, loss=0.0, ci_low=-1.0, ci_high=1.0
    )
    losses = pd.DataFrame({"task": "t", "condition": "L0", "doc_id": [1], "wave": [1], "loss": [0.5]})
    record = {"alpha": ALPHA, "margin": MARGIN, "top": top, "n_documents": {"t": 200}}
    return Race(table, losses, record)


def test_sentences_and_lists():
    race = made([CRITICAL, SPARED, SPARED, UNDECIDED])
    assert race.of(SPARED) == ["L1", "L2"] and race.of(CRITICAL, "t") == ["L0"]
    first, last = race.describe()
    assert first.startswith("t (acc): of 4 conditions **1** cost something, **2** cost less than 0.1, 1 are undecided")
    assert "after 20 to 23 of 200 documents (mean 22)" in first and last.endswith("is at most 0.05.")
    assert "of 2 conditions the 1 costliest are L0; after" in made([TOP, NOT_TOP], top=1).describe()[0]
    near = made([TOP, NOT_EXCLUDED, NOT_TOP, NOT_TOP], top=1).describe()[0]
    assert "each of L0 costs at most 0.1 less than number 1 of the costliest; not excluded: 1" in near
    assert "are not found; undecided: 2;" in made([UNDECIDED, UNDECIDED, NOT_TOP], top=1).describe()[0]
    assert "do not show the whole model to be above chance" in made([races.AT_CHANCE, races.AT_CHANCE]).describe()[0]
    text, page = repr(race), race._repr_html_()
    assert "of 4 conditions 1 cost something" in text and "**" not in text + page and "<td>critical</td>" in page
    assert "40 more rows in .decisions" in repr(made([SPARED] * 100))


def test_a_race_is_saved_and_read(tmp_path):
    race = made([CRITICAL, SPARED])
    race.save(tmp_path)
    back = Race.load(tmp_path)
    for name in ("decisions", "losses"):
        pd.testing.assert_frame_equal(getattr(back, name), getattr(race, name), check_dtype=False)
    with pytest.raises(UserError, match="holds another"):
        made([TOP, NOT_TOP], top=1).save(tmp_path)
