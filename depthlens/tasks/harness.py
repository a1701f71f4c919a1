"""lm-evaluation-harness in, requests out: its tasks become token requests, its scoring judges the answers.

Prompts, few-shot examples, tokenisation and truncation are lm-eval's own (`encoding`), and so are filters and
`process_results`. depthlens only replaces what happens between them: the forward passes.

Run are the first so many documents, some by number, or all. Choosing heads on one half of the documents and testing
them on the other needs both halves by number (``samples="0::2"`` and ``samples="1::2"``). Numbers are those of
lm-eval's evaluation split, whichever are chosen.

lm-eval draws the examples, and keeps the document that is asked out where ``fewshot_split`` names the test split. Here
it does so wherever examples are drawn from the split that is evaluated (a task with a test split only, one that is
evaluated on its validation split), so that no question stands with its answer before itself. All other prompts are
token for token what lm-eval makes. Limit: a question that stands in two splits can be its own example, as in lm-eval.

lm-eval gives a group a score of its own where its YAML file has ``aggregate_metric_list``: with ``weight_by_size``, the
mean over all documents of its tasks (`mmlu`: 57 subjects). Such a group is one task here. Its documents are numbered
through all its tasks, so that a number means the same document whatever ``limit`` is, and each document's own task is
known (``subtask`` in `depthlens.analysis.result.questions`). Other groups, and tags, only stand for their tasks.

Answers are computed and kept task by task, so that a group and its tasks share them. Chance and floor of a group are
the means over documents of its tasks' own: who guesses may know the subject.
"""

from __future__ import annotations

import copy
import difflib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from depthlens import arguments, paths
from depthlens.engine.writer import require_plain
from depthlens.errors import UserError, blaming, unknown
from depthlens.models.lens import Lens
from depthlens.progress import quiet
from depthlens.requests import LoglikelihoodAnswer
from depthlens.tasks.prepared_task import FIX, Member, Prepared, build_requests, lm_evals_seeds, questions, warn_of_cuts

log = logging.getLogger(__name__)

