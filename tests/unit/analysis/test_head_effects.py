"""Losses per head, rank agreement and separation, on results written by hand."""

from __future__ import annotations

import made_results
import numpy as np
import pandas as pd
import pytest

from depthlens.analysis import head_effects
from depthlens.analysis.head_scores import HeadScores
from depthlens.analysis.results import Result
from depthlens.errors import UserError

N_LAYERS, N_HEADS, N_DOCS = 3, 4, 40


def sweep(effect, task="t", metric="answer_logprob", better=True, noise=0.01, seed=0, method="exact", heads=None):
    """A head sweep where removing a head changes the score by ``effect`` [layer, head]."""
    rng = np.random.default_rng(seed)
    scores = {"baseline": (base := rng.normal(-3, 1, N_DOCS))}
    for at in heads or np.ndindex(N_LAYERS, N_HEADS):
        scores["L{}.H{}".format(*at)] = base + effect[at] + noise * rng.normal(size=N_DOCS)
    info, sizes = {"higher_is_better": better, "chance": None}, {"n_layers": N_LAYERS, "n_heads": N_HEADS}
    return made_results.result({task: scores}, metric=metric, info=info, method=method, **sizes)


@pytest.fixture
def effect():
    made = np.zeros((N_LAYERS, N_HEADS))
    made[1, 2], made[2, 0] = -1.5, -0.5
    return made


def test_losses_are_positive_where_the_score_falls(effect):
    found = sweep(effect).head_losses()
    assert found.values == pytest.approx(-effect, abs=0.01) and found.unit == "nats" and found.n == N_DOCS
    assert found.top(2) == [(1, 2), (2, 0)]
    assert set(zip(*np.nonzero(found.critical), strict=True)) == {(1, 2), (2, 0)}
    assert (found.low <= found.values).all() and (found.values <= found.high).all()
    worse_is_up = sweep(-effect, metric="nats", better=False).head_losses()
    assert worse_is_up.values == pytest.approx(-effect, abs=0.01) and (worse_is_up.low <= worse_is_up.high).all()
    assert sweep(effect, method="attribution").head_losses().name.startswith("estimated loss")


def test_heads_that_were_not_swept_have_no_loss(effect):
    found = sweep(effect, heads=[(1, h) for h in range(N_HEADS)]).head_losses()
    assert np.isnan(found.values[[0, 2]]).all() and np.isfinite(found.values[1]).all()
    assert found.top(1) == [(1, 2)]


def test_what_cannot_be_told_apart_is_asked_for(effect):
    one, other = sweep(effect), sweep(effect, task="u")
    two = Result(pd.concat([one.docs, other.docs]), one.record | {"tasks": one.record["tasks"] | other.record["tasks"]})
    with pytest.raises(UserError, match="several tasks; name one of t, u"):
        two.head_losses()
    assert two.head_losses("u").values[1, 2] > 1


def test_agreement_is_spearmans_of_heads_in_any_order(effect):
    rng = np.random.default_rng(1)
    spread = rng.normal(size=effect.shape)
    found = head_effects.head_agreement(sweep(spread), sweep(spread * 3, method="attribution"))
    same = found.table.iloc[0]
    assert same.spearman == pytest.approx(1) and same.ci_low > 0.95 and same.n_parts == N_LAYERS * N_HEADS
    assert found.describe()[0].startswith("t, answer_logprob: heads by the two sweeps: rank correlation 1.00")
    opposite = head_effects.head_agreement(sweep(spread), sweep(-spread)).table.iloc[0]
    assert opposite.spearman == pytest.approx(-1) and opposite.ci_high < -0.9
    shuffled = [divmod(int(i), N_HEADS) for i in rng.permutation(N_LAYERS * N_HEADS)]
    again = head_effects.head_agreement(sweep(spread, heads=shuffled), sweep(spread * 3)).table.iloc[0]
    assert again.p_value == same.p_value
    for other, message in (
        (sweep(spread, task="u"), "share no task"),
        (sweep(spread, heads=[(0, 0)]), "different heads"),
    ):
        with pytest.raises(UserError, match=message):
            head_effects.head_agreement(sweep(spread), other)


def test_auroc(effect):
    def scores(values):
        return HeadScores("x", "", np.asarray(values, dtype=float), None, None, 1, None, {})

    ranked = scores([[0.1, 0.9], [0.3, 0.2]])
    assert head_effects.auroc(ranked, {(0, 1)}) == 1
    assert head_effects.auroc(ranked, {(0, 0)}) == 0
    assert head_effects.auroc(ranked, {(1, 0), (0, 0)}) == pytest.approx(0.25)
    assert head_effects.auroc(scores(np.ones((2, 2))), {(0, 0)}) == 0.5
    assert head_effects.auroc(scores([[np.nan, 1], [0, 0]]), {(0, 1)}) == 1
    with pytest.raises(UserError, match="both sides"):
        head_effects.auroc(ranked, set())
