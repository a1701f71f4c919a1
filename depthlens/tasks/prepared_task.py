"""A task made ready for one model: the requests for the engine, and how its answers become values.

Filters and ``process_results`` are lm-eval's own. An error that a task's functions raise becomes one line that names
the document.

**Chance** is the accuracy of guessing. Among options: the mean, over the documents that are run, of the right options'
share of all. For written answers (``exact_match``): the share of the commonest reference answer over *all* documents
of the task's evaluation split, whatever ``limit`` is; several accepted answers of a document count as one. Where the
answer must be what greedy decoding writes (``acc`` of ``loglikelihood``, ``exact_match`` of ``multiple_choice``): 0.
Other metrics have none.

**Floor** is what a broken model scores: chance among options, because a model without any knowledge still chooses one,
and 0 for an answer that it has to write or that must be what greedy decoding writes. Other metrics have none.

**Parsed** is whether a written answer can be compared at all. An answer is not parsed if a filter of the task finds
nothing and gives its fallback (lm-eval's ``[invalid]``), or if what is left has no letter and no digit. A choice among
options is always parsed. Limit: without a filter that extracts the answer, every text with a letter counts as parsed,
also one that does not answer the question.

**Response** is the answer that a value is of. Among options it is the choice of that metric: the likeliest option for
``acc``, for ``acc_norm`` the likeliest per character, for ``acc_bytes`` per byte, for ``acc_mutual_info`` the one that
gains most from its context, and for ``exact_match`` what greedy decoding writes ("" if that is no option). A written
answer is the whole text, or all texts that were drawn, joined by ``" | "``. Limit: a task with a ``process_results`` of
its own may choose among options in another way.
"""

from __future__ import annotations

import copy
import json
import logging
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import compress, groupby, islice
from textwrap import shorten
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from depthlens import metrics
from depthlens.errors import UserError, blaming
from depthlens.requests import GenerateRequest, LoglikelihoodRequest

log = logging.getLogger(__name__)

FIX = "correct its YAML file or its documents"
SHORT = 40  # characters of a text by which documents can be grouped
_seeded = threading.RLock()


@contextmanager
def lm_evals_seeds() -> Iterator[None]:
    """Within the context `random`, NumPy and torch draw as lm-eval's ``simple_evaluate`` has them; then as before it.

    Functions of tasks draw from them (GPQA's shuffles the options), and so does lm-eval for names that it does not use.
    The states are those of the process, so that one thread at a time is within the context.
    """
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    with _seeded, torch.random.fork_rng(devices=[]), ExitStack() as undo:
        undo.callback(random.setstate, random.getstate())
        undo.callback(np.random.set_state, np.random.get_state())
        random.seed(DEFAULT_RANDOM_SEED)
        np.random.seed(DEFAULT_OTHER_SEED)
        torch.default_generator.manual_seed(DEFAULT_OTHER_SEED)
        yield


class Score(NamedTuple):
    """One document's value of a metric, the answer that it is of, whether it could be read, and whether it had ended.

    ``complete`` is None for what is not written, and where a store of an older version does not say it. ``margin`` is
    how much likelier the right option is than the best wrong one, in nats; None where there are no options.
    """

    metric: str
    doc_id: int
    value: float
    response: str
    parsed: bool = True
    complete: bool | None = None
    margin: float | None = None


class Member(NamedTuple):
    """Of a task: the group that it is a part of.

    Attributes:
        group: Name of the group.
        first: The number that the task's document 0 has in the group.
        version: Of the group.
    """

    group: str
    first: int
    version: Any


