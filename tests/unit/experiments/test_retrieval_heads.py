"""Attention patterns and scores of heads: against ones written by hand, and the truth on organisms."""

import model_classes
import numpy as np
import organism_prompts
import pytest
import tiny
import torch
from by_hand import attentions, logprobs, made_needles, random_tokens, recorded
from refusals import refused

import depthlens as dl
from depthlens.experiments.attribution import attribute
from depthlens.experiments.retrieval_heads import DETECTORS, retrieval_scores
from depthlens.requests import LoglikelihoodRequest
from depthlens.tasks import needles as prompts
from depthlens.tasks.needles import Needle

LOSS_TOLERANCE = 1e-4  # nats; differences of two float32 log-probabilities, computed in another batch layout
ATTENTION_TOLERANCE = 1e-5  # float32 softmax by another kernel
LOGIT_TOLERANCE = 1e-3  # float32 sums over layers, heads and positions, in another order
FAMILIES = ["llama-gqa", "deepseek-v3"]  # shared keys, latent attention


@pytest.mark.parametrize("family", FAMILIES)
def test_copy_paste_score_is_the_formula(family):
    """Few different tokens, so that top-1 positions hold the written token now and then."""
    lens = tiny.lens(family)
    made = []
    for seed, places in ((0, range(40)), (1, range(5, 20)), (2, [3, 4, 30])):
        tokens = random_tokens(45, seed, alphabet=5)
        made.append(Needle(LoglikelihoodRequest(tokens[:40], tokens[40:]), (1, 2, 3), tuple(places)))
    scores = [DETECTORS["copy_paste"].measure(lens, needle) for needle in made]
    for i, needle in enumerate(made):
        tokens = (*needle.request.context, *needle.request.continuation)
        for layer, whole in enumerate(attentions(family, tokens)):
            for head in range(lens.dims.n_heads):
                score = 0.0
                for step in needle.steps:
                    top = int(whole[head, 39 + step].argmax())  # the position that predicts token 40 + step
                    score += (top in needle.places and tokens[top] == tokens[40 + step]) / len(needle.steps)
                assert scores[i][:, layer, head].mean() == pytest.approx(score)
    assert 0 < np.mean(scores) < 1


def planted_needles(task, n=20):
    asked = organism_prompts.sample(n, task, seed=7)
    return [Needle(LoglikelihoodRequest(p.tokens, (p.answer_id,)), (0,), (p.answer_at,)) for p in asked]


def planted(name):
    return dl.load(name), dl.organisms.truth(name)


def test_decoy_and_backup_are_told_apart():
    lens, truth = planted("organism:seed=1,decoy,backup")
    given = planted_needles("one_hop")
    copying = retrieval_scores(lens, needles=given, progress=False)
    alone = retrieval_scores(lens, needles=given, method="exact", progress=False)
    among = [h for h in copying.top(24) if copying.values[h] >= 0.5]  # far above hits by chance on one-token needles
    assert set(among) == truth.copies("one_hop")
    costly = {(*at,) for at in np.argwhere(alone.critical & (alone.values >= 0.5))}  # planted losses are about 5 nats
    assert costly == truth.needed("one_hop") == {truth.role("previous_token")}, "no backup is needed alone"
    assert truth.needed_together("one_hop") == {*among} - {truth.role("decoy")}, "which test_pair_sweep finds"


def test_a_task_gives_needles_and_attribution_agrees():
    lens, truth = planted("organism")
    options = {"limit": 4, "progress": False}
    copying = retrieval_scores(lens, "organism_one_hop", **options)
    assert set(copying.top(1)) == truth.copies("one_hop") and copying.n == 4
    assert copying.record["tasks"] == ["organism_one_hop"] and copying.record["model"]["name"] == "organism"
    exact = retrieval_scores(lens, "organism_one_hop", method="exact", **options)
    estimate = retrieval_scores(lens, "organism_one_hop", method="attribution", **options)
    assert set(exact.top(2)) == truth.needed("one_hop")
    assert set(estimate.top(1)) <= truth.needed("one_hop")  # saturated attention hides the rest from gradients
    change, _ = attribute(lens, [n.request for n in prompts.task_needles(lens, "organism_one_hop", limit=4)])
    assert np.allclose(estimate.values, -change.mean(0).numpy(), atol=LOSS_TOLERANCE)
    path = retrieval_scores(lens, "organism_one_hop", method="integrated_gradients", **options)
    assert set(path.top(2)) == truth.needed("one_hop"), "which the way to removal shows"
    assert len(set(exact.record["documents"])) == 4 and exact.record["documents"] == copying.record["documents"]


