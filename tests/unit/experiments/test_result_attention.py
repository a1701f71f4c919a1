"""Attention at the results of worked solutions: the mass of the eager kernel."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from depthlens.experiments import worked_solutions
from depthlens.experiments.result_attention import SOURCES, attention_at_results

FAMILIES = ["llama-gqa", "qwen3", "deepseek-v3"]  # shared keys, normed queries and keys, latent attention


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_at_results_is_the_mass_of_the_eager_kernel(family):
    lens = tiny.lens(family, max_position_embeddings=4096)
    options = {"limit": 4, "num_fewshot": 0}
    table = attention_at_results(lens, "arithmetic_cot", **options, progress=False)
    assert list(table.columns) == ["layer", "head", "condition", *SOURCES, "n"]
    assert np.allclose(table[list(SOURCES)].sum(axis=1), 1)
    solved = worked_solutions.worked_solutions(lens, "arithmetic_cot", **options)
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
