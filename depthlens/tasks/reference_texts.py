"""Texts that take no part in what is scored: those of the means of ``@mean``, and the prompts of ``@resample``.

A text is the prompt of a document that is not evaluated, and its reference answer. Documents of the few-shot, training
and validation splits come first, then those of the evaluation split that are not evaluated, the last one first. A
document whose text equals one that is evaluated is left out.

A text of ``@mean`` has no worked examples before it: a mean over the evaluated prompts would hold what is asked of the
model, and one over prompts with examples is a mean of examples (92% of the text of GSM8K with five of them). A prompt
of ``@resample`` has as many examples as those that are scored, because each position gets what the same position of the
prompt has: a prompt of another form would put a question where an example is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from depthlens.engine.references import Reference
from depthlens.errors import UserError, blaming
from depthlens.models.lens import Lens
from depthlens.progress import quiet
from depthlens.requests import LoglikelihoodRequest
from depthlens.tasks.answer_logprob import delimiter, reference_pair, written_answer
from depthlens.tasks.prepared_task import Prepared

if TYPE_CHECKING:  # slow to import
    from lm_eval.api.instance import Instance

    from depthlens.tasks.encoding import Encoder

MOST, FEWEST = 64, 8  # texts of a reference


def reference_of(
    lens: Lens,
    prepared: Prepared,
    *,
    apply_chat_template: bool = False,
    system_instruction: str | None = None,
    enable_thinking: bool | None = None,
) -> Reference:
    """The reference of a task, see the module.

    Args:
        lens: The model, whose tokenizer decides the tokens.
        prepared: The task and the documents that are evaluated.
        apply_chat_template: As the task was prepared.
        system_instruction: As the task was prepared.
        enable_thinking: As the task was prepared.

    Raises:
        UserError: fewer than 8 documents are left.
    """
    from depthlens.tasks.encoding import Encoder, check_tokens  # slow to import

    name = prepared.name
    encoder = Encoder(lens, enable_thinking=enable_thinking)
    instances = _instances(prepared, encoder, apply_chat_template, system_instruction)
    before_answer = delimiter(prepared.task, chat=apply_chat_template)
    chosen = _others(prepared, instances, before_answer, MOST, FEWEST, "@mean")
    with quiet():
        texts = [text for _, group in chosen for text in _tokens(prepared, encoder, group, before_answer)]
    check_tokens(lens, name, [LoglikelihoodRequest(*text) for text in texts])
    told = " and ".join(f"{n} {kind}" for kind, n in Counter(kind for kind, _ in chosen).items())
    return Reference(f"{name}: {told} documents, without examples", texts)


def prompts_of_others(
    lens: Lens,
    prepared: Prepared,
    n: int,
    *,
    seed: int = 0,
    apply_chat_template: bool = False,
    system_instruction: str | None = None,
    enable_thinking: bool | None = None,
) -> list[str]:
    """Prompts of documents that are not evaluated, with examples as the task has them and their reference answers.

    Args:
        lens: The model.
        prepared: The task and the documents that are evaluated.
        n: How many.
        seed: Of the choice of examples.
        apply_chat_template: As the task was prepared.
        system_instruction: As the task was prepared.
        enable_thinking: As the task was prepared.

    Raises:
        UserError: fewer documents are left.
    """
    from depthlens.tasks.encoding import Encoder  # slow to import

    encoder = Encoder(lens, enable_thinking=enable_thinking)
    instances = _instances(prepared, encoder, apply_chat_template, system_instruction)
    before_answer = delimiter(prepared.task, chat=apply_chat_template)
    prepared.task.set_fewshot_seed(seed=seed)
    examples = prepared.task.config.num_fewshot or 0
    chosen = _others(prepared, instances, before_answer, n, n, "@resample", examples)
    texts = ["".join(_text(prepared, group, before_answer)) for _, group in chosen]
    tokenizer = lens.tokenizer
    if tokenizer("a").input_ids[0] == tokenizer.bos_token_id:  # what a chat template begins with would be there twice
        texts = [text.removeprefix(tokenizer.bos_token) for text in texts]
    return texts


Instances = Callable[[Any, int], list[Any]]  # of a document with so many examples before it, one an option


def _instances(prepared: Prepared, encoder: Encoder, chat: bool, system_instruction: str | None) -> Instances:
    """What makes lm-eval's instances of a document, as the task was prepared."""
    task = prepared.task
    options: dict[str, Any] = {"apply_chat_template": chat}
    prompt: dict[str, Any] = {"system_instruction": system_instruction, **options}
    if chat:
        options |= {"chat_template": encoder.apply_chat_template}
        prompt |= {"fewshot_as_multiturn": True, **options}

    def instances(doc: Any, examples: int) -> list[Instance]:
        context = task.fewshot_context(doc, num_fewshot=examples, gen_prefix=task.doc_to_prefix(doc), **prompt)
        made = task.construct_requests(doc=doc, ctx=context, metadata=(prepared.name, 0, 1), **options)
        return made if isinstance(made, list) else [made]

    return instances


