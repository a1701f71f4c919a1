"""Transplants against surgery on copies of the model, in every batch layout; deltas; which models are no pair."""

from __future__ import annotations

import copy
import gc
import json
import logging
import weakref

import pandas as pd
import pytest
import surgery
import tiny
import torch
from transformers import AddedToken

from depthlens import cli
from depthlens.ablations import expand, parse_condition
from depthlens.analysis.results import Result
from depthlens.backends.torch import TorchBackend
from depthlens.engine.engine import Engine
from depthlens.engine.next_token import next_token
from depthlens.engine.references import measure_means
from depthlens.errors import UserError
from depthlens.experiments import distillation
from depthlens.experiments.sweep import condition_sweep
from depthlens.models import loading, offload, pairs, registry
from depthlens.models.lens import Lens
from depthlens.requests import GenerateRequest, LoglikelihoodRequest

# float32 sums in another order: batches are cut by rows, a head's share of o_proj is added apart
SAME = 2e-4
FAMILIES = [*tiny.FAMILIES]
TOKENS = torch.tensor([[5, 9, 200, 31, 7, 90, 11], [1, 4, 77, 30, 6, 81, 10]])


def other(base, seed=3, scale=0.2):
    """A donor: the base's copy, every weight and buffer of its state dict moved."""
    model = copy.deepcopy(base.model)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(scale * torch.randn(tensor.shape, generator=g))
    return Lens(f"{base.name}-distilled", model, base.tokenizer)


def two(family, **changes):
    base = surgery.rough_lens(family, **changes)
    return base, other(base)


def logits(model, tokens=TOKENS):
    with torch.no_grad():
        return model(tokens).logits


def same(found, wanted, what=""):
    drift = float((found - wanted).abs().max())
    assert drift <= SAME, f"{what}: drift {drift:.1e}, bound {SAME:.0e}"


def weights_of(model):
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def operated(base, donor, condition):
    """A copy of the base whose own parameters are overwritten by hand; removals on top by hooks of the backend."""
    model, dims = copy.deepcopy(base.model), base.dims
    mine, its = model.state_dict(), donor.model.state_dict()

    def take(start):
        found = [key for key in mine if key.startswith(start)]
        assert found, start
        for key in found:
            mine[key].copy_(its[key])

    def block(key, axis, index, n):
        """Slice ``index`` of ``n`` of a matrix or vector, where the model has it."""
        for name in (f"{key}.weight", f"{key}.bias"):
            if name in mine and not (axis == 1 and name.endswith("bias")):
                width = mine[name].shape[axis] // n
                part = (slice(None),) * axis + (slice(index * width, (index + 1) * width),)
                mine[name][part] = its[name][part]

    with torch.no_grad():
        for a in condition.ablations:
            layer = f"model.layers.{a.layer}"
            if a.mode != "donor":
                continue
            if a.site == "layer":
                take(layer + ".")
            if a.site == "attn":
                take(f"{layer}.self_attn.")
                take(f"{layer}.input_layernorm.")
            if a.site == "mlp":
                take(f"{layer}.mlp.")
                take(f"{layer}.post_attention_layernorm.")
            if a.site == "embed":
                take("model.embed_tokens.")
            if a.site == "unembed":
                take("model.norm.")
                take("lm_head.")
            for head in {"head": [a.index], "kv": dims.query_heads(a.index) if a.site == "kv" else []}.get(a.site, []):
                for name in ("q_proj", "q_b_proj"):
                    block(f"{layer}.self_attn.{name}", 0, head, dims.n_heads)
                block(f"{layer}.self_attn.o_proj", 1, head, dims.n_heads)
            if a.site == "kv":
                for name in ("k_proj", "v_proj", "kv_b_proj"):
                    block(f"{layer}.self_attn.{name}", 0, a.index, dims.n_kv_heads)
    return Lens("operated", model, base.tokenizer)


def removals(condition):
    """The condition without what comes from the donor."""
    return type(condition)(tuple(a for a in condition.ablations if a.mode != "donor"))


KINDS = (
    *("L2@donor", "L2.attn@donor", "L2.mlp@donor", "L2.H3@donor", "L2.H0@donor+L2.H2@donor", "L2.KV0@donor"),
    *("L0-2@donor", "L3-4@donor", "embed@donor", "unembed@donor", "embed@donor+L1.H1@donor+unembed@donor"),
    *("L2@donor+L3.H1", "L1@donor+L1.H2", "L1.mlp@donor+L1.attn", "L0", "L3.H0", "baseline", "whole@donor"),
)


def conditions_for(base):
    return expand([k for k in KINDS if k != "L2.KV0@donor" or base.dims.n_kv_heads > 1], base.dims)


