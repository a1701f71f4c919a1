"""C5 on simulated removals, with the choice of the heads inside the simulation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_heads import ACCURACY, TASKS, evidence

from depthlens.claims import Evidence, judge
from depthlens.claims.decision import CONTRADICTED, SUPPORTED
from depthlens.claims.heads import specific_heads
from depthlens.claims.verdicts import combined
from depthlens.errors import UserError
from depthlens.metrics import ANSWER_LOGPROB


def verdicts(n_simulations, **world):
    found = []
    for seed in range(n_simulations):
        curve, scores = evidence(seed=[seed, 1], **world)
        found.append(combined(specific_heads(curve, TASKS, scores)))
    return found


@pytest.mark.parametrize("likeness", [0.3, 1.0])
def test_heads_that_do_not_matter_are_not_called_few_and_specific(likeness):
    """A1: chosen on the documents that test them, such heads looked specific in 7% to 100% of cases."""
    assert verdicts(40, likeness=likeness).count(SUPPORTED) <= 3


def test_what_is_tested_on_the_documents_that_chose_it_is_not_judged():
    curve, scores = evidence(seed=0, reuse=True, effect=5.0)
    parts = specific_heads(curve, TASKS, scores)
    assert combined(parts) == "cannot judge"
    assert all("both chose and test" in part.main.why for part in parts)
    assert all("head_scores=" in part.main.why for part in specific_heads(curve, TASKS, {}))
    whole = {n: replace(s, record={"tasks": [TASKS[n]], "limit": None}) for n, s in scores.items()}
    assert combined(specific_heads(curve, TASKS, whole)) == "cannot judge"
    apart = {n: replace(s, record={"tasks": ["another"]}) for n, s in scores.items()}
    assert combined(specific_heads(curve, TASKS, apart)) == SUPPORTED


def test_true_heads_are_found_and_shared_ones_are_not_specific():
    assert verdicts(10, effect=5.0).count(SUPPORTED) >= 8
    assert verdicts(10, effect=5.0, shared=True).count(SUPPORTED) <= 1


def test_every_list_is_tested_in_accuracy_and_in_nats():
    curve, scores = evidence(seed=3, effect=5.0)
    parts = specific_heads(curve, TASKS, scores)
    assert [p.spec.unit for p in parts].count("nats") == 3 and len(parts) == 6
    tasks = [p.main.tasks for p in parts]
    assert (f"kv {ACCURACY}",) in tasks and (f"sums {ANSWER_LOGPROB}",) in tasks
    (found,) = judge(Evidence(heads=curve, head_tasks=TASKS, head_scores=scores), claims="C5", n_boot=200)
    assert found.verdict == SUPPORTED and found.n == 60 and not found.holds


def test_nats_of_a_task_that_the_model_cannot_do_are_not_judged():
    curve, scores = evidence(seed=3, effect=5.0)
    chance = curve.tests.assign(at_chance=(curve.tests["task"] == "sums") & (curve.tests["metric"] == ACCURACY))
    unable = replace(curve, tests=chance)
    unable.__dict__.update(ratio=curve.ratio, interactions=curve.interactions)
    parts = specific_heads(unable, TASKS, scores)
    assert {p.main.why for p in parts if "sums" in " ".join(p.main.tasks)} == {"sums: at chance"}
    bare = replace(curve, tests=curve.tests[curve.tests["metric"] == ANSWER_LOGPROB])
    bare.__dict__.update(
        ratio=curve.ratio[curve.ratio["metric"] == ANSWER_LOGPROB], interactions=curve.interactions[:0]
    )
    assert all("no accuracy" in p.main.why for p in specific_heads(bare, TASKS, scores))


def test_too_few_random_lists_cannot_judge():
    curve, scores = evidence(seed=3, effect=5.0)
    few = replace(curve, record={"n_draws": 10})
    few.__dict__.update(ratio=curve.ratio, interactions=curve.interactions)
    assert any("give n_draws=20" in p.main.why for p in specific_heads(few, TASKS, scores))


def test_heads_that_help_contradict():
    curve, scores = evidence(seed=0, effect=5.0)
    worse = replace(curve, tests=curve.tests.assign(p_value=1.0))
    turned = curve.ratio.assign(effect=-curve.ratio["effect"])
    turned[["ci_low", "ci_high"]] = -curve.ratio[["ci_high", "ci_low"]].to_numpy()
    worse.__dict__.update(ratio=turned, interactions=curve.interactions)
    assert combined(specific_heads(worse, TASKS, scores)) == CONTRADICTED
    assert np.isfinite([p.main.effect for p in specific_heads(worse, TASKS, scores)]).all()


def test_evidence_that_does_not_fit_is_refused():
    curve, scores = evidence(seed=0)
    with pytest.raises(UserError, match="heads without head_tasks"):
        Evidence(heads=curve, head_scores=scores)
    with pytest.raises(UserError, match="retrieval: another"):
        Evidence(heads=curve, head_tasks={"retrieval": "another"}, head_scores=scores)
    (alone,) = judge(Evidence(heads=curve, head_tasks={"retrieval": "kv"}), claims="C5", n_boot=200)
    assert "retrieval is alone" in alone.sentence
