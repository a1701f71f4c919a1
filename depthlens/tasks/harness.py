"""lm-evaluation-harness in, requests out: its tasks become token requests, its scoring judges the answers.

Prompts, few-shot examples, tokenisation and truncation are lm-eval's own (`encoding`), and so are filters and
`process_results`. We only replace what happens between: the forward passes.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetNotFoundError
from lm_eval.api.task import ConfigurableTask

from depthlens.errors import UserError, blaming, first_line, told
from depthlens.tasks import checks, data_files, encoding, task_files, truncation
from depthlens.tasks.encoding import quiet
from depthlens.tasks.prepared_task import Prepared, asked, commonest_answer
from depthlens.tasks.task_files import task_manager

__all__ = ["Prepared", "check_limit", "load_tasks", "prepare", "task_manager"]


def load_tasks(
    names: Sequence[str],
    *,
    include_path: str | Path | None = None,
    num_fewshot: int | None = None,
    seed: int = 0,
    limit: int | None = None,
) -> dict[str, Any]:
    """Find lm-eval tasks by name and check them; groups and tags stand for all their tasks.

    Args:
        names: Tasks of lm-eval, embedded ones, or ones under ``include_path``.
        include_path: Folder with more lm-eval YAML files.
        num_fewshot: Worked examples before each question; None keeps what the task says.
        seed: Seed of the choice of examples.
        limit: First so many documents that will be run: only these are checked (`task_checks.check`); None for all.

    Returns:
        lm-eval tasks by name, in the order asked for.

    Raises:
        UserError: unknown task, missing folder, a file or data that cannot be read, more examples than there are, or
            documents and scoring that give no meaningful numbers.
    """
    check_limit(limit)
    if not names:
        raise UserError("no task given; name at least one, e.g. capitals_continuation")
    if num_fewshot is not None and (
        isinstance(num_fewshot, bool) or not isinstance(num_fewshot, int) or num_fewshot < 0
    ):
        raise UserError(f"num_fewshot {num_fewshot!r}: give a whole number from 0")
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(
            f"include_path {str(include_path)!r} is not a folder; give the folder with your task YAML files"
        )
    index = (manager := task_manager(names, include_path)).task_index
    tasks: dict[str, Any] = {}
    for name in names:
        for leaf, task in _load(manager, name, include_path).items():
            _set_fewshot(leaf, task, num_fewshot)
            task.set_fewshot_seed(seed=seed)
            checks.check(leaf, task, limit)
            task.set_fewshot_seed(seed=seed)  # the check has drawn examples
            task.depthlens_source = data_files.source(task, name, index, include_path)
            tasks[leaf] = task
    return tasks


def prepare(
    lens: Any,
    tasks: dict[str, Any],
    *,
    limit: int | None = None,
    apply_chat_template: bool = False,
    system_instruction: str | None = None,
) -> list[Prepared]:
    """Build the requests of tasks for one model.

    Args:
        lens: The model, whose tokenizer and context length decide the tokens.
        tasks: From `load_tasks`.
        limit: First so many documents of each task; None for all.
        apply_chat_template: Wrap prompts in the tokenizer's chat template, few-shot examples as turns (lm-eval's
            default).
        system_instruction: Text before everything else.

    Raises:
        UserError: a bad limit, a chat template that the tokenizer does not have, a tokenizer of another model, or what
            `task_checks.documents` refuses.
    """
    check_limit(limit)
    chat = apply_chat_template
    if chat and not lens.tokenizer.chat_template:
        fault = f"apply_chat_template: the tokenizer of {lens.name} has no chat template"
        raise UserError(f"{fault}; leave apply_chat_template out")
    lm = encoding.Encoder(lens)
    prepared = []
    for name, task in tasks.items():
        checks.documents(name, task, limit)  # more of them may be run than were checked when the task was loaded
        with blaming(f"task {name}: its prompts cannot be made", "correct its YAML file or its documents"), quiet():
            task.build_all_requests(
                limit=limit,
                rank=0,
                world_size=1,
                system_instruction=system_instruction,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
                chat_template=lm.apply_chat_template if chat else None,
                tokenizer_name=lm.tokenizer_name if chat else "",
            )
            written = task.OUTPUT_TYPE == "generate_until"
            commonest = commonest_answer(task) if written else None
            asks = asked(name, task)
        lm.cut.clear()
        parts = [lm.requests(instance) for instance in task.instances]
        one = Prepared(name, task, task.OUTPUT_TYPE, [q for part in parts for q in part], [len(p) for p in parts])
        one.cut, one.commonest, one.asked = list(lm.cut), commonest, asks
        one.source = getattr(task, "depthlens_source", {})
        encoding.check_tokens(lens, name, one.requests)
        truncation.tell(name, one.cut, lm.max_length)
        prepared.append(one)
    return prepared


def check_limit(limit: int | None) -> None:
    """Refuse what is not a number of documents."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise UserError(f"limit {limit!r}: give a whole number of documents, at least 1, or leave it out for all")


