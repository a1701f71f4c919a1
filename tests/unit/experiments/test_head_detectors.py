"""Detectors of retrieval heads: against formulas written by hand on random models, and the truth on organisms."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import tiny
import torch
from by_hand import attentions, random_tokens

import depthlens as dl
from depthlens.experiments.head_detectors import scores_by_token
from depthlens.requests import LoglikelihoodRequest
from depthlens.tasks.needles import Needle

ATTENTION_TOLERANCE = 1e-5  # float32 softmax by another kernel
LOGIT_TOLERANCE = 1e-3  # float32 sums over layers, heads and positions, in another order
FAMILIES = ["llama-gqa", "qwen2", "deepseek-v3"]  # shared keys, biases, latent attention


def made_needles():
    made = []
    for seed, sentence in ((0, range(5, 30)), (1, ())):
        tokens = random_tokens(45, seed)
        question = tuple(range(32, 38)) if sentence else ()
        needle = Needle(LoglikelihoodRequest(tokens[:40], tokens[40:]), (0, 2, 3), (7, 8, 9))
        made.append(Needle(needle.request, needle.steps, needle.places, {}, tuple(sentence), question))
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_query_to_gold_is_the_attention_mass(family):
    lens, made = tiny.lens(family), made_needles()
    found = scores_by_token(lens, made, "query_to_gold")
    for needle, scores in zip(made, found, strict=True):
        whole = attentions(family, (*needle.request.context, *needle.request.continuation))
        # without a question the last token of the context asks; without a sentence the needle itself is gold
        queries, gold = ([39], [7, 8, 9]) if not needle.sentence else (range(32, 38), range(5, 30))
        for layer in range(lens.dims.n_layers):
            mass = whole[layer][:, list(queries)][..., list(gold)].sum(-1).T
            assert np.allclose(scores[:, layer], mass, atol=ATTENTION_TOLERANCE)


def logit_parts(lens, tokens, position, target):
    """What embedding, each head and each MLP add to the logit of a token, minus the mean logit, by hand in float64."""
    kept = {}
    handles = [
        module.register_forward_hook(lambda m, args, out, name=name: kept.update({name: (args, out)}))
        for i in range(lens.dims.n_layers)
        for name, module in ((("o", i), lens.arch.o_proj[i]), (("mlp", i), lens.arch.mlp[i]))
    ]
    handles.append(lens.arch.embed.register_forward_hook(lambda m, args, out: kept.update(embed=out)))
    handles.append(lens.arch.final_norm.register_forward_hook(lambda m, args, out: kept.update(norm=(args[0], out))))
    with torch.no_grad():
        logits = lens.model(torch.tensor([list(tokens)])).logits[0, position].double()
    for handle in handles:
        handle.remove()
    before, after = (x[0, position].double() for x in kept["norm"])
    unembed = lens.arch.unembed.weight.double()
    towards = (unembed[target] - unembed.mean(0)) * after / before  # the norm as it is at this position
    d, others = lens.dims.d_head, kept["embed"][0, position].double() @ towards
    heads = np.zeros((lens.dims.n_layers, lens.dims.n_heads))
    for i in range(lens.dims.n_layers):
        z, weight = kept["o", i][0][0][0, position].double(), lens.arch.o_proj[i].weight.double()
        for h in range(lens.dims.n_heads):
            heads[i, h] = (weight[:, h * d : (h + 1) * d] @ z[h * d : (h + 1) * d]) @ towards
        if lens.arch.o_proj[i].bias is not None:
            others = others + lens.arch.o_proj[i].bias.double() @ towards
        mlp = kept["mlp", i][1]
        others = others + (mlp[0] if isinstance(mlp, tuple) else mlp)[0, position].double() @ towards
    return heads, float(others), float(logits[target] - logits.mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_writes_add_up_to_the_logit(family):
    lens, made = tiny.lens(family), made_needles()
    for needle, scores in zip(made, scores_by_token(lens, made, "write_aware"), strict=True):
        tokens = (*needle.request.context, *needle.request.continuation)[:-1]
        for step, target, position in zip(range(3), needle.targets, needle.asked, strict=True):
            heads, others, logit = logit_parts(lens, tokens, position, target)
            assert scores[step].sum() + others == pytest.approx(logit, abs=LOGIT_TOLERANCE)
            assert np.allclose(scores[step], heads, atol=LOGIT_TOLERANCE)
    assert max(np.abs(scores).max() for scores in scores_by_token(lens, made, "write_aware")) > 100 * LOGIT_TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_induction_score_is_the_attention_to_the_token_after_the_first_occurrence(family):
    lens = tiny.lens(family)
    scores = dl.induction_scores(lens, n_texts=2, length=12, seed=5, store=None, progress=False)
    assert scores.n == 2 and scores.unit == "" and scores.critical is None
    ordinary = [i for i in range(tiny.VOCAB) if i not in lens.tokenizer.all_special_ids]
    expected = np.zeros(scores.values.shape)
    for i in range(2):
        drawn = Random(f"induction 5 {i}").sample(ordinary, 12)
        tokens = [lens.tokenizer.bos_token_id, *drawn, *drawn]
        for layer, whole in enumerate(attentions(family, tokens)):
            for at in range(13, 25):
                after = tokens.index(tokens[at]) + 1
                expected[layer] += whole[:, at, after].numpy() / 24
    assert np.allclose(scores.values, expected, atol=ATTENTION_TOLERANCE)


# -- organisms -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted():
    return dl.load("organism:seed=1,decoy"), dl.organisms.truth("organism:seed=1,decoy")


def scored(lens, method):
    return dl.retrieval_scores(lens, "organism_one_hop", method=method, limit=12, store=None, progress=False)


def test_attention_cannot_tell_a_decoy_and_writing_can(planted):
    lens, truth = planted
    retrieval, decoy = truth.role("retrieval"), truth.role("decoy")
    for method in ("copy_paste", "query_to_gold"):
        scores = scored(lens, method)
        assert set(scores.top(2)) == {retrieval, decoy} and scores.values[decoy] > 0.8
        assert np.sort(scores.values, axis=None)[-3] < 0.5
        assert not (scores.low < 0).any() and not (scores.high > 1).any()  # heads that always or never do it have none
        assert np.isnan(scores.spread).all()  # answers of one token
    for method in ("write_aware", "write_from_needle"):
        scores = scored(lens, method)
        assert scores.top(1) == [retrieval] and scores.unit == "logits" and scores.critical is None
        assert scores.values[retrieval] > 10 * abs(scores.values[decoy])


# -- by step -------------------------------------------------------------------------------------------


def own_needles(lens, n, n_tokens):
    """Needles that a random model recalls: what it writes itself, wherever these tokens stand in the context."""
    made = []
    for seed in range(n):
        tokens = list(random_tokens(20, seed))
        for _ in range(n_tokens):
            with torch.no_grad():
                tokens.append(int(lens.model(torch.tensor([tokens])).logits[0, -1].argmax()))
        request = LoglikelihoodRequest(tuple(tokens[:20]), tuple(tokens[20:]))
        made.append(Needle(request, tuple(range(n_tokens)), tuple(range(20))))
    return made
