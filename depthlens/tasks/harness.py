"""lm-evaluation-harness in, requests out: its tasks become token requests, its scoring judges the answers.

Prompts, few-shot examples, tokenisation and truncation are lm-eval's own (`encoding`), and so are filters and
`process_results`. depthlens only replaces what happens between them: the forward passes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from depthlens import arguments
from depthlens.engine.writer import require_plain
from depthlens.errors import UserError, blaming
from depthlens.models.lens import Lens
from depthlens.progress import quiet
from depthlens.tasks import checks, document_choice, few_shot, groups, truncation
from depthlens.tasks.document_choice import Samples
from depthlens.tasks.few_shot import lm_evals_seeds
from depthlens.tasks.prepared_task import Prepared, build_requests, commonest_answer, questions
from depthlens.tasks.task_index import task_manager


@lm_evals_seeds()
def load_tasks(
    names: str | Sequence[str],
    *,
    include_path: str | Path | None = None,
    num_fewshot: int | None = None,
    seed: int = 0,
    limit: int | None = None,
    samples: Samples | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Find lm-eval tasks by name and check them.

    Groups and tags mean all their tasks. What is run of a group with a score of its own is one task in a result, see
    `depthlens.tasks.groups`.

    Args:
        names: One task or several: of lm-eval, embedded ones, or ones under ``include_path``.
        include_path: Folder with more lm-eval YAML files.
        num_fewshot: Worked examples before each question; None: what the task says.
        seed: Seed of the choice of examples.
        limit: Number of documents that will be run; the first are tried (`checks.check`). None: all.
        samples: Which documents will be run, instead of ``limit``; see `depthlens.tasks.document_choice.chosen`.
        gen_kwargs: How answers are written, over what the tasks say, with lm-eval's names.

    Returns:
        lm-eval tasks by name, in the order of ``names``.

    Raises:
        UserError: unknown task, missing folder, a file or data that cannot be read, more examples than there are,
            documents and scoring that give no meaningful numbers, or a task alone and in a group.
    """
    names = [names] if isinstance(names, str) else arguments.plain(names)
    if not names:
        raise UserError("no tasks given; name at least one, e.g. capitals_continuation")
    given = arguments.check(num_fewshot=num_fewshot, include_path=include_path, seed=seed)
    num_fewshot, seed, gen_kwargs = given["num_fewshot"], given["seed"], arguments.plain(gen_kwargs)
    _compile_once()
    document_choice.check(limit, samples)
    manager = task_manager(names, include_path)
    tasks: dict[str, Any] = {}
    for name in names:
        fix = "correct its YAML file or its data; data of the hub are read from its cache where HF_HUB_OFFLINE=1"
        # the same documents, whatever was loaded before
        with blaming(f"task {name}: lm-eval cannot load it", fix), quiet(), lm_evals_seeds():
            loaded = manager.load([name])["tasks"]
        in_group = groups.members(name, loaded, manager.task_index)
        for leaf, task in loaded.items():
            groups.check(tasks, leaf, in_group.get(leaf))
            task.depthlens_group = in_group.get(leaf)
            few_shot.set_examples(leaf, task, num_fewshot)
            if gen_kwargs and task.OUTPUT_TYPE == "generate_until":
                _set_gen_kwargs(task, gen_kwargs)
            task.depthlens_seed = seed
            task.set_fewshot_seed(seed=seed)
            checks.check(leaf, task, limit, samples)
            tasks[leaf] = task
    document_choice.check(limit, samples, tasks)
    if gen_kwargs and not any(task.OUTPUT_TYPE == "generate_until" for task in tasks.values()):
        raise UserError(f"gen_kwargs: no task of {', '.join(names)} writes its answers; leave gen_kwargs out")
    return tasks


def check_chat(lens: Lens, tasks: dict[str, Any], apply_chat_template: bool, enable_thinking: bool | None) -> None:
    """Refuse a chat template that the tokenizer does not have, and thinking without one or where nothing is written."""
    if apply_chat_template and not lens.tokenizer.chat_template:
        fault = f"apply_chat_template: the tokenizer of {lens.name} has no chat template"
        raise UserError(f"{fault}; leave apply_chat_template out")
    if enable_thinking is not None and not apply_chat_template:
        raise UserError("enable_thinking is an argument of the chat template; give apply_chat_template, too")
    if enable_thinking:
        _check_written("enable_thinking", tasks)