def test_needles_that_are_not_recalled_do_not_count():
    lens, truth = planted("organism")
    good = planted_needles("one_hop", 5)
    wrong = [LoglikelihoodRequest(n.request.context, (n.request.continuation[0] - 1,)) for n in good]
    swapped = [Needle(request, (0,), n.places) for request, n in zip(wrong, good, strict=True)]
    mixed = retrieval_scores(lens, needles=[*good, *swapped], progress=False)
    assert mixed.n == 5 and mixed.record["needles"]["asked"] == 10
    assert np.array_equal(mixed.values, retrieval_scores(lens, needles=good, progress=False).values)
    refused("recalls none of 5 needles: cannot judge", retrieval_scores, lens, needles=swapped, progress=False)
    assert dl.recalled_needles(lens, swapped, progress=False) == []
    given = retrieval_scores(lens, needles=swapped, only_recalled=False, progress=False)
    assert given.n == 5 and given.record["needles"]["recalled"] == 0 and not given.record["needles"]["only_recalled"]


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_removal_by_hand(family):
    lens = tiny.lens(family)
    given = [Needle(n.request, (1, 2), n.places) for n in made_needles()]
    among = [(0, 1), (2, 0), (4, 3)]
    options = {"needles": given, "method": "exact", "only_recalled": False, "progress": False}
    exact, some = retrieval_scores(lens, **options), retrieval_scores(lens, heads=among, **options)

    def loss(head):
        """Mean over needles of the loss per needle token from removing a head."""
        each = []
        for needle in given:
            tokens = (*needle.request.context, *needle.request.continuation)
            lost = logprobs(lens, tokens, []) - logprobs(lens, tokens, [head])
            each.append(lost[[len(needle.request.context) - 1 + step for step in needle.steps]].mean())
        return np.mean(each)

    for head in [(0, 0), (2, 3), (4, 1)]:
        assert exact.values[head] == pytest.approx(loss(head), abs=LOSS_TOLERANCE)
    assert np.abs(exact.values).max() > 100 * LOSS_TOLERANCE
    assert [some.values[head] for head in among] == pytest.approx([exact.values[head] for head in among])
    assert np.isnan(some.values[0, 0]) and not some.critical[0, 0]
    assert exact.frame.eval("low <= value <= high").iloc[0]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_query_to_gold_is_the_attention_mass(family):
    lens = tiny.lens(family)
    for needle in made_needles():
        scores = DETECTORS["query_to_gold"].measure(lens, needle)
        whole = attentions(family, (*needle.request.context, *needle.request.continuation))
        # without a question the last token of the context asks; without a sentence the needle itself is gold
        queries, gold = ([39], [7, 8, 9]) if not needle.sentence else (range(32, 38), range(5, 30))
        for layer in range(lens.dims.n_layers):
            mass = whole[layer][:, list(queries)][..., list(gold)].sum(-1).T
            assert np.allclose(scores[:, layer], mass, atol=ATTENTION_TOLERANCE)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "deepseek_v3", "gemma", "olmo", "phi"])
def test_writes_pass_the_final_norm_of_every_kind(kind):
    """One that multiplies by its weight, by 1 + weight, one that centres without weights, one that has biases, too."""
    lens, (needle, *_) = model_classes.lens(kind), made_needles()
    norm, weight, d = lens.arch.final_norm, lens.arch.unembed.weight.double(), lens.dims.d_head
    tokens = (*needle.request.context, *needle.request.continuation)[:-1]
    kept, logits = recorded(lens.model, tokens, {"norm": norm, **dict(enumerate(lens.arch.o_proj))})
    (states,), _ = kept["norm"]
    gain = torch.ones(lens.dims.d_model) if kind == "olmo" else norm.weight + (kind == "gemma")
    for step, target, position in zip(range(3), needle.targets, needle.asked, strict=True):
        before, towards = states[0, position].double(), weight[target] - weight.mean(0)

        def written(x, at=before, towards=towards):
            """What a part x of the state adds to the logit, by hand: the norm's statistics are those of the state."""
            x, at = (x - x.mean(), at - at.mean()) if kind in ("olmo", "phi") else (x, at)
            return float((x * gain / (at.square().mean() + 1e-5).sqrt()) @ towards)

        biases = 0.0
        if kind == "phi":
            of_unembed = lens.arch.unembed.bias
            biases = float(norm.bias.double() @ towards + of_unembed[target] - of_unembed.mean())
        whole = float(logits[position, target] - logits[position].mean())
        assert written(before) + biases == pytest.approx(whole, abs=LOGIT_TOLERANCE), "the formula by hand"
        scores = DETECTORS["write_aware"].measure(lens, needle)[step]
        assert np.abs(scores).max() > 10 * LOGIT_TOLERANCE
        for i, projection in enumerate(lens.arch.o_proj):
            z = kept[i][0][0][0, position].double()
            for h in range(lens.dims.n_heads):
                head = slice(h * d, (h + 1) * d)
                by_hand = written(projection.weight[:, head].double() @ z[head])
                assert scores[i, h] == pytest.approx(by_hand, abs=LOGIT_TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_contrast_takes_away_what_as_many_tokens_off_the_needle_write(family):
    """Of each step, whose later tokens are not read yet."""
    lens = tiny.lens(family)
    for needle in made_needles():
        aware, near, contrast = (
            DETECTORS[name].measure(lens, needle) for name in ("write_aware", "write_from_needle", "write_contrast")
        )
        n = len(needle.gold)
        for step, asked in enumerate(needle.asked):
            off = asked + 1 - n  # tokens that are read at this step and are not of the needle
            wanted = near[step] - (aware[step] - near[step]) / off * n
            np.testing.assert_allclose(contrast[step], wanted, atol=LOGIT_TOLERANCE)
        assert np.abs(contrast - near).max() > LOGIT_TOLERANCE


def scored(lens, method):
    return dl.retrieval_scores(lens, "organism_one_hop", method=method, limit=12, store=None, progress=False)


def test_attention_cannot_tell_a_decoy_and_writing_can():
    lens, truth = planted("organism:seed=1,decoy")
    retrieval, decoy = truth.role("retrieval"), truth.role("decoy")
    for method in ("copy_paste", "query_to_gold"):
        scores = scored(lens, method)
        assert set(scores.top(2)) == {retrieval, decoy} and scores.values[decoy] > 0.8
        assert np.sort(scores.values, axis=None)[-3] < 0.5
        assert scores.frame["low"].min() >= 0 and scores.frame["high"].max() <= 1
    for method in ("write_aware", "write_from_needle", "write_contrast"):
        scores = scored(lens, method)
        assert scores.top(1) == [retrieval] and scores.unit == "logits" and scores.critical is None
        assert scores.values[retrieval] > 10 * abs(scores.values[decoy])