def _load(manager: Any, name: str, include_path: str | Path | None) -> dict[str, Any]:
    """Load what a name stands for; what lm-eval stumbles over is told with the file or the document at fault."""
    try:
        with quiet():
            return manager.load([name])["tasks"]
    except Exception as error:
        raise _unloadable(manager, name, include_path, error) from error


def _unloadable(manager: Any, name: str, include_path: str | Path | None, error: Exception) -> UserError:
    """Say why lm-eval could not load a task, from what it was doing when it failed."""
    entries = [e for e in task_files.walk([name], manager.task_index)[0].values() if e.yaml_path]
    # the task as far as lm-eval made it: its data say why better than the error does
    task = next((f.f_locals["self"] for f, _ in traceback.walk_tb(error.__traceback__) if _half_made(f)), None)
    if task is not None:
        name = task.config.task
        entries = [e for e in entries if e.name == name] or entries
    files = [task_files.read(entry.yaml_path) for entry in entries]
    where = " or ".join(task_files.shown(file.path, include_path) for file in files[:3])
    for file in files:
        data_files.refuse_damaged(name, file.config, file.files)
    if isinstance(error, FileNotFoundError) and not isinstance(error, DatasetNotFoundError):
        return UserError(f"task {name}: {first_line(error)} (from {os.getcwd()}); correct data_files in {where}")
    if isinstance(error, OSError):
        offline = os.environ.get("HF_HUB_OFFLINE") == "1"
        why = "HF_HUB_OFFLINE=1 and it is not in the local cache" if offline else first_line(error)
        return UserError(f"task {name}: its data cannot be had ({why}); go online once, or use an embedded task")
    if isinstance(error, KeyError) and hasattr(task, "dataset"):
        config = task.config
        splits = (config.test_split, config.validation_split, config.training_split, config.fewshot_config.split)
        if lacking := [split for split in splits if split is not None and split not in task.dataset]:
            there = ", ".join(map(str, task.dataset))
            return UserError(f"task {name}: its data has no split {lacking[0]!r}, only {there}; correct {where}")
    if hasattr(task, "multiple_target"):
        checks.documents(name, task, 1)  # lm-eval was trying the first document
    return UserError(f"task {name}: lm-eval cannot use its YAML file or its documents ({told(error)}); correct {where}")


def _half_made(frame: Any) -> bool:
    """Whether a frame belongs to a task that lm-eval was making."""
    return isinstance(frame.f_locals.get("self"), ConfigurableTask) and frame.f_locals["self"].config is not None


def _set_fewshot(name: str, task: Any, num_fewshot: int | None) -> None:
    fixed = task.config.num_fewshot
    if num_fewshot is None:
        if fixed is None:
            task.set_config(key="num_fewshot", value=0)
        return
    if fixed == 0 and num_fewshot > 0:
        raise UserError(f"task {name} is fixed at 0 examples in its YAML file; leave num_fewshot out")
    if num_fewshot:
        available = len(task.fewshot_docs())
        if num_fewshot > available:
            raise UserError(f"num_fewshot {num_fewshot}: task {name} has {available} examples")
    task.set_config(key="num_fewshot", value=num_fewshot)
