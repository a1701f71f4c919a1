"""Tasks and their documents, checked before a model is loaded or anything is computed.

lm-eval scores what it is given. An answer that is not among the options is wrong in every document, a name that is not
a field becomes the text itself, and a metric that a kind of task does not have is left out. The resulting numbers look
like a model's. This module therefore checks all documents that are to be run, and scores the first few once with
made-up answers, so that a function that raises is reported now and not after hours.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from depthlens.errors import UserError, blaming
from depthlens.progress import quiet
from depthlens.requests import LoglikelihoodAnswer
from depthlens.tasks import document_choice
from depthlens.tasks.document_choice import Samples
from depthlens.tasks.prepared_task import SAME_IF, Prepared, build_requests

N_REHEARSED = 3  # documents that are scored with made-up answers
# metrics of lm-eval's own scoring by kind of task
YIELDS = {
    "multiple_choice": "acc acc_norm acc_bytes acc_mutual_info exact_match f1 mcc brier_score likelihood".split(),
    "loglikelihood": ["acc", "perplexity"],
    "loglikelihood_rolling": ["word_perplexity", "byte_perplexity", "bits_per_byte"],
}
# for written answers these are metrics of the whole set, and need one reference answer for each document
_OF_SETS = {"f1", "mcc", "bleu", "chrf", "chrf++", "ter", "bypass"}
_OF_LIKELIHOODS = {m for metrics in YIELDS.values() for m in metrics} - {"exact_match"} - _OF_SETS | {"acc_all"}


def check(name: str, task: Any, limit: int | None = None, samples: Samples | None = None) -> None:
    """Check a task: its settings, every document that is to be run, and its scoring.

    The check draws few-shot examples, so their seed has to be set again after it.

    Args:
        name: Task name.
        task: A loaded task.
        limit: Number of documents, from the first on; None: all.
        samples: Which documents, see `document_choice.chosen`; None: all.

    Raises:
        UserError: names the document, the field and what is allowed.
    """
    settings(name, task)
    documents(name, task, limit, samples)
    rehearse(name, task, limit, samples)


def settings(name: str, task: Any) -> None:
    """Refuse metrics that the kind of task does not have, generation options, and fields that do not exist."""
    from depthlens.tasks.encoding import check_generation  # slow to import

    config = task.config
    if task.OUTPUT_TYPE == "generate_until":
        check_generation(name, config.generation_kwargs or {})
    _same_if(name, task)
    if not _as_lm_eval(task):
        return
    for entry in config.metric_list or []:
        _metric(name, task, entry)
    fields = ", ".join(task.features)
    for key, value in (("doc_to_text", config.doc_to_text), ("doc_to_target", config.doc_to_target)):
        choice = key == "doc_to_target" and task.OUTPUT_TYPE == "multiple_choice"  # may be an option: see `documents`
        if not choice and _unknown_field(value, task):
            fix = f"fields: {fields}; write a fixed text as \"{{{{'{value}'}}}}\""
            raise UserError(f"task {name}: {key} {value!r} names no field of its documents; {fix}")


def _same_if(name: str, task: Any) -> None:
    """Refuse fields that make documents the same (`prepared_task.identity`) and that do not exist."""
    fields = (task.config.metadata or {}).get(SAME_IF)
    if fields is None:
        return
    if not isinstance(fields, list) or not fields or any(field not in task.features for field in fields):
        fault = f"metadata {SAME_IF} {fields!r} is not a list of fields of its documents"
        raise UserError(f"task {name}: {fault}; fields: {', '.join(task.features)}")


def _metric(name: str, task: Any, entry: dict[str, Any]) -> None:
    """Refuse a metric that lm-eval does not compute for this kind of task."""
    metric, kind = entry["metric"], task.OUTPUT_TYPE
    label = metric if isinstance(metric, str) else metric.__name__
    if kind in YIELDS and (label not in YIELDS[kind] or callable(metric)):
        raise UserError(f"task {name}: {kind} tasks have no metric {label!r}; they have {', '.join(YIELDS[kind])}")
    if kind != "generate_until" or callable(metric) or entry.get("hf_evaluate"):
        return
    no_likelihoods = label in _OF_LIKELIHOODS and not callable(entry.get("aggregation"))
    if no_likelihoods or (task.multiple_target and label in _OF_LIKELIHOODS | _OF_SETS):
        answers = "written answers" + (" with several accepted answers" if label in _OF_SETS else "")
        fix = "use exact_match, or a function of your own (metric: !function module.name)"
        raise UserError(f"task {name}: {answers} have no metric {label!r}; {fix}")


def _unknown_field(value: Any, task: Any) -> bool:
    """Whether a setting is the name of a field that the documents do not have."""
    return isinstance(value, str) and value.isidentifier() and value not in task.features


def documents(name: str, task: Any, limit: int | None = None, samples: Samples | None = None) -> None:
    """Refuse documents that lm-eval would score as wrong whatever the model answers; for arguments see `check`."""
    from lm_eval.api.task import ConfigurableTask  # slow to import

    if type(task) is ConfigurableTask and not len(task.eval_docs):
        raise UserError(f"task {name}: its test or validation split has no documents; correct its data or its splits")
    if not _as_lm_eval(task):
        return  # only its own code knows what its documents mean
    chosen = document_choice.chosen(name, task, limit, samples)
    checked: set[int] = getattr(task, "depthlens_checked", set())  # by an earlier call
    task.depthlens_checked = checked
    wanted = None if chosen is None else frozenset(chosen) if isinstance(chosen, list) else chosen
    end = None if chosen is None else max(chosen, default=-1) + 1
    for doc_id, doc in islice(enumerate(task.eval_docs), end):
        if doc_id in checked or (wanted is not None and doc_id not in wanted):
            continue
        where = f"task {name}, document {doc_id}"
        with blaming(f"{where}: its question, answer or options cannot be made", "correct the document or the YAML"):
            fault = _fault(task, doc)
        if fault:
            raise UserError(f"{where}: {fault}")
        checked.add(doc_id)


def _as_lm_eval(task: Any) -> bool:
    """Whether lm-eval's own code reads and scores the documents."""
    from lm_eval.api.task import ConfigurableTask  # slow to import

    return type(task) is ConfigurableTask and not callable(task.config.process_results)


