"""Donors whose weights stay on disk are read layer by layer, and their memory is given back."""

from __future__ import annotations

import pytest
from transplants import conditions_for, layers_in_memory, logits, same, scores, texts

from depthlens.ablations import expand
from depthlens.experiments import distillation
from depthlens.models import loading, offload


@pytest.mark.parametrize(("family", "offloaded"), [("llama-gqa", "disk"), ("qwen3-moe", None), ("deepseek-v3", "disk")])
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
