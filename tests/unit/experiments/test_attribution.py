"""Attribution against finite differences, integrated gradients against removal, answer_logprob against one pass."""

from functools import partial

import numpy as np
import pytest
import tiny
import torch
from by_hand import logprobs, patched

import depthlens as dl
from depthlens.ablations import heads_condition
from depthlens.engine.engine import Engine
from depthlens.experiments.attribution import attribute, nodes
from depthlens.metrics import ANSWER_LOGPROB
from depthlens.requests import LoglikelihoodRequest
from depthlens.tasks import harness
from depthlens.tasks.measures import Answers

LOGPROB_TOLERANCE = 1e-4  # float32 sums of a dozen log-probabilities in another batch layout
STEP = 2e-3  # of the way to removal: small enough for a straight line, large enough for float32
SLOPE_TOLERANCE = 5e-3  # nats: rounding of 5e-6 over twice the step, and the third-order term
KINK = 0.3  # nats: one-sided slopes that differ by more straddle a switch of experts, which has no slope


@pytest.fixture(scope="module")
def requests():
    g = torch.Generator().manual_seed(2)
    made = [torch.randint(0, 256, (n,), generator=g).tolist() for n in (9, 4, 13)]
    return [LoglikelihoodRequest(tuple(t[:-2]), tuple(t[-2:])) for t in made]


def logprob(lens, request, heads=(), **way):
    """Log-likelihood of one request while z of heads has gone a part of the way to its replacement."""
    return logprobs(lens, (*request.context, *request.continuation), heads, **way)[len(request.context) - 1 :].sum()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_estimates_are_the_slope_towards_removal(family, requests):
    lens = tiny.lens(family)
    estimate, clean = attribute(lens, requests)
    assert estimate.shape == (len(requests), lens.dims.n_layers, lens.dims.n_heads)
    compared = 0
    for r, request in enumerate(requests):
        here = logprob(lens, request)
        assert clean[r].item() == pytest.approx(here, abs=LOGPROB_TOLERANCE)
        for place in [(0, 1), (2, 0), (lens.dims.n_layers - 1, lens.dims.n_heads - 1)]:
            up, down = (logprob(lens, request, [place], fraction=f) for f in (STEP, -STEP))
            if abs((up - here) - (here - down)) / STEP < KINK:
                compared += 1
                slope = (up - down) / (2 * STEP)
                assert estimate[(r, *place)].item() == pytest.approx(slope, abs=SLOPE_TOLERANCE), place
    assert compared == 3 * len(requests) or ("moe" in family or "deepseek" in family) and compared >= 2 * len(requests)
    assert estimate.abs().max() > 10 * SLOPE_TOLERANCE


@pytest.fixture(params=[attribute, partial(attribute, steps=1)], ids=["slope", "path"])
def estimate(request):
    return request.param


def test_batches_and_padding_change_nothing_and_the_model_is_left_alone(requests, estimate):
    lens = tiny.lens("llama-gqa")
    whole, _ = estimate(lens, requests)
    alone = torch.cat([estimate(lens, [q], batch_tokens=1)[0] for q in requests])
    assert torch.allclose(whole, alone, atol=LOGPROB_TOLERANCE) and whole.abs().max() > 100 * LOGPROB_TOLERANCE
    assert all(p.grad is None and not p.requires_grad for p in lens.model.parameters())
    assert not any(m._forward_pre_hooks for m in lens.model.modules())


def test_out_of_memory_halves_the_batch(requests, estimate, monkeypatch):
    lens = tiny.lens("llama-gqa")
    requests = [*requests, *(LoglikelihoodRequest(q.context[1:], q.continuation) for q in requests)]
    wanted, _ = estimate(lens, requests)

    def small(x):
        if x.shape[0] > 3:  # one request, which a path walks in three groups, and the texts that try the walk
            raise torch.OutOfMemoryError("out of memory")
        return real(x)

    real = patched(monkeypatch, lens.arch.mlp[2], small)
    assert torch.allclose(estimate(lens, requests)[0], wanted, atol=LOGPROB_TOLERANCE)
    assert not any(m._forward_pre_hooks for m in lens.model.modules())


def test_reference_answers_of_choices_and_of_written_tasks(lens):
    tasks = harness.load_tasks(["capitals_continuation", "kv_retrieval_4"], num_fewshot=0)
    choice, written = harness.prepare(lens, tasks, limit=3)
    answers = Answers(choice)
    gold = [doc["choices"][doc["answer"]] for doc in choice.docs.values()]
    assert [answer.strip() for _, answer in answers.pairs.values()] == gold
    decoded = [lens.tokenizer.decode(q.continuation).strip() for q in answers.requests]
    assert decoded == gold
    written_answers = Answers(written)
    for (doc_id, (_, answer)), q in zip(written_answers.pairs.items(), written_answers.requests, strict=True):
        text = answer.strip()
        assert text == str(written.task.doc_to_target(written.docs[doc_id])).strip()
        whole = lens.tokenizer.decode(q.context) + lens.tokenizer.decode(q.continuation)
        prompt = written.task.instances[doc_id].args[0]
        assert whole.endswith(prompt + written.task.config.target_delimiter + text)


def test_measure_both_gives_each_metric_the_value_it_has_alone(lens):
    given, measures = (lens, "capitals_continuation", "L1,L2.H0"), ("both", "task", ANSWER_LOGPROB)
    both, task, answer = (dl.condition_sweep(*given, limit=3, measure=m, progress=False) for m in measures)
    assert set(both.docs["metric"]) == {"acc", "acc_norm", ANSWER_LOGPROB}
    assert list(both.select(metrics=["acc", "acc_norm"]).docs["value"]) == list(task.docs["value"])
    assert list(both.select(metrics=ANSWER_LOGPROB).docs["value"]) == list(answer.docs["value"])
    assert (answer.docs["value"] < 0).all()
    assert not both.baselines.set_index("metric").loc[ANSWER_LOGPROB, "at_chance"]  # it has no chance level