def _fault(task: Any, doc: Any) -> str | None:
    """What is wrong with a document, in words; None where nothing is."""
    kind, config = task.OUTPUT_TYPE, task.config
    text = task.doc_to_text(doc)
    if not isinstance(text, str) and not task.multiple_input:
        return f"{_named('doc_to_text', config.doc_to_text)} gives {text!r}; it must give text"
    choice = config.doc_to_choice
    if _unknown_field(choice, task):
        return f"doc_to_choice {choice!r} names no field; fields: {', '.join(task.features)}"
    options: Any = task.doc_to_choice(doc) if choice is not None else None
    if kind == "multiple_choice" or options is not None:
        n_min = 2 if kind == "multiple_choice" else 1
        if not isinstance(options, list) or len(options) < n_min or not all(isinstance(o, str) for o in options):
            return f"{_named('doc_to_choice', choice)} gives {options!r}; it must give a list of at least {n_min} texts"
    if kind == "multiple_choice" and task.multiple_input:
        return _not_an_option(_named("doc_to_text", config.doc_to_text), [text], options)
    return _target_fault(task, task.doc_to_target(doc), options)


def _target_fault(task: Any, target: Any, options: list[str] | None) -> str | None:
    """What is wrong with the reference answer of a document; None where nothing is."""
    kind, literal = task.OUTPUT_TYPE, task.config.doc_to_target
    named = _named("doc_to_target", literal)
    if kind in ("loglikelihood", "loglikelihood_rolling"):
        return None if isinstance(target, str) and target else f"{named} gives {target!r}; it must give a text to score"
    several = isinstance(target, list)
    if several and options is None and not task.multiple_target and isinstance(literal, str) and "{" in literal:
        return None  # an answer such as "[1, 2]", which lm-eval reads as a list and compares as text
    if target is None or target == []:
        return f"{named} gives {target!r}; it must give an answer" + (f": {_allowed(options)}" if options else "")
    if several != bool(task.multiple_target):
        return f"{named} gives {target!r}; it must give a list for every document or for none, as for the first"
    answers = target if several else [target]
    if options is None:
        return f"{named} gives {target!r}; every answer must be text" if any(a is None for a in answers) else None
    if _unknown_field(literal, task) and literal not in options:
        return f"{named} names no field and no option; fields: {', '.join(task.features)}; options: {_some(options)}"
    return _not_an_option(named, answers, options, by_text=kind == "multiple_choice" and not several)


def _not_an_option(named: str, answers: Sequence[Any], options: Sequence[str], *, by_text: bool = True) -> str | None:
    """What is wrong with answers that must be numbers of options or, ``by_text``, options themselves."""
    for answer in answers:
        if not (isinstance(answer, int) and 0 <= answer < len(options)) and not (by_text and answer in options):
            return f"{named} gives {answer!r}; allowed: {_allowed(options, by_text=by_text)}"
    return None


def _allowed(options: Sequence[str], *, by_text: bool = True) -> str:
    numbers = f"a whole number from 0 to {len(options) - 1}"
    return f"{numbers}, or one of {_some(options)}" if by_text else numbers


def _named(key: str, value: Any) -> str:
    if callable(value):
        return f"{key} (function {value.__name__})"
    return f"{key} {value!r}" if isinstance(value, str) and len(value) <= 60 else key


def _some(options: Sequence[Any]) -> str:
    return ", ".join(map(repr, options[:6])) + (f" and {len(options) - 6} more" if len(options) > 6 else "")


def rehearse(name: str, task: Any, limit: int | None = None, samples: Samples | None = None) -> None:
    """Score the first documents with made-up answers: first the reference answer, then an empty one.

    Raises:
        UserError: the task's functions raise, or no metric of the task has a value per document.
    """
    from depthlens.tasks.encoding import check_generation  # slow to import

    chosen = document_choice.chosen(name, task, limit, samples)
    some = range(N_REHEARSED) if chosen is None else chosen[:N_REHEARSED]
    with blaming(f"task {name}: its prompts cannot be made", "correct its YAML file or its documents"), quiet():
        build_requests(task, some)
    instances = task.instances
    for instance in instances:
        if instance.request_type == "generate_until":
            check_generation(name, instance.args[1])
    prepared = Prepared(name, task, task.OUTPUT_TYPE, [], [1] * len(instances))
    with quiet():
        values = [list(prepared.score(answers)) for answers in _made_up_answers(task)]
    if not values[-1]:
        skipped = ", ".join(prepared.skipped) or "none"
        raise UserError(f"task {name}: no metric has a value per document ({skipped})")


def _made_up_answers(task: Any) -> list[list[Any]]:
    if task.OUTPUT_TYPE != "generate_until":
        return [[LoglikelihoodAnswer(-1.0 - i.idx, False) for i in task.instances]]
    texts = [str(task.doc_to_target(i.doc)) for i in task.instances]
    return [texts, [""] * len(texts)]
