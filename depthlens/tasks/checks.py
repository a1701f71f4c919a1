"""Tasks and their documents, checked before a model is loaded or anything is computed.

lm-eval scores what it is given: an answer that is not among the options is wrong in every document, a name that is no
field is taken for the text itself, a metric that a kind of task does not have is left out. Such numbers look like a
model's. Here all documents that are to be run are looked at, and the first few are scored once with made-up answers,
so that a function that raises is heard of now and not after hours.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from lm_eval.api.task import ConfigurableTask

from depthlens.errors import UserError, blaming
from depthlens.requests import LoglikelihoodAnswer
from depthlens.tasks.encoding import check_generation, quiet
from depthlens.tasks.prepared_task import Prepared

N_REHEARSED = 3  # documents that are scored with made-up answers
# per kind of task, what lm-eval's own scoring yields
YIELDS = {
    "multiple_choice": "acc acc_norm acc_bytes acc_mutual_info exact_match f1 mcc brier_score likelihood".split(),
    "loglikelihood": ["acc", "perplexity"],
    "loglikelihood_rolling": ["word_perplexity", "byte_perplexity", "bits_per_byte"],
}
# of written answers these are of the whole set, and need one reference answer a document
_OF_SETS = {"f1", "mcc", "bleu", "chrf", "chrf++", "ter", "bypass"}
_OF_LIKELIHOODS = {m for metrics in YIELDS.values() for m in metrics} - {"exact_match"} - _OF_SETS | {"acc_all"}


def check(name: str, task: Any, limit: int | None = None) -> None:
    """Check a task: its settings, every document that is to be run, and its scoring.

    The choice of few-shot examples has to be seeded again after it.

    Args:
        name: Task name.
        task: A loaded task.
        limit: First so many documents; None for all.

    Raises:
        UserError: names the document, the field and what is allowed.
    """
    settings(name, task)
    documents(name, task, limit)
    rehearse(name, task, limit)


def settings(name: str, task: Any) -> None:
    """Refuse metrics that the kind of task does not have, generation options, and fields that are not there."""
    config = task.config
    if task.OUTPUT_TYPE == "generate_until":
        check_generation(name, config.generation_kwargs or {})
    if not _as_lm_eval(task):
        return
    for entry in config.metric_list or []:
        _metric(name, task, entry)
    fields = ", ".join(task.features)
    for key, value in (("doc_to_text", config.doc_to_text), ("doc_to_target", config.doc_to_target)):
        choice = key == "doc_to_target" and task.OUTPUT_TYPE == "multiple_choice"  # may be an option: see `documents`
        if isinstance(value, str) and value.isidentifier() and value not in task.features and not choice:
            raise UserError(
                f"task {name}: {key} {value!r} names no field of its documents; "
                f"fields: {fields}; a fixed text is written \"{{{{'{value}'}}}}\""
            )


def _metric(name: str, task: Any, entry: dict[str, Any]) -> None:
    metric, kind = entry["metric"], task.OUTPUT_TYPE
    known = metric if isinstance(metric, str) else metric.__name__
    if kind in YIELDS and (known not in YIELDS[kind] or callable(metric)):
        raise UserError(f"task {name}: {kind} tasks have no metric {known!r}; they have {', '.join(YIELDS[kind])}")
    if kind != "generate_until" or callable(metric) or entry.get("hf_evaluate"):
        return
    if (known in _OF_LIKELIHOODS and not callable(entry.get("aggregation"))) or (
        task.multiple_target and known in _OF_LIKELIHOODS | _OF_SETS
    ):
        several = " with several accepted answers" if known in _OF_SETS else ""
        raise UserError(
            f"task {name}: written answers{several} have no metric {known!r}; "
            "use exact_match, or a function of your own (metric: !function module.name)"
        )


def documents(name: str, task: Any, limit: int | None = None) -> None:
    """Refuse documents that lm-eval would score as wrong whatever the model says; the arguments as in `check`."""
    if type(task) is ConfigurableTask and not len(task.eval_docs):
        raise UserError(f"task {name}: its test or validation split holds no documents")
    if not _as_lm_eval(task):
        return  # only its own code knows what its documents mean
    seen = getattr(task, "depthlens_checked", 0)  # by an earlier call
    for doc_id, doc in islice(enumerate(task.eval_docs), seen, None if limit is None else max(seen, limit)):
        where = f"task {name}, document {doc_id}"
        with blaming(f"{where}: its question, answer or options cannot be made", "correct the document or the YAML"):
            fault = _fault(task, doc)
        if fault:
            raise UserError(f"{where}: {fault}")
        task.depthlens_checked = doc_id + 1


def _as_lm_eval(task: Any) -> bool:
    """Whether lm-eval's own code reads and scores the documents."""
    return type(task) is ConfigurableTask and not callable(task.config.process_results)


