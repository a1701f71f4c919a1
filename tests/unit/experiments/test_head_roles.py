"""Retrieval and reasoning heads: against hand-written scores on random models, against the truth on organisms."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from torch.profiler import ProfilerActivity, profile

import depthlens as dl
from depthlens.analysis.head_scores import HeadScores, roles
from depthlens.errors import UserError
from depthlens.experiments import attention_patterns, worked_solutions
from depthlens.experiments.attribution import attribute
from depthlens.experiments.head_roles import copy_paste, reasoning_scores, retrieval_scores
from depthlens.experiments.result_attention import SOURCES, attention_at_results
from depthlens.models.lens import Lens
from depthlens.organisms import builder, language
from depthlens.requests import LoglikelihoodRequest
from depthlens.tasks import needles as prompts
from depthlens.tasks import token_spans
from depthlens.tasks.needles import Needle

PATTERN_TOLERANCE = 1e-5  # float32 softmax rows, computed from the same queries and keys in another order
LOSS_TOLERANCE = 1e-4  # nats; differences of two float32 log-probabilities, computed in another batch layout
FAMILIES = ["llama-gqa", "qwen3", "deepseek-v3"]  # shared keys, normed queries and keys, latent attention


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("llama-gqa", max_position_embeddings=4096)


def attentions(family, tokens):
    """Attention of every layer by the model's own eager kernel. Each of shape [n_heads, pos, pos]."""
    model = tiny.model(family)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return [a[0] for a in model(torch.tensor([list(tokens)]), output_attentions=True).attentions]


def random_tokens(n, seed, alphabet=256):
    return tuple(torch.randint(0, alphabet, (n,), generator=torch.Generator().manual_seed(seed)).tolist())


# -- patterns -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_patterns_are_those_of_the_eager_kernel(family):
    lens = tiny.lens(family)
    sequences, asked = [random_tokens(7, 0), random_tokens(20, 1)], [[0, 3, 6], [19, 2]]
    seen = {}
    attention_patterns.read(lens, sequences, asked, lambda layer, i, p: seen.__setitem__((layer, i), p))
    assert list(seen) == [(layer, i) for i in (0, 1) for layer in range(lens.dims.n_layers)]
    for i, tokens in enumerate(sequences):
        for layer, whole in enumerate(attentions(family, tokens)):
            assert torch.allclose(seen[layer, i], whole[:, asked[i]], atol=PATTERN_TOLERANCE)


def test_patterns_are_those_of_transformer_lens():
    lens = tiny.lens("llama-gqa")
    tokens, asked = random_tokens(15, 3), [4, 14]
    seen = {}
    attention_patterns.read(lens, [tokens], [asked], lambda layer, i, p: seen.__setitem__(layer, p))
    for layer in range(lens.dims.n_layers):  # one layer at a time there, too
        name = f"blocks.{layer}.attn.hook_pattern"
        _, cache = lens.bridge.run_with_cache(torch.tensor([tokens]), names_filter=lambda n, name=name: n == name)
        assert torch.allclose(seen[layer], cache[name][0][:, asked], atol=PATTERN_TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_at_4096_tokens_is_that_of_one_layer(family):
    """Peak of torch's allocations, counted by its profiler: the same for 2 layers as for 6, and far from pos x pos."""
    n_pos, asked = 4096, range(4088, 4096)

    def peak(n_layers):
        lens = tiny.lens(family, num_hidden_layers=n_layers, max_position_embeddings=n_pos)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            attention_patterns.read(lens, [random_tokens(n_pos, 5)], [asked], lambda layer, i, p: None)
        held = [
            e.nbytes()
            for e in sorted(recorded.profiler.kineto_results.events(), key=lambda e: e.start_ns())
            if e.name() == "[memory]"
        ]
        return np.cumsum(held).max(), lens.dims

    few, dims = peak(2)
    many, _ = peak(6)
    assert many == pytest.approx(few, rel=0.01)
    one_layer_of_patterns = dims.n_heads * n_pos * n_pos * 4
    streams = 25 * n_pos * dims.d_model * 4  # what a token holds as it passes a layer: queries, keys, values, MLP
    rows = 3 * dims.n_heads * len(asked) * n_pos * 4  # scores, mask and softmax of the asked positions
    assert many < streams + rows < one_layer_of_patterns / 10


def test_what_cannot_be_read_is_refused(lens):
    with pytest.raises(UserError, match="position 7 of sequence 1: it has 7 tokens"):
        attention_patterns.read(lens, [(1, 2), random_tokens(7, 0)], [[0], [7]], lambda *a: None)
    narrow = tiny.lens("mistral", sliding_window=6)
    with pytest.raises(UserError, match="more than the 6 that attention sees at once"):
        attention_patterns.read(narrow, [random_tokens(7, 0)], [[0]], lambda *a: None)


def test_the_model_is_left_alone_even_after_an_exception():
    lens = tiny.lens("llama-gqa")
    tokens = torch.tensor([random_tokens(9, 0)])
    kernel, before = lens.model.config._attn_implementation, lens.model(tokens).logits

    def fail(layer, i, pattern):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        attention_patterns.read(lens, [random_tokens(9, 0)], [[8]], fail)
    assert lens.model.config._attn_implementation == kernel
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in lens.model.modules())
    assert torch.equal(lens.model(tokens).logits, before)