N_REHEARSED = 3  # documents that are scored with made-up answers
_WRITES = "generate_until"
Some = str | Sequence[int]  # a slice as text, or numbers
Samples = Some | Mapping[str, Some]  # the same for all tasks, or by task


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

    Groups and tags mean all their tasks. What is run of a group with a score of its own is one task in a result.

    Args:
        names: One task or several: of lm-eval, embedded ones, or ones under ``include_path``.
        include_path: Folder with more lm-eval YAML files.
        num_fewshot: Worked examples before each question; None: what the task says.
        seed: Seed of the choice of examples.
        limit: Number of documents that will be run; the first are tried. None: all.
        samples: Which documents will be run, instead of ``limit``; see `chosen_documents`.
        gen_kwargs: How answers are written, over what the tasks say, with lm-eval's names.

    Returns:
        lm-eval tasks by name, in the order of ``names``.

    Raises:
        UserError: unknown task, missing folder, a file or data that cannot be read, more examples than there are,
            documents and scoring that give no numbers, or a task alone and in a group.

    Example:
        >>> tasks = dl.load_tasks(["organism_one_hop", "organism_two_hop"])
        >>> list(tasks)
        ['organism_one_hop', 'organism_two_hop']
    """
    names = arguments.names("tasks", names, "capitals_continuation")
    arguments.check(limit=limit, samples=samples)
    given = arguments.check(num_fewshot=num_fewshot, include_path=include_path, seed=seed, gen_kwargs=gen_kwargs)
    _compile_once()
    manager = task_manager(names, include_path)
    tasks: dict[str, Any] = {}
    for name in names:
        fix = "correct its YAML file or its data; data of the hub are read from its cache where HF_HUB_OFFLINE=1"
        # the same documents, whatever was loaded before
        with blaming(f"task {name}: lm-eval cannot load it", fix), quiet(), lm_evals_seeds():
            loaded = manager.load([name])
        members = _members(name, loaded)
        for leaf, task in loaded["tasks"].items():
            if leaf in tasks and tasks[leaf].depthlens_group != members.get(leaf):
                raise UserError(f"task {leaf} is asked for twice, alone or in groups; name it once")
            task.depthlens_group, task.depthlens_seed = members.get(leaf), given["seed"]
            _set_examples(leaf, task, given["num_fewshot"])
            if given["gen_kwargs"] and task.OUTPUT_TYPE == _WRITES:
                _set_gen_kwargs(task, given["gen_kwargs"])
            task.set_fewshot_seed(seed=given["seed"])
            _rehearse(leaf, task, chosen_documents(leaf, task, limit, samples)[:N_REHEARSED])
            tasks[leaf] = task
    if wrong := next((n for n in samples if n not in tasks), None) if isinstance(samples, Mapping) else None:
        raise unknown("task in samples", wrong, tasks)
    if given["gen_kwargs"] and not any(task.OUTPUT_TYPE == _WRITES for task in tasks.values()):
        raise UserError(f"gen_kwargs: no task of {', '.join(names)} writes its answers; leave gen_kwargs out")
    return tasks


def task_manager(names: Sequence[str], include_path: str | Path | None = None) -> Any:
    """lm-eval's task manager with the smallest index that has all names.

    Args:
        names: Tasks, groups or tags.
        include_path: Folder with more YAML files; its tasks replace those of the same name elsewhere.

    Raises:
        UserError: a name that nothing defines, and a file that cannot be read, which may define it.
    """
    from lm_eval.tasks._yaml_loader import load_yaml  # slow to import

    files = sorted(Path(include_path).rglob("*.yaml")) if include_path is not None else []
    stamp = tuple((str(path), path.stat().st_mtime_ns) for path in files)
    manager = _index(include_path, stamp, of_lm_eval=False)
    if any(_missing(names, manager.task_index)):
        manager = _index(include_path, stamp, of_lm_eval=True)
    if absent := next(_missing(names, manager.task_index), None):
        for path in files:  # lm-eval leaves out those that it cannot read
            with blaming(f"unknown task {absent!r}, and {path.name} cannot be read", "correct it"):
                load_yaml(path, resolve_func=False)
        near = difflib.get_close_matches(absent, manager.all_tasks)
        ours = _index(include_path, stamp, of_lm_eval=False).all_tasks
        n_more = len(manager.all_tasks) - len(ours)
        fix = f"`lm-eval ls tasks` has {n_more} more; your own .yaml files need include_path"
        raise unknown("task", absent, near or ours, fix)
    return manager


def _missing(names: Iterable[str], index: dict[str, Any]) -> Iterator[str]:
    """Names that an index lacks, and those that its groups name and it lacks."""
    for name in names:
        if name not in index:
            yield name
        elif index[name].kind.name == "GROUP":
            listed = (index[name].cfg or {}).get("task") or []
            yield from _missing((item for item in listed if isinstance(item, str)), index)


@lru_cache(maxsize=4)  # an index of lm-eval's is large, and an edited file makes another
def _index(include_path: str | Path | None, stamp: tuple[tuple[str, int], ...], *, of_lm_eval: bool) -> Any:
    """lm-eval's task manager; ``of_lm_eval``: over its own 14,000 files, too."""
    from lm_eval.tasks import TaskManager

    folders = [str(paths.tasks_dir()), *([str(include_path)] if include_path is not None else [])]
    if of_lm_eval:
        log.warning("looking through lm-eval's tasks (about 5 s)")
    with quiet():
        return TaskManager(include_path=folders, include_defaults=of_lm_eval)


def _members(name: str, loaded: Mapping[str, Any]) -> dict[str, Member]:
    """The tasks of a group that is one task; none where a name is no such group.

    Args:
        name: What was asked for.
        loaded: What lm-eval's task manager loaded for it.
    """
    tasks, group = loaded["tasks"], loaded["groups"].get(name)
    metrics = group.aggregate_metric_list if group else None
    if not metrics or not all(m.weight_by_size for m in metrics) or len({t.OUTPUT_TYPE for t in tasks.values()}) > 1:
        return {}
    found, first = {}, 0
    for leaf, task in tasks.items():
        found[leaf] = Member(name, first, (group.metadata or {}).get("version"))
        first += len(task.eval_docs)
    return found


def chosen_documents(name: str, task: Any, limit: int | None, samples: Samples | None) -> Sequence[int]:
    """Numbers of the documents of a task that are run, rising.

    Args:
        name: Name of the task.
        task: A loaded task, whose number of documents bounds the choice.
        limit: The first so many; more than there are mean all.
        samples: Numbers, or a slice as text as in Python (``"0:100:2"``, ``"1::2"``, ``"-50:"``), for all tasks or by
            task; a task that a mapping does not name keeps all documents.

    Raises:
        UserError: a document that the task does not have, or a slice without documents.
    """
    every = range(len(task.eval_docs))
    some = samples.get(name) if isinstance(samples, Mapping) else samples
    if some is None:
        return every[:limit]
    part = slice(*(int(n) if n else None for n in some.split(":"))) if isinstance(some, str) else None
    numbers = every[part] if part else sorted(map(int, some))
    if not numbers or numbers[-1] not in every:
        last = len(every) - 1
        raise UserError(f"samples {recorded(some)!r}: task {name} has documents 0..{last}; give some of these")
    return numbers


