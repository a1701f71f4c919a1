"""Heads that are divided into copies: the model is the same, all copies are needed together, and none alone."""

from __future__ import annotations

import planted_heads
import pytest
import torch
from organism_prompts import sample

from depthlens.ablations import heads_condition
from depthlens.experiments.sweep import condition_sweep
from depthlens.models import loading
from depthlens.organisms import builder

N = 12


def test_a_model_with_divided_heads_is_the_same_model():
    lens = loading.load("organism:seed=3", device="cpu")
    wide = planted_heads.widened(lens)
    assert wide.dims.n_heads == planted_heads.COPIES * lens.dims.n_heads
    tokens = torch.tensor([prompt.tokens for prompt in sample(4, "two_hop")])
    with torch.no_grad():
        drift = (lens.model(tokens).logits - wide.model(tokens).logits).abs().max().item()
    assert drift < 1e-4  # sums in another order, of logits around 10


@pytest.mark.slow
@pytest.mark.parametrize(("option", "carried"), [("", True), (",backup", False)])
def test_a_list_of_all_copies_carries_retrieval_unless_there_is_a_backup(option, carried):
    name = f"organism:seed=3{option}"
    wide = planted_heads.widened(loading.load(name, device="cpu"))
    truth = builder.truth(name)
    copies = {role: sorted(planted_heads.copies_of(role, truth)) for role in ("retrieval", "output")}
    lists = copies["retrieval"], copies["retrieval"][:1], copies["output"]
    every, one, other = (str(heads_condition(heads)) for heads in lists)
    tasks = [*planted_heads.TASKS.values()]
    swept = condition_sweep(wide, tasks, [every, one, other], limit=N, num_fewshot=0, progress=False)
    score = swept.primary().summary.set_index(["task", "condition"])["value"]
    one_hop, two_hop = tasks
    assert (score[one_hop, every] <= 0.2) == carried
    assert score[one_hop, one] == score[one_hop, other] == score[two_hop, every] == 1.0
    assert score[two_hop, other] <= 0.2
