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
from depthlens.errors import UserError, blaming, unknown
from depthlens.models.lens import Lens
from depthlens.progress import quiet
from depthlens.requests import LoglikelihoodAnswer
from depthlens.tasks import document_choice, groups
from depthlens.tasks.document_choice import Samples, lm_evals_seeds
from depthlens.tasks.prepared_task import FIX, Prepared, build_requests, questions, warn_of_cuts

N_REHEARSED = 3  # documents that are scored with made-up answers
_WRITES = "generate_until"


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
        limit: Number of documents that will be run; the first are tried. None: all.
        samples: Which documents will be run, instead of ``limit``; see `depthlens.tasks.document_choice.chosen`.
        gen_kwargs: How answers are written, over what the tasks say, with lm-eval's names.

    Returns:
        lm-eval tasks by name, in the order of ``names``.

    Raises:
        UserError: unknown task, missing folder, a file or data that cannot be read, more examples than there are,
            documents and scoring that give no numbers, or a task alone and in a group.
    """
    names = arguments.names("tasks", names, "capitals_continuation")
    given = arguments.check(num_fewshot=num_fewshot, include_path=include_path, seed=seed, gen_kwargs=gen_kwargs)
    document_choice.check(limit, samples)
    _compile_once()
    manager = groups.task_manager(names, include_path)
    tasks: dict[str, Any] = {}
    for name in names:
        fix = "correct its YAML file or its data; data of the hub are read from its cache where HF_HUB_OFFLINE=1"
        # the same documents, whatever was loaded before
        with blaming(f"task {name}: lm-eval cannot load it", fix), quiet(), lm_evals_seeds():
            loaded = manager.load([name])
        members = groups.members(name, loaded)
        for leaf, task in loaded["tasks"].items():
            if leaf in tasks and groups.of(tasks[leaf]) != members.get(leaf):
                raise UserError(f"task {leaf} is asked for twice, alone or in groups; name it once")
            task.depthlens_group, task.depthlens_seed = members.get(leaf), given["seed"]
            document_choice.set_examples(leaf, task, given["num_fewshot"])
            if given["gen_kwargs"] and task.OUTPUT_TYPE == _WRITES:
                _set_gen_kwargs(task, given["gen_kwargs"])
            task.set_fewshot_seed(seed=given["seed"])
            _rehearse(leaf, task, document_choice.chosen(leaf, task, limit, samples)[:N_REHEARSED])
            tasks[leaf] = task
    if wrong := next((n for n in samples if n not in tasks), None) if isinstance(samples, Mapping) else None:
        raise unknown("task in samples", wrong, tasks)
    if given["gen_kwargs"] and not any(task.OUTPUT_TYPE == _WRITES for task in tasks.values()):
        raise UserError(f"gen_kwargs: no task of {', '.join(names)} writes its answers; leave gen_kwargs out")
    return tasks


def _rehearse(name: str, task: Any, documents: Sequence[int]) -> None:
    """Score documents with made-up answers: reference answers, then empty ones.

    So a function or template that raises is reported before a model is loaded, and not after hours. Few-shot examples
    are drawn, so their seed has to be set again after it.

    Raises:
        UserError: prompts cannot be made, the task's functions raise, a generation option is not supported, or no
            metric of the task has a value per document.
    """
    from depthlens.tasks.encoding import check_generation  # slow to import

    with blaming(f"task {name}: its prompts cannot be made", FIX), quiet():
        build_requests(task, documents)
    rounds: list[list[Any]] = [[LoglikelihoodAnswer(-1.0 - instance.idx, False) for instance in task.instances]]
    if task.OUTPUT_TYPE == _WRITES:
        for instance in task.instances:
            check_generation(name, instance.args[1])
        texts = [str(task.doc_to_target(instance.doc)) for instance in task.instances]
        rounds = [texts, [""] * len(texts)]
    prepared = Prepared(name, task, [[None]] * len(task.instances))
    with quiet():
        values = [prepared.score(answers) for answers in rounds]
    if not values[-1]:
        raise UserError(f"task {name}: no metric has a value per document ({', '.join(prepared.skipped) or 'none'})")


def check_chat(lens: Lens, tasks: dict[str, Any], apply_chat_template: bool, enable_thinking: bool | None) -> None:
    """Refuse a chat template that the tokenizer does not have, and thinking without one or where nothing is written."""
    if apply_chat_template and not lens.tokenizer.chat_template:
        fault = f"apply_chat_template: the tokenizer of {lens.name} has no chat template"
        raise UserError(f"{fault}; leave apply_chat_template out")
    if enable_thinking is not None and not apply_chat_template:
        raise UserError("enable_thinking is an argument of the chat template; give apply_chat_template, too")
    other = next((name for name, task in tasks.items() if task.OUTPUT_TYPE != _WRITES), None)
    if enable_thinking and other:
        raise UserError(f"enable_thinking: task {other} has no written answers before which a model could think")


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
        UserError: a chat template that the tokenizer does not have, thinking without one or before an answer that is
            not written, answers that the model's generation configuration has written in another way
            (`depthlens.engine.writer.require_plain`), or a tokenizer of another model.
    """
    check_chat(lens, tasks, apply_chat_template, enable_thinking)
    if any(task.OUTPUT_TYPE == _WRITES for task in tasks.values()):
        require_plain(lens)
    from depthlens.tasks.encoding import Encoder, check_tokens  # slow to import

    encoder = Encoder(lens, seed=seed, think_end_token=think_end_token, enable_thinking=enable_thinking)
    prompts: dict[str, Any] = {"system_instruction": system_instruction, "apply_chat_template": apply_chat_template}
    prompts |= {"fewshot_as_multiturn": apply_chat_template}
    prompts |= {"chat_template": encoder.apply_chat_template if apply_chat_template else None}
    prepared = []
    for name, task in tasks.items():
        with blaming(f"task {name}: its prompts cannot be made", FIX), quiet(), lm_evals_seeds():
            task.set_fewshot_seed(seed=task.depthlens_seed)  # whatever was drawn before
            task.depthlens_replaced = set()
            build_requests(task, document_choice.chosen(name, task, limit, samples), **prompts)
            task = copy.copy(task)  # with instances of its own, whatever is prepared after
            asked = questions(name, task)
        right = dict(zip(asked["doc_id"], asked["reference"].str.split(" | ", regex=False).str[0], strict=True))
        requests = encoder.encode(task.instances, right)
        ready = Prepared(name, task, requests, encoder.cut, asked, encoder=encoder, prompts=prompts)
        check_tokens(lens, name, ready.requests)
        warn_of_cuts(name, ready.cut, encoder.max_length)
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
