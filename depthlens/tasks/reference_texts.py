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
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from depthlens.engine.references import Reference
from depthlens.errors import UserError, blaming
from depthlens.progress import quiet
from depthlens.tasks.answer_logprob import reference_pair
from depthlens.tasks.prepared_task import FIX, Prepared

if TYPE_CHECKING:  # slow to import
    from lm_eval.api.instance import Instance

MOST, FEWEST = 64, 8  # texts of a reference


def reference_of(prepared: Prepared) -> Reference:
    """The reference of a task and the documents that are evaluated, see the module.

    Raises:
        UserError: fewer than 8 documents are left.
    """
    found = _others(prepared, "@mean", FEWEST, MOST)
    requests: list[Any] = []
    for _, instance, pair in found:
        encoder = prepared.encoder
        requests += encoder.pairs(prepared.name, [pair]) if all(pair) else encoder.encode([instance])[0]
    texts = [(request.context, getattr(request, "continuation", ())) for request in requests]
    told = " and ".join(f"{n} {kind}" for kind, n in Counter(kind for kind, *_ in found).items())
    return Reference(f"{prepared.name}: {told} documents, without examples", texts)


def prompts_of_others(prepared: Prepared, n: int, *, seed: int = 0) -> list[str]:
    """Prompts of documents that are not evaluated, with examples as the task has them and their reference answers.

    Args:
        prepared: The task and the documents that are evaluated.
        n: How many.
        seed: Of the choice of examples.

    Raises:
        UserError: fewer documents are left.
    """
    tokenizer = prepared.encoder.tokenizer
    prepared.task.set_fewshot_seed(seed=seed)
    found = _others(prepared, "@resample", n, n, prepared.task.config.num_fewshot or 0)
    texts = ["".join(pair) for _, _, pair in found]
    if tokenizer("a").input_ids[0] == tokenizer.bos_token_id:  # what a chat template begins with would be there twice
        texts = [text.removeprefix(tokenizer.bos_token) for text in texts]
    return texts


def _others(
    prepared: Prepared, what: str, fewest: int, most: int, examples: int = 0
) -> list[tuple[str, Instance, tuple[str, str]]]:
    """Documents that are not evaluated, each of another text: what they are, first instance, prompt and answer.

    A document that is among its own examples is left out.

    Raises:
        UserError: fewer than ``fewest``, which ``what`` needs.
    """
    task, prompts = prepared.task, prepared.prompts
    chat = {key: prompts[key] for key in ("apply_chat_template", "chat_template")}

    def made(doc: Any, n_examples: int) -> tuple[Instance, tuple[str, str]]:
        context = task.fewshot_context(doc, num_fewshot=n_examples, gen_prefix=task.doc_to_prefix(doc), **prompts)
        group = task.construct_requests(doc=doc, ctx=context, metadata=(prepared.name, 0, 1), **chat)
        group = group if isinstance(group, list) else [group]
        return group[0], reference_pair(prepared, group)

    found: list[tuple[str, Instance, tuple[str, str]]] = []
    with blaming(f"task {prepared.name}: its prompts cannot be made", FIX), quiet():
        seen = {made(doc, 0)[1] for doc in prepared.docs.values()}
        for kind, doc in _candidates(prepared):
            instance, pair = made(doc, 0)
            if (alone := pair) in seen:
                continue
            if examples:
                instance, pair = made(doc, examples)
                question = task.doc_to_text(doc)  # a number where the options are parts of the prompt
                if isinstance(question, str) and question and instance.args[0].count(question) > 1:
                    continue
            seen.add(alone)
            found.append((kind, instance, pair))
            if len(found) == most:
                return found
    if len(found) < fewest:
        fix = f"lower limit, use a task with a training split, or ablate without {what}"
        fault = f"{what} needs {fewest} documents that are not evaluated, and {len(found)} are left"
        raise UserError(f"task {prepared.name}: {fault}; {fix}")
    return found


def _candidates(prepared: Prepared) -> Iterator[tuple[str, Any]]:
    """Documents that may be used, and what they are."""
    task, config, shots = prepared.task, prepared.task.config, prepared.task.fewshot_cfg
    evaluated = config.test_split if task.has_test_docs() else config.validation_split
    # examples that are written in another way may lack what the task's own templates ask for
    alike = all(getattr(shots, t) == getattr(config, t) for t in ("doc_to_text", "doc_to_target", "doc_to_choice"))
    if alike and (shots.split not in (None, evaluated) or (shots.split is None and shots.samples is not None)):
        yield from (("few-shot", doc) for doc in task.fewshot_docs())
    if config.training_split not in (None, evaluated):
        yield from (("training", doc) for doc in task.training_docs())
    if config.validation_split not in (None, evaluated):
        yield from (("validation", doc) for doc in task.validation_docs())
    # from the end: documents are evaluated from the first on, so that another number of them has the same reference
    docs, run = task.eval_docs, prepared.docs
    yield from (("not evaluated", docs[i]) for i in reversed(range(len(docs))) if i not in run)