# -- copy-paste score -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_copy_paste_score_is_the_formula(family):
    """Few different tokens, so that top-1 positions hold the written token now and then."""
    lens = tiny.lens(family)
    made = []
    for seed, places in ((0, range(40)), (1, range(5, 20)), (2, [3, 4, 30])):
        tokens = random_tokens(45, seed, alphabet=5)
        made.append(Needle(LoglikelihoodRequest(tokens[:40], tokens[40:]), (1, 2, 3), tuple(places)))
    scores = copy_paste(lens, made)
    for i, needle in enumerate(made):
        tokens = (*needle.request.context, *needle.request.continuation)
        for layer, whole in enumerate(attentions(family, tokens)):
            for head in range(lens.dims.n_heads):
                score = 0.0
                for step in needle.steps:
                    top = int(whole[head, 39 + step].argmax())  # the position that predicts token 40 + step
                    score += (top in needle.places and tokens[top] == tokens[40 + step]) / len(needle.steps)
                assert scores[i, layer, head] == pytest.approx(score)
    assert 0 < scores.mean() < 1


def test_an_offloaded_model_gives_the_same_scores(tmp_path):
    folder = tiny.save(tmp_path / "model", "llama-gqa")
    whole, offloaded = dl.load(folder), dl.load(folder, offload="disk")
    given = greedy_needles(whole, 2)
    one, other = (retrieval_scores(lens, needles=given, progress=False) for lens in (whole, offloaded))
    assert np.array_equal(one.values, other.values) and one.n == other.n == 2


def planted_needles(task, n=12):
    asked = language.sample(n, task, seed=7)
    return [Needle(LoglikelihoodRequest(p.tokens, (p.answer_id,)), (0,), (p.answer_at,)) for p in asked]


def organism(name):
    built = builder.build(**{k: v for k, v in vars(builder.parse(name)).items()})
    return Lens(name, built.model, built.tokenizer), built.truth


def separates(values, heads):
    """AUROC 1.0: every head of the set is above every other."""
    inside = np.zeros(values.shape, dtype=bool)
    inside[tuple(zip(*heads, strict=True))] = True
    return values[inside].min() > values[~inside].max()


@pytest.mark.parametrize("name", [*(f"organism:seed={seed}" for seed in range(5)), "organism:n_kv_heads=2"])
def test_planted_heads_rank_first(name):
    lens, truth = organism(name)
    for task in language.TASKS:
        given = planted_needles(task)
        copying = retrieval_scores(lens, needles=given, progress=False)
        assert copying.record["needles"]["recalled"] == copying.n == len(given)
        assert separates(copying.values, truth.copies(task))
        assert set(copying.top(1)) == truth.copies(task) and copying.values.max() > 0.95
        lost = retrieval_scores(lens, needles=given, method="exact", progress=False)
        assert separates(lost.values, truth.needed(task))
        assert {tuple(h) for h in np.argwhere(lost.critical & (lost.values > 0.1)).tolist()} == truth.needed(task)
        # heads that the task cannot do without, and that copy nothing
        for head in truth.needed(task) - truth.copies(task):
            assert copying.values[head] < 0.12 and lost.values[head] > 1


