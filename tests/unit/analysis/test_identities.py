"""Documents of two tasks are paired where they are the same, and never because their numbers are."""

from __future__ import annotations

import made_results
import numpy as np
import pandas as pd
import pytest
from made_results import same_documents

from depthlens.analysis import questions
from depthlens.analysis.head_effects import head_contrast
from depthlens.analysis.layer_profiles import drawn, paired_profiles, profiles
from depthlens.analysis.results import Result, concat
from depthlens.errors import UserError

VALUES = {"baseline": [1, 1, 1, 0], "L0": [0, 1, 0, 0], "L1": [1, 1, 0, 0], "L2": [1, 0, 1, 1]}


def of_tasks(*names) -> Result:
    return made_results.result(dict.fromkeys(names, VALUES), model="tiny")


def with_hashes(result: Result, **hashes) -> Result:
    return Result(result.docs, result.record, pd.concat([asked(*of_task) for of_task in hashes.items()]))


def asked(task: str, hashes: list) -> pd.DataFrame:
    table = {"task": task, "doc_id": range(len(hashes)), "question": "?", "reference": "!", "doc_hash": hashes}
    return pd.DataFrame(table).assign(choices=None)


def test_document_7_of_two_tasks_is_not_the_same_unless_they_say_so():
    unknown = of_tasks("gsm8k", "mmlu")
    assert questions.identities(unknown, "mmlu").tolist() == ["mmlu:0", "mmlu:1", "mmlu:2", "mmlu:3"]
    apart, together = (drawn(profiles(result), seed=0, n_boot=50) for result in (unknown, same_documents(unknown)))
    np.testing.assert_array_equal(together[0][1], together[1][1])  # the same documents were drawn for both
    assert not np.array_equal(apart[0][1], apart[1][1])
    assert apart[0][1][0] == apart[1][1][0]  # the sample itself comes first


def test_a_document_that_a_task_has_twice_is_numbered():
    result = with_hashes(of_tasks("a"), a=["x", "y", "x", "x"])
    assert questions.identities(result, "a").tolist() == ["x", "y", "x#2", "x#3"]


def test_heads_are_contrasted_on_the_same_documents_in_any_order():
    heads = {"baseline": [1.0, 1.0, 1.0, 0.0], "L0.H0": [0.0, 1.0, 0.5, 0.0], "L1.H0": [1.0, 0.0, 1.0, 1.0]}
    order = [2, 0, 3, 1]  # document i of the other task is document order[i] of this
    other = {name: [values[i] for i in order] for name, values in heads.items()}
    result = made_results.result({"a": heads, "b": other}, n_layers=2, n_heads=1)
    names = [f"d{i}" for i in range(4)]
    contrast = head_contrast(with_hashes(result, a=names, b=[names[i] for i in order]), "a", "b")
    assert contrast.values.tolist() == [[0.0], [0.0]]  # every document loses in the one what it loses in the other
    with pytest.raises(UserError, match=r"other documents \(8 are of one only\); sweep both again"):
        head_contrast(result, "a", "b")
    with pytest.raises(UserError, match=r"other documents \(2 are of one only\); pair tasks of the same documents"):
        head_contrast(with_hashes(result, a=names, b=[*names[:3], "e"]), "a", "b")


def test_two_models_are_paired_also_where_one_result_is_older():
    new, old = same_documents(of_tasks("a")), of_tasks("a")
    for pair in ((new, old), (old, new), (old, old), (new, new)):
        ((one, other),) = paired_profiles(*pair)
        assert one.documents == other.documents
    changed = with_hashes(of_tasks("a"), a=["document 0", "document 1", "document 2", "other"])
    with pytest.raises(UserError, match="task a: documents document 3 of tiny are missing for tiny"):
        paired_profiles(new, changed)


def test_a_known_hash_is_kept_when_results_are_joined():
    new = same_documents(of_tasks("a"))
    old = Result(new.docs, new.record, new.asked.drop(columns="doc_hash"))
    for parts in ([old, new], [new, old]):
        assert questions.identities(concat(parts), "a").tolist() == [f"document {i}" for i in range(4)]
