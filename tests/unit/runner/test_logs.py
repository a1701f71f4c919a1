"""Logs of others: real ones of lm-eval beside sweeps of the same models, and Inspect's by its format."""

import json
import zipfile
from pathlib import Path

import mini_tasks
import numpy as np
import pandas as pd
import pytest
import tiny
import transplants
from lm_eval.loggers import EvaluationTracker
from lm_evals import Noting, evaluate
from refusals import refused

import depthlens as dl
from depthlens.analysis.numbers.means import mean
from depthlens.runner import logs

pytestmark = pytest.mark.slow

TASKS = ["mini_choice", "mini_metrics", "mini_mutual", "mini_blanks", "mini_shots"]
TASKS += ["mini_filters", "mini_writing", "mini_cloze", "mini_rolling"]
REAL = Path(__file__).parents[2] / "data" / "logs"


@pytest.fixture(scope="module")
def lenses():
    lens = tiny.lens("llama-gqa", max_position_embeddings=mini_tasks.CONTEXT)
    return {"one": lens, "other": transplants.other(lens)}


@pytest.fixture(scope="module")
def made(lenses, tmp_path_factory):
    """A folder of tasks, the logs that lm-eval writes of two models, and sweeps of the same."""
    root = tmp_path_factory.mktemp("logs")
    folder, sweeps = mini_tasks.write(root / "tasks"), {}
    for name, lens in lenses.items():
        tracker = EvaluationTracker(output_path=str(root / name))
        found = evaluate(Noting(lens), TASKS, folder, evaluation_tracker=tracker)
        samples = found.pop("samples")
        tracker.save_results_aggregated(results=found, samples=samples)
        for task, of_task in samples.items():
            tracker.save_results_samples(task_name=task, samples=of_task)
        sweeps[name] = dl.condition_sweep(lens, TASKS, ["baseline"], include_path=folder, progress=False)
    return root, sweeps


def test_a_log_of_lm_eval_is_the_sweep_of_its_model(made):
    root, sweeps = made
    key = ["task", "metric", "doc_id"]
    for name, found in zip(sweeps, logs.read([root / name for name in sweeps]), strict=True):
        ours, theirs = (r.docs.sort_values(key, ignore_index=True) for r in (sweeps[name], found))
        pd.testing.assert_frame_equal(theirs[[*key, "condition"]], ours[[*key, "condition"]])
        np.testing.assert_allclose(theirs["value"], ours["value"], atol=2e-3)
        texts = ~ours["task"].isin(["mini_cloze", "mini_rolling"])  # there the model writes and chooses nothing
        assert theirs.loc[texts, "response"].tolist() == ours.loc[texts, "response"].tolist()
        asked, said = (r.asked.set_index(["task", "doc_id"]).sort_index() for r in (sweeps[name], found))
        assert said["doc_hash"].equals(asked["doc_hash"])
        chosen = asked["choices"].notna()
        assert said[chosen]["choices"].tolist() == asked[chosen]["choices"].tolist()
        chosen &= asked.index.get_level_values("task") != "mini_blanks"  # no log says which sentence is right
        assert said[chosen]["reference"].tolist() == asked[chosen]["reference"].tolist()
        assert said.loc["mini_shots", "question"].tolist() == asked.loc["mini_shots", "question"].tolist()
        for task, metric in ours[["task", "metric"]].drop_duplicates().itertuples(index=False):
            wanted, info = sweeps[name].metric_info(task, metric), found.metric_info(task, metric)
            assert info["higher_is_better"] == wanted["higher_is_better"]
            if metric.startswith("acc") and task != "mini_cloze":
                assert info["chance"] == pytest.approx(wanted["chance"])


def test_two_logs_give_the_table_and_the_answers_of_two_runs(made, call, tmp_path):
    root, sweeps = made
    code, printed, _ = call("compare", "--from-logs", root / "one", root / "other", "--out", tmp_path / "out")
    assert code == 0 and "mini_writing exact_match: the score of other is " in printed, printed
    found, wanted = dl.Comparison.load(tmp_path / "out"), dl.compare(*sweeps.values())
    key = ["task", "metric", "measure"]
    ours, theirs = (c.table[c.table["reference"] != ""].set_index(key).sort_index() for c in (wanted, found))
    for column in ("value", "difference", "difference_low", "difference_high", "p_adjusted", "n_paired"):
        np.testing.assert_allclose(theirs[column].astype(float), ours[column].astype(float), atol=5e-3)
    columns = ["task", "doc_id", "baseline_answer", "answer", "change"]
    written = "task not in ['mini_cloze', 'mini_rolling']"
    ours, theirs = (c.answers.query(written)[columns] for c in (wanted, found))
    assert len(ours) and sorted(ours.to_numpy().tolist()) == sorted(theirs.to_numpy().tolist())
    assert (tmp_path / "out" / "index.html").is_file() and found.runs == ["one", "other"]


@pytest.mark.parametrize(("old", "new", "said"), [
    ('"doc_hash": "', '"doc_hash": "other', "and one have different documents (0 are of both), so that they are not"),
    ('"mini_choice": 2.5', '"mini_choice": 3', "not compared with one, whose settings differ (one first): version 2.5"),
])  # fmt: skip
def test_logs_of_other_questions_or_settings_are_refused_in_one_line(made, call, tmp_path, old, new, said):
    root, _ = made
    for file in [*root.glob("o*/*/results_*"), *root.glob("o*/*/samples_mini_choice_*")]:
        copy = tmp_path / file.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = file.read_text()
        copy.write_text(text.replace(old, new) if "other" in copy.parts else text)
    typed = ["compare", "--from-logs", tmp_path / "one", tmp_path / "other"]
    code, printed, told = call(*typed, "--out", tmp_path / "out")
    (error,) = [line for line in told.splitlines() if line.startswith("Error")]
    assert (code, printed) == (2, "") and f"Error: mini_choice: other {said}" in error, told
    assert error.endswith("; give logs of the same questions and settings") and not (tmp_path / "out").exists()