def test_decoy_and_backup_are_told_apart():
    lens, truth = organism("organism:seed=1,decoy,backup")
    given = planted_needles("one_hop")
    copying = retrieval_scores(lens, needles=given, progress=False)
    alone = retrieval_scores(lens, needles=given, method="exact", progress=False)
    among = [h for h in copying.top(24) if copying.values[h] >= 0.5]  # far above hits by chance on one-token needles
    assert set(among) == truth.copies("one_hop")
    together = retrieval_scores(lens, needles=given, method="exact", among=among, progress=False)
    assert np.isfinite(together.values).sum() == len(among) and len(together.top(len(among))) == len(among)
    found = roles(copying, alone, together, copies=0.5).set_index(["layer", "head"])["role"]
    by_role = {role: set(group.index) for role, group in found.groupby(found)}
    assert by_role.pop("attends but is not needed") == {truth.role("decoy")}
    assert by_role.pop("needed only together") == truth.needed_together("one_hop")
    assert by_role.pop("needed but does not copy") == truth.needed("one_hop") == {truth.role("previous_token")}
    assert set(by_role) == {"neither"}
    # without the joint removal backups cannot be told from decoys, and the role says so
    blind = roles(copying, alone, copies=0.5, needed=0.5).set_index(["layer", "head"])["role"]
    assert set(blind[blind == "attends but is not needed alone"].index) == truth.copies("one_hop")


def test_a_task_gives_needles_and_attribution_agrees():
    lens, truth = organism("organism")
    options = {"limit": 8, "progress": False}
    copying = retrieval_scores(lens, "organism_one_hop", **options)
    assert set(copying.top(1)) == truth.copies("one_hop") and copying.n == 8
    assert copying.record["task"] == "organism_one_hop" and copying.record["model"]["name"] == "organism"
    exact = retrieval_scores(lens, "organism_one_hop", method="exact", **options)
    estimate = retrieval_scores(lens, "organism_one_hop", method="attribution", **options)
    assert set(exact.top(2)) == truth.needed("one_hop")
    assert set(estimate.top(1)) <= truth.needed("one_hop")  # saturated attention hides the rest from gradients
    change, _ = attribute(lens, [n.request for n in prompts.of_task(lens, "organism_one_hop", limit=8)])
    assert np.allclose(estimate.values, -change.mean(0).numpy(), atol=LOSS_TOLERANCE)
    assert "attribution" in estimate.name and estimate.unit == exact.unit == "nats" and copying.unit == ""


def test_needles_that_are_not_recalled_do_not_count():
    lens, truth = organism("organism")
    good = planted_needles("one_hop", 5)
    swapped = [
        Needle(LoglikelihoodRequest(n.request.context, (n.request.continuation[0] - 1,)), (0,), n.places) for n in good
    ]
    mixed = retrieval_scores(lens, needles=[*good, *swapped], progress=False)
    assert mixed.n == 5 and mixed.record["needles"]["asked"] == 10
    assert np.array_equal(mixed.values, retrieval_scores(lens, needles=good, progress=False).values)
    with pytest.raises(UserError, match="recalls none of 5 needles: cannot judge"):
        retrieval_scores(lens, needles=swapped, progress=False)


def logprobs(lens, tokens, heads=()):
    """Log-probability of each token but the first, with z of some heads zeroed by hand."""
    d = lens.dims.d_head

    def zero(head):
        def hook(module, args):
            z = args[0].clone()
            z[..., head * d : (head + 1) * d] = 0
            return (z,)

        return hook

    handles = [lens.arch.o_proj[layer].register_forward_pre_hook(zero(head)) for layer, head in heads]
    with torch.no_grad():
        found = lens.model(torch.tensor([list(tokens)])).logits[0].double().log_softmax(-1)
    for handle in handles:
        handle.remove()
    return found[:-1].gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0].numpy()