@dataclass
class Prepared:
    """A task made ready for one model: its requests, and how answers become values.

    Attributes:
        name: Task name.
        task: The lm-eval task, its instances built.
        by_instance: Requests of each instance: one, or one a window of rolling log-likelihood, or one a draw.
        cut: Tokens that were cut from the left of each prompt that the model cannot read whole.
        merged: How many prompts are read as other tokens than their text has (`depthlens.tasks.encoding.Encoder`).
        asked: The questions of the documents, see `depthlens.analysis.result.questions`.
        skipped: Metrics that have no value per document, and why.
        encoder: The model's `depthlens.tasks.encoding.Encoder`.
        prompts: How prompts are made, as arguments of lm-eval's ``fewshot_context``.
    """

    name: str
    task: Any
    by_instance: Sequence[Sequence[Any]]
    cut: list[int] = field(default_factory=list)
    merged: int = 0
    asked: pd.DataFrame = field(default_factory=pd.DataFrame)
    skipped: dict[str, str] = field(default_factory=dict)
    encoder: Any = None
    prompts: dict[str, Any] = field(default_factory=dict)

    @property
    def output_type(self) -> str:
        """lm-eval's: ``multiple_choice``, ``loglikelihood``, ``loglikelihood_rolling`` or ``generate_until``."""
        return self.task.OUTPUT_TYPE

    @property
    def written(self) -> bool:
        """Whether the model writes its answers."""
        return self.output_type == "generate_until"

    @property
    def member(self) -> Member | None:
        """The group that the task is a part of."""
        return self.task.depthlens_group

    @property
    def requests(self) -> list[LoglikelihoodRequest | GenerateRequest]:
        """For the engine, in the order of the instances."""
        return [request for of_instance in self.by_instance for request in of_instance]

    @cached_property
    def docs(self) -> dict[int, Any]:
        """Documents by number."""
        return {i.doc_id: i.doc for i in self.task.instances}

    @cached_property
    def _options(self) -> dict[int, list[str]]:
        """The options of each document, in lm-eval's order."""
        return {doc_id: self.task.doc_to_choice(doc) for doc_id, doc in self.docs.items()}

    @cached_property
    def _right(self) -> dict[int, np.ndarray]:
        """Which options of each document are right. Shape [option]."""
        asked = {doc_id: question(self.task, doc) for doc_id, doc in self.docs.items()}
        return {doc_id: np.array([one in right for one in options]) for doc_id, (_, right, options) in asked.items()}

    @cached_property
    def _fallbacks(self) -> dict[str, set[str]]:
        """What the filters of each name give where they find no answer."""
        of = {p.name: [getattr(make(), "fallback", None) for make in p.filters] for p in self.task._filters}
        return {name: {str(text).casefold() for text in texts if text is not None} for name, texts in of.items()}

    def part(self, documents: Collection[int]) -> Prepared:
        """The same task with some of its documents, by number; its prompts stay the same."""
        part, kept = copy.copy(self), [instance.doc_id in documents for instance in self.task.instances]
        vars(part).pop("docs", None)
        part.task = copy.copy(self.task)
        part.task._instances = list(compress(self.task.instances, kept))
        part.by_instance = list(compress(self.by_instance, kept))
        part.asked = self.asked[self.asked["doc_id"].isin(list(documents))].reset_index(drop=True)
        return part

    def run(self, engine: Any, conditions: Sequence[Any]) -> list[list[Any]]:
        """Answers of an engine, or of what stands for one, indexed [condition][request]."""
        answer: Callable[..., list[list[Any]]] = engine.generate_until if self.written else engine.loglikelihood
        return answer(self.requests, conditions, desc=self.name)

    @lm_evals_seeds()
    def score(self, answers: Sequence[Any]) -> list[Score]:
        """Score one condition's answers with lm-eval.

        Raises:
            UserError: the task's own functions or filters raise, or return no dictionary of numbers.
        """
        remaining = iter(answers)
        for instance, requests in zip(self.task.instances, self.by_instance, strict=True):
            of_instance: list[Any] = list(islice(remaining, len(requests)))
            if not self.written:
                of_instance = [(answer.logprob, answer.is_greedy) for answer in of_instance]
            if self.output_type == "loglikelihood_rolling":
                of_instance = [sum(logprob for logprob, _ in of_instance)]
            # of texts that are drawn there is one for each time
            instance.resps = of_instance if len(of_instance) > 1 else of_instance * (instance.repeats or 1)
            instance.filtered_resps = {}
        with blaming(f"task {self.name}: its filters cannot be applied to the answers", "correct the filters"):
            self.task.apply_filters()
        names, docs = list(self.task.instances[0].filtered_resps), by_document(self.task.instances).items()
        return [score for name in names for doc_id, group in docs for score in self._of_document(name, doc_id, group)]

    def _of_document(self, filter_name: str, doc_id: int, group: list[Any]) -> Iterator[Score]:
        """The values of a document under the filters of one name."""
        answers, first = [i.filtered_resps[filter_name] for i in group], group[0]
        answer = shorten(repr(first.resps[0]), 60, placeholder="...")
        fault = f"task {self.name}, document {doc_id}: scoring the answer {answer} fails"
        with blaming(fault, "correct the task's scoring; process_results gives numbers by name, such as {'acc': 1.0}"):
            results = self.task.process_results(first.doc, answers)
            values = {metric: metrics.of_document(metric, value) for metric, value in results.items()}
        # others exist on the whole set only
        self.skipped |= {metric: "has no value per document" for metric, found in values.items() if found is None}
        texts = map(str, answers[0] if isinstance(answers[0], list) else answers)
        fallbacks, better = self._fallbacks[filter_name], self.task.higher_is_better()
        parsed = not self.written or any(t.casefold() not in fallbacks and re.search(r"[^\W_]", t) for t in texts)
        ended = [getattr(text, "complete", None) for text in first.resps]
        complete = None if None in ended else all(ended)
        chooses, margin = self.output_type == "multiple_choice", None
        if chooses and 0 < (right := self._right[doc_id]).sum() < len(right):
            likelihoods = np.array([logprob for logprob, _ in answers[: len(right)]])
            margin = float(likelihoods[right].max() - likelihoods[~right].max())
        for metric, value in filter(None, values.values()):
            name = metric if len(first.filtered_resps) == 1 else f"{metric},{filter_name}"
            whole = " | ".join(dict.fromkeys(map(str, first.resps)))
            response = metrics.chosen(metric, self._options[doc_id], answers) if chooses else whole
            is_right = value == 1.0 and better.get(metric, True)  # what is right was read
            yield Score(name, doc_id, value, response, parsed or is_right, complete, margin)

    @lm_evals_seeds()
    def describe(self, docs: pd.DataFrame) -> dict[str, Any]:
        """The task's entry in a record; ``docs`` are its rows, which say what metrics it has."""
        better, config, writes = self.task.higher_is_better(), self.task.config, self.output_type == "generate_until"
        infos: dict[str, dict[str, Any]] = {}
        for metric in docs["metric"].unique():
            name = str(metric).partition(",")[0]
            higher, chance = bool(better.get(name, metrics.rises(name))), self.chance(name)
            floor = (0.0 if higher else None) if self.written else chance
            infos[str(metric)] = {"higher_is_better": higher, "chance": chance, "floor": floor}
        return {
            "version": (config.metadata or {}).get("version"),
            "config": _config_hash(config),
            **({"generation_kwargs": dict(config.generation_kwargs or {})} if writes else {}),
            "num_fewshot": config.num_fewshot,
            "examples": self.task.depthlens_examples,
            "n_docs": len(self.docs),
            "output_type": self.output_type,
            "n_truncated": sum(n > 0 for n in self.cut),
            "max_tokens_cut": max(self.cut, default=0),
            "n_merged": self.merged,
            "metrics": infos,
            "skipped_metrics": self.skipped,
        }

    def chance(self, metric: str) -> float | None:
        """The score of guessing (see the module); None for metrics that have none."""
        if self.output_type == "multiple_choice" and metric in metrics.AMONG_OPTIONS:
            right = {doc_id: self.task.doc_to_target(doc) for doc_id, doc in self.docs.items()}
            n_right = {doc_id: len(set(t)) if isinstance(t, list) else 1 for doc_id, t in right.items()}
            return sum(n / len(self._options[doc_id]) for doc_id, n in n_right.items()) / len(n_right)
        if self.written and metric == "exact_match":
            counts = Counter(str(self.task.doc_to_target(doc)) for doc in self.task.eval_docs)
            return max(counts.values()) / counts.total()
        greedy = ("loglikelihood", "acc"), ("multiple_choice", "exact_match")
        return 0.0 if (self.output_type, metric) in greedy else None


