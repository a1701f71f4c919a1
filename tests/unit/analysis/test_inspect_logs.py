"""Logs of Inspect that are written: by its format, and by its own reader where it is installed."""

import json
import zipfile

import made_results
import pytest

import depthlens as dl
from depthlens.analysis.result.results import Result

VALUES = {"baseline": [1, 0, 1], "L0": [0, 0, 1], "L1@mean": [1, 1, 1]}


def made() -> Result:
    result = made_results.same_documents(made_results.result_of(VALUES, n_layers=2))
    asked = result.asked.assign(question=["a?", "é?", "c?"], choices=[["x", "y"]] * 3, fields=['{"kind": "k"}'] * 3)
    tasks = {"sums": result.record["tasks"]["sums"] | {"version": 1.1}}
    return Result(result.docs, result.record | {"tasks": tasks, "time": "2026-01-02T03:04:05+00:00"}, asked)


def test_a_log_for_each_condition_has_its_answers_and_scores(tmp_path):
    files = made().to_inspect(tmp_path / "logs")
    assert sorted(files) == sorted((tmp_path / "logs").iterdir()) and len(files) == 3
    for file, (condition, values) in zip(files, VALUES.items(), strict=True):
        with zipfile.ZipFile(file) as archive:
            read = {name: json.loads(archive.read(name)) for name in archive.namelist()}
        header, summaries = read.pop("header.json"), read.pop("summaries.json")
        assert (header["version"], header["status"]) == (2, "success")
        about = header["eval"]
        assert about["model_args"] == {"condition": condition} and about["tags"] == [condition]
        assert about["task_version"] == "1.1" and about["task_id"] in file.name, "logs of one task_id are retries"
        assert (about["task"], about["model"], about["dataset"]["samples"]) == ("sums", "base", 3)
        (score,) = header["results"]["scores"]
        assert score["metrics"]["mean"]["value"] == pytest.approx(sum(values) / 3)
        assert list(read) == [f"samples/{i}_epoch_1.json" for i in range(3)]
        assert [one["scores"]["acc"]["value"] for one in read.values()] == values
        assert [one["input"] for one in read.values()] == [one["input"] for one in summaries] == ["a?", "é?", "c?"]
        first = read["samples/0_epoch_1.json"]
        assert (first["target"], first["choices"], first["metadata"]) == ("!", ["x", "y"], {"kind": "k"})
        assert first["output"]["choices"][0]["message"]["content"] == f"é{values[0]}"
    assert made().to_inspect(tmp_path / "logs") == files, "the same files again"


def test_two_of_these_logs_are_compared(tmp_path):
    """Two conditions as two models, paired by question."""
    whole, without, _ = made().to_inspect(tmp_path)
    found = dl.compare(str(without), str(whole), from_logs=True)
    assert found.answers["loss"].abs().sum() == 1


def test_inspect_reads_them(tmp_path):
    log = pytest.importorskip("inspect_ai.log")
    read = log.read_eval_log(str(made().to_inspect(tmp_path)[1]))
    assert read.eval.model_args == {"condition": "L0"}
    assert [sample.scores["acc"].value for sample in read.samples] == VALUES["L0"]
