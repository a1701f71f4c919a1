"""Whether modes of removal agree, on sweeps whose losses are made up."""

from __future__ import annotations

import made_results
import numpy as np
import pytest

import depthlens as dl
from depthlens.analysis.rank_correlations import COLUMNS

N_LAYERS, N = 12, 40
TRUE = np.random.default_rng(0).permutation(N_LAYERS) / 4


def sweep(modes, *, chance=None, parts=None):
    """modes: {text of a condition with {} for the layer: what each layer costs}."""
    rng = np.random.default_rng(1)
    scores = {"baseline": (base := rng.normal(0.4, 0.1, N))}
    for text, costs in modes.items():
        for layer, cost in enumerate(costs[:parts]):
            scores[text.format(layer)] = base - cost + 0.2 * rng.normal(size=N)
    return made_results.result({"t": scores}, metric="answer_logprob", n_layers=N_LAYERS, info={"chance": chance})


def test_one_row_a_pair_of_modes_of_the_same_parts():
    modes = {"L{}": TRUE, "L{}[1:]": TRUE, "L{}@mean": TRUE[::-1], "L{}.H0": TRUE, "L{}.H0[1:]@noise3": TRUE}
    found = dl.mode_agreement(sweep(modes))
    table = found.table
    assert list(table.columns) == ["task", "parts", "mode", "other", *COLUMNS]
    pairs = [tuple(row) for row in table[["parts", "mode", "other"]].to_numpy()]
    assert pairs == [
        ("layers", "skip", "skip[1:]"), ("layers", "skip", "mean"), ("layers", "skip[1:]", "mean"),
        ("heads", "zero", "noise3[1:]"),
    ]  # fmt: skip
    alike = table[table["other"].isin(["skip[1:]", "noise3[1:]"])]
    assert (alike["corrected"] > 0.9).all() and (alike["ci_low"] > 0.8).all()
    assert (table.loc[table["other"] == "mean", "corrected"] < 0.5).all()
    assert len(found.describe()) == 4 and found.describe()[0].startswith("t: 12 layers by skip and by skip[1:]: rank")
    assert found.table.equals(dl.mode_agreement(sweep(modes)).table)


def test_parts_that_one_mode_lacks_are_left_out():
    two = sweep({"L{}": TRUE, "L{}@mean": TRUE})
    fewer = two.select(conditions=[c for c in two.docs["condition"].unique() if c not in ("baseline", "L3@mean")])
    assert dl.mode_agreement(fewer).table["n_parts"].tolist() == [N_LAYERS - 1]


def test_a_task_at_chance_has_no_row():
    found = dl.mode_agreement(sweep({"L{}": TRUE, "L{}@mean": TRUE}, chance=0.9))
    assert found.table.empty and found.describe() == [f"t: at chance, cannot judge (n = {N})."]


@pytest.mark.parametrize(
    ("modes", "parts", "n_rows", "said"),
    [
        ({"L{}": TRUE}, None, 0, "The result has skip of layers: no two modes have parts in common"),
        ({"L{}-20": TRUE}, None, 0, "The result has no single parts: "),
        ({"L{}": TRUE, "L{}@mean": TRUE}, 2, 1, "cannot judge: a rank correlation needs 3 parts, and here are 2"),
    ],
)
def test_nothing_to_compare_is_said(modes, parts, n_rows, said):
    """As of one way to remove, or of a model of two layers."""
    found = dl.mode_agreement(sweep(modes, parts=parts))
    (sentence,) = found.describe()
    assert len(found.table) == n_rows and said in sentence