# -- transplanted logits equal surgery --


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_transplant_equals_surgery(family):
    base, donor = two(family)
    together = distillation.with_donor(base, donor)
    conditions = conditions_for(base)
    rows = [TOKENS[:1].repeat(len(conditions), 1), torch.ones(len(conditions), TOKENS.shape[1], dtype=torch.long)]
    every = [range(TOKENS.shape[1])] * len(conditions)
    batch, _ = TorchBackend(together).forward(*rows, conditions, positions=every)
    clean = logits(base.model)
    for condition, found in zip(conditions, batch, strict=True):
        cut = operated(base, donor, condition)
        with TorchBackend(cut).ablate([removals(condition)]):
            wanted = logits(cut.model)
        with TorchBackend(together).ablate([condition]):
            alone = logits(base.model)
        same(found, wanted[0], f"{condition}, one row of many")
        same(alone, wanted, f"{condition}, alone")
        assert bool(condition) == bool((wanted - clean).abs().max() > 10 * SAME), f"{condition} does too little to see"
    assert torch.equal(logits(base.model), clean)


@pytest.mark.parametrize("family", ["llama-gqa", "qwen3", "deepseek-v2"])
def test_a_bias_of_the_output_projection_goes_with_the_whole_attention(family):
    base, donor = two(family, attention_bias=True)
    assert base.arch.o_proj[0].bias is not None
    together = distillation.with_donor(base, donor)
    conditions = expand("L2.H3@donor,L2.attn@donor,L2.H0,L2.KV1@donor", base.dims)
    n = len(conditions)
    found, _ = TorchBackend(together).forward(TOKENS[:1].repeat(n, 1), torch.ones(n, 7, dtype=torch.long), conditions)
    for condition, row in zip(conditions, found, strict=True):
        cut = operated(base, donor, condition)
        with TorchBackend(cut).ablate([removals(condition)]):
            same(row, logits(cut.model)[0, -1:], str(condition))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_part_is_the_base_exactly_and_all_parts_are_the_donor(family):
    base, donor = two(family)
    clean, wanted, before = logits(base.model), logits(donor.model), weights_of(base.model)
    with distillation.transplant(base, donor) as condition:
        assert str(condition) == "baseline"
        assert torch.equal(logits(base.model), clean)
    with distillation.transplant(base, donor, layers=range(5), embeddings=True) as condition:
        assert str(condition) == "embed@donor+unembed@donor+L0-4@donor"
        same(logits(base.model), wanted)
    with distillation.transplant(base, donor, layers=range(5)):
        assert float((logits(base.model) - wanted).abs().max()) > 0.1  # the ends differ too
    assert torch.equal(logits(base.model), clean)
    assert all(torch.equal(tensor, before[key]) for key, tensor in base.model.state_dict().items())


def test_tied_and_untied_embeddings_make_a_pair():
    base = surgery.rough_lens("qwen2", tie_word_embeddings=True)
    donor = other(tiny.lens("qwen2"))
    with distillation.transplant(base, donor, layers=range(5), embeddings=True):
        same(logits(base.model), logits(donor.model))


@pytest.mark.parametrize("family", ["llama-gqa", "qwen3", "deepseek-v2", "deepseek-v3"])
def test_other_rotary_frequencies_go_with_whole_layers(family):
    base = surgery.rough_lens(family)
    donor = other(surgery.rough_lens(family, rope_parameters={"rope_type": "default", "rope_theta": 50.0}))
    together = distillation.with_donor(base, donor)
    assert together.donor.own_rotary and "rotary frequencies differ" in together.donor.notes[-1]
    with distillation.transplant(base, donor, layers=range(5), embeddings=True):
        same(logits(base.model), logits(donor.model))
    conditions = expand("whole@donor,L2.H1@donor,L1", base.dims)
    found = scores(together, conditions)
    same(found[1], scores(donor, conditions[:1])[0])
    # a head shares keys with its group, so it is turned as they are
    same(found[2], scores(operated(base, donor, conditions[2]), conditions[:1])[0])
    assert texts(together, conditions)[1] == texts(donor, conditions[:1])[0]


# -- one engine for all --


def requests(n=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 250, (n, 14), generator=draw).tolist()
    return [LoglikelihoodRequest((1, 2, 3, *row[: 4 + i % 3]), tuple(row[9:])) for i, row in enumerate(tokens)]


def prompts(n=3, new=4):
    return [GenerateRequest(q.context, (), new) for q in requests(n, seed=8)]


def scores(lens, conditions, **options):
    answers = Engine(lens, progress=False, **options).loglikelihood(requests(), conditions)
    return torch.tensor([[a.logprob for a in row] for row in answers], dtype=torch.float64)


def texts(lens, conditions, **options):
    return Engine(lens, progress=False, **options).generate_until(prompts(), conditions)


