"""Resample ablation: what a part does on a reference prompt at the same position, against hooks written by hand."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from depthlens.ablations import parse_condition
from depthlens.engine.engine import Engine
from depthlens.engine.references import measure_means, sample
from depthlens.experiments.sweep import condition_sweep, head_sweep
from depthlens.requests import LoglikelihoodRequest

LOGPROB_TOLERANCE = 1e-4  # float32 sums of a few log-probabilities in another batch layout
REFERENCE = [7, 80, 33, 120, 9, 41]


def with_sample(lens):
    return sample(lens, measure_means(lens, [REFERENCE], "one prompt"), REFERENCE)


def test_the_reference_itself_is_left_as_it_is():
    lens = tiny.lens("llama-gqa")
    same = LoglikelihoodRequest(tuple(REFERENCE[:4]), tuple(REFERENCE[4:]))
    asked = [parse_condition(text) for text in ("baseline", "L2.H1@resample", "L1-3@resample")]
    (clean,), *others = Engine(lens, means=with_sample(lens), progress=False).loglikelihood([same], asked)
    assert [row[0].logprob for row in others] == pytest.approx([clean.logprob] * 2, abs=LOGPROB_TOLERANCE)


def test_head_sweep_means_over_references():
    lens = tiny.lens("llama-gqa", max_position_embeddings=4096)
    options = {"layers": [1], "limit": 2, "mode": "resample", "num_fewshot": 0, "progress": False}
    one, two = "The capital of Peru is Lima.", "A fox met a crow at the well and said nothing."
    first = head_sweep(lens, "capitals_continuation", resample_prompts=[one], **options)
    second = head_sweep(lens, "capitals_continuation", resample_prompts=[two], **options)
    both = head_sweep(lens, "capitals_continuation", resample_prompts=[one, two], **options)
    assert np.allclose(both.docs["value"], (first.docs["value"] + second.docs["value"]) / 2)
    assert not np.allclose(first.docs["value"], second.docs["value"])
    assert both.record["resample_prompts"] == [one, two]
    assert both.record["conditions"][1] == "L1.H0@resample"


def test_a_mean_over_references_has_the_answers_of_all():
    lens = tiny.lens("llama-gqa", max_position_embeddings=4096)
    prompts = ["The capital of Peru is Lima.", "A fox met a crow at the well and said nothing."]
    options = {"limit": 8, "store": None, "progress": False}
    *alone, both = (
        condition_sweep(lens, ["capitals_default", "kv_retrieval_4"], "L1@resample", resample_prompts=some, **options)
        for some in ([prompts[0]], [prompts[1]], prompts)
    )
    given = [" | ".join(dict.fromkeys(pair)) for pair in zip(*(r.docs["response"] for r in alone), strict=True)]
    assert both.docs["response"].tolist() == given and any(" | " in text for text in given)
    for flag in ("parsed", "complete"):
        assert both.docs[flag].equals(alone[0].docs[flag] & alone[1].docs[flag])
