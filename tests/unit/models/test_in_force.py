"""What a user does to a model counts once, wherever numbers come from; `test_user_programs` has more of it."""

import asyncio
import contextvars
import logging

import by_hand
import model_classes
import numpy as np
import pytest
import tiny
import torch
from refusals import refused

import depthlens as dl
from depthlens.ablations import BASELINE
from depthlens.engine.engine import Engine
from depthlens.engine.references import measure_means
from depthlens.models import remote
from depthlens.requests import GenerateRequest, LoglikelihoodRequest

SAME = 1e-4  # nats: float32 sums in another order
PROMPT = "the cat sat on the mat"
LENGTHS = (21, 9, 14, 5)
ASKED = [LoglikelihoodRequest(tuple(range(5 + n, 5 + 2 * n)), (7, 8, n)) for n in LENGTHS]


@pytest.fixture
def lens():
    return tiny.lens("llama-gqa")


def scores(lens, *conditions, **options):
    """Log-likelihoods. Shape [condition, request]."""
    return model_classes.scores(lens, conditions or ["baseline"], ASKED, **options)


def by_the_batch(module, args, output):
    return output - 0.5 * output.mean((0, 1))


def test_hooks_and_training_mode_are_said_once_and_leave_no_trace(lens, caplog):
    """Dropout draws numbers: whatever comes out is the user's own, and kept nowhere."""
    whole, handle = scores(lens), lens.model.model.layers[1].register_forward_hook(by_the_batch)
    with caplog.at_level(logging.WARNING):
        scores(lens, "baseline", "L3")
    assert caplog.text.count("it has hooks on model.layers.1; each row takes a whole pass") == 1
    handle.remove()
    lens.model.train()
    with caplog.at_level(logging.WARNING):
        scores(lens)
    assert "it is in training mode (LlamaForCausalLM); call model.eval()" in caplog.text
    lens.model.eval()
    assert torch.allclose(scores(lens), whole, atol=SAME)


def test_means_are_taken_text_by_text_where_a_hook_sees_the_batch(lens):
    lens.model.model.layers[1].register_forward_hook(by_the_batch)
    texts, kept = [tuple(range(n, n + 8)) for n in (5, 40, 90)], []
    means = measure_means(lens, texts, "three texts")
    handle = lens.model.model.layers[3].mlp.register_forward_hook(lambda module, args, output: kept.append(output[0]))
    with torch.no_grad():
        for text in texts:
            lens.model(torch.tensor([text]))
    handle.remove()
    wanted = torch.stack([torch.stack([x[0] for x in kept]).mean(0), torch.cat([x[1:] for x in kept]).mean(0)])
    assert torch.allclose(means.mean["mlp"][3], wanted, atol=1e-5)


def test_what_does_not_see_a_hook_is_refused(lens, tmp_path):
    lens.model.model.layers[1].register_forward_hook(by_the_batch)
    said = "has hooks on model.layers.1"
    for how in ({"backend": "nnsight"}, {"backend": "transformer_lens"}, {"path": "wavefront"}):
        refused(said, scores, lens, **how)
    refused(said, dl.logit_lens, lens, PROMPT)
    refused(f"{said}, which no checkpoint holds", dl.export, lens, "L1", tmp_path / "smaller")


# -- conditions in force --

OUTER = ["L1[3:]", "L2", "L3.H1+L1.mlp", "L2.KV0", "L4@noise3", "L1x2", "L2@int8"]


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("family", ["llama-gqa", "qwen3"])
def test_conditions_in_force_are_added_to_every_row(family, outer):
    lens = tiny.lens(family)
    both = scores(lens, outer, f"{outer}+L3.attn[2:]")
    with dl.ablated(lens, outer):
        alone = torch.tensor([by_hand.logprob(lens.model, request) for request in ASKED])
        for path in (None, "padded_rows"):
            assert torch.allclose(scores(lens, "baseline", "L3.attn[2:]", path=path), both, atol=SAME)
    assert torch.allclose(alone, both[0], atol=SAME) and not torch.allclose(alone, scores(lens)[0], atol=1e-3)