@pytest.mark.parametrize(("family", "batch_tokens"), [("llama-gqa", 1), *((family, 2048) for family in FAMILIES)])
def test_wavefront_plain_rows_and_generation_agree_with_surgery(family, batch_tokens):
    base, donor = two(family)
    together = distillation.with_donor(base, donor)
    conditions = conditions_for(base)
    walked = scores(together, conditions, batch_tokens=batch_tokens)
    written = texts(together, conditions)
    same(scores(together, conditions, batch_tokens=batch_tokens, path="padded_rows"), walked, "plain rows")
    assert texts(together, conditions, path="padded_rows") == written
    for i, condition in enumerate(conditions):
        cut = operated(base, donor, condition)
        same(walked[i], scores(cut, [removals(condition)])[0], str(condition))
        if family in ("llama-gqa", "qwen3", "deepseek-v3") and batch_tokens > 1:  # the walk is the same for the others
            assert written[i] == texts(cut, [removals(condition)])[0], str(condition)
    assert len({tuple(row) for row in written}) > len(conditions) // 2, "the texts tell nothing apart"


def test_reference_means_and_donors_in_one_condition():
    base, donor = two("llama-gqa")
    means = measure_means(base, [q.context for q in requests()], "prompts")
    conditions = expand("L1@donor+L3.mlp@mean,L2.H0@mean+L2.KV1@donor,L4@mean", base.dims)
    found = scores(distillation.with_donor(base, donor), conditions, means=means)
    for row, condition in zip(found, conditions, strict=True):
        cut = operated(base, donor, condition)
        same(row, scores(cut, [removals(condition)], means=means)[0], str(condition))


def test_next_token_under_a_transplant():
    base, donor = two("llama-gqa")
    table = next_token(distillation.with_donor(base, donor), "abc", ["whole@donor"], k=3)
    wanted = logits(donor.model, torch.tensor([base.tokenizer("abc").input_ids]))[0, -1].softmax(-1)
    assert table.iloc[:, 1].max() == pytest.approx(float(wanted.max()), abs=SAME)


# -- after the context --


@pytest.mark.parametrize("streamed", [False, True])
def test_after_an_exception_the_base_is_bit_equal_and_nothing_is_left_on_it(folders, streamed):
    base = loading.load(folders("llama-gqa"))
    donor = loading.load(folders("llama-gqa", moved=True), offload="disk" if streamed else None)
    clean, before, shape = logits(base.model), weights_of(base.model), attributes(base.model)
    with pytest.raises(ZeroDivisionError), distillation.transplant(base, donor, layers=[1], heads=[(2, 3)], embeddings=True):
        assert float((logits(base.model) - clean).abs().max()) > SAME
        raise ZeroDivisionError
    assert torch.equal(logits(base.model), clean) and attributes(base.model) == shape
    assert all(torch.equal(tensor, before[key]) for key, tensor in base.model.state_dict().items())
    if streamed:
        assert layers_in_memory(donor) == []


def attributes(model):
    return {name: sorted(vars(module)) for name, module in model.named_modules()}


def test_a_failing_read_of_the_donor_leaves_the_base_whole(folders, monkeypatch):
    base, donor = loading.load(folders("llama-gqa")), loading.load(folders("llama-gqa", moved=True), offload="disk")
    clean, shape = logits(base.model), attributes(base.model)

    def fail(self, index):
        raise OSError(f"cannot read {self.key}")

    with monkeypatch.context() as patch:
        patch.setattr(offload.Stored, "__getitem__", fail)
        with pytest.raises(OSError, match="cannot read"), distillation.transplant(base, donor, layers=[1, 3]):
            logits(base.model)
        with pytest.raises(OSError, match="cannot read"):
            scores(distillation.with_donor(base, donor), expand("L1@donor,L3@donor", base.dims))
    assert torch.equal(logits(base.model), clean) and attributes(base.model) == shape
    assert layers_in_memory(donor) == []


def test_a_transplant_inside_a_transplant_is_refused_and_the_outer_one_stays():
    base, donor = two("llama-gqa")
    clean = logits(base.model)
    with distillation.transplant(base, donor, layers=[1]):
        outer = logits(base.model)
        with (
            pytest.raises(UserError, match="inside a transplant already; name all parts in one"),
            distillation.transplant(base, donor, layers=[2]),
        ):
            pass
        assert torch.equal(logits(base.model), outer)
    assert torch.equal(logits(base.model), clean)
    with distillation.transplant(base, donor, layers=[2]):  # and afterwards there is none
        pass


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"layers": [5]}, r"layer 5 does not exist; layers are 0\.\.4"),
        ({"layers": [-1]}, "layer -1 does not exist"),
        ({"heads": [(0, 4)]}, r"head 4 does not exist; heads are 0\.\.3"),
        ({"layers": [1], "mlp": [1]}, "L1.mlp@donor has no effect of its own beside L1@donor"),
        ({"kv": [(1, 0)], "heads": [(1, 1)]}, "L1.H1@donor has no effect"),
        ({"attn": [2, 2]}, "names one part twice"),
    ],
)
def test_parts_that_do_not_exist_or_overlap_are_refused(parts, message):
    base, donor = two("llama-gqa")
    shape = attributes(base.model)
    with pytest.raises(UserError, match=message), distillation.transplant(base, donor, **parts):
        pass
    assert attributes(base.model) == shape


