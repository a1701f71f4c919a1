"""Comparison of two models' and several tasks' layer sweeps, and what transplants recover of the gap between two."""

import numpy as np
import pytest
from made_results import EARLY, LATE, N_LAYERS, N, nats, result_of, sweep
from refusals import refused

import depthlens as dl
from depthlens.analysis.layers import recovery
from depthlens.analysis.result.losses import NO_LOSS


def test_nothing_lost_has_no_place():
    assert sweep(EARLY * 0).centre_of_mass().table["unplaced"].item() == NO_LOSS


def test_thirds_on_three_scales():
    result = sweep(EARLY, chance=0.25)
    loss, whole = -result.summary["delta"].iloc[1:].to_numpy(), result.baselines["baseline"].item()
    thirds = loss.reshape(3, 3).mean(1)
    wanted = {"score": thirds, "above_chance": thirds / (whole - 0.25), "importance": 3 * thirds / loss.sum()}
    for scale, thirds in wanted.items():
        np.testing.assert_allclose(result.loss_by_third(scale=scale)["loss"], thirds)
    with pytest.raises(dl.UserError, match="answer_logprob of task sums has no chance level.*scale='importance'"):
        nats(EARLY).loss_by_third(scale="above_chance")


def test_selected_layers_keep_their_depth():
    result = sweep(LATE).select(conditions=["L6", "L7", "L8"])
    (row,) = result.centre_of_mass().table.itertuples()
    assert row.centre > 6 / (N_LAYERS - 1)
    with pytest.raises(dl.UserError, match="no layer of the first third was removed"):
        result.loss_by_third()


@pytest.mark.parametrize(("change", "message"), [
    ({"n": N - 2}, "task sums, metric acc, condition .*, doc_id 118: base alone has it; run both alike"),
    ({"suffix": ".attn"}, "condition L0, doc_id 0: base alone has it"),
    ({"task": "facts"}, "task facts, .*: d alone has it"),
    ({"record": {"seed": 3}}, "task sums: base and d have seed 0 and 3"),
    ({"record": {"apply_chat_template": True}}, "apply_chat_template none and true"),
])  # fmt: skip
def test_sweeps_that_differ_are_refused(change, message):
    refused(message, dl.agreement, sweep(EARLY), sweep(LATE, model="d", **change))


def test_examples_that_differ_are_refused():
    base, other = sweep(EARLY), sweep(EARLY, model="d")
    other.record["tasks"]["sums"]["num_fewshot"] = 4
    refused("task sums: base and d have num_fewshot 0 and 4", dl.agreement, base, other)


def transplants(shares, *, n=N, own=0.2, goal=0.9, seed=0, extra=()):
    """Base and donor on the same documents; under a condition a share of what only the donor knows is known, too."""
    rng = np.random.default_rng(seed)
    base = rng.random(n) < own
    donor = base | (rng.random(n) < (goal - own) / (1 - own))
    values = {"baseline": base}
    for condition, share in shares.items():
        values[condition] = base | (donor & (rng.random(n) < share))
    values |= dict(extra)
    return result_of(values), result_of({"baseline": donor}, model="donor")


SHARES = {"L0@donor": 0.0, "L8@donor": 0.3, "L0-4@donor": 0.2, "L0-8@donor": 1.0, "L5-8@donor": 0.8, "L2.H1@donor": 0.0}


def test_recovered_shares_have_their_true_value_and_place():
    result, donor = transplants(SHARES, n=200)
    table = result.recovery(donor).table.set_index("condition")
    for condition, share in SHARES.items():
        row = table.loc[condition]
        assert row["ci_low"] <= share <= row["ci_high"], condition
        gap = row["donor"] - row["base"]
        assert row["recovered"] == pytest.approx((row["value"] - row["base"]) / gap)
    assert table.loc["L0-8@donor", "recovered"] == 1.0
    unchanged = table.loc["L0@donor"]
    assert unchanged["recovered"] == 0 and unchanged["ci_low"] < 0 < unchanged["ci_high"], "no change is no proof"
    assert table.loc["L5-8@donor", ["first", "last"]].tolist() == [5, 8] and table.loc["L2.H1@donor", "site"] == "head"
    assert table["first"].isna().tolist() == [False] * 5 + [True]
    kinds = {kind: " ".join(rows["condition"]) for kind, rows in recovery.series(table.reset_index()).items()}
    wanted = {"of one layer": "L0@donor L8@donor", "from the bottom": "L0@donor L0-4@donor L0-8@donor"}
    assert kinds == wanted | {"from the top": "L0-8@donor L5-8@donor L8@donor"}


def test_recovery_in_words():
    said = dl.Result.recovery(*transplants(SHARES, n=200)).describe()
    assert any("from the top: **L0-8@donor recovers 1.00" in line and ", the most of 3 (" in line for line in said)
    assert any("L2.H1@donor recovers 0.00" in line and "not proven to help" in line for line in said)
    said = dl.Result.recovery(*transplants({"L0-4@donor": 1.0, "L0-6@donor": 1.0, "L8.attn@donor": 0.0}))
    assert "**L0-4@donor recovers 1.00" in said.describe()[0], "of equal ones the smaller"


def test_without_a_gap_nothing_is_recovered():
    result, donor = transplants(SHARES, own=0.9, goal=0.92, n=40)
    shares = result.recovery(donor)
    table = shares.table
    assert table["recovered"].isna().all() and set(table["no_gap"]) == {recovery.NO_GAP}
    assert table["value"].notna().all()
    (line,) = shares.describe()
    assert "not proven better than the base, cannot judge transplants" in line


def test_recovery_reads_transplants_only_and_refuses_other_documents():
    result, donor = transplants(SHARES, extra={"L3": np.zeros(N)})
    assert set(result.recovery(donor).table["condition"]) == set(SHARES)
    with pytest.raises(dl.UserError, match="task sums, metric acc, doc_id 119: base alone has it"):
        result.recovery(transplants(SHARES, n=N - 1)[1])
