"""What depends on where a token stands: ablations from a position on, means, a prompt, noise; on every path alike."""

import numpy as np
import plain_conditions
import pytest
import surgery
import tiny
import torch
from by_hand import random_tokens, recorded, scored

import depthlens as dl
from depthlens.ablations import BASELINE, expand, parse_condition
from depthlens.backends.changes import noise
from depthlens.engine.references import measure_means, sample
from depthlens.requests import GenerateRequest, LoglikelihoodRequest

# float32 sums of about ten log-probabilities in another batch layout
LOGPROB_TOLERANCE = 1e-4
PLAIN = "L0,L3,L2.attn,L1.H3,L4.KV1,L1-2,L0.mlp+L4.H0"
SPARED = "L0[1:],L2[1:],L4[1:],L1-3[1:],L2.attn[1:],L1.mlp[4:],L1.H3[2:],L4.KV1[1:],L3[500:],L1[1:]+L1.H0+L2"
MEANS = "L1@mean,L2[1:]@mean,L4@mean,L2.attn@mean,L0.mlp[3:]@mean,L4.mlp@mean,L3.H1@mean,L2.KV0[1:]@mean,L1-2@mean+L4"
SAMPLED = "L1.H2@resample,L3.KV1@resample,L0.H1@resample+L2.H0,L2.H3@resample+L4.mlp,L2@resample,L1.attn@resample"
SAMPLED += ",L3.mlp@resample,L1-2[1:]@resample,L1@resample+L2.H0+L3@mean"
NOISE = "L0@noise,L4@noise3,L2.attn@noise,L4.mlp[1:]@noise,L3.H1@noise,L2.KV0[1:]@noise5,L1-2@noise+L3.H0"


@pytest.fixture(scope="module")
def requests():
    """Of several lengths; options that share a context; and a token that is of a prompt and of an answer."""
    made = [
        LoglikelihoodRequest(random_tokens(n, n), random_tokens(m, 50 + n))
        for n, m in [(5, 1), (17, 3), (9, 6), (1, 3)]
    ]
    shared = made[1].context
    made += [LoglikelihoodRequest(shared, (5, 6, t)) for t in (7, 8)]
    return [*made, LoglikelihoodRequest((*shared, 5, 6), (7, 9)), LoglikelihoodRequest(shared[:4], shared[4:9])]


def means_of(lens):
    """Of three texts, and a prompt that is shorter than some requests and is read again after its end."""
    texts = [[*random_tokens(n, 80 + n), *random_tokens(m, 90 + m)] for n, m in ((6, 3), (11, 1), (9, 5))]
    return sample(lens, measure_means(lens, texts, "three texts"), random_tokens(6, 4))


def conditions_of(lens, *texts):
    return [c for text in texts for c in expand(text, lens.dims)[1:]] + [BASELINE]


@pytest.mark.parametrize(("family", "texts", "budget"), [
    *(("llama-gqa", [PLAIN], budget) for budget in (1, 40, 4096)), ("llama-gqa", [SPARED, MEANS, SAMPLED, NOISE], 64),
    ("qwen3-moe", [MEANS], 64), ("deepseek-v3", [SAMPLED, NOISE], 64),
])  # fmt: skip
def test_log_likelihoods_are_those_of_a_model_with_other_parts_whatever_the_budget(family, texts, budget, requests):
    lens = surgery.rough_lens(family)
    means, conditions = means_of(lens), conditions_of(lens, *texts)
    answers = dl.Engine(lens, means=means, batch_tokens=budget, progress=False).loglikelihood(requests, conditions)
    clean = [a.logprob for a in answers[-1]]
    for condition, row in zip(conditions, answers, strict=True):
        cut = surgery.cut(lens, condition, means)
        for q, answer in zip(requests, row, strict=True):
            logprob, greedy = scored(cut, q)
            assert answer.logprob == pytest.approx(logprob, abs=LOGPROB_TOLERANCE), str(condition)
            assert answer.is_greedy == greedy
        changed = max(abs(a.logprob - b) for a, b in zip(row, clean, strict=True))
        assert (changed > 1e-3) == (condition != BASELINE and str(condition) != "L3[500:]"), str(condition)


@pytest.mark.parametrize("family", ["llama-gqa", "qwen3-moe", "deepseek-v3"])
def test_means_are_of_what_a_part_adds_at_first_tokens_and_at_all_others(family):
    lens, texts = tiny.lens(family), [random_tokens(12, 1), random_tokens(4, 2)]
    means, a = measure_means(lens, texts, "two texts"), lens.arch
    modules = {"layer": a.layers[1], "attn": a.attn[1], "mlp": a.mlp[1], "z": a.o_proj[1]}
    added = {site: [] for site in modules}
    for text in texts:
        for site, (args, out) in recorded(lens.model, text, modules)[0].items():
            new = args[0] if site == "z" else out - args[0] if site == "layer" else out
            added[site].append(new[0].double())
    for site, rows in added.items():
        wanted = torch.stack([torch.cat([x[at] for x in rows]).mean(0) for at in (slice(1), slice(1, None))])
        assert torch.allclose(means.mean[site][1].flatten(1).double(), wanted, atol=1e-5), site
        assert (wanted[0] - wanted[1]).abs().max() > 0.01


WAYS = [("qwen3-moe", "torch", {}), ("llama-gqa", "transformer_lens", {}), ("deepseek-v3", "nnsight", {})]
WAYS += [("mistral", "transformer_lens", {"sliding_window": 6})]  # shorter than the prompts


