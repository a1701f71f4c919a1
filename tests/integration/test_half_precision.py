"""bfloat16 against float32 on the embedded model: accuracies stay, and log-likelihoods move by rounding."""

from __future__ import annotations

import numpy as np
import pytest

import depthlens as dl
from depthlens.ablations import expand
from depthlens.engine.engine import Engine
from depthlens.tasks import harness

pytestmark = [pytest.mark.integration, pytest.mark.nightly]

N_DOCS, SEED = 12, 3
# layers near the end: few CPUs compute in bfloat16, and the others take seven times as long as in float32
CONDITIONS = "L28,L29"
# bfloat16 keeps 8 bits: each of 30 layers rounds the residual stream by up to 0.4%. Sums of about three
# log-probabilities of -4 nats moved by 0.17 nats on average and, but for L0, by 1.7 at most on ten documents
MEAN_TOLERANCE, TOLERANCE = 0.3, 2.0


def test_bfloat16_keeps_accuracies_and_log_likelihoods():
    logprobs, correct = [], []
    for dtype in ("float32", "bfloat16"):
        lens = dl.load("smollm2-135m", dtype=dtype)
        tasks = harness.load_tasks(["capitals_continuation"], seed=SEED)
        (prepared,) = harness.prepare(lens, tasks, limit=N_DOCS)
        answers = prepared.run(Engine(lens, progress=False), expand(CONDITIONS, lens.dims))
        logprobs.append(np.array([[a.logprob for a in row] for row in answers]))
        scores = [[s.value for s in prepared.score(row) if s.metric == "acc"] for row in answers]
        assert all(len(of_condition) == N_DOCS for of_condition in scores)
        correct.append(np.array(scores).sum(1))
    apart = np.abs(logprobs[0] - logprobs[1])  # [condition, request]
    assert apart.mean() > 1e-3, "bfloat16 was computed in float32"
    assert apart.mean(1).max() < MEAN_TOLERANCE and apart.max() < TOLERANCE
    assert np.abs(correct[0] - correct[1]).max() <= 1, correct
    assert correct[0][0] >= N_DOCS / 2  # not two ways of being wrong