def warn_of_cuts(name: str, cut: Sequence[int], max_length: int) -> None:
    """Log in one line that prompts are longer than the model reads, so that their left ends are cut, as in lm-eval.

    The instruction and the few-shot examples are lost first.

    Args:
        name: Task name.
        cut: Tokens that each prompt loses.
        max_length: Tokens that the model reads.
    """
    if any(cut):
        longer = f"{sum(n > 0 for n in cut)} of {len(cut)} prompts are longer than the model reads"
        lost = f"({max_length} tokens) and lose up to {max(cut)} tokens at their left end, as in lm-eval"
        log.warning("task %s: %s %s; give fewer examples, or a model that reads more", name, longer, lost)


def build_requests(task: Any, documents: Sequence[int], **prompts: Any) -> None:
    """Build lm-eval's instances of some documents, with the examples that the task has, and note which these are.

    Args:
        task: A loaded task.
        documents: Numbers, rising.
        prompts: lm-eval's arguments on templates and system instructions.
    """
    docs, n = task.eval_docs, task.config.num_fewshot or 0
    examples: set[str] = set()
    if n:
        sample = task.sampler.sample

        def noted(*args: Any, **options: Any) -> Any:
            drawn = sample(*args, **options)
            examples.update(identity(task, doc) for doc in drawn)
            return drawn

        task.sampler.sample = noted
    task._instances = [made for i in documents for made in instances_of(task, i, docs[i], n, **prompts)]
    if n:
        del task.sampler.sample  # the method of its class again
    # of more, every document has drawn its own
    task.depthlens_examples = sorted(examples) if len(examples) <= 100 else None