@pytest.mark.parametrize(("family", "backend", "changes"), WAYS)
def test_every_path_gives_the_same_scores_and_texts(family, backend, changes, requests):
    """Padding is right of what is scored and left of what is written to."""
    lens = surgery.rough_lens(family, **changes)
    means, conditions = means_of(lens), conditions_of(lens, SPARED, MEANS, SAMPLED, NOISE)
    asked = [GenerateRequest(q.context, ("zz",), 6) for q in requests]
    fast = dl.Engine(lens, means=means, batch_tokens=64, progress=False)
    plain = dl.Engine(lens, backend=backend, path="padded_rows", means=means, batch_tokens=500, progress=False)
    found, wanted = (engine.loglikelihood(requests, conditions) for engine in (fast, plain))
    for row, other in zip(found, wanted, strict=True):
        assert [a.logprob for a in row] == pytest.approx([a.logprob for a in other], abs=LOGPROB_TOLERANCE)
        assert [a.is_greedy for a in row] == [a.is_greedy for a in other]
    texts = fast.generate_until(asked, conditions)
    assert texts == plain.generate_until(asked, conditions)
    assert len({t for row in texts for t in row}) > 2 * len(requests), "the conditions change no text"


@pytest.mark.parametrize("branches", [False, True])
def test_rows_that_are_edited_late_walk_without_the_tokens_before(branches, monkeypatch):
    """As patches are: from the token on at which the first of them is edited, whoever walked before."""
    lens = surgery.rough_lens("llama-gqa")
    means, prefix = means_of(lens), random_tokens(12, 7)
    asked = [LoglikelihoodRequest(prefix + own, (5,)) for own in ((), (8, 9), (8, 3, 2))[: 3 if branches else 1]]
    parts = [f"L{layer}.{part}" for layer in (0, 2, 4) for part in ("attn", "H1")]
    texts = [f"{part}[{at}:]@resample" for part in parts for at in range(3, 12)]
    conditions = [BASELINE, *map(parse_condition, texts), *map(parse_condition, ["L1[11:]@mean", "L3.mlp[9:]@noise"])]
    work = {}
    for group in (5, 128):
        monkeypatch.setattr("depthlens.engine.batches.MAX_OPEN_ROWS", group)
        engine = dl.Engine(lens, means=means, batch_tokens=64, progress=False)
        answers = engine.loglikelihood(asked, conditions)
        work[group] = engine.work.layer_tokens
        for condition, row in zip(conditions, answers, strict=True):
            wanted = [surgery.logprob(lens, condition, means, q) for q in asked]
            assert [a.logprob for a in row] == pytest.approx(wanted, abs=LOGPROB_TOLERANCE), str(condition)
    # 128: all walk from the first one's token on; 5: from that of each five on, beside a clean row each
    n_tokens = 12 + 4 * branches
    passes = sum(5 - c.ablations[0].layer for c in conditions[1:])
    assert work[128] == 5 * n_tokens + (n_tokens - 3) * passes
    assert work[5] < 5 * n_tokens * -(-len(conditions) // 5) + (n_tokens - 6) * passes


def test_a_mean_over_references_has_the_answers_of_all():
    lens = tiny.lens("llama-gqa", max_position_embeddings=4096)
    prompts = ["The capital of Peru is Lima.", "A fox met a crow at the well and said nothing."]
    options = {"limit": 8, "measure": "both", "store": None, "progress": False}
    given = lens, ["capitals_default", "kv_retrieval_4"], "L1@resample"
    several = [prompts[0]], [prompts[1]], prompts
    *alone, both = (dl.condition_sweep(*given, resample_prompts=some, **options) for some in several)
    one, other = (result.docs["value"].to_numpy() for result in alone)
    assert np.allclose(both.docs["value"], (one + other) / 2) and not np.allclose(one, other)
    assert both.record["resample_prompts"] == prompts
    given = [" | ".join(dict.fromkeys(pair)) for pair in zip(*(r.docs["response"] for r in alone), strict=True)]
    assert both.docs["response"].tolist() == given and any(" | " in text for text in given)
    for flag in ("parsed", "complete"):
        assert both.docs[flag].equals(alone[0].docs[flag] & alone[1].docs[flag])


def test_a_part_that_writes_nothing_gets_no_noise():
    lens = surgery.rough_lens("llama-gqa")
    with torch.no_grad():
        lens.arch.o_proj[2].weight[:, : lens.dims.d_head] = 0
        lens.arch.mlp[2].down_proj.weight.zero_()
    request = [LoglikelihoodRequest((1, 2, 3), (4, 5))]
    conditions = [parse_condition(text) for text in ("baseline", "L2.H0@noise", "L2.mlp@noise", "L2.H1@noise")]
    rows = dl.Engine(lens, progress=False).loglikelihood(request, conditions)
    clean, head, mlp, other = (row[0].logprob for row in rows)
    assert head == mlp == pytest.approx(clean, abs=LOGPROB_TOLERANCE) and abs(other - clean) > 0.01


def test_noise_is_drawn_by_seed_layer_site_index_and_position():
    """Position by position, also beyond those that come from one generator."""
    texts = ["L2@noise", "L2.attn@noise", "L2.H1@noise", "L2.KV0[1:]@noise", "L2@noise1", "L3.mlp@noise4294967296"]
    for (a,) in (parse_condition(text).ablations for text in texts):
        wanted = plain_conditions.noise(a.seed, a.layer, a.site, a.index, 300, 8)
        for position in (torch.arange(300)[None], torch.tensor([[299, 255, 256, 7]])):
            assert torch.equal(noise(a, position, 8)[0], wanted[position[0]])
