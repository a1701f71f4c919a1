"""What races decide: rarely anything wrong, both ways, and nothing once a condition has left."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from depthlens.analysis import races
from depthlens.analysis.races import CRITICAL, SPARED, UNDECIDED, Evidence, Race
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


def made(decisions, margin=MARGIN):
    table = pd.DataFrame({"condition": [f"L{i}" for i in range(len(decisions))], "decision": decisions})
    table = table.assign(
        task="t", metric="acc", layer=0, head=1, n=20 + table.index, loss=0.0, ci_low=-1.0, ci_high=1.0
    )
    losses = pd.DataFrame({"task": "t", "condition": "L0", "doc_id": [1], "wave": [1], "loss": [0.5]})
    record = {"alpha": ALPHA, "margin": margin, "n_documents": {"t": 200}}
    return Race(table, losses, record)


def test_sentences_and_lists():
    race = made([CRITICAL, SPARED, SPARED, UNDECIDED])
    assert race.of(SPARED) == ["L1", "L2"] and race.of(CRITICAL, "t") == ["L0"]
    first, last = race.describe()
    assert first.startswith("t (acc): of 4 conditions **1** cost something, **2** cost less than 0.1, 1 are undecided")
    assert "after 20 to 23 of 200 documents (mean 22)" in first and last.endswith("is at most 0.05.")
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
        made([CRITICAL, SPARED], margin=0.2).save(tmp_path)