def instances_of(task: Any, doc_id: int, doc: Any, n_examples: int, **prompts: Any) -> list[Any]:
    """lm-eval's instances of one document: one, or one an option."""
    context = task.fewshot_context(doc, num_fewshot=n_examples, gen_prefix=task.doc_to_prefix(doc), **prompts)
    chat = {key: prompts.get(key) for key in ("apply_chat_template", "chat_template")}
    metadata = (task.config.task, doc_id, task.config.repeats)
    made = task.construct_requests(doc=doc, ctx=context, metadata=metadata, **chat)
    return made if isinstance(made, list) else [made]


def by_document(instances: Sequence[Any]) -> dict[int, list[Any]]:
    """The instances of each document, in the order of its options."""
    return {doc_id: list(group) for doc_id, group in groupby(instances, key=lambda instance: instance.doc_id)}


def questions(name: str, task: Any) -> pd.DataFrame:
    """The questions, reference answers and options of the documents that have instances; one row per document.

    Several accepted answers are joined by ``" | "``. ``fields`` are what documents can be grouped by, as JSON: their
    numbers, truth values, and texts of at most `SHORT` characters that several documents have.

    Raises:
        UserError: a right answer is no option, so that lm-eval scores 0 without a word; not of a task with a
            ``process_results`` of its own, which may mean anything by it.
    """
    rows, asked = [], {instance.doc_id: instance.doc for instance in task.instances}
    short = {i: {k: v for k, v in doc.items() if _is_short(v)} for i, doc in asked.items()}
    often = Counter(pair for fields in short.values() for pair in fields.items())
    chooses = task.OUTPUT_TYPE == "multiple_choice" and not callable(task.config.process_results)
    for doc_id, doc in asked.items():
        text, answers, options = question(task, doc)
        if wrong := [answer for answer in answers if chooses and answer not in options]:
            fault = f"answer {wrong[0]!r} of document {doc_id} is no option (0..{len(options) - 1}, or the text of one)"
            raise UserError(f"task {name}: {fault}; {FIX}")
        shown = options and [str(option) for option in options]
        fields = {k: v for k, v in short[doc_id].items() if not isinstance(v, str) or often[k, v] > 1}
        said = json.dumps(fields, ensure_ascii=False)
        rows.append((name, doc_id, text, " | ".join(map(str, answers)), shown, identity(task, doc), said))
    return pd.DataFrame(rows, columns=["task", "doc_id", "question", "reference", "choices", "doc_hash", "fields"])


