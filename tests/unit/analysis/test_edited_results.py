"""What is said and saved belongs to the documents and the record that a result holds, also after they were edited."""

from __future__ import annotations

import copy
import pickle

import pandas as pd
import pytest
from made_results import capitals_and_elements

import depthlens as dl
from depthlens.analysis.results import Result


@pytest.fixture
def result() -> Result:
    return capitals_and_elements()


def test_an_edit_of_the_documents_is_in_all_that_is_said_and_saved_afterwards(result, tmp_path):
    docs, before = result.docs.copy(), result.describe()
    docs.loc[(docs["task"] == "capitals") & (docs["condition"] == "L1"), "value"] = 0.0
    wanted = Result(docs, result.record)
    result.docs.loc[:, "value"] = docs["value"]
    assert result.describe() == wanted.describe() != before
    for table in ("summary", "baselines"):
        pd.testing.assert_frame_equal(getattr(result, table), getattr(wanted, table))
    pd.testing.assert_frame_equal(result.losses(), wanted.losses())
    assert result.needed_documents == wanted.needed_documents
    result.save(tmp_path)
    written = pd.read_parquet(tmp_path / "summary.parquet")
    pd.testing.assert_frame_equal(written, Result.load(tmp_path).summary)


def test_an_edit_of_the_record_is_in_all_that_is_said_afterwards(result):
    assert result.baselines["at_chance"].tolist() == [False, True]
    result.record["tasks"]["elements"]["metrics"]["acc"]["chance"] = 0.01
    assert result.baselines["at_chance"].tolist() == [False, False]
    assert not result.losses()["at_chance"].any() and not any("at chance" in note for note in result.notes)


def test_an_edit_of_a_table_that_was_derived_is_the_callers_own(result):
    for table in (result.summary, result.baselines, result.losses()):
        table.loc[:, "n"] = 7
    assert 7 not in {*result.summary["n"], *result.baselines["n"], *result.losses()["n"]}


def test_a_result_that_was_summarised_can_be_pickled_and_copied(result):
    dl.claims.Evidence(letters=result)
    for again in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        pd.testing.assert_frame_equal(again.summary, result.summary)