def greedy_needles(lens, n):
    """Needles that a random model recalls: what it writes itself, and the whole context as their place."""
    made = []
    for seed in range(n):
        tokens = list(random_tokens(12, seed))
        for _ in range(3):
            with torch.no_grad():
                tokens.append(int(lens.model(torch.tensor([tokens])).logits[0, -1].argmax()))
        made.append(Needle(LoglikelihoodRequest(tuple(tokens[:12]), tuple(tokens[12:])), (1, 2), tuple(range(12))))
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_removal_by_hand(family):
    lens = tiny.lens(family)
    given = greedy_needles(lens, 3)
    exact = retrieval_scores(lens, needles=given, method="exact", progress=False)
    among = [(0, 1), (2, 0), (4, 3)]
    joint = retrieval_scores(lens, needles=given, method="exact", among=among, progress=False)

    def loss(more, fewer):
        """Mean over needles of the loss per needle token (steps 1 and 2) from removing more heads."""
        each = []
        for needle in given:
            tokens = (*needle.request.context, *needle.request.continuation)
            each.append((logprobs(lens, tokens, fewer) - logprobs(lens, tokens, more))[12:14].mean())
        return np.mean(each)

    for head in [(0, 0), (2, 3), (4, 1)]:
        assert exact.values[head] == pytest.approx(loss([head], []), abs=LOSS_TOLERANCE)
    for head in among:
        others = [h for h in among if h != head]
        assert joint.values[head] == pytest.approx(loss(among, others), abs=LOSS_TOLERANCE)
    assert np.abs(exact.values).max() > 100 * LOSS_TOLERANCE
    assert np.isnan(joint.values[0, 0]) and not joint.critical[0, 0]
    assert exact.low[0, 0] <= exact.values[0, 0] <= exact.high[0, 0]


def test_bad_retrieval_requests_are_refused(lens):
    given = greedy_needles(lens, 1)
    for options, message in [
        ({"method": "guess"}, "unknown method 'guess'"),
        ({"among": [(0, 0), (1, 1)]}, "only 'exact' removes several heads"),
        ({"method": "exact", "among": [(0, 0), (0, 0)]}, "among names 1 heads"),
        ({"method": "exact", "among": [(0, 0), (9, 0)]}, "layer 9 does not exist"),
        ({"needles": []}, "no needles"),
        ({"needles": None, "n_needles": 0}, "n_needles 0"),
        ({"needles": None, "depths": [1.5]}, "depths"),
        ({"needles": None, "context_lengths": [10]}, "context length 10"),
        ({"needles": None, "context_lengths": [10**6]}, "reads 4096 tokens"),
        ({"needles": None, "task": "capitals_generative", "limit": 3}, "stands in its prompt"),
    ]:
        with pytest.raises(UserError, match=message):
            retrieval_scores(lens, **({"needles": given, "progress": False} | options))
    with pytest.raises(UserError, match="words of English as unknown; give task="):
        retrieval_scores(organism("organism")[0], progress=False)


# -- needles --------------------------------------------------------------------------------------------------


def test_written_needles_stand_where_they_should(lens):
    made = prompts.written(lens, n_needles=2, depths=(0.0, 0.5, 1.0), context_lengths=(700, 1000), seed=3)
    assert len(made) == 12 and made == prompts.written(lens, 2, (0.0, 0.5, 1.0), (700, 1000), seed=3)
    assert made != prompts.written(lens, 2, (0.0, 0.5, 1.0), (700, 1000), seed=4)
    for needle in made:
        about, context = needle.about, lens.tokenizer.decode(needle.request.context)
        code = lens.tokenizer.decode(needle.targets)
        assert len(code) == 4 and code.isdigit() and f"The code of the {about['thing']} is {code}." in context
        assert lens.tokenizer.decode([needle.request.context[p] for p in needle.places]) == code
        assert context.count(code) == 1 and context.endswith(f"A: The code of the {about['thing']} is")
        assert about["context_length"] - 90 < len(needle.request.context) <= about["context_length"]
        start = needle.places[0] / context.index("\n\n")
        assert abs(start - about["depth"]) < 0.25  # other codes and whole sentences shift it a little


def test_an_answer_is_found_as_a_whole_word_only(lens):
    text = token_spans.align(lens, "test", "7 and 77, then 1,7 or 7.5; so 7.\nQ: ", "7")
    needle = prompts.find(text, "7", {})
    assert [text.context[p - 0] for p in needle.places] == ["7", "7"]
    assert list(needle.places) == [0, text.context.index("so 7") + 3]
    assert prompts.find(token_spans.align(lens, "test", "nothing here", " 7"), "7", {}) is None


