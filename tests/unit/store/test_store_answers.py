"""Nothing that the store holds is computed again."""

import pandas as pd
import tiny
from stores import CHOICE, LIMIT, counts, parts, run

import depthlens as dl
from depthlens.engine import engine, references
from depthlens.requests import LoglikelihoodRequest
from depthlens.store import answer_cache
from depthlens.store.answer_cache import AnswerCache


def test_more_documents_conditions_or_measures_compute_what_is_missing(lens, tmp_path):
    run(lens, tmp_path, tasks=[CHOICE])
    more = run(lens, tmp_path, tasks=[CHOICE], limit=LIMIT + 2)
    assert counts(more) == (6 * LIMIT * 4, 6 * 2 * 4)
    anew = run(lens, None, tasks=[CHOICE], limit=LIMIT + 2).docs
    pd.testing.assert_frame_equal(more.docs, anew, rtol=1e-5)  # margins: other batches round otherwise
    heads = run(lens, tmp_path, ["L1.H0", "L3", "L0-1"], tasks=[CHOICE])
    assert counts(heads) == (2 * LIMIT * 4, 2 * LIMIT * 4)  # the baseline and L3 were there
    assert counts(run(lens, tmp_path, tasks=[CHOICE], limit=1)) == (6 * 4, 0)
    # the likelihood of the correct option is among the options' likelihoods
    assert counts(run(lens, tmp_path, tasks=[CHOICE], measure="answer_logprob")) == (6 * LIMIT, 0)
    assert counts(run(lens, tmp_path, tasks=[CHOICE], num_fewshot=0)) == (0, 6 * LIMIT * 4)


def test_means_and_references_are_part_of_the_address(lens, tmp_path):
    asked = {"ablate": ["L1@mean", "L2.H1@resample"], "tasks": [CHOICE]}
    first = run(lens, tmp_path, resample_prompts=["one prompt"], **asked)
    again = run(lens, tmp_path, resample_prompts=["one prompt"], **asked)
    assert counts(again) == (3 * LIMIT * 4, 0) and again.docs.equals(first.docs)
    other = run(lens, tmp_path, resample_prompts=["another prompt"], **asked)
    assert counts(other) == (2 * LIMIT * 4, LIMIT * 4)  # @resample alone
    more = run(lens, tmp_path, ["L1@mean"], tasks=[CHOICE], limit=LIMIT + 1)
    assert counts(more) == (2 * LIMIT * 4, 2 * 4)  # the mean is over the same texts
    other = run(lens, tmp_path, ["L1@mean"], tasks=[CHOICE], limit=LIMIT, system_instruction="Be brief.")
    assert counts(other) == (0, 2 * LIMIT * 4)


def test_first_positions_seeds_and_references_never_share_an_answer(lens, tmp_path):
    """Nor does the text of an answer that begins at another token."""
    ablate = ["L1", "L1[1:]", "L1[2:]", "L1@mean", "L1[1:]@mean", "L1@noise", "L1@noise1", "L1[1:]@noise1"]
    alone = [run(lens, tmp_path, [text], tasks=[CHOICE], limit=1) for text in ablate]
    assert [counts(result)[1] for result in alone] == [8, *[4] * (len(ablate) - 1)]
    together = run(lens, tmp_path, ablate, tasks=[CHOICE], limit=1)
    assert counts(together)[1] == 0
    texts = [((1, 2, 3), (4,)), ((1, 2), (3, 4)), ((1, 2, 3, 4), ())]
    conditions = [dl.parse_condition(text) for text in ablate]
    caches = [AnswerCache(reference=references.Reference("x", [text]).keys) for text in texts]
    addresses = {cache.address(c) for cache in caches for c in conditions}
    assert len(addresses) == len(ablate) + 2 * (len(texts) - 1)


def test_a_donor_is_part_of_the_address(lens, tmp_path):
    one, other = (tiny.lens("llama-gqa", max_position_embeddings=4096) for _ in range(2))
    one.model.model.layers[1].mlp.up_proj.weight.mul_(2)
    other.model.model.layers[1].mlp.up_proj.weight.mul_(3)
    asked = {"ablate": ["L1@donor"], "tasks": [CHOICE]}
    run(lens, tmp_path, donor=one, **asked)
    assert counts(run(lens, tmp_path, donor=one, **asked)) == (2 * LIMIT * 4, 0)
    second = run(lens, tmp_path, donor=other, **asked)
    assert counts(second) == (LIMIT * 4, LIMIT * 4)  # the baseline has nothing of the donor


def test_of_single_texts_those_that_are_new_are_measured(lens, tmp_path):
    texts, options = ["one text", "another one", "a third text"], {"store": str(tmp_path), "progress": False}
    dl.depth_geometry(lens, texts[:2], **options)
    before = parts(tmp_path)
    found = dl.depth_geometry(lens, texts, **options).distances
    (added,) = {*parts(tmp_path)} - {*before}
    assert pd.read_parquet(added)["request"].nunique() == 1, "the third text alone is measured"
    assert found.equals(dl.depth_geometry(lens, texts, **options | {"store": None}).distances)


def test_equal_requests_are_one_row(lens, tmp_path):
    at = answer_cache.AnswerStore(str(tmp_path), lens).entry("twice")
    requests = [LoglikelihoodRequest((1, 2), (3,))] * 3
    first = engine.Engine(lens, progress=False, cache=at).loglikelihood(requests, [dl.parse_condition("baseline")])
    assert first[0][0] == first[0][1] == first[0][2]
    assert pd.read_parquet(parts(tmp_path)[0]).shape[0] == 1
    again = answer_cache.AnswerStore(str(tmp_path), lens).entry("twice")
    assert not again.rows(requests, [dl.parse_condition("baseline")]).unfinished