def test_a_layer_that_runs_twice_fits_no_cache(lens):
    with dl.ablated(lens, "L1x2"):
        with pytest.raises(dl.UserError, match="L1x2 runs a layer twice, and a cache holds it once; use_cache=False"):
            lens.model.generate(torch.tensor([[5, 6]]), max_new_tokens=2)
        engine = Engine(lens, path="padded_rows", progress=False)
        with pytest.raises(dl.UserError, match="L1x2 passes layers again, and writes no texts where layers are not w"):
            engine.generate_until([GenerateRequest((5, 6), (), 4)], [BASELINE])


@pytest.mark.parametrize("backend", ["nnsight", "transformer_lens"])
def test_other_backends_add_them_too(lens, backend):
    wanted = scores(lens, "L2", "L2+L3.H1")
    with dl.ablated(lens, "L2"):
        assert torch.allclose(scores(lens, "baseline", "L3.H1", backend=backend), wanted, atol=SAME)
    for outer in ("(L1-2)x2", "L1x2", "L1@int4"):
        with dl.ablated(lens, outer):
            refused("can be computed by backend 'torch' only; use that", scores, lens, "baseline", backend=backend)


def test_a_forward_that_a_user_puts_in_place_meanwhile_stays(lens):
    body = lens.model.model
    with dl.ablated(lens, "L1"):
        ours = body.forward
        body.forward = mine = lambda *args, **kwargs: ours(*args, **kwargs)
    assert body.forward is mine


def test_a_patch_is_of_the_model_as_it_is_ablated(lens):
    def effects():
        return dl.patch(lens, "a dog", "a cat", "layers", answer=("k", "m"), progress=False).table["effect"]

    with dl.ablated(lens, "L2.mlp"):
        found = effects()
    whole = effects()
    lens.model.model.layers[2].mlp.down_proj.weight.zero_()
    assert np.allclose(found, effects(), atol=1e-3) and not np.allclose(found, whole, atol=0.01)


def test_tasks_of_an_event_loop_have_conditions_of_their_own(lens):
    parts = ["L1", "L3.H2", "L2.mlp"]
    whole, *wanted = scores(lens, "baseline", *parts)

    async def handler(part, turn):
        with dl.ablated(lens, part):
            await turn.wait()
            return scores(lens)[0]

    async def serve():
        turn = asyncio.Event()
        tasks = [asyncio.create_task(handler(part, turn)) for part in parts]
        await asyncio.sleep(0)
        assert torch.allclose(scores(lens)[0], whole, atol=SAME)
        turn.set()
        return await asyncio.gather(*tasks)

    assert torch.allclose(torch.stack(asyncio.run(serve())), torch.stack(wanted), atol=SAME)


def test_a_context_that_has_ended_elsewhere_is_over_here(lens):
    whole = scores(lens)
    with dl.ablated(lens, "L1"):
        inside = contextvars.copy_context()  # as a task or a thread that begins here has one
        assert not torch.equal(inside.run(scores, lens), whole)
    assert torch.equal(inside.run(scores, lens), whole)


def test_two_handles_of_one_model_and_a_donor_obey_the_same(lens):
    other, donor = dl.Lens(lens.model, lens.tokenizer, "other"), tiny.lens("llama-gqa", rope_parameters=None)
    donor.model.model.layers[2].mlp.down_proj.weight.data.mul_(-1)
    pair = dl.with_donor(lens, donor)
    wanted = scores(lens, "L1")[0], scores(pair, "L2@donor")[0]
    with dl.ablated(lens, "L1"):
        assert torch.allclose(scores(other)[0], wanted[0], atol=SAME)
    with dl.ablated(pair, "L2@donor"):
        assert torch.allclose(scores(other)[0], wanted[1], atol=SAME)


def test_what_knows_no_conditions_says_so(lens, tmp_path):
    with dl.ablated(lens, "L1"):
        refused("is ablated here, which no checkpoint holds", dl.export, lens, "L2", tmp_path / "smaller")
        said = "is of the whole model, and 'tiny-llama-gqa' is ablated here; leave"
        refused(said, dl.head_sweep, lens, "capitals_continuation", method="attribution", limit=1, progress=False)


