"""Depth profiles of sweeps whose answers are known."""

import made_results
import numpy as np
import pandas as pd
import pytest
from made_results import exact
from scipy.stats import spearmanr

import depthlens as dl
from depthlens.analysis.layers import depth
from depthlens.analysis.numbers.means import UNLIMITED, mean
from depthlens.analysis.result.results import Result
from depthlens.errors import UserError

N_LAYERS, N_DOCS = 9, made_results.N
EARLY = (0.9, [0.3, 0.4, 0.5, 0.8, 0.85, 0.9, 0.9, 0.9, 0.9])
LATE = (0.9, [0.9, 0.9, 0.9, 0.85, 0.8, 0.5, 0.4, 0.35, 0.3])
GUESS = (0.3, [0.3] * N_LAYERS)


def test_a_task_at_chance_has_no_share_to_lose():
    table = exact({"early": EARLY, "guess": GUESS}).loss_by_third()
    assert set(table["task"]) == {"early"} and table["loss"].is_monotonic_decreasing
    assert table["ci_high"].iloc[2] < table["ci_low"].iloc[0]


def test_agreement_is_spearman_of_every_pair_of_tasks():
    result = exact({"early": EARLY, "late": LATE, "again": EARLY, "guess": GUESS})
    found, again, other = (dl.agreement(result, seed=seed) for seed in (3, 3, 4))
    assert found.table.equals(again.table) and not found.table.equals(other.table)
    table = found.table.set_index(["task", "other"])
    assert len(table) == len(found.describe()) == 3
    assert table.loc[("early", "again"), "spearman"] == pytest.approx(1.0)
    assert found.describe()[0].startswith("Layers by early and by late: rank correlation ")
    means = [-result.losses(task).loss.mean(0) for task in ("early", "late")]
    assert table.loc[("early", "late"), "spearman"] == pytest.approx(spearmanr(*means).statistic)


def test_two_models_are_compared_task_by_task():
    steps = np.linspace(0.9, 0.1, made_results.N_LAYERS)
    two = [made_results.sweep(steps, task="sums", model=name, seed=i) for i, name in enumerate(("base", "tuned"))]
    found = dl.agreement(*two)
    (row,) = found.table.itertuples()
    assert (row.task, row.other) == ("sums of base", "sums of tuned") and row.n_parts == made_results.N_LAYERS
    assert row.spearman > 0.9 and row.ceiling < 1


def test_a_critical_layer_among_layers_that_help_is_not_said_to_cost_nothing():
    """One layer costs what removing the others gains: its loss is shown, and the sum of all is not."""
    result = exact({"mixed": (0.6, [0.1, *[0.68] * (N_LAYERS - 1)])})
    (critical,), (centre,) = depth.describe_critical(result), result.centre_of_mass().describe()
    assert f"**1 of {N_LAYERS}** layers are critical (L0)" in critical
    assert centre == f"mixed: losses and gains of all layers may cancel, cannot judge (n = {N_DOCS})."


def test_few_parts_that_are_left_are_named_instead_of_the_many_that_are_critical():
    without = [0.9 if layer == 7 else 0.3 for layer in range(N_LAYERS)]
    (all_but,) = exact({"everywhere": (0.9, without)}).describe()
    assert f"**{N_LAYERS - 1} of {N_LAYERS}** layers are critical (all but L7)" in all_but


def test_several_metrics_of_a_task_are_told_apart_and_no_layers_refused():
    one = exact({"early": EARLY})
    docs = pd.concat([one.docs, one.docs.assign(metric="acc_norm")])
    both = Result(docs, made_results.record_of(early={m: {"chance": 0.25} for m in ("acc", "acc_norm")}))
    assert list(dict.fromkeys(both.loss_by_third()["task"])) == ["early acc", "early acc_norm"]
    said = [line.partition(";")[0].partition(": ") for line in (*both.describe(), *one.describe())]
    assert [task for task, *_ in said] == ["early acc", "early acc_norm", "early"] and len({of for *_, of in said}) == 1
    with pytest.raises(UserError, match="not one condition a layer"):
        Result(one.docs.assign(layer=pd.NA), one.record).loss_by_third()


def test_a_share_of_losses_needs_a_hundred_questions():
    result = exact({"early": EARLY})
    few = Result(result.docs[result.docs["doc_id"] < 99], result.record)
    assert few.loss_by_third(scale="importance").empty and len(few.loss_by_third()) == 3
    assert few.centre_of_mass().table["unplaced"].item() == "99 questions are too few; take at least 100"
    twice = made_results.same_documents(result, times=2)
    assert twice.centre_of_mass().table["unplaced"].item().startswith("60 questions are too few")


def test_shares_and_centres_are_quotients_of_means_over_documents():
    result = exact({"early": EARLY, "late": LATE})
    of = {task: result.losses(task).loss for task in ("early", "late")}
    total = mean(of["early"].sum(1), limits=UNLIMITED)
    share = mean(of["early"][:, :3].sum(1), limits=UNLIMITED) / total
    row = result.loss_by_third(scale="importance").iloc[0]
    by_hand = [float(x) for x in (share.value, *share.interval())]
    assert row[["loss", "ci_low", "ci_high"]].tolist() == pytest.approx(by_hand)
    centres = result.centre_of_mass()
    losses = of["early"].mean(0)
    assert centres.table["centre"][0] == pytest.approx(losses @ np.arange(9) / 8 / losses.sum())
    assert "The losses of early are **less deep** than those of late: -" in centres.describe()[2]
