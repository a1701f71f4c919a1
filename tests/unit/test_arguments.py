"""Arguments that are numbers and lists of NumPy, pandas and torch mean what Python's own mean."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import depthlens as dl
from depthlens import arguments

pytestmark = pytest.mark.usefixtures("unchecked")
TASKS = ["capitals_default", "kv_retrieval_4"]
QUIET = {"store": None, "progress": False}


VALUES = [
    (np.int64(3), 3), (np.bool_(True), True), (np.array(3), 3), (torch.tensor(3), 3), (np.str_("L1"), "L1"),
    (np.array([1, 2]), [1, 2]), (torch.tensor([1, 2]), [1, 2]), (pd.Series(["a", "b"]), ["a", "b"]),
    ({"b", "a"}, ["a", "b"]), (frozenset({2, 1}), [1, 2]), ((np.int64(1), 2), (1, 2)), (range(3), range(3)),
    (dict.fromkeys("ba").keys(), ["b", "a"]), ((x for x in "ba"), ["b", "a"]), ({"t": np.array([0])}, {"t": [0]}),
]  # fmt: skip


@pytest.mark.parametrize(("value", "plain"), VALUES)
def test_values_become_pythons_own(value, plain):
    found = arguments.plain(value)
    assert found == plain and type(found) is type(plain)


@pytest.mark.parametrize("made", [set, np.array, pd.Series])
def test_tasks_of_any_collection(lens, made):
    names, limit = made(TASKS), np.int64(3)
    result = dl.condition_sweep(lens, names, pd.Series(["L1"]), limit=limit, seed=np.uint32(0), **QUIET)
    wanted = dl.condition_sweep(lens, TASKS, ["L1"], limit=3, **QUIET)
    pd.testing.assert_frame_equal(result.docs, wanted.docs)
    assert result.record["limit"] == 3 and list(dl.load_tasks(names, limit=limit)) == TASKS


def test_other_options_of_any_kind(lens):
    options = {"samples": np.array([0, 2]), "num_fewshot": np.int8(1), "batch_tokens": np.int64(64)}
    found = dl.head_sweep(lens, TASKS[:1], layers=np.array([1]), **options, **QUIET)
    wanted = dl.head_sweep(lens, TASKS[:1], layers=[1], samples=[0, 2], num_fewshot=1, batch_tokens=64, **QUIET)
    pd.testing.assert_frame_equal(found.docs, wanted.docs)
    assert json.dumps(found.record["samples"]) == "[0, 2]"
    selected = found.select(metrics=pd.Series(["acc"]), conditions=np.array(["L1.H0"]))
    assert set(selected.docs["metric"]) == {"acc"} and len(found.critical()) >= 0
    curve = {"k": np.arange(1, 3), "n_draws": np.int64(10), "samples": pd.Series([0, 1, 2, 3])}
    lists = {"some": np.array([[0, 1], [1, 2]])}
    table = dl.removal_curve(lens, TASKS[1], lists, **curve, **QUIET).points
    assert sorted(set(table["k"])) == [0, 1, 2]
    scores = dl.head_sweep(lens, TASKS[:1], layers=[1], samples=[0, 2], **QUIET).head_losses(metric="acc")
    assert scores.top(np.int64(2)) == scores.top(2)
    assert dl.next_token(lens, "abc", k=torch.tensor(2)).shape == dl.next_token(lens, "abc", k=2).shape