def test_the_store_and_the_record_know_what_was_in_force(lens, tmp_path):
    def sweep():
        result = dl.layer_sweep(lens, "capitals_continuation", limit=2, store=str(tmp_path), progress=False)
        return result.docs["value"].to_numpy(), result.record["model"]["ablated"], result.record["store"]

    lens = tiny.lens("llama-gqa", max_position_embeddings=1024)
    whole, said, _ = sweep()
    with dl.ablated(lens, "L2.mlp"):
        under, said_under, store = sweep()
        again, *_, known = sweep()
    assert (said, said_under) == (None, "L2.mlp") and store["rows_read"] == 0 and known["rows_computed"] == 0
    assert not np.allclose(whole, under) and (again == under).all() and (sweep()[0] == whole).all()


# -- settings, copies, other implementations of the same --


def test_a_bridge_follows_settings_and_buffers_and_keeps_hooks_where_weights_change(lens):
    first = lens.bridge
    lens.model.model.layers[1].mlp.up_proj.weight.data.mul_(2)
    lens.model.lm_head.weight.mul_(2)
    assert lens.bridge is first
    lens.model.model.layers[2].self_attn.scaling *= 2
    assert lens.bridge is not first
    tokens = torch.tensor([[5, 6, 7, 8]])
    assert torch.allclose(lens.bridge(tokens), lens.model(tokens).logits, atol=1e-4)


@pytest.mark.parametrize("kind", ["cohere2", "granite", "gemma2"])
def test_a_server_scales_and_caps_logits_as_the_model_does(kind):
    here = model_classes.lens(kind)
    far = remote.simulated(here)
    assert torch.allclose(scores(far, "baseline", "L1"), scores(here, "baseline", "L1"), atol=SAME)


def test_a_model_that_scales_by_the_place_in_the_row_is_packed_within_that_scale():
    """Llama 4 scales what a token looks for beyond ``floor_scale`` positions, and counts those of the row."""
    lens = model_classes.lens("llama4_text")
    lens.model.config.floor_scale = 24
    for layer in lens.model.model.layers:
        layer.self_attn.floor_scale, layer.self_attn.attn_temperature_tuning = 24, True
        layer.self_attn.use_rope = False
    found = scores(lens)
    assert dl.Engine(lens, progress=False).path_for(max(LENGTHS)) == "wavefront"
    assert torch.allclose(found[0], torch.tensor([by_hand.logprob(lens.model, q) for q in ASKED]), atol=SAME)
    assert dl.Engine(lens, progress=False).path_for(25) == "padded_rows"


@pytest.mark.parametrize("path", [None, "padded_rows"])
def test_edits_of_a_head_and_its_group_meet_at_some_positions_only(lens, path):
    found = scores(lens, "L1.KV0", "L1.KV0+L1.H0[7]", "L1.KV0[7]+L1.H0", "L1.H0+L1.H1[7]", path=path)
    assert torch.equal(found[1], found[0]) and torch.allclose(found[2], found[3], atol=SAME)


def test_rows_that_skip_layers_do_not_pass_them_while_they_write(lens, monkeypatch):
    passed = []
    call = type(lens.arch.layers[0]).forward

    def counted(self, x, *args, **kwargs):
        passed.append(len(x) if x.shape[1] == 1 else 0)
        return call(self, x, *args, **kwargs)

    texts = ["baseline", "L1", "L2@int8", "L1-3", "L0-4", "L2[1:]", "L3+L1.H0", "L2@mean"]
    conditions, means = [*map(dl.parse_condition, texts)], measure_means(lens, [(1, 2, 3, 4), (9, 8)], "two texts")
    asked = [GenerateRequest(q.context, (), 6) for q in ASKED]
    wanted = dl.Engine(lens, path="padded_rows", means=means, progress=False).generate_until(asked, conditions)
    engine = dl.Engine(lens, means=means, progress=False)
    engine.walked()
    monkeypatch.setattr(type(lens.arch.layers[0]), "forward", counted)
    assert engine.generate_until(asked, conditions) == wanted
    per_token = 5 + 4 + 5 + 2 + 0 + 5 + 4 + 4
    assert sum(passed) == len(asked) * 5 * per_token  # the first of six tokens comes with the prompt
