"""Depth profiles of synthetic sweeps whose answers are known."""

import made_results
import numpy as np
import pandas as pd
import pytest
from made_results import exact
from scipy.stats import spearmanr

from depthlens.analysis import depth
from depthlens.analysis.results import Result
from depthlens.errors import UserError

N_LAYERS, N_DOCS = 9, 80
EARLY = (0.9, [0.3, 0.4, 0.5, 0.8, 0.85, 0.9, 0.9, 0.9, 0.9])
LATE = (0.9, [0.9, 0.9, 0.9, 0.85, 0.8, 0.5, 0.4, 0.35, 0.3])
GUESS = (0.3, [0.3] * N_LAYERS)


def test_a_task_at_chance_has_no_share_to_lose():
    table = depth.loss_by_third(exact({"early": EARLY, "guess": GUESS}))
    assert set(table["task"]) == {"early"} and table["loss"].is_monotonic_decreasing
    assert table["ci_high"].iloc[2] < table["ci_low"].iloc[0]


def test_rank_agreement_is_spearman_of_every_pair_of_tasks():
    result = exact({"early": EARLY, "late": LATE, "again": EARLY, "guess": GUESS})
    found, again, other = (depth.rank_agreement(result, seed=seed) for seed in (3, 3, 4))
    assert found.table.equals(again.table) and not found.table.equals(other.table)
    table = found.table.set_index(["task", "other"])
    assert len(table) == len(found.describe()) == 3
    assert table.loc[("early", "again"), "spearman"] == pytest.approx(1.0)
    assert found.describe()[0].startswith("Layers by early and by late: rank correlation -")
    means = [-result.document_losses(task, "acc").mean() for task in ("early", "late")]
    assert table.loc[("early", "late"), "spearman"] == pytest.approx(spearmanr(*means).statistic)


def test_two_models_are_compared_task_by_task():
    steps = np.linspace(0.9, 0.1, made_results.N_LAYERS)
    base, tuned = (
        made_results.sweep(steps, task="sums", model=model, seed=seed) for seed, model in enumerate(("base", "tuned"))
    )
    found = depth.rank_agreement(base, tuned)
    (row,) = found.table.itertuples()
    assert (row.task, row.other) == ("sums of base", "sums of tuned") and row.n_parts == made_results.N_LAYERS
    assert row.corrected > 0.9 and row.ceiling < 1
    other = made_results.sweep(made_results.EARLY, task="facts", model="tuned")
    with pytest.raises(UserError, match="run both alike"):
        depth.rank_agreement(base, other)


def test_a_critical_layer_among_layers_that_help_is_not_said_to_cost_nothing():
    """One layer costs what removing the others gains: its loss is shown, and the sum of all is not."""
    result = exact({"mixed": (0.6, [0.1, *[0.68] * (N_LAYERS - 1)])})
    (critical,), (centre,) = depth.describe_critical(result), depth.centre_of_mass(result).describe()
    assert f"**1 of {N_LAYERS}** layers proved critical (L0)" in critical
    assert centre == f"mixed: losses and gains of all layers may cancel, cannot judge (n = {N_DOCS})."


def test_critical_conditions_and_findings_in_words():
    result = exact({"early": EARLY, "late": LATE, "guess": GUESS})
    found = depth.critical_by_task(result)
    assert found["early"][:3] == ["L0", "L1", "L2"]
    assert "guess" not in found
    overlap = depth.critical_overlap(result)
    (row,) = overlap.table.itertuples()
    assert row.more_task.startswith("L0, L1, L2") and row.more_other == "L5, L6, L7, L8"
    alone = set(found["early"]) ^ set(found["late"])
    shown = set(f"{row.more_task}, {row.more_other}".split(", "))
    assert set(row.not_shown.replace("none", "").split(", ")) - {""} == alone - shown
    assert row.scale == "of the score above the floor"
    lines = overlap.describe()
    assert lines[0].startswith("**4 layers** are shown to cost more under late than under early (L5, L6, L7, L8), and ")
    assert "shown to cost more under early: L0, L1, L2" in lines[1]
    early, _, guess = result.describe()
    assert f"**{len(found['early'])} of {N_LAYERS}** layers proved critical (L0, L1, L2" in early
    assert "at chance, cannot judge" in guess


@pytest.mark.parametrize("written", [EARLY, (0.9, [0.0, 0.0, 0.0, *[0.9] * 6])], ids=["equal answers", "all is broken"])
def test_protocols_do_not_differ_by_what_a_broken_model_scores(written):
    """A guess among options scores a quarter, a broken writer nothing: neither shows that a layer matters more."""
    chosen = EARLY if written is EARLY else (0.9, [0.25, 0.25, 0.25, *[0.9] * 6])
    result = exact({"chosen": chosen, "written": written})
    result.record["tasks"]["written"]["metrics"]["acc"]["floor"] = 0.0
    overlap = depth.critical_overlap(result)
    assert overlap.table[["more_task", "more_other"]].to_numpy().tolist() == [["none", "none"]]
    assert overlap.describe()[0] == "No condition is shown to cost more under one of the tasks than under another."
    assert overlap.table["both"].item().startswith("L0, L1, L2")


def test_few_parts_that_are_left_are_named_instead_of_the_many_that_are_critical():
    without = [0.9 if layer == 7 else 0.3 for layer in range(N_LAYERS)]
    (all_but,) = exact({"everywhere": (0.9, without)}).describe()
    assert f"**{N_LAYERS - 1} of {N_LAYERS}** layers proved critical (all but L7)" in all_but


def test_several_metrics_of_a_task_are_told_apart_and_no_layers_refused():
    one = exact({"early": EARLY})
    docs = pd.concat([one.docs, one.docs.assign(metric="acc_norm")])
    both = Result(docs, made_results.record_of(early={m: {"chance": 0.25} for m in ("acc", "acc_norm")}))
    found = depth.critical_by_task(both)
    assert list(found) == list(dict.fromkeys(depth.loss_by_third(both)["task"])) == ["early acc", "early acc_norm"]
    assert found["early acc"] == found["early acc_norm"] == depth.critical_by_task(one)["early"]
    with pytest.raises(UserError, match="not one condition a layer"):
        depth.loss_by_third(Result(one.docs.assign(layer=pd.NA), one.record))


def test_too_few_documents_to_prove_a_loss_are_said():
    result = exact({"early": EARLY})
    few = Result(result.docs[result.docs["doc_id"] < depth.FEWEST - 1], result.record)
    score = few.baselines.assign(at_chance=False)
    few.__dict__["baselines"] = score  # a perfect score of four documents is at chance, too
    assert few.describe()[0].startswith("early: 4 documents cannot prove a loss, at least 5 are needed (acc ")
    assert not few.critical().size