@pytest.mark.parametrize("task", ["kv_retrieval_4", "kv_retrieval_uuid"])
def test_needles_of_a_task_hold_the_answer(lens, task):
    for needle in prompts.of_task(lens, task, limit=3):
        # one byte a token: the places hold the answer, as often as it stands there
        answer = lens.tokenizer.decode(needle.targets)
        held = lens.tokenizer.decode([needle.request.context[p] for p in needle.places])
        assert len(answer) >= 4 and held and held == answer * (len(held) // len(answer))
        assert needle.asked[0] == len(needle.request.context) - 1 + needle.steps[0]


# -- worked solutions -----------------------------------------------------------------------------------------


def test_numbers_of_a_solution_are_computed_or_copied():
    question = "Question: Ann has 53 pens, gives away 12 and buys 17. Two friends help.\nAnswer:"
    solution = " There are 53 - 12 = 41.\nThen 41 + 17 = 58, or 1,058.5 with 2 of 7th at 12 = 12 and 99.\n#### 58"
    found = [
        (solution[a:b], kind) for a, b, kind in worked_solutions.kinds(solution, question, examples="Question: 99\n\n")
    ]
    assert found == [
        ("53", "copied"), ("12", "copied"), ("41", "computed"), ("41", "copied"), ("17", "copied"), ("58", "computed"),
        ("1,058.5", "computed"), ("2", None), ("12", "copied"), ("12", None), ("99", None), ("58", "copied"),
    ]  # fmt: skip
    gsm8k = "48/2 = <<48/2=24>>24 clips, 48+24 = <<48+24=72>>72.\n#### 72"
    kinds = [kind for _, _, kind in worked_solutions.kinds(gsm8k, "48 clips to 2 friends")]
    assert kinds == ["copied"] * 4 + ["computed"] + ["copied"] * 5 + ["computed"] + ["copied"] * 2
    assert [v for *_, v in worked_solutions.numbers("$1,234.50. A4 7th 3")] == [Decimal("1234.50"), Decimal(3)]


def test_spans_cover_the_solution_and_results_know_their_operands(lens):
    for solution in worked_solutions.of_task(lens, "arithmetic_cot", limit=4, num_fewshot=1):
        tokens, n = solution.text.tokens, len(solution.text.request.context)

        def read(positions, tokens=tokens):
            return lens.tokenizer.decode([tokens[p] for p in positions])

        covered = [p for s in solution.spans for p in range(s.start, s.end)]
        assert covered == sorted(set(covered)) and covered[0] == n
        assert len(covered) == len(tokens) - n - sum(  # one byte a token: only unclear numbers are left out
            end - start for start, end, kind in worked_solutions.kinds(
                solution.text.continuation, *_question_and_examples(solution)) if kind is None
        )  # fmt: skip
        assert all(read(range(s.start, s.end)).isdigit() for s in solution.spans if s.kind != "text")
        assert not any(c.isdigit() for s in solution.spans if s.kind == "text" for c in read(range(s.start, s.end)))
        assert "Question:" in read(solution.question) and read(solution.question).count("Question:") == 1
        for request in map(solution.request, solution.spans):
            assert (*request.context, *request.continuation) == tokens[
                : len(request.context) + len(request.continuation)
            ]
    text = token_spans.align(
        lens, "test", "Q: 3 bags of 9, minus 21?\nA:", " 3 * 9 = 27.\n27 - 21 = 6.\nWith 4: 6 + 27 = 33."
    )
    found = worked_solutions.take_apart(0, text, "Q: 3 bags of 9, minus 21?\nA:")

    def letters(positions):
        return "".join((text.context + text.continuation)[p] for p in positions)

    told = [(letters(r.tokens), letters(r.operands), letters(r.previous)) for r in found.results]
    # 4 is new, so the rule calls it computed, and what comes after it on its line starts afresh
    assert told == [("27", "39", ""), ("6", "2721", "27"), ("4", "", "6"), ("33", "627", "4")]


def _question_and_examples(solution):
    at = solution.text.context.rindex("Question:")
    return solution.text.context[at:], solution.text.context[:at]


@pytest.fixture(scope="module")
def reasoning(lens):
    options = {"limit": 3, "num_fewshot": 0, "progress": False}
    return {
        method: reasoning_scores(lens, "arithmetic_cot", method=method, **options)
        for method in ("exact", "attribution")
    }


def test_reasoning_losses_are_those_of_removal_by_hand(lens, reasoning):
    solved = worked_solutions.of_task(lens, "arithmetic_cot", limit=3, num_fewshot=0)
    found = reasoning["exact"]
    for head in [(0, 1), (3, 2)]:
        by_kind = {kind: [] for kind in worked_solutions.KINDS}
        for solution in solved:
            lost = logprobs(lens, solution.text.tokens) - logprobs(lens, solution.text.tokens, [head])
            for kind in worked_solutions.KINDS:
                positions = [p - 1 for s in solution.spans if s.kind == kind for p in range(s.start, s.end)]
                by_kind[kind].append(lost[positions].mean())
        for kind in worked_solutions.KINDS:
            assert getattr(found, kind).values[head] == pytest.approx(np.mean(by_kind[kind]), abs=LOSS_TOLERANCE)
        gap = np.subtract(by_kind["computed"], by_kind["copied"])
        assert found.contrast.values[head] == pytest.approx(gap.mean(), abs=2 * LOSS_TOLERANCE)
        half = 4.302653 * gap.std(ddof=1) / np.sqrt(3)  # t quantile for 2 degrees of freedom
        assert found.contrast.high[head] - found.contrast.values[head] == pytest.approx(half, rel=0.01)
    assert np.abs(found.computed.values).max() > 10 * LOSS_TOLERANCE
    clean = [logprobs(lens, s.text.tokens) for s in solved]
    text = [
        np.mean([c[p - 1] for span in s.spans if span.kind == "text" for p in range(span.start, span.end)])
        for s, c in zip(solved, clean, strict=True)
    ]
    assert found.record["baseline"]["text"]["nats_per_token"] == pytest.approx(np.mean(text), abs=LOSS_TOLERANCE)


def test_attributed_reasoning_scores_add_up_to_the_attribution_of_the_whole(lens, reasoning):
    found = reasoning["attribution"]
    assert found.record["baseline"]["text"]["nats_per_token"] == pytest.approx(
        reasoning["exact"].record["baseline"]["text"]["nats_per_token"], abs=LOSS_TOLERANCE
    )
    solved = worked_solutions.of_task(lens, "arithmetic_cot", limit=3, num_fewshot=0)
    assert all(s.n_unclear == 0 for s in solved)  # so that the three kinds are all tokens
    whole, _ = attribute(lens, [s.text.request for s in solved])
    by_solution = [reasoning_scores_of(lens, s) for s in solved]
    assert np.allclose(by_solution, -whole.numpy(), atol=LOSS_TOLERANCE)
    with pytest.raises(UserError, match="weights do not fit"):
        attribute(lens, [solved[0].text.request], weights=[[1.0]])


def reasoning_scores_of(lens, solution):
    """Attributed loss summed over the tokens of all kinds."""
    from depthlens.experiments.head_roles import _weighted

    requests, weights = zip(*(_weighted(solution, kind) for kind in worked_solutions.KINDS), strict=True)
    return -attribute(lens, requests, weights=weights)[0].numpy().sum(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_at_results_is_the_mass_of_the_eager_kernel(family):
    lens = tiny.lens(family, max_position_embeddings=4096)
    options = {"limit": 4, "num_fewshot": 0}
    table = attention_at_results(lens, "arithmetic_cot", **options, progress=False)
    assert list(table.columns) == ["layer", "head", "condition", *SOURCES, "n"]
    assert np.allclose(table[list(SOURCES)].sum(axis=1), 1)
    solved = worked_solutions.of_task(lens, "arithmetic_cot", **options)
    mass = {source: np.zeros((lens.dims.n_layers, lens.dims.n_heads)) for source in SOURCES}
    model = tiny.model(family, max_position_embeddings=4096)
    model.set_attn_implementation("eager")
    n = 0
    for solution in solved:
        with torch.no_grad():
            whole = model(torch.tensor([solution.text.tokens]), output_attentions=True).attentions
        for result in solution.results:
            n += 1
            for layer, head in np.ndindex(mass["rest"].shape):
                for p in result.tokens:
                    row = whole[layer][0, head, p - 1].numpy() / len(result.tokens)
                    groups = [set(result.operands), set(result.previous), set(solution.question)]
                    for source, group in zip(SOURCES, groups, strict=False):
                        mass[source][layer, head] += sum(row[j] for j in group)
                    mass["rest"][layer, head] += row.sum() - sum(row[j] for j in set.union(*groups))
    assert set(table["n"]) == {n} and n >= 4
    for source in SOURCES:
        assert np.allclose(table[source].to_numpy().reshape(mass[source].shape), mass[source] / n, atol=1e-4)


def test_bad_reasoning_requests_are_refused(lens):
    for task, options, message in [
        ("arithmetic_cot", {"method": "copy"}, "unknown method 'copy'"),
        ("capitals_continuation", {}, "worked solutions need a generative task"),
        ("capitals_generative", {}, "holds a number that stands nowhere before"),
    ]:
        with pytest.raises(UserError, match=message):
            reasoning_scores(lens, task, limit=2, progress=False, **options)


# -- HeadScores -----------------------------------------------------------------------------------------------


def made_scores(**changes):
    fields = {
        "name": "test", "unit": "nats", "values": np.array([[0.1, 0.5], [0.5, np.nan]]), "low": None, "high": None,
        "n": 3, "critical": np.array([[False, True], [True, False]]), "record": {"model": {"name": "m"}},
    }  # fmt: skip
    return HeadScores(**fields | changes)


def test_top_is_sorted_and_leaves_out_what_was_not_measured():
    scores = made_scores()
    assert scores.top(3) == [(0, 1), (1, 0), (0, 0)] and scores.top(1) == [(0, 1)]
    for k in (0, 4, True):
        with pytest.raises(UserError, match="from 1 to 3"):
            scores.top(k)


def test_frame_and_files_keep_everything(tmp_path):
    scores = made_scores()
    frame = scores.frame
    assert list(frame.columns) == ["layer", "head", "condition", "value", "low", "high", "critical"]
    assert frame["condition"].tolist() == ["L0.H0", "L0.H1", "L1.H0", "L1.H1"] and frame["low"].isna().all()
    scores.save(tmp_path / "scores")
    read = HeadScores.load(tmp_path / "scores")
    pd.testing.assert_frame_equal(read.frame, frame)
    assert (read.name, read.unit, read.n, read.record) == (scores.name, scores.unit, 3, scores.record)
    assert read.low is None and np.array_equal(read.critical, scores.critical)
    assert made_scores(critical=None).frame["critical"].isna().all()
    with pytest.raises(UserError, match="holds no heads.parquet"):
        HeadScores.load(tmp_path)
    with pytest.raises(UserError, match="low has shape"):
        made_scores(low=np.zeros(3))


def test_means_intervals_and_verdicts_over_cases():
    rng = np.random.default_rng(0)
    cases = rng.normal(0, 1, (30, 2, 3))
    cases[:, 1, 2] += 3
    scores = HeadScores.of_cases("test", "nats", cases, {}, tested=True)
    assert np.allclose(scores.values, cases.mean(0)) and scores.n == 30
    assert np.argwhere(scores.critical).tolist() == [[1, 2]]
    half = 2.045230 * cases[:, 0, 0].std(ddof=1) / np.sqrt(30)
    assert scores.high[0, 0] - scores.values[0, 0] == pytest.approx(half, rel=1e-4)
    assert not HeadScores.of_cases("test", "nats", -cases, {}, tested=True).critical.any()  # gains are not critical
    assert HeadScores.of_cases("test", "", cases, {}, tested=False).critical is None


def test_roles_need_losses_of_the_same_heads():
    scores = made_scores()
    with pytest.raises(UserError, match="alone has shape"):
        roles(scores, made_scores(values=np.zeros((1, 2)), critical=None))
    with pytest.raises(UserError, match="was not tested"):
        roles(scores, made_scores(critical=None))


def test_the_package_offers_them():
    assert dl.retrieval_scores is retrieval_scores and dl.reasoning_scores is reasoning_scores
    assert dl.HeadScores is HeadScores and callable(dl.removal_curve)
