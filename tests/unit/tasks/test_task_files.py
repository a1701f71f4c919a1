"""Files of tasks: which is used, and what lm-eval says of one that it cannot load."""

from __future__ import annotations

from pathlib import Path

import mini_tasks
import pytest

from depthlens.errors import UserError
from depthlens.tasks import harness

EMBEDDED = "capitals_continuation"
DOCS = [{"q": f"Is {i} even?", "a": i % 2} for i in range(4)]


def write(folder: Path, name="mine", docs=DOCS, **changes) -> Path:
    """A sound task of two options with its data."""
    asked = mini_tasks.choice(doc_to_choice=["yes", "no"], doc_to_target="a")
    return mini_tasks.write_task(folder, name, {"test": docs}, **asked | changes)


def refusal(folder, *names) -> str:
    with pytest.raises(UserError) as told:
        harness.load_tasks(names or ["mine"], include_path=folder)
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"test_split": "tset"}, "'tset'); correct its YAML file or its data; data of the hub are read from its cache"),
        ({"task": "other"}, "unknown task 'mine'; "),
    ],
)
def test_what_lm_eval_cannot_load_is_one_line(tmp_path, changes, said):
    write(tmp_path, **changes)
    assert said in refusal(tmp_path)


def test_files_that_cannot_be_read_are_one_line(tmp_path):
    path = write(tmp_path)
    (tmp_path / "test.jsonl").write_text('{"q": "x", "a": 0}\n{"q": "y", "a":\n')
    assert "mine: lm-eval cannot load it (DatasetGenerationError" in refusal(tmp_path)
    path.write_text("task: mine\ndoc_to_text: Question: {{q}}\n")
    assert "unknown task 'mine', and mine.yaml cannot be read (" in refusal(tmp_path)


def test_a_task_of_the_users_stands_before_an_embedded_one(tmp_path):
    write(tmp_path, "capitals", task=EMBEDDED)
    assert len(harness.load_tasks([EMBEDDED], include_path=tmp_path)[EMBEDDED].eval_docs) == len(DOCS)
