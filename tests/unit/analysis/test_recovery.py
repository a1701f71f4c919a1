"""What transplants recover of the gap between two models, on synthetic results whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from made_results import N, result_of

from depthlens.analysis import recovery
from depthlens.errors import UserError


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
    table = recovery.transplant_recovery(result, donor).table.set_index("condition")
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
    kinds = {kind: rows["condition"].tolist() for kind, rows in recovery.series(table.reset_index()).items()}
    assert kinds == {
        "of one layer": ["L0@donor", "L8@donor"],
        "from the bottom": ["L0@donor", "L0-4@donor", "L0-8@donor"],
        "from the top": ["L0-8@donor", "L5-8@donor", "L8@donor"],
    }


def test_the_interval_of_a_score_stays_within_the_range_of_its_metric():
    """That of the difference from the base is as wide as two scores make it, and is drawn around one of them."""
    table = recovery.transplant_recovery(*transplants({"L0-8@donor": 1.0, "L0@donor": 0.5}, n=24, goal=0.97)).table
    assert table["value_low"].min() >= 0 and table["value_high"].max() == 1.0


def test_recovery_in_words():
    said = recovery.transplant_recovery(*transplants(SHARES, n=200)).describe()
    assert any("from the top: half of the gap is surely recovered from **L5-8@donor** on" in line for line in said)
    assert any("L2.H1@donor recovers 0.00" in line and "no proven change" in line for line in said)
    said = recovery.transplant_recovery(*transplants({"L0-4@donor": 1.0, "L0-6@donor": 1.0, "L8.attn@donor": 0.0}))
    assert "**L0-4@donor recovers 1.00" in said.describe()[0], "of equal ones the smaller"
    few = {c: SHARES[c] for c in ("L0@donor", "L0-4@donor")} | {"L1@donor": 0.0}
    said = recovery.transplant_recovery(*transplants(few, n=40)).describe()
    assert any("none surely recovers half" in line for line in said)


def test_without_a_gap_nothing_is_recovered():
    result, donor = transplants(SHARES, own=0.9, goal=0.92)
    shares = recovery.transplant_recovery(result, donor)
    table = shares.table
    assert table["recovered"].isna().all() and set(table["no_gap"]) == {recovery.NO_GAP}
    assert table["value"].notna().all()
    (line,) = shares.describe()
    assert "not proven better than the base, cannot judge transplants" in line


def test_recovery_reads_transplants_only_and_refuses_other_documents():
    result, donor = transplants(SHARES, extra={"L3": np.zeros(N)})
    assert set(recovery.transplant_recovery(result, donor).table["condition"]) == set(SHARES)
    with pytest.raises(UserError, match="task sums: documents 59 of base are missing for donor"):
        recovery.transplant_recovery(result, transplants(SHARES, n=N - 1)[1])