# -- the donor on disk --


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of tiny models, each written once; a moved one is the other's distilled model."""
    root = tmp_path_factory.mktemp("models")

    def folder(family, moved=False):
        place = root / f"{family}-{moved}"
        if not place.exists():
            base = surgery.rough_lens(family)
            (other(base) if moved else base).model.save_pretrained(place)
            tiny.tokenizer().save_pretrained(place)
        return str(place)

    return folder


def layers_in_memory(lens):
    return [i for i, layer in enumerate(lens.arch.layers) if not next(layer.parameters()).is_meta]


@pytest.mark.parametrize("offloaded", [None, "disk"])
@pytest.mark.parametrize("family", ["llama-gqa", "qwen3", "qwen3-moe", "deepseek-v3"])
def test_a_donor_by_name_is_the_donor_in_memory(folders, family, offloaded):
    whole = loading.load(folders(family)), loading.load(folders(family, moved=True))
    base = loading.load(folders(family), offload=offloaded)
    together = distillation.with_donor(base, folders(family, moved=True))
    conditions = conditions_for(base)
    wanted = distillation.with_donor(*whole)
    same(scores(together, conditions), scores(wanted, conditions))
    assert layers_in_memory(together.donor.lens) == []
    if not offloaded:
        assert texts(together, conditions) == texts(wanted, conditions)
        assert layers_in_memory(together.donor.lens) == []
    assert together.donor.lens.fingerprint == whole[1].fingerprint


def watched(lens, monkeypatch):
    """Layers of a streamed model as they are in memory at each call of one of their projections, and all reads."""
    seen, read = [], []
    before = offload.Stream._read

    def reading(self, layer):
        if self is lens.stream:
            read.append(layer)
        before(self, layer)

    monkeypatch.setattr(offload.Stream, "_read", reading)
    for i, layer in enumerate(lens.arch.layers):
        layer.mlp.register_forward_hook(lambda m, a, o, i=i: seen.append((i, layers_in_memory(lens))))
    return seen, read


def test_in_a_walk_the_donor_holds_the_layer_in_use_and_the_next_it_needs(folders, monkeypatch):
    base, donor = loading.load(folders("llama-gqa")), loading.load(folders("llama-gqa", moved=True), offload="disk")
    together = distillation.with_donor(base, donor)
    seen, read = watched(donor, monkeypatch)
    scores(together, expand("layers@donor,bottom@donor,top@donor", base.dims), batch_tokens=64)
    assert {i for i, _ in seen} == {0, 1, 2, 3, 4}
    assert all(i in there and set(there) <= {i, i + 1} for i, there in seen)
    assert read == [0, 1, 2, 3, 4], "each layer is read once a walk"
    seen.clear(), read.clear()
    scores(together, expand("L1@donor,L3@donor", base.dims))
    assert read == [1, 3] and {i for i, _ in seen} == {1, 3}  # layers that nothing asks for are not read
    assert all(set(there) <= {i, 3} for i, there in seen) and layers_in_memory(donor) == []
    seen.clear(), read.clear()
    with distillation.transplant(base, donor, layers=[0, 3]):
        logits(base.model)
    assert read == [0, 3] and layers_in_memory(donor) == []


def test_the_memory_of_a_donor_is_given_back(folders, monkeypatch):
    """Counted in weights that are alive, not in what modules point to."""
    base, donor = loading.load(folders("llama-gqa")), loading.load(folders("llama-gqa", moved=True), offload="disk")
    together = distillation.with_donor(base, donor)
    seen = {}
    peak = []

    def alive():
        return sum(p is not None and not p.is_meta for p in (ref() for ref in seen.values()))

    def count(*_):
        seen.update({id(p): weakref.ref(p) for p in donor.model.parameters()})
        peak.append(alive())

    for layer in donor.arch.layers:
        layer.mlp.register_forward_hook(count)
    scores(together, expand("layers@donor", base.dims), batch_tokens=64)
    gc.collect()
    ends_only = 3  # embedding, final norm, unembedding
    of_layer = len(list(donor.arch.layers[0].parameters()))
    assert alive() == ends_only
    assert max(peak) <= ends_only + 2 * of_layer


def test_generation_holds_the_layers_of_one_group_of_conditions(folders, monkeypatch):
    base, donor = loading.load(folders("llama-gqa")), loading.load(folders("llama-gqa", moved=True), offload="disk")
    together = distillation.with_donor(base, donor)
    conditions = expand("layers@donor", base.dims)
    seen, read = watched(donor, monkeypatch)
    wanted = texts(together, conditions)
    assert read == [0, 1, 2, 3, 4], "read once, whatever is written"
    assert any(there == [0, 1, 2, 3, 4] for _, there in seen)
    seen.clear(), read.clear()
    engine = Engine(together, progress=False)
    bound = engine.budget.__class__(engine.budget.batch_tokens, engine.budget.state_bytes, 2 * donor.stream.layer_bytes)
    engine.budget = bound
    assert engine.generate_until(prompts(), conditions) == wanted
    assert max(len(there) for _, there in seen) <= 3 and sorted(read) == [0, 1, 2, 3, 4]
    assert layers_in_memory(donor) == []