def _others(
    prepared: Prepared,
    instances: Instances,
    before_answer: str,
    most: int,
    fewest: int,
    what: str,
    examples: int = 0,
) -> list[tuple[str, list[Instance]]]:
    """Instances of documents that are not evaluated, each of another text, and what they are.

    A document that is among its own examples is left out.

    Raises:
        UserError: fewer than ``fewest``, which ``what`` needs.
    """
    name = prepared.name

    def others() -> Iterator[tuple[str, list[Instance]]]:
        seen = {_text(prepared, instances(doc, 0), before_answer) for doc in prepared.docs.values()}
        for kind, doc in _candidates(prepared):
            group = instances(doc, 0)
            if (text := _text(prepared, group, before_answer)) in seen:
                continue
            if examples:
                group = instances(doc, examples)
                question = prepared.task.doc_to_text(doc)  # a number where the options are parts of the prompt
                if isinstance(question, str) and question and group[0].args[0].count(question) > 1:
                    continue
            seen.add(text)
            yield kind, group

    fault, fix = f"task {name}: its prompts cannot be made", "correct its YAML file or its documents"
    with blaming(fault, fix), quiet():
        chosen = list(islice(others(), most))
    if len(chosen) < fewest:
        fix = f"lower limit, use a task with a training split, or ablate without {what}"
        fault = f"{what} needs {fewest} documents that are not evaluated, and {len(chosen)} are left"
        raise UserError(f"task {name}: {fault}; {fix}")
    return chosen


def _candidates(prepared: Prepared) -> Iterator[tuple[str, Any]]:
    """Documents that may be used, and what they are."""
    task, config = prepared.task, prepared.task.config
    shots = task.fewshot_cfg
    evaluated = config.test_split if task.has_test_docs() else config.validation_split
    templates = ("doc_to_text", "doc_to_target", "doc_to_choice")
    # examples that are written in another way may lack what the task's own templates ask for
    alike = all(getattr(shots, t) == getattr(config, t) for t in templates)
    sources: list[tuple[str, Iterable[Any]]] = []
    if alike and (shots.split not in (None, evaluated) or (shots.split is None and shots.samples is not None)):
        sources.append(("few-shot", task.fewshot_docs()))
    for kind, split, docs in (
        ("training", config.training_split, task.training_docs),
        ("validation", config.validation_split, task.validation_docs),
    ):
        if split not in (None, evaluated):
            sources.append((kind, docs()))
    for kind, of_split in sources:
        yield from ((kind, doc) for doc in of_split)
    # from the end: documents are evaluated from the first on, so that another number of them has the same reference
    docs = task.eval_docs
    yield from (("not evaluated", docs[i]) for i in reversed(range(len(docs))) if i not in prepared.docs)


def _text(prepared: Prepared, group: list[Instance], before_answer: str) -> tuple[str, str]:
    """Prompt and answer of a document."""
    if prepared.output_type == "loglikelihood_rolling":
        return "", group[0].args[0]
    if prepared.output_type == "generate_until" and written_answer(prepared.task, group[0].doc) is None:
        return group[0].args[0], ""
    return reference_pair(prepared, group, before_answer)


def _tokens(
    prepared: Prepared, encoder: Encoder, group: list[Instance], before_answer: str
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Token ids of prompt and answer; several where a document is read in windows."""
    context, answer = _text(prepared, group, before_answer)
    if context and answer:
        requests: list[Any] = [encoder.pair(prepared.name, context, answer)]
    else:
        requests = list(encoder.requests(group[0]))
    return [(q.context, getattr(q, "continuation", ())) for q in requests]