def recorded(samples: Samples | None) -> Any:
    """The choice for a record: a slice as text, numbers as a list."""
    if isinstance(samples, Mapping):
        return {name: recorded(some) for name, some in samples.items()}
    if isinstance(samples, range):
        return f"{samples.start}:{samples.stop}:{samples.step}"
    return samples if samples is None or isinstance(samples, str) else sorted(map(int, samples))


def _set_examples(name: str, task: Any, num_fewshot: int | None) -> None:
    """Set how many examples there are; None: what the task says.

    Raises:
        UserError: the task is fixed at 0 examples.
    """
    config, shots = task.config, getattr(task, "fewshot_cfg", None)
    if num_fewshot and config.num_fewshot == 0:
        raise UserError(f"task {name} is fixed at 0 examples in its YAML file; leave num_fewshot out")
    task.set_config(key="num_fewshot", value=(config.num_fewshot or 0) if num_fewshot is None else num_fewshot)
    splits = (config.training_split, config.validation_split, config.test_split)
    evaluated = config.test_split or config.validation_split
    if shots and not shots.samples and evaluated == (shots.split or next(filter(None, splits), None)):
        task.fewshot_cfg = replace(shots, split=config.test_split)  # then lm-eval leaves out the document that is asked


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


def check_chat(lens: Lens, apply_chat_template: bool, enable_thinking: bool | None) -> None:
    """Refuse a chat template that the tokenizer does not have, and thinking without one."""
    if apply_chat_template and not lens.tokenizer.chat_template:
        fault = f"apply_chat_template: the tokenizer of {lens.name} has no chat template"
        raise UserError(f"{fault}; leave apply_chat_template out")
    if enable_thinking is not None and not apply_chat_template:
        raise UserError("enable_thinking is an argument of the chat template; give apply_chat_template, too")


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
        samples: Which documents, instead of ``limit``; see `chosen_documents`.
        apply_chat_template: Wrap prompts in the tokenizer's chat template, few-shot examples as turns (lm-eval's
            default).
        system_instruction: Text before everything else.
        think_end_token: Text that ends what the model thinks; only what follows is the answer.
        enable_thinking: Argument of the chat template; None: its own way.
        seed: Of tokens that are drawn.

    Raises:
        UserError: a chat template that the tokenizer does not have, thinking without one, or answers that the model's
            generation configuration has written in another way (`depthlens.engine.writer.require_plain`).
    """
    check_chat(lens, apply_chat_template, enable_thinking)
    if any(task.OUTPUT_TYPE == _WRITES for task in tasks.values()):
        require_plain(lens)
    from depthlens.tasks.encoding import Encoder  # slow to import

    encoder = Encoder(lens, seed=seed, think_end_token=think_end_token, enable_thinking=enable_thinking)
    prompts: dict[str, Any] = {"system_instruction": system_instruction, "apply_chat_template": apply_chat_template}
    prompts |= {"fewshot_as_multiturn": apply_chat_template}
    prompts |= {"chat_template": encoder.apply_chat_template if apply_chat_template else None}
    prepared = []
    for name, task in tasks.items():
        with blaming(f"task {name}: its prompts cannot be made", FIX), quiet(), lm_evals_seeds():
            task.set_fewshot_seed(seed=task.depthlens_seed)  # whatever was drawn before
            build_requests(task, chosen_documents(name, task, limit, samples), **prompts)
            task = copy.copy(task)  # with instances of its own, whatever is prepared after
            asked = questions(name, task)
        right = dict(zip(asked["doc_id"], asked["reference"].str.split(" | ", regex=False).str[0], strict=True))
        requests = encoder.encode(task.instances, right)
        told = encoder.cut, len(encoder.merged)
        ready = Prepared(name, task, requests, *told, asked, encoder=encoder, prompts=prompts)
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

    groups = LENGTHS, ("do_sample", "temperature")
    replaced = {name for names in groups if not gen_kwargs.keys().isdisjoint(names) for name in names}
    own = {key: value for key, value in (task.config.generation_kwargs or {}).items() if key not in replaced}
    task.set_config(key="generation_kwargs", value=own | dict(gen_kwargs))
