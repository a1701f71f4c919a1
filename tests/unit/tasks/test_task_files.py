"""Task files: which is used, what is wrong with one, what the record says of it, and what it takes to find it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import tiny

from depthlens.analysis.results import Result, concat
from depthlens.errors import UserError
from depthlens.experiments.sweep import condition_sweep
from depthlens.tasks import harness

EMBEDDED = "capitals_continuation"
DOCS = [{"q": f"Is {i} even?", "a": i % 2} for i in range(4)]


def write(folder: Path, name="mine", docs=DOCS, *, task="mine", text=None, **changes) -> Path:
    """A sound task of two options with its data, or a YAML file with a text of its own."""
    folder.mkdir(exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(d) + "\n" for d in docs) if isinstance(docs, list) else docs)
    config = {
        "task": task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": ["yes", "no"],
        "doc_to_target": "a",
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in (config | changes).items() if value is not None]
    path = folder / f"{name}.yaml"
    path.write_text(text if text is not None else "\n".join(lines) + "\n")
    return path


def refusal(folder, *names) -> str:
    with pytest.raises(UserError) as told:
        harness.load_tasks(names or ["mine"], include_path=folder)
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"docs": '{"q": "x", "a": 0}\n{"q": "y", "a":\n'},
            "task mine: data file 'FOLDER/mine.jsonl', line 2 is not JSON (Expecting value, column 16)",
        ),
        ({"docs": "\n\n"}, "task mine: data file 'FOLDER/mine.jsonl' is empty"),
        (
            {"text": "task: mine\ndoc_to_text: Question: {{q}}\n"},
            "unknown task 'mine': 'FOLDER/mine.yaml', line 2 is not YAML",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_line(tmp_path, changes, said):
    write(tmp_path, **changes)
    assert refusal(tmp_path).startswith(said.replace("FOLDER", str(tmp_path)))


def test_a_task_of_the_users_stands_before_an_embedded_one_and_says_so(tmp_path, caplog):
    write(tmp_path, "capitals", task=EMBEDDED)
    task = harness.load_tasks([EMBEDDED], include_path=tmp_path)[EMBEDDED]
    assert len(task.eval_docs) == len(DOCS)
    said = f"task {EMBEDDED}: {tmp_path}/capitals.yaml is used, not the embedded task of the same name"
    assert [m for m in caplog.messages if m.startswith(said)] == caplog.messages and len(caplog.messages) == 1


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("llama-gqa", max_position_embeddings=4096)


def swept(lens, folder, name="mine"):
    return condition_sweep(lens, [name], "L1", limit=2, include_path=folder, num_fewshot=0, progress=False)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_record_holds_the_files_of_a_task(lens, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("tasks")
    base = {"metric_list": [{"metric": "acc"}], "task": None, "text": None}
    write(folder, "base", docs=[], **base)
    write(folder, text="task: mine\ninclude: base.yaml\nprocess_results: !function utils.scored\n")
    (folder / "base.jsonl").write_text("".join(json.dumps(d) + "\n" for d in DOCS))
    (folder / "utils.py").write_text("def scored(doc, results):\n    return {'acc': 1.0}\n")
    record = swept(lens, folder).record
    assert record["include_path"] == "tasks"
    about = record["tasks"]["mine"]
    assert about["file"] == "tasks/mine.yaml"
    wanted = [folder / name for name in ("mine.yaml", "base.yaml", "utils.py", "base.jsonl")]
    assert about["sha256"] == {str(path): digest(path) for path in wanted}


def test_results_of_a_changed_task_are_told_apart_and_not_joined(lens, tmp_path):
    write(tmp_path)
    first = swept(lens, tmp_path)
    again = swept(lens, tmp_path)
    assert concat([first, again]).record["tasks"]["mine"]["sha256"] == first.record["tasks"]["mine"]["sha256"]
    write(tmp_path, docs=[DOCS[1], DOCS[0], *DOCS[2:]])
    other = swept(lens, tmp_path)
    assert other.record["tasks"]["mine"]["sha256"] != first.record["tasks"]["mine"]["sha256"]
    with pytest.raises(UserError, match="the results disagree on"):
        concat([first, other])
    write(tmp_path, doc_to_text="Say: {{q}}")
    same_scores = Result(first.docs, swept(lens, tmp_path).record)
    with pytest.raises(UserError, match=r"disagree on the files of task 'mine' \(sha256\)"):
        concat([first, same_scores])
