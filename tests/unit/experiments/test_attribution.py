"""Attribution patching against finite differences, and answer_logprob against one plain forward pass."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from depthlens.engine.references import measure_means
from depthlens.errors import UserError
from depthlens.experiments.attribution import attribute
from depthlens.experiments.sweep import condition_sweep, head_sweep
from depthlens.metrics import ANSWER_LOGPROB
from depthlens.requests import LoglikelihoodRequest
from depthlens.tasks import harness
from depthlens.tasks.answer_logprob import Answers
from depthlens.tasks.reference_texts import reference_of

LOGPROB_TOLERANCE = 1e-4  # float32 sums of a dozen log-probabilities in another batch layout
STEP = 2e-3  # of the way to removal: small enough for a straight line, large enough for float32
SLOPE_TOLERANCE = 5e-3  # nats: rounding of 5e-6 over twice the step, and the third-order term
KINK = 0.3  # nats: one-sided slopes that differ by more straddle a switch of experts, which has no slope


@pytest.fixture(scope="module")
def requests():
    g = torch.Generator().manual_seed(2)
    made = [torch.randint(0, 256, (n,), generator=g).tolist() for n in (9, 4, 13, 30)]
    return [LoglikelihoodRequest(tuple(t[:-3]), tuple(t[-3:])) for t in made]


def logprob(lens, request, scale=None, towards=None):
    """Log-likelihood of one request while z of (layer, head) has gone a fraction of the way to its replacement."""
    handles = []
    if scale is not None:
        (layer, head), fraction = scale
        d = lens.dims.d_head

        def hook(module, args):
            z = args[0].clone()
            part = slice(head * d, (head + 1) * d)
            goal = 0
            if towards is not None:
                goal = towards[layer, [0] + [1] * (z.shape[1] - 1), head]  # [pos, d_head]
            z[..., part] = z[..., part] + fraction * (goal - z[..., part])
            return (z,)

        handles = [lens.arch.o_proj[layer].register_forward_pre_hook(hook)]
    with torch.no_grad():
        logits = lens.model(torch.tensor([[*request.context, *request.continuation]])).logits[0].double()
    for handle in handles:
        handle.remove()
    n = len(request.context)
    logprobs = logits.log_softmax(-1)
    return sum(logprobs[n + i - 1, t].item() for i, t in enumerate(request.continuation))


@pytest.mark.parametrize(
    ("family", "mode"),
    [*((family, "zero") for family in tiny.FAMILIES), ("llama-gqa", "mean"), ("deepseek-v3", "mean")],
)
def test_estimates_are_the_slope_towards_removal(family, mode, requests):
    lens = tiny.lens(family)
    texts = [q.context for q in requests], "texts", [q.continuation for q in requests]
    means = measure_means(lens, *texts) if mode == "mean" else None
    estimate, clean = attribute(lens, requests, mode=mode, means=lambda: means)
    towards = means.z if means else None
    assert estimate.shape == (len(requests), lens.dims.n_layers, lens.dims.n_heads)
    compared = 0
    for r, request in enumerate(requests):
        here = logprob(lens, request)
        assert clean[r].item() == pytest.approx(here, abs=LOGPROB_TOLERANCE)
        for place in [(0, 1), (2, 0), (lens.dims.n_layers - 1, lens.dims.n_heads - 1)]:
            up, down = (logprob(lens, request, (place, f), towards) for f in (STEP, -STEP))
            if abs((up - here) - (here - down)) / STEP < KINK:
                compared += 1
                slope = (up - down) / (2 * STEP)
                assert estimate[(r, *place)].item() == pytest.approx(slope, abs=SLOPE_TOLERANCE), place
    assert compared == 3 * len(requests) or ("moe" in family or "deepseek" in family) and compared >= 2 * len(requests)
    assert estimate.abs().max() > 10 * SLOPE_TOLERANCE


def test_a_batch_changes_nothing_and_the_model_is_left_alone(requests):
    lens = tiny.lens("llama-gqa")
    whole, _ = attribute(lens, requests)
    alone = torch.cat([attribute(lens, [q], batch_tokens=1)[0] for q in requests])
    assert torch.allclose(whole, alone, atol=LOGPROB_TOLERANCE)
    assert all(p.grad is None and not p.requires_grad for p in lens.model.parameters())
    assert not any(m._forward_pre_hooks for m in lens.model.modules())


def test_out_of_memory_halves_the_batch(requests, monkeypatch):
    lens = tiny.lens("llama-gqa")
    wanted, _ = attribute(lens, requests)
    real = lens.arch.mlp[2].forward

    def small(x):
        if x.shape[0] > 1:
            raise torch.OutOfMemoryError("out of memory")
        return real(x)

    monkeypatch.setattr(lens.arch.mlp[2], "forward", small)
    assert torch.allclose(attribute(lens, requests)[0], wanted, atol=LOGPROB_TOLERANCE)


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
    both = condition_sweep(lens, "capitals_continuation", "L1,L2.H0", limit=3, measure="both", progress=False)
    task = condition_sweep(lens, "capitals_continuation", "L1,L2.H0", limit=3, progress=False)
    answer = condition_sweep(lens, "capitals_continuation", "L1,L2.H0", limit=3, measure=ANSWER_LOGPROB, progress=False)
    assert set(both.docs["metric"]) == {"acc", "acc_norm", ANSWER_LOGPROB}
    assert list(both.select(metrics=["acc", "acc_norm"]).docs["value"]) == list(task.docs["value"])
    assert list(both.select(metrics=ANSWER_LOGPROB).docs["value"]) == list(answer.docs["value"])
    assert (answer.docs["value"] < 0).all()
    assert not both.baselines.set_index("metric").loc[ANSWER_LOGPROB, "at_chance"]  # it has no chance level
    with pytest.raises(UserError, match="unknown measure 'loss'"):
        condition_sweep(lens, "capitals_continuation", "L1", limit=3, measure="loss", progress=False)


def test_answer_logprob_is_the_log_likelihood_of_the_reference(lens):
    result = condition_sweep(lens, "kv_retrieval_4", "L1", limit=3, measure=ANSWER_LOGPROB, progress=False)
    (prepared,) = harness.prepare(lens, harness.load_tasks(["kv_retrieval_4"]), limit=3)
    for request, value in zip(Answers(prepared).requests, result.docs["value"][:3], strict=True):
        assert value == pytest.approx(logprob(lens, request), abs=LOGPROB_TOLERANCE)


@pytest.mark.parametrize(("site", "mode"), [("head", "zero"), ("kv", "mean")])
def test_attributed_sweep_has_the_table_of_the_exact_one(lens, site, mode):
    options = {"limit": 3, "num_fewshot": 0, "site": site, "mode": mode, "measure": ANSWER_LOGPROB, "progress": False}
    exact = head_sweep(lens, "capitals_continuation", **options)
    estimated = head_sweep(lens, "capitals_continuation", method="attribution", **options)
    keys = ["metric", "condition", "layer", "head", "doc_id"]
    assert estimated.docs[keys].equals(exact.docs[keys])
    assert estimated.record["method"] == "attribution" and estimated.record["tasks"] == exact.record["tasks"]
    base = estimated.docs["condition"] == "baseline"
    assert np.allclose(estimated.docs["value"][base], exact.docs["value"][base], atol=LOGPROB_TOLERANCE)
    (prepared,) = harness.prepare(lens, harness.load_tasks(["capitals_continuation"], num_fewshot=0), limit=3)
    view = Answers(prepared)
    means = reference_of(prepared).measure(lens) if mode == "mean" else None
    change, _ = attribute(lens, view.requests, mode=mode, means=lambda: means)
    heads = [2] if site == "head" else list(lens.dims.query_heads(2 % lens.dims.n_kv_heads))
    name = "H2" if site == "head" else f"KV{2 % lens.dims.n_kv_heads}"
    suffix = "@mean" if mode == "mean" else ""
    rows = estimated.docs[estimated.docs["condition"] == f"L1.{name}{suffix}"]["value"].to_numpy()
    wanted = rows - estimated.docs["value"][base].to_numpy()
    assert np.allclose(wanted, change[:, 1, heads].sum(-1), atol=LOGPROB_TOLERANCE)
