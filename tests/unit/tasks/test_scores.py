"""Values of documents: the same as those of lm-eval, whose `simple_evaluate` runs for real."""

import math

import numpy as np
import pandas as pd
import pytest
from mini_tasks import DOCUMENTS, LIKELIHOODS, WRITTEN

import depthlens as dl
from depthlens.engine.engine import LoglikelihoodAnswer
from depthlens.tasks import harness

# float32 sums of log-probabilities of up to a few hundred tokens in another batch layout
LOGPROB_TOLERANCE = 2e-3
# lm-eval's name -> ours, and our unit in nats
PERPLEXITIES = {"word_perplexity": ("nats_per_word", 1.0), "byte_perplexity": ("nats_per_byte", 1.0)}
PERPLEXITIES["bits_per_byte"] = "bits_per_byte", 1 / math.log(2)


@pytest.mark.parametrize("name", [*LIKELIHOODS, "mini_mutual", *WRITTEN])
def test_baseline_equals_lm_eval_document_by_document(lens, load, lm_evals_own, name):
    _, samples = lm_evals_own(name)
    result = dl.condition_sweep(lens, load(name), "L2", progress=False)
    baseline = result.docs[result.docs["condition"] == "baseline"]
    ours = {(row.metric, row.doc_id): row.value for row in baseline.itertuples()}
    several = len({sample["filter"] for sample in samples}) > 1
    compared = 0
    for sample in samples:
        for metric in sample["metrics"]:
            value = sample[metric]
            if metric in PERPLEXITIES:
                metric, per_nat = PERPLEXITIES[metric]
                value = -value[0] / value[1] * per_nat  # (log-likelihood, number of words or bytes)
            elif metric == "perplexity":  # the log-likelihood of a cloze task's answer
                metric, value = "nats", -value
            elif isinstance(value, tuple | list):
                continue  # of the whole set only, such as mcc
            key = f"{metric},{sample['filter']}" if several else metric
            assert ours.pop((key, sample["doc_id"])) == pytest.approx(value, abs=LOGPROB_TOLERANCE)
            compared += 1
    assert compared >= len(DOCUMENTS) and not ours, f"not known to lm-eval: {ours}"


@pytest.mark.parametrize("name", ["mini_metrics", "mini_blanks"])
def test_the_response_of_each_metric_is_its_own_choice(lens, load, name):
    """Made-up answers, over which the metrics disagree: a choice is right where the value is 1, whatever the metric."""
    (prepared,) = harness.prepare(lens, load(name))
    rng, disagreements = np.random.default_rng(0), 0
    references = prepared.asked.set_index("doc_id")["reference"].str.strip()
    for _ in range(20):
        answers = [LoglikelihoodAnswer(float(-rng.gamma(2)), bool(rng.random() < 0.3)) for _ in prepared.requests]
        table = pd.DataFrame(prepared.score(answers))
        says_right = [references[row.doc_id] in row.response.split(" | ") for row in table.itertuples()]
        assert says_right == (table["value"] == 1.0).tolist()
        disagreements += (table.groupby("doc_id")["response"].nunique() > 1).sum()
    assert disagreements > 20


def test_the_response_of_a_vote_is_all_that_was_drawn(lens, load):
    (prepared,) = harness.prepare(lens, load("mini_draws"), limit=1)
    scores = prepared.score(["say b", "an a", "an a", "..."])
    assert {score.metric: score.value for score in scores} == {"exact_match,first": 0.0, "exact_match,vote": 1.0}
    assert {score.response for score in scores} == {"say b | an a | ..."}
    parsed = {s.metric: s.parsed for s in prepared.score(["...", "...", "...", "the b"])}
    assert parsed == {"exact_match,first": False, "exact_match,vote": False}


def test_metrics_of_the_whole_set_are_told_as_skipped(lens, load):
    result = dl.condition_sweep(lens, load("mini_choice"), "L2", progress=False)
    about = result.record["tasks"]["mini_choice"]
    assert sorted(about["metrics"]) == ["acc", "acc_norm"]
    assert about["skipped_metrics"] == {"mcc": "has no value per document"}
    with pytest.raises(dl.UserError, match=r"task mini_set_only: no metric has a value per document \(mcc\)"):
        dl.condition_sweep(lens, load("mini_set_only"), "L2", progress=False)


ANSWERS = {"four": True, "...": False, "": False, "__": False, "[invalid]": True}


@pytest.mark.parametrize(("written", "read"), ANSWERS.items())
def test_an_answer_that_cannot_be_read_is_told_apart_from_a_wrong_one(lens, load, written, read):
    """The filter's fallback is no answer, and neither is what has no letter or digit, such as the filter's "_"."""
    (prepared,) = harness.prepare(lens, load("mini_filters"), limit=1)
    parsed = {s.metric: s.parsed for s in prepared.score([written])}
    assert parsed["exact_match,whole"] == parsed["exact_match,first-letter"] == read


def test_choices_are_always_read_and_floors_are_what_a_broken_model_scores(lens, load):
    result = dl.condition_sweep(lens, load("mini_choice", "mini_cloze", "mini_writing"), "L2", progress=False)
    assert result.docs.loc[result.docs["task"] != "mini_writing", "parsed"].all()
    infos = {(t, m): result.metric_info(t, m) for t, m in result.baselines[["task", "metric"]].to_numpy()}
    assert infos["mini_choice", "acc"]["floor"] == infos["mini_choice", "acc"]["chance"] > 0
    assert infos["mini_cloze", "acc"]["floor"] == 0 and infos["mini_cloze", "nats"]["floor"] is None
    written = infos["mini_writing", "exact_match"]
    assert written["floor"] == 0 < written["chance"]
