"""What two parts cost together: a planted backup is found and nothing else, and the numbers are those of a hand."""

import numpy as np
import pytest
from refusals import refused

import depthlens as dl

ONE, TWO = "organism_one_hop", "organism_two_hop"
# what is planted for one hop, with the backup of L2.H1, a decoy and two heads of another task
HEADS = ["L1.H2", "L2.H0", "L2.H1", "L2.H3", "L3.H0", "L4.H3"]
QUIET = {"store": None, "progress": False, "limit": 24}


@pytest.fixture(scope="module")
def found():
    lens = dl.load("organism:decoy,backup", device="cpu")
    return dl.pair_sweep(lens, [ONE, TWO], HEADS, **QUIET)


def test_the_planted_backup_is_found_and_nothing_else(found):
    more = found.table[found.table["more"]]
    assert more[["task", "condition"]].to_numpy().tolist() == [[ONE, "L2.H0+L2.H1"]]
    assert len(found.table) == 2 * 15 and (found.table["interaction"] > 0.5).sum() == 1
    said = found.describe()
    assert "1 of 15, **L2.H0+L2.H1** by" in said[0] and "0 of 15." in " ".join(said[1:])
    # one chain: a question that is lost without one of these heads cannot be lost again
    less = found.table[found.table["less"]]
    assert {*less["task"]} == {TWO} and {*less["first"], *less["second"]} <= {"L1.H2", "L3.H0", "L4.H3"}


def test_without_a_backup_attribution_chooses_heads_of_which_no_two_stand_out():
    lens = dl.load("organism", device="cpu")
    alone = dl.pair_sweep(lens, ONE, "heads", n_heads=3, **QUIET)
    assert {"L1.H2", "L2.H1"} < {*alone.record["parts"]} and len(alone.table) == 3
    assert not alone.table["more"].any()


def test_every_number_is_that_of_the_scores(found):
    table = found.table.set_index(["task", "condition"])
    for (task, pair), row in table.iterrows():  # noqa: B007 - for the query
        scores = found.result.docs.query("task == @task").pivot(index="doc_id", columns="condition", values="value")
        lost = scores["baseline"].to_numpy()[:, None] - scores[[pair, row["first"], row["second"]]].to_numpy()
        assert row[["loss", "loss_first", "loss_second"]].tolist() == pytest.approx(lost.mean(0).tolist())
        beyond = lost @ [1, -1, -1]
        assert row["interaction"] == pytest.approx(beyond.mean())
        assert row["ci_low"] <= beyond.mean() <= row["ci_high"] and row["n"] == len(beyond) == 24
    # a family of 15: no smaller than alone, and of the planted pair beyond doubt
    assert (table["p_adjusted"] >= table["p_value"] - 1e-3).all() and np.isfinite(table["p_adjusted"]).all()
    assert table.loc[(ONE, "L2.H0+L2.H1"), "p_adjusted"] < 0.001


def test_it_is_saved_loaded_and_drawn(found, tmp_path):
    found.save(tmp_path)
    again = dl.PairLosses.load(tmp_path)
    assert again.table.equals(found.table) and again.describe() == found.describe()
    assert dl.Result.load(tmp_path).docs.equals(found.result.docs)
    drawn = again.plot().table
    assert drawn["panel"].nunique() == 2 and drawn.loc[drawn["shown"], "condition"].tolist()[0] == "L2.H0+L2.H1"


def test_one_part_is_no_pair():
    lens = dl.load("organism", device="cpu")
    refused("a pair needs two parts; name more", dl.pair_sweep, lens, ONE, ["L1"], **QUIET)
    refused("names one part twice", dl.pair_sweep, lens, ONE, ["L1", "L1-2"], **QUIET)