def _is_short(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and 0 < len(value) <= SHORT)


def _config_hash(config: Any) -> str:
    """Hash of what a task's YAML file says, but for where its documents are and what the record has beside it."""
    from lm_eval.utils import handle_non_serializable, hash_string  # slow to import

    beside = {"dataset_path", "dataset_name", "dataset_kwargs", "generation_kwargs", "metadata", "num_fewshot"}
    said = {name: value for name, value in config.to_dict().items() if name not in beside}
    text = json.dumps(said, sort_keys=True, default=handle_non_serializable)
    return hash_string(re.sub(r" at 0x\w+", "", text))[:12]  # where a function is in memory


def identity(task: Any, doc: Any) -> str:
    """Hash by which a document is known in every task that asks it.

    It is lm-eval's own hash of the document (``doc_hash`` of its samples). Tasks that ask the same question from
    different files name the fields that make it the same in their YAML file (``metadata: {same_if: [question]}``), and
    only these are hashed.
    """
    from lm_eval.utils import handle_non_serializable, hash_string  # slow to import

    fields = (task.config.metadata or {}).get("same_if")
    said = doc if fields is None else {field: doc[field] for field in fields}
    return hash_string(json.dumps(said, indent=2, default=handle_non_serializable, ensure_ascii=False))


def question(task: Any, doc: Any) -> tuple[str, list[Any], Any]:
    """Of one document: the question without examples, its right answers, and the options; None if it has none.

    Where the options are parts of the prompt (Winogrande), they are the sentences to choose from, and the question is
    what follows them.
    """
    text, target = task.doc_to_text(doc), task.doc_to_target(doc)
    options = task.doc_to_choice(doc) if task.config.doc_to_choice is not None else None
    if getattr(task, "multiple_input", 0):
        text, target = target, text
    answers = target if isinstance(target, list) else [target]
    if options is not None:
        answers = [options[a] if isinstance(a, int) and 0 <= a < len(options) else a for a in answers]
    return str(text), answers, options


def renumbered(table: pd.DataFrame, member: Member | None) -> pd.DataFrame:
    """A table with the columns task and doc_id, with the name and the numbers of the task's group."""
    if member is None:
        return table
    return table.assign(task=member.group, doc_id=table["doc_id"] + member.first)


def described(records: Mapping[str, dict[str, Any]], of_task: Mapping[str, Member | None]) -> dict[str, dict[str, Any]]:
    """The records of tasks, with one record for the tasks of each group.

    Args:
        records: By task, see `Prepared.describe`.
        of_task: The groups.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, record in records.items():
        if member := of_task[name]:
            found.setdefault(member.group, {"version": member.version, "subtasks": {}})["subtasks"][name] = record
        else:
            found[name] = record
    return {name: _joined(list(r["subtasks"].values())) | r if "subtasks" in r else r for name, r in found.items()}


def _joined(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What records of tasks have in common, with their numbers of documents and the means of their levels."""
    n_docs = [record["n_docs"] for record in records]
    joined = {"num_fewshot": None, "examples": None} | _common(records)
    joined |= {key: sum(record[key] for record in records) for key in ("n_docs", "n_truncated", "n_merged")}
    joined |= {"max_tokens_cut": max(record["max_tokens_cut"] for record in records), "metrics": {}}
    for metric in (name for name in records[0]["metrics"] if all(name in record["metrics"] for record in records)):
        infos = [record["metrics"][metric] for record in records]
        levels = {level: [info[level] for info in infos] for level in ("chance", "floor")}
        means = {k: None if None in v else float(np.average(v, weights=n_docs)) for k, v in levels.items()}
        joined["metrics"][metric] = _common(infos) | means
    return joined


def _common(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The entries that all records have."""
    return {key: value for key, value in records[0].items() if all(record.get(key) == value for record in records)}