# -- sweeps --

TASK, WRITTEN = "capitals_continuation", "kv_retrieval_4"


@pytest.fixture(scope="module")
def swept(folders):
    base = loading.load(folders("llama-gqa"))
    ablate = "layers@donor,L0-1,bottom@donor,L2@donor+L3.H1,whole@donor"
    return condition_sweep(
        base, [TASK, WRITTEN], ablate, limit=4, donor=folders("llama-gqa", moved=True), measure="both", progress=False
    )


def test_transplants_go_through_sweep_statistics_and_record(swept, folders, tmp_path):
    assert list(swept.docs["condition"].unique()) == swept.record["conditions"]
    assert swept.record["conditions"][-2:] == ["L2@donor+L3.H1", "embed@donor+unembed@donor+L0-4@donor"]
    summary = swept.summary
    assert not summary[["value", "delta"]].isna().any().any()
    one = summary[summary["condition"] == "L2@donor"]
    assert set(one["layer"]) == {2} and summary.loc[summary["condition"] == "L0-2@donor", "layer"].isna().all()
    donor = loading.load(folders("llama-gqa", moved=True))
    alone = condition_sweep(donor, [TASK, WRITTEN], ["baseline"], limit=4, measure="both", progress=False)
    mine = swept.docs[swept.docs["condition"] == swept.record["conditions"][-1]].reset_index(drop=True)
    assert mine["doc_id"].tolist() == alone.docs["doc_id"].tolist()
    assert mine["response"].tolist() == alone.docs["response"].tolist()
    pd.testing.assert_series_equal(mine["value"], alone.docs["value"], rtol=0, atol=SAME)
    swept.save(tmp_path)
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["donor"]["name"] == folders("llama-gqa", moved=True)
    assert record["donor"]["fingerprint"] == donor.fingerprint != record["model"]["fingerprint"]
    assert record["donor"]["notes"] == [
        "embed and unembed differ; a condition takes them along by embed@donor+unembed@donor"
    ]
    again = Result.load(tmp_path)
    pd.testing.assert_frame_equal(again.summary, swept.summary)


def test_transplants_are_drawn(swept):
    from matplotlib.figure import Figure

    from depthlens.plots import layers

    assert isinstance(layers.depth_profile(swept), Figure)


def test_the_ends_that_stay_are_told(folders, caplog):
    base, donor = loading.load(folders("llama-gqa")), folders("llama-gqa", moved=True)
    with caplog.at_level(logging.WARNING, "depthlens"):
        condition_sweep(base, TASK, "bottom@donor", limit=1, donor=donor, progress=False)
    (said,) = caplog.messages
    assert "differs in embed and unembed too" in said and "add embed@donor and unembed@donor, or whole@donor" in said
    caplog.clear()
    with caplog.at_level(logging.WARNING, "depthlens"):
        condition_sweep(base, TASK, "L1@donor,whole@donor", limit=1, donor=donor, progress=False)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ablate": "layers@donor"}, r"condition L0@donor takes weights from a donor; give donor=NAME .* --donor NAME"),
        ({"ablate": "layers", "donor": True}, "is used by @donor conditions only; give both, or neither"),
        ({"ablate": "L1@donor", "donor": True, "backend": "nnsight"}, "use backend 'torch'"),
        ({"ablate": "L1@donor", "donor": True, "backend": "transformer_lens"}, "use backend 'torch'"),
        ({"ablate": "L1@donor", "donor": "nowhere"}, "unknown model 'nowhere'"),
        ({"ablate": "embed"}, "embed can only be taken from a donor; write embed@donor"),
        ({"ablate": "unembed@mean"}, "unembed can only be taken from a donor"),
        ({"ablate": "whole"}, "write whole@donor"),
        ({"ablate": "L1.embed@donor"}, "cannot read"),
        ({"ablate": "embed@donor+embed@donor"}, "names one part twice"),
        ({"ablate": "L1+L1@donor"}, "no effect"),
        ({"ablate": "L1+L1.mlp@donor"}, "L1.mlp@donor has no effect of its own beside L1"),
    ],
)
def test_what_a_sweep_cannot_do_is_refused_before_it_starts(folders, options, message):
    base = loading.load(folders("llama-gqa"))
    if options.get("donor") is True:
        options = options | {"donor": folders("llama-gqa", moved=True)}
    with pytest.raises(UserError, match=message):
        condition_sweep(base, TASK, limit=1, progress=False, **options)


def test_a_remote_model_takes_no_transplant(folders):
    base, donor = loading.load(folders("llama-gqa"), remote="local"), folders("llama-gqa", moved=True)
    with pytest.raises(UserError, match="@donor needs the weights of .* here; load it without remote"):
        condition_sweep(base, TASK, "L1@donor", limit=1, donor=donor, progress=False)
    with pytest.raises(UserError, match="needs both models' weights here"):
        Engine(base, progress=False).backend.edits(parse_condition("L1@donor"))