def test_answer_logprob_is_the_log_likelihood_of_the_reference(lens):
    result = dl.condition_sweep(lens, "kv_retrieval_4", "L1", limit=3, measure=ANSWER_LOGPROB, progress=False)
    (prepared,) = harness.prepare(lens, harness.load_tasks(["kv_retrieval_4"]), limit=3)
    for request, value in zip(Answers(prepared).requests, result.docs["value"][:3], strict=True):
        assert value == pytest.approx(logprob(lens, request), abs=LOGPROB_TOLERANCE)


@pytest.mark.parametrize("site", ["head", "kv"])
def test_attributed_sweep_has_the_table_of_the_exact_one(lens, site):
    options = {"limit": 3, "num_fewshot": 0, "site": site, "measure": ANSWER_LOGPROB, "progress": False}
    exact = dl.head_sweep(lens, "capitals_continuation", **options)
    estimated = dl.head_sweep(lens, "capitals_continuation", method="attribution", **options)
    keys = ["metric", "condition", "layer", "head", "doc_id"]
    assert estimated.docs[keys].equals(exact.docs[keys])
    assert (estimated.record["method"], exact.record["method"]) == ("attribution", "exact")
    assert estimated.record["tasks"] == exact.record["tasks"]
    base = estimated.docs["condition"] == "baseline"
    assert np.allclose(estimated.docs["value"][base], exact.docs["value"][base], atol=LOGPROB_TOLERANCE)
    (prepared,) = harness.prepare(lens, harness.load_tasks(["capitals_continuation"], num_fewshot=0), limit=3)
    view = Answers(prepared)
    change, _ = attribute(lens, view.requests)
    heads = [2] if site == "head" else list(lens.dims.query_heads(2 % lens.dims.n_kv_heads))
    name = "H2" if site == "head" else f"KV{2 % lens.dims.n_kv_heads}"
    rows = estimated.docs[estimated.docs["condition"] == f"L1.{name}"]["value"].to_numpy()
    wanted = rows - estimated.docs["value"][base].to_numpy()
    assert np.allclose(wanted, change[:, 1, heads].sum(-1), atol=LOGPROB_TOLERANCE)


RULE_TOLERANCE = 1e-9  # of polynomials in float64
MANY_STEPS = 24
COMPLETE_TOLERANCE = 0.02  # nats, of sums over so many steps and of float32 log-probabilities; effects reach several
SMOOTH = ("llama-gqa", "llama-mqa", "qwen2", "qwen3")  # where experts switch, there is a jump


def changes(lens, requests, groups):
    """Exact changes in nats by removing groups of heads together; shape [request, group]."""
    conditions = [heads_condition(heads) for heads in groups]
    answers = Engine(lens, progress=False).loglikelihood(requests, [heads_condition([]), *conditions])
    values = np.array([[a.logprob for a in row] for row in answers])
    return (values[1:] - values[0]).T


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 7])
def test_the_rule_is_exact_to_its_degree(steps):
    points, weights = np.transpose(nodes(steps))
    assert points[0] == 0 and len(points) == steps + 1 and (points < 1).all()
    for degree in range(2 * steps + 1):
        assert weights @ points**degree == pytest.approx(1 / (degree + 1), abs=RULE_TOLERANCE)
    assert weights @ points ** (2 * steps + 1) != pytest.approx(1 / (2 * steps + 2), abs=RULE_TOLERANCE)


@pytest.mark.parametrize("family", SMOOTH)
def test_a_head_moved_alone_is_estimated_exactly(family, requests):
    lens = tiny.lens(family, num_hidden_layers=3)
    found, clean = attribute(lens, requests, steps=MANY_STEPS, groups=4)
    heads = list(np.ndindex(3, lens.dims.n_heads))
    exact = changes(lens, requests, [[head] for head in heads]).reshape(found.shape)
    assert np.abs(found.numpy() - exact).max() < COMPLETE_TOLERANCE < np.abs(exact).max() / 10
    slopes, same = attribute(lens, requests)
    assert torch.allclose(clean, same, atol=LOGPROB_TOLERANCE)
    assert np.abs(slopes.numpy() - exact).max() > 10 * COMPLETE_TOLERANCE


def test_estimates_of_heads_that_move_together_add_up_to_their_removal(requests):
    lens = tiny.lens("llama-gqa", num_hidden_layers=2, initializer_range=0.1)
    found, _ = attribute(lens, requests, steps=MANY_STEPS, groups=1)
    exact = changes(lens, requests, [[(layer, head) for head in range(4)] for layer in range(2)])
    assert found.sum(-1).numpy() == pytest.approx(exact, abs=COMPLETE_TOLERANCE)


def test_a_sweep_names_its_method_and_is_stored_by_it(lens, tmp_path):
    options = {"limit": 2, "num_fewshot": 0, "site": "kv", "store": tmp_path, "progress": False}

    def sweep(method="integrated_gradients"):
        return dl.head_sweep(lens, "capitals_continuation", method=method, **options)

    first = sweep()
    assert first.record["method"] == "integrated_gradients" and first.record["store"]["rows_computed"] > 0
    again = sweep()
    assert again.record["store"]["rows_computed"] == 0 and again.docs["value"].equals(first.docs["value"])
    other = sweep("attribution")
    assert other.record["store"]["rows_read"] == 0
    assert not np.allclose(other.docs["value"], first.docs["value"], atol=LOGPROB_TOLERANCE)
