"""Donors whose weights stay on disk are read layer by layer, and their memory is given back."""

from __future__ import annotations

import pytest
from transplants import conditions_for, layers_in_memory, same, scores, texts

from depthlens.experiments import distillation
from depthlens.models import loading


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