# -- Inspect: https://inspect.aisi.org.uk/eval-logs.html -----------------------------------------------

HEADER = {"version": 2, "status": "success", "plan": {"steps": [{"solver": "generate"}], "config": {}}}
QUESTION = "What is {} + {}?"


def inspect_log(path, grades, *, first=1, **spec):
    """A log with one sample for each grade; the input is a text or a conversation, the text an attachment or not."""
    about = {"task": "sums", "model": path.stem, "created": "2026-01-01T00:00:00+00:00", "task_version": 0, **spec}
    samples = []
    for i, grade in enumerate(grades, first):
        text, said = QUESTION.format(i, i), str(2 * i) if grade in ("C", 1, True) else "no"
        talk = [{"role": "system", "content": "Add."}, {"role": "user", "content": [{"text": text}]}]
        asked = text if i % 2 else talk
        sample = {"id": i, "epoch": 1, "input": asked, "target": [str(2 * i)], "messages": [], "metadata": {}}
        sample["output"] = {"choices": [{"message": {"role": "assistant", "content": f"attachment://{i}"}}]}
        samples.append(sample | {"scores": {"match": {"value": grade}}, "attachments": {str(i): said}})
    if path.suffix == ".json":
        path.write_text(json.dumps(HEADER | {"eval": about, "samples": samples}))
        return path
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps(HEADER | {"eval": about}))
        for sample in samples:
            archive.writestr(f"samples/{sample['id']}_epoch_1.json", json.dumps(sample))
    return path


@pytest.mark.parametrize("suffix", ["eval", "json"])
def test_two_logs_of_inspect_are_paired_by_sample(tmp_path, suffix):
    right, wrong = "CICPC" * 8, "CCIIC" * 8
    one, other = (inspect_log(tmp_path / f"{name}.{suffix}", of) for name, of in (("a", right), ("b", wrong[::-1])))
    other = inspect_log(other, wrong)
    found = dl.compare(one, other, from_logs=True)
    row = found.of("score", compared=True).iloc[0]
    grade = {"C": 1.0, "P": 0.5, "I": 0.0}
    change = np.array([grade[b] - grade[a] for a, b in zip(right, wrong, strict=True)])
    assert row["difference"] == pytest.approx(change.mean()) and row["n_paired"] == 40
    assert row["p_adjusted"] == pytest.approx(float(mean(change).p()))
    differs = [i for i in range(40) if (right[i] == "C") != (wrong[i] == "C")]  # what the models wrote
    assert sorted(found.answers["question"]) == sorted(QUESTION.format(i + 1, i + 1) for i in differs)
    assert found.answers["reference"].tolist() == [str(2 * (i + 1)) for i in found.answers["doc_id"]]


@pytest.mark.parametrize(("names", "metric", "without", "changed"), [
    (("lm_eval/whole", "lm_eval/without"), "acc", 3 / 12, [0, 2, 6, 7, 8, 10]),
    (("inspect/whole.eval", "inspect/without.eval"), "match", 5 / 12, [2, 4]),
])  # fmt: skip
def test_real_logs_of_others_are_compared(names, metric, without, changed):
    """SmolLM2-135M-Instruct, whole and without layer 12, as lm-eval 0.4.13 and Inspect 0.3.285 (zstandard) wrote it."""
    found = dl.compare(*map(REAL.joinpath, names), from_logs=True)
    row = found.of("score", compared=True).iloc[0]
    assert (row["metric"], row["n_paired"], row["value"]) == (metric, 12, pytest.approx(without))
    assert row["difference"] == pytest.approx(without - 3 / 12)
    assert sorted(found.answers.query("loss != 0")["doc_id"]) == changed


def test_samples_of_inspect_with_the_same_number_and_another_text_are_no_pair(tmp_path):
    one, other = inspect_log(tmp_path / "a.eval", "CICI"), inspect_log(tmp_path / "b.eval", "CICI", first=4)
    refused(r"different documents \(1 are of both\)", dl.compare, one, other, from_logs=True)


def test_scores_that_are_no_number_and_samples_without_one_are_left_out(tmp_path):
    log = inspect_log(tmp_path / "a.json", ["C", 0.25, True, "maybe", {"x": 1, "y": "I", "z": [2]}, float("nan")])
    docs = logs.read([log])[0].docs
    found = docs.groupby("metric")["value"].apply(list).to_dict()
    assert found == {"match": [1, 0.25, 1], "match/x": [1], "match/y": [0]}


def test_what_is_no_log_is_refused(tmp_path, call):
    (tmp_path / "a.eval").write_text("no archive")
    (tmp_path / "empty").mkdir()
    for log in ("a.eval", "b.eval", "empty"):
        told = call("compare", "--from-logs", tmp_path / log, tmp_path, "--out", tmp_path / "out")[2].splitlines()[-1]
        assert told.startswith(f"Error: log {str(tmp_path / log)!r} ") and "give the folder of lm-eval's" in told