def test_other_backends_do_not_take_a_transplant_for_a_removal(folders):
    base, donor = loading.load(folders("llama-gqa")), loading.load(folders("llama-gqa", moved=True))
    together = distillation.with_donor(base, donor)
    backend = Engine(together, backend="nnsight", progress=False).backend
    with pytest.raises(UserError, match="takes weights from a donor"):
        backend.forward(TOKENS[:1], torch.ones(1, 7, dtype=torch.long), [parse_condition("L1@donor")])


def test_a_twin_made_inside_a_transplant_is_the_base(folders):
    base, donor = loading.load(folders("llama-gqa")), loading.load(folders("llama-gqa", moved=True))
    clean = logits(base.model)
    with distillation.transplant(base, donor, layers=[1]):
        wrapped = base.nnsight
    with torch.no_grad(), wrapped.trace(TOKENS):
        found = wrapped.lm_head.output.save()
    same(found, clean)


def test_command_line(folders, tmp_path, capsys):
    base, donor = folders("llama-gqa"), folders("llama-gqa", moved=True)
    what = ["--ablate", "layers@donor", "--donor", donor, "--limit", "2", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as done:
        cli.main(["sweep", base, TASK, *what])
    assert done.value.code == 0 and "baseline" in capsys.readouterr().out
    result = Result.load(tmp_path)
    assert result.record["donor"]["name"] == donor
    assert result.record["conditions"] == ["baseline", *(f"L{i}@donor" for i in range(5))]
    with pytest.raises(SystemExit) as done:
        cli.main(["sweep", base, TASK, *what[:2], *what[4:], "--overwrite"])
    assert done.value.code == 2 and "give donor=NAME" in capsys.readouterr().err


def test_lm_eval_model(folders):
    from depthlens.lm_eval_model import DepthlensLM

    base, donor = folders("llama-gqa"), loading.load(folders("llama-gqa", moved=True))
    model = DepthlensLM(base, condition="L1@donor", donor=donor)
    found = model.engine.loglikelihood(requests(), [model.condition])
    together = distillation.with_donor(loading.load(base), donor)
    same(torch.tensor([[a.logprob for a in found[0]]]), scores(together, [parse_condition("L1@donor")]))
    with pytest.raises(UserError, match="give donor=NAME"):
        DepthlensLM(base, condition="L1@donor")


# -- grammar --


def test_words_for_cumulative_transplants():
    dims = tiny.lens("llama-gqa").dims
    assert [str(c) for c in expand("bottom@donor", dims)][1:] == [
        *("L0@donor", "L0-1@donor", "L0-2@donor", "L0-3@donor", "L0-4@donor")
    ]
    assert [str(c) for c in expand("top@donor", dims)][1:] == [
        *("L4@donor", "L3-4@donor", "L2-4@donor", "L1-4@donor", "L0-4@donor")
    ]
    assert [str(c) for c in expand("bottom:2@donor", dims)][1:] == ["L0-1@donor", "L0-3@donor", "L0-4@donor"]
    assert [str(c) for c in expand("top:5", dims)][1:] == ["L0-4"]
    assert len(expand("heads@donor,L1,bottom@donor", dims)) == 1 + 20 + 1 + 5
    for text in ("embed@donor+unembed@donor+L0-4@donor", "L2.H1+L2@donor", "embed@donor", "L0-1+L3-4@donor"):
        assert str(parse_condition(text)) == text
    assert parse_condition("embed@donor").layer is None and parse_condition("unembed@donor+L3@donor").first_layer == 0
    assert parse_condition("L3.H1@donor").head == 1 and parse_condition("L3.H1@donor").layer == 3


# -- pairs --


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("qwen2", {}, "class is LlamaForCausalLM in the base, Qwen2ForCausalLM in the donor"),
        ("llama-gqa", {"num_hidden_layers": 4}, "n_layers is 5 in the base, 4 in the donor"),
        ("llama-gqa", {"hidden_size": 64}, "d_model is 32 in the base, 64 in the donor"),
        ("llama-gqa", {"num_attention_heads": 8}, "n_heads is 4 in the base, 8 in the donor"),
        ("llama-mha", {}, "n_kv_heads is 2 in the base, 4 in the donor"),
        ("llama-gqa", {"head_dim": 12}, "d_head is 8 in the base, 12 in the donor"),
        ("llama-gqa", {"vocab_size": 300}, r"\(vocabulary size\) are 260 in the base, 300 in the donor"),
        ("llama-gqa", {"intermediate_size": 64}, r"shape of model.layers.0.mlp.gate_proj.weight is \[48, 32\] in"),
        ("llama-gqa", {"attention_bias": True}, "q_proj.bias is missing in the base"),
        ("llama-gqa", {"rms_norm_eps": 1e-3}, "variance_epsilon of input_layernorm is 1e-06 in the base, 0.001"),
        ("llama-gqa", {"hidden_act": "gelu"}, "a module mlp.act_fn is"),
    ],
)
def test_what_is_no_pair_is_refused_with_the_difference_named(family, changes, message):
    base, donor = tiny.lens("llama-gqa"), tiny.lens(family, **changes)
    with pytest.raises(UserError, match=message):
        distillation.with_donor(base, donor)
    with pytest.raises(UserError, match="are no pair"), distillation.transplant(base, donor, layers=[0]):
        pass
    for measure in (distillation.weight_deltas, lambda a, b: distillation.activation_deltas(a, b, ["text"])):
        with pytest.raises(UserError, match="are no pair"):
            measure(base, donor)