def _check_written(name: str, tasks: dict[str, Any]) -> None:
    if other := next((task for task, found in tasks.items() if found.OUTPUT_TYPE != "generate_until"), None):
        raise UserError(f"{name}: task {other} has no written answers before which a model could think; leave it out")


@lm_evals_seeds()
def prepare(
    lens: Lens,
    tasks: dict[str, Any],
    *,
    limit: int | None = None,
    samples: Samples | None = None,
    apply_chat_template: bool = False,
    system_instruction: str | None = None,
    think_end_token: str | None = None,
    enable_thinking: bool | None = None,
    seed: int = 0,
) -> list[Prepared]:
    """Build the requests of tasks for one model.

    Args:
        lens: The model, whose tokenizer and context length decide the tokens.
        tasks: From `load_tasks`.
        limit: Number of documents of each task, from the first on; None: all.
        samples: Which documents, instead of ``limit``; see `depthlens.tasks.document_choice.chosen`.
        apply_chat_template: Wrap prompts in the tokenizer's chat template, few-shot examples as turns (lm-eval's
            default).
        system_instruction: Text before everything else.
        think_end_token: Text that ends what the model thinks; only what follows is the answer.
        enable_thinking: Argument of the chat template; None: its own way.
        seed: Of tokens that are drawn.

    Raises:
        UserError: a bad limit, a chat template that the tokenizer does not have, thinking without one or before an
            answer that is not written, answers that the model's generation configuration has written in another way
            (`depthlens.engine.writer.require_plain`), or a tokenizer of another model.
    """
    document_choice.check(limit, samples, tasks)
    check_chat(lens, tasks, apply_chat_template, enable_thinking)
    if think_end_token is not None:
        _check_written("think_end_token", tasks)
    if any(task.OUTPUT_TYPE == "generate_until" for task in tasks.values()):
        require_plain(lens)
    from depthlens.tasks.encoding import Encoder, check_tokens  # slow to import

    encoder = Encoder(lens, seed=seed, think_end_token=think_end_token, enable_thinking=enable_thinking)
    prompts: dict[str, Any] = {"system_instruction": system_instruction}
    if apply_chat_template:
        prompts |= {"apply_chat_template": True, "fewshot_as_multiturn": True}
        prompts |= {"chat_template": encoder.apply_chat_template, "tokenizer_name": encoder.tokenizer_name}
    prepared = []
    for name, task in tasks.items():
        fix = "correct its YAML file or its documents"
        with blaming(f"task {name}: its prompts cannot be made", fix), quiet(), lm_evals_seeds():
            task.set_fewshot_seed(seed=task.depthlens_seed)  # whatever was drawn before
            task.depthlens_replaced.clear()
            build_requests(task, document_choice.chosen(name, task, limit, samples), **prompts)
            task = copy.copy(task)  # with instances of its own, whatever is prepared after
            task.depthlens_replaced = {*task.depthlens_replaced}
            written = task.OUTPUT_TYPE == "generate_until"
            commonest = commonest_answer(task) if written else None
            asked = questions(name, task)
        encoder.cut.clear()
        with quiet():
            requests = [encoder.requests(instance) for instance in task.instances]
        ready = Prepared(
            name,
            task,
            task.OUTPUT_TYPE,
            requests=[request for windows in requests for request in windows],
            windows=[len(windows) for windows in requests],
            cut=list(encoder.cut),
            commonest=commonest,
            asked=asked,
            member=groups.of(task),
        )
        check_tokens(lens, name, ready.requests)
        truncation.warn(name, ready.cut, encoder.max_length)
        few_shot.warn(name, task, len(ready.docs))
        prepared.append(ready)
    return prepared


@cache
def _compile_once() -> None:
    """Have jinja compile each template of lm-eval's once and not for every document."""
    import lm_eval.utils

    lm_eval.utils.env.from_string = cache(lm_eval.utils.env.from_string)


def _set_gen_kwargs(task: Any, gen_kwargs: Mapping[str, Any]) -> None:
    """Put settings over the task's own; a length or a temperature takes the place of what else says it."""
    from depthlens.tasks.encoding import LENGTHS  # slow to import

    own = dict(task.config.generation_kwargs or {})
    for names in (LENGTHS, ("do_sample", "temperature")):
        if any(name in gen_kwargs for name in names):
            own = {key: value for key, value in own.items() if key not in names}
    task.set_config(key="generation_kwargs", value=own | dict(gen_kwargs))
