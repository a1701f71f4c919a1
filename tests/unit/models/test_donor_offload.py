"""Donors whose weights stay on disk are read layer by layer, and their memory is given back."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
from transplants import conditions_for, layers_in_memory, logits, prompts, same, scores, texts

from depthlens.ablations import expand
from depthlens.engine.engine import Engine
from depthlens.experiments import distillation
from depthlens.models import loading, offload


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
    before = offload.Stream.read

    def reading(self, layer):
        if self is lens.stream:
            read.append(layer)
        before(self, layer)

    monkeypatch.setattr(offload.Stream, "read", reading)
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
    bound = replace(engine.budget, key_bytes=2 * donor.stream.layer_bytes)
    engine.budget = bound
    assert engine.generate_until(prompts(), conditions) == wanted
    assert max(len(there) for _, there in seen) <= 3 and sorted(read) == [0, 1, 2, 3, 4]
    assert layers_in_memory(donor) == []