def test_a_model_is_no_donor_of_its_own_and_dtypes_agree():
    base = tiny.lens("llama-gqa")
    with pytest.raises(UserError, match="are one loaded model; load the donor apart"):
        distillation.with_donor(base, base)
    donor = tiny.lens("llama-gqa")
    donor.model.bfloat16()
    with pytest.raises(UserError, match="dtype is float32 in the base, bfloat16 in the donor"):
        distillation.with_donor(base, donor)


def byte_pair(vocab, merges):
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as raw
    from transformers import PreTrainedTokenizerFast

    built = Tokenizer(raw.BPE(vocab={t: i for i, t in enumerate(vocab)}, merges=merges))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=built)


def test_tokenizers_that_make_other_tokens_are_refused_and_harmless_differences_noted():
    base = tiny.lens("llama-gqa")
    plain = ["a", "b", "c", "ab", "bc", "abc"]
    base.tokenizer = byte_pair(plain, [("a", "b"), ("b", "c"), ("ab", "c")])

    def compared(tokenizer):
        return pairs.compare(base, Lens("changed", copy.deepcopy(base.model), tokenizer)).notes

    assert compared(byte_pair(plain, [("a", "b"), ("b", "c"), ("ab", "c")])) == ()
    with pytest.raises(UserError, match="token 3 is 'ab' in the base, 'bc' in the donor"):
        compared(byte_pair(["a", "b", "c", "bc", "ab", "abc"], [("a", "b"), ("b", "c"), ("ab", "c")]))
    with pytest.raises(UserError, match="token 5 is 'abc' in the base, 'missing'|missing in the donor"):
        compared(byte_pair(plain[:5], [("a", "b"), ("b", "c")]))
    with pytest.raises(UserError, match="merge 0 of the tokenizer is 'a b' in the base, 'b c' in the donor"):
        compared(byte_pair(plain, [("b", "c"), ("a", "b"), ("ab", "c")]))
    distilled = byte_pair(plain, [("a", "b"), ("b", "c"), ("ab", "c")])
    distilled.add_tokens([AddedToken("<think>", special=False)])
    distilled.add_special_tokens({"bos_token": "<begin>"})
    distilled.chat_template = "{{ messages }}"
    added, template = compared(distilled)
    assert added == "2 added tokens differ, e.g. 6 is absent in the base, '<think>' in the donor"
    assert template == "chat templates differ; prompts are wrapped by the base's"
    base.tokenizer.add_special_tokens({"bos_token": "<|reserved|>"})
    assert "2 added tokens differ, e.g. 6 is '<|reserved|>' in the base, '<think>' in the donor" in compared(distilled)
    split = byte_pair(plain, [("a", "b"), ("b", "c"), ("ab", "c")])
    split.backend_tokenizer.pre_tokenizer = None
    assert any("pre_tokenizer differ" in note for note in compared(split))


def test_named_pairs_are_the_studys_and_the_embedded_one():
    found = {(p.base, p.distilled) for p in distillation.PAIRS.values()}
    assert ("smollm2-135m-direct", "smollm2-135m-cot") in found and len(found) == 6
    sources = {row.alias: row.source for row in registry.NAMED}
    for base, distilled in found - {("smollm2-135m-direct", "smollm2-135m-cot")}:
        assert "DeepSeek-R1" in sources[distilled] and "DeepSeek" not in sources[base]
    assert distillation.pair("llama-8b").base == "llama-3.1-8b"
    with pytest.raises(UserError, match="unknown pair 'llama-9b'; did you mean llama-8b"):
        distillation.pair("llama-9b")


# -- deltas --


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("family", ["llama-gqa", "qwen3-moe", "deepseek-v3"])
def test_weight_deltas_by_hand(folders, family, streamed):
    base, donor = loading.load(folders(family)), loading.load(folders(family, moved=True))
    table = distillation.weight_deltas(base, folders(family, moved=True) if streamed else donor)
    mine, its = base.model.state_dict(), donor.model.state_dict()
    names = {"embed.weight": "model.embed_tokens.weight", "final_norm.weight": "model.norm.weight"}
    names["unembed.weight"] = "lm_head.weight"
    found = set()
    for row in table.itertuples():
        key = names[row.matrix] if row.layer is pd.NA else f"model.layers.{row.layer}.{row.matrix}"
        a, b = mine[key].double().flatten(), its[key].double().flatten()
        assert row.relative == pytest.approx(float((b - a).norm() / a.norm()), rel=1e-5)
        assert row.cosine == pytest.approx(float(a @ b / a.norm() / b.norm()), abs=1e-6)
        assert row.n_parameters == a.numel()
        site = {"embed": "embed", "final_norm": "unembed", "unembed": "unembed"}.get(row.matrix.split(".")[0])
        inside = "attn" if "self_attn" in key or "input_layernorm" in key else "mlp"
        assert row.site == (site or inside)
        found.add(key)
    assert found == set(mine)