def _fault(task: Any, doc: Any) -> str | None:
    kind, config = task.OUTPUT_TYPE, task.config
    text = task.doc_to_text(doc)
    if not isinstance(text, str) and not task.multiple_input:
        return f"{_named('doc_to_text', config.doc_to_text)} gives {text!r}; it must give text"
    choice = config.doc_to_choice
    if isinstance(choice, str) and choice.isidentifier() and choice not in task.features:
        return f"doc_to_choice {choice!r} names no field; fields: {', '.join(task.features)}"
    options = task.doc_to_choice(doc) if choice is not None else None
    if kind == "multiple_choice" or options is not None:
        least = 2 if kind == "multiple_choice" else 1
        if not isinstance(options, list) or len(options) < least or not all(isinstance(o, str) for o in options):
            return f"{_named('doc_to_choice', choice)} gives {options!r}; it must give a list of at least {least} texts"
    if kind == "multiple_choice" and task.multiple_input:
        return _among(_named("doc_to_text", config.doc_to_text), [text], options)
    target, named = task.doc_to_target(doc), _named("doc_to_target", config.doc_to_target)
    if kind in ("loglikelihood", "loglikelihood_rolling"):
        return None if isinstance(target, str) and target else f"{named} gives {target!r}; it must give a text to score"
    several, literal = isinstance(target, list), config.doc_to_target
    if several and options is None and not task.multiple_target and isinstance(literal, str) and "{" in literal:
        return None  # an answer such as "[1, 2]", which lm-eval reads as a list and compares as text
    if target is None or target == []:
        return f"{named} gives {target!r}; it must give an answer" + (f": {_allowed(options)}" if options else "")
    if several != bool(task.multiple_target):
        return f"{named} gives {target!r}; it must give a list for every document or for none, as for the first"
    answers = target if several else [target]
    if options is None:
        return f"{named} gives {target!r}; every answer must be text" if any(a is None for a in answers) else None
    if isinstance(literal, str) and literal.isidentifier() and literal not in (*task.features, *options):
        return f"{named} names no field and no option; fields: {', '.join(task.features)}; options: {_some(options)}"
    return _among(named, answers, options, by_text=kind == "multiple_choice" and not several)


def _among(named: str, answers: Sequence[Any], options: Sequence[str], *, by_text: bool = True) -> str | None:
    for answer in answers:
        if not (isinstance(answer, int) and 0 <= answer < len(options)) and not (by_text and answer in options):
            return f"{named} gives {answer!r}; allowed: {_allowed(options, by_text=by_text)}"
    return None


def _allowed(options: Sequence[str], *, by_text: bool = True) -> str:
    return f"a whole number from 0 to {len(options) - 1}" + (f", or one of {_some(options)}" if by_text else "")


def _named(key: str, value: Any) -> str:
    if callable(value):
        return f"{key} (function {value.__name__})"
    return f"{key} {value!r}" if isinstance(value, str) and len(value) <= 60 else key


def _some(options: Sequence[Any]) -> str:
    return ", ".join(map(repr, options[:6])) + (f" and {len(options) - 6} more" if len(options) > 6 else "")


def rehearse(name: str, task: Any, limit: int | None = None) -> None:
    """Score the first documents with made-up answers: the reference answer is written, then nothing.

    Raises:
        UserError: what the task's functions raise, or a task of which no metric has a value per document.
    """
    n = N_REHEARSED if limit is None else min(limit, N_REHEARSED)
    with blaming(f"task {name}: its prompts cannot be made", "correct its YAML file or its documents"), quiet():
        task.build_all_requests(limit=n, rank=0, world_size=1)
    instances = task.instances
    for instance in instances:
        if instance.request_type == "generate_until":
            check_generation(name, instance.args[1])
    prepared = Prepared(name, task, task.OUTPUT_TYPE, [], [1] * len(instances))
    with quiet():
        for answers in _answers(task):
            found = list(prepared.score(answers))
    if not found:
        skipped = ", ".join(prepared.skipped) or "none"
        raise UserError(f"task {name}: no metric has a value per document ({skipped})")


def _answers(task: Any) -> list[list[Any]]:
    if task.OUTPUT_TYPE != "generate_until":
        return [[LoglikelihoodAnswer(-1.0 - i.idx, False) for i in task.instances]]
    texts = [str(task.doc_to_target(i.doc)) for i in task.instances]
    return [texts, [""] * len(texts)]