def test_weight_deltas_of_equal_and_zero_weights():
    base = tiny.lens("qwen2")  # its biases start as zeros
    assert float(base.arch.attn[0].q_proj.bias.abs().max()) == 0
    donor = Lens("donor", copy.deepcopy(base.model), base.tokenizer)
    table = distillation.weight_deltas(base, donor)
    assert (table["relative"] == 0).all()
    assert table.loc[table["matrix"].str.endswith("bias"), "cosine"].isna().all()
    donor.model.model.layers[1].self_attn.q_proj.bias.data += 1
    moved = distillation.weight_deltas(base, donor).query("relative > 0")
    assert moved["matrix"].tolist() == ["self_attn.q_proj.bias"] and moved["relative"].tolist() == [float("inf")]


def taken_apart(lens, tokens):
    """attn_out, mlp_out and resid_post of every layer from a forward pass of the model, each [pos, d_model]."""
    kept = {}
    handles = []
    for i, layer in enumerate(lens.model.model.layers):
        for name, module in (("attn_out", layer.self_attn), ("mlp_out", layer.mlp), ("resid_post", layer)):
            handles.append(
                module.register_forward_hook(
                    lambda m, a, o, k=(i, name): kept.update({k: (o[0] if isinstance(o, tuple) else o)[0].double()})
                )
            )
    with torch.no_grad():
        lens.model(torch.tensor([tokens]))
    for handle in handles:
        handle.remove()
    return kept


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("family", ["llama-gqa", "qwen3", "qwen3-moe", "deepseek-v3"])
def test_activation_deltas_by_hand(folders, family, streamed):
    base, donor = loading.load(folders(family)), loading.load(folders(family, moved=True))
    rows = [list(b"a longer prompt than that"), "other text", list(b"ab")]
    table = distillation.activation_deltas(base, folders(family, moved=True) if streamed else donor, rows)
    tokens = [base.tokenizer(r).input_ids if isinstance(r, str) else r for r in rows]
    kept = [(taken_apart(base, t), taken_apart(donor, t)) for t in tokens]
    assert table["layer"].tolist() == [i for i in range(5) for _ in range(3)] and set(table["n"]) == {3}
    for row in table.itertuples():
        at = row.layer, row.part
        relative = [float(((b[at] - a[at]).norm(dim=-1) / a[at].norm(dim=-1)).mean()) for a, b in kept]
        cosine = [float(torch.cosine_similarity(a[at], b[at], dim=-1).mean()) for a, b in kept]
        assert row.relative == pytest.approx(sum(relative) / 3, rel=1e-3)
        assert row.cosine == pytest.approx(sum(cosine) / 3, abs=1e-4)
        # Student's t with two degrees of freedom
        half = 4.302653 * torch.tensor(cosine).double().std().item() / 3**0.5
        assert (row.cosine_low, row.cosine_high) == pytest.approx((row.cosine - half, row.cosine + half), abs=1e-3)
        assert row.relative_low < row.relative < row.relative_high


def test_activation_deltas_of_equal_models_and_bad_prompts():
    base = tiny.lens("llama-gqa")
    twin = Lens("same", copy.deepcopy(base.model), base.tokenizer)
    table = distillation.activation_deltas(base, twin, ["one prompt"])
    assert (table["relative"] == 0).all() and table["relative_low"].isna().all()
    for prompts_, message in (("text", "give a list"), ([], "give a list"), (["a", ""], "prompt 1 has 0 tokens")):
        with pytest.raises(UserError, match=message):
            distillation.activation_deltas(base, twin, prompts_)
    windowed = tiny.lens("mistral", sliding_window=4)
    with pytest.raises(UserError, match="prompt 0 has 5 tokens; the attention window is 4"):
        distillation.activation_deltas(windowed, other(windowed), [[1, 2, 3, 4, 5]])


def test_a_sliding_window_is_kept_by_plain_rows():
    base = surgery.rough_lens("mistral", sliding_window=4)
    donor = other(base)
    together = distillation.with_donor(base, donor)
    assert Engine(together).path_for(9) == "padded_rows"
    conditions = expand("L2@donor,whole@donor", base.dims)
    found = scores(together, conditions)
    same(found[1], scores(operated(base, donor, conditions[1]), [parse_condition("baseline")])[0])
    same(found[2], scores(donor, [parse_condition("baseline")])[0])
