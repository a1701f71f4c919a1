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
answer is the whole text; of several that were drawn it is the first that the filters turn into the answer that is
scored. Limit: a task with a ``process_results`` of its own may choose among options in another way.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from depthlens.engine.engine import Engine
from depthlens.errors import UserError, blaming
from depthlens.requests import GenerateRequest, LoglikelihoodAnswer, LoglikelihoodRequest, WrittenAnswer
from depthlens.tasks import truncation
from depthlens.tasks.few_shot import lm_evals_seeds
from depthlens.tasks.groups import Member

SAME_IF = "same_if"  # key of a task's metadata, see `identity`
_AMONG_OPTIONS = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
_LENGTHS: dict[str, Callable[[str], int]] = {"acc_norm": len, "acc_bytes": lambda option: len(option.encode())}
# perplexity metrics: the name of what we report of each document, and its unit in nats
_RATES = {
    "word_perplexity": ("nats_per_word", 1.0),
    "byte_perplexity": ("nats_per_byte", 1.0),
    "bits_per_byte": ("bits_per_byte", math.log(2)),
}


class Score(NamedTuple):
    """One document's value of a metric, the answer that it is of, whether it could be read, and whether it had ended.

    ``complete`` is None for what is not written, and where a store of an older version does not say it.
    """

    metric: str
    doc_id: int
    value: float
    response: str
    parsed: bool = True
    complete: bool | None = None


@dataclass
class Prepared:
    """A task made ready for one model: its requests, and how answers become values.

    Attributes:
        name: Task name.
        task: The lm-eval task, its instances built.
        output_type: lm-eval's: ``multiple_choice``, ``loglikelihood``, ``loglikelihood_rolling`` or ``generate_until``.
        requests: For the engine, in the order of the instances (rolling windows side by side).
        windows: Per instance, how many of ``requests`` belong to it (1 except for rolling log-likelihood).
        skipped: Metrics that have no value per document, and why.
        cut: Tokens that were cut from the left of each prompt that the model cannot read whole.
        commonest: Share of the commonest reference answer of a written task (see the module); else None.
        asked: The questions of the documents, see `depthlens.analysis.questions`.
        source: The files of the task, see `depthlens.tasks.data_files.source`.
        member: The group that it is a part of.
    """

    name: str
    task: Any
    output_type: str
    requests: Sequence[LoglikelihoodRequest | GenerateRequest]
    windows: list[int]
    skipped: dict[str, str] = field(default_factory=dict)
    cut: list[int] = field(default_factory=list)
    commonest: float | None = None
    asked: pd.DataFrame | None = None
    source: dict[str, Any] = field(default_factory=dict)
    member: Member | None = None
    _fallback_texts: dict[str, set[str]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def docs(self) -> dict[int, Any]:
        """Documents by number."""
        return {i.doc_id: i.doc for i in self.task.instances}

    @cached_property
    def _options(self) -> dict[int, list[str]]:
        """The options of each document, in lm-eval's order."""
        return {doc_id: self.task.doc_to_choice(doc) for doc_id, doc in self.docs.items()}

    def part(self, documents: Collection[int]) -> Prepared:
        """The same task with some of its documents, by number; its prompts stay the same."""
        task, requests, windows = copy.copy(self.task), list[Any](), list[int]()
        task._instances = []
        remaining: Iterator[Any] = iter(self.requests)
        for instance, n_windows in zip(self.task.instances, self.windows, strict=True):
            of_instance = list(islice(remaining, n_windows))
            if instance.doc_id in documents:
                task._instances.append(instance)
                requests += of_instance
                windows.append(n_windows)
        assert self.asked is not None
        asked = self.asked[self.asked["doc_id"].isin(list(documents))].reset_index(drop=True)
        return replace(self, task=task, requests=requests, windows=windows, asked=asked)

    @property
    def examples_by_seed(self) -> bool | None:
        """Whether another seed draws other examples; None where there are none."""
        from lm_eval.api.samplers import FirstNSampler  # slow to import

        if not self.task.config.num_fewshot:
            return None
        return not isinstance(getattr(self.task, "sampler", None), FirstNSampler)

    def run(self, engine: Engine, conditions: Sequence[Any]) -> list[list[Any]]:
        """Answers of the engine, indexed [condition][request]."""
        answer: Callable[..., list[list[Any]]] = engine.loglikelihood
        if self.output_type == "generate_until":
            answer = engine.generate_until
        return answer(self.requests, conditions, desc=self.name)

    def with_reference_answers(self) -> Prepared:
        """The same task; each request for a text knows the reference answer, which tells about how long the text is."""
        if self.output_type != "generate_until":
            return self
        assert self.asked is not None
        answers = (reference.split(" | ")[0] for reference in self.asked["reference"])
        known = dict(zip(self.asked["doc_id"], answers, strict=True))
        numbers = [i.doc_id for i, n in zip(self.task.instances, self.windows, strict=True) for _ in range(n)]
        requests = [replace(request, right=known[n]) for request, n in zip(self.requests, numbers, strict=True)]
        return replace(self, requests=requests)

    @lm_evals_seeds()
    def score(self, answers: Sequence[Any]) -> list[Score]:
        """Score one condition's answers with lm-eval.

        Raises:
            UserError: the task's own functions or filters raise, or return no dictionary of numbers.
        """
        return list(self._scores(answers))

    def _scores(self, answers: Sequence[Any]) -> Iterator[Score]:
        remaining = iter(answers)
        for instance, n_windows in zip(self.task.instances, self.windows, strict=True):
            given = list(islice(remaining, n_windows))
            if self.output_type == "generate_until" and n_windows > 1:  # a text for each time that it is drawn
                instance.resps = given
            else:
                instance.resps = [self._response(given)] * (instance.repeats or 1)
            instance.filtered_resps = {}
        with blaming(f"task {self.name}: its filters cannot be applied to the answers", "correct the filters"):
            self.task.apply_filters()
        instances = by_document(self.task.instances)
        filters, better = list(self.task.instances[0].filtered_resps), self.task.higher_is_better()
        chooses = self.output_type == "multiple_choice"
        for key in filters:
            for doc_id, group in instances.items():
                given = [i.filtered_resps[key] for i in group]
                parsed, complete = self._parsed(key, given), self._complete(group)
                for metric, value in self._score_document(doc_id, group, given):
                    name = metric if len(filters) == 1 else f"{metric},{key}"
                    response = self._choice(metric, group, given) if chooses else self._text(key, group, given)
                    is_right = value == 1.0 and better.get(metric, True)  # what is right was read
                    yield Score(name, doc_id, value, response, parsed or is_right, complete)

    def _score_document(self, doc_id: int, group: list[Any], answers: list[Any]) -> list[tuple[str, float]]:
        where = f"task {self.name}, document {doc_id}"
        with blaming(f"{where}: scoring the answer {_short(group[0].resps[0])} fails", "correct the task's scoring"):
            results = self.task.process_results(group[0].doc, answers)
            if not isinstance(results, dict):
                kind = type(results).__name__
                raise UserError(f"{where}: process_results returns {kind}; return a dict such as {{'acc': 1.0}}")
            values = [self._value(metric, value) for metric, value in results.items()]
        return [value for value in values if value is not None]

    def _response(self, answers: list[Any]) -> Any:
        """The engine's answers to one instance, as lm-eval's models return them."""
        if self.output_type == "loglikelihood_rolling":
            return sum(answer.logprob for answer in answers)
        (answer,) = answers
        return (answer.logprob, answer.is_greedy) if isinstance(answer, LoglikelihoodAnswer) else answer

    def _choice(self, metric: str, group: list[Any], answers: list[tuple[float, bool]]) -> str:
        """The option that a metric chooses, by the rules of lm-eval's ``ConfigurableTask.process_results``."""
        options = self._options[group[0].doc_id]
        logprobs = np.array([logprob for logprob, _ in answers])
        with_context, without = logprobs[: len(options)], logprobs[len(options) :]
        if metric == "exact_match":
            return " | ".join(o.strip() for o, (_, is_greedy) in zip(options, answers, strict=False) if is_greedy)
        if metric == "acc_mutual_info" and len(without):
            with_context = with_context - without
        elif metric in _LENGTHS:
            with np.errstate(divide="ignore", invalid="ignore"):  # an option may be empty
                with_context = with_context / [float(_LENGTHS[metric](option)) for option in options]
        return options[int(np.argmax(with_context))].strip()

    def _text(self, filter_name: str, group: list[Any], answers: list[Any]) -> str:
        """The text that the answer to one document was taken from."""
        texts = group[0].resps
        for text in dict.fromkeys(texts) if len(set(texts)) > 1 else ():
            alike = copy.copy(group[0])
            alike.resps, alike.filtered_resps = [text] * len(texts), {}
            self._pipeline(filter_name).apply([alike])
            if alike.filtered_resps[filter_name] == answers[0]:
                return str(text)
        return str(texts[0])

    def _complete(self, group: list[Any]) -> bool | None:
        """Whether all texts of a document ended before they had as many tokens as were allowed."""
        ended = [answer.complete if isinstance(answer, WrittenAnswer) else None for answer in group[0].resps]
        return None if self.output_type != "generate_until" or None in ended else all(ended)

    def _parsed(self, filter_name: str, answers: list[Any]) -> bool:
        """Whether a document's answer can be compared (see the module)."""
        if self.output_type != "generate_until":
            return True
        texts = map(str, answers[0] if isinstance(answers[0], list) else answers)
        unread = self._fallbacks(filter_name)
        return any(text.casefold() not in unread and bool(re.search(r"[^\W_]", text)) for text in texts)

    def _pipeline(self, name: str) -> Any:
        """lm-eval's filters of that name."""
        return next(pipeline for pipeline in self.task._filters if pipeline.name == name)

    def _fallbacks(self, filter_name: str) -> set[str]:
        """What the filters of that name give where they find no answer."""
        if filter_name not in self._fallback_texts:
            found = (getattr(make(), "fallback", None) for make in self._pipeline(filter_name).filters)
            self._fallback_texts[filter_name] = {str(text).casefold() for text in found if text is not None}
        return self._fallback_texts[filter_name]

    def _value(self, metric: str, value: Any) -> tuple[str, float] | None:
        """A metric's value of one document, and its name; None for metrics that exist on the whole set only."""
        if isinstance(value, (tuple, list)):
            if metric in _RATES:
                name, unit = _RATES[metric]
                loglikelihood, n_pieces = value  # words or bytes
                return name, -loglikelihood / n_pieces / unit
            self.skipped[metric] = "has no value per document"
            return None
        if metric == "perplexity":  # a cloze task's log-likelihood, which lm-eval turns into perplexity at the end
            return "nats", -float(value)
        if isinstance(value, (bool, int, float)) or hasattr(value, "item"):
            return metric, float(value)
        self.skipped[metric] = f"value is a {type(value).__name__}"
        return None

    def describe(self, docs: pd.DataFrame) -> dict[str, Any]:
        """The task's entry in a record; ``docs`` are its rows, which say what metrics it has."""
        better = self.task.higher_is_better()
        config = self.task.config
        written = self.output_type == "generate_until"
        filters = list(self.task.instances[0].filtered_resps)
        metrics: dict[str, dict[str, Any]] = {}
        for metric in docs["metric"].unique():
            values = docs.loc[docs["metric"] == metric, "value"]
            name, _, used = metric.partition(",")
            higher = bool(better.get(name, not name.startswith(("nats", "bits"))))
            metrics[metric] = {
                "higher_is_better": higher,
                "chance": self.chance(name),
                "floor": (0.0 if higher else None) if written else self.chance(name),
                "binary": bool(values.isin([0.0, 1.0]).all()),
            }
            if written:
                found = self._fallbacks(used or filters[0])
                metrics[metric]["parsed_if"] = "a filter finds the answer" if found else "it has a letter or digit"
        settings = {"generation_kwargs": dict(config.generation_kwargs or {})} if written else {}
        return {
            "version": (config.metadata or {}).get("version"),
            **settings,
            **self.source,
            "num_fewshot": config.num_fewshot,
            "examples_by_seed": self.examples_by_seed,
            "n_replaced_examples": len(self.task.depthlens_replaced),
            "n_docs": len(self.docs),
            "output_type": self.output_type,
            **truncation.counted(self.cut),
            "metrics": metrics,
            "skipped_metrics": self.skipped,
        }

    def chance(self, metric: str) -> float | None:
        """The score of guessing (see the module); None for metrics that have none."""
        if self.output_type == "multiple_choice" and metric in _AMONG_OPTIONS:
            n_instances = Counter(i.doc_id for i in self.task.instances)
            # mutual-information variants ask each option twice, with and without its context
            per_option = 2 if "acc_mutual_info" in self.task.higher_is_better() else 1
            targets = {doc_id: self.task.doc_to_target(doc) for doc_id, doc in self.docs.items()}
            n_right = {doc_id: len(set(t)) if isinstance(t, list) else 1 for doc_id, t in targets.items()}
            return sum(per_option * n_right[doc_id] / n for doc_id, n in n_instances.items()) / len(n_instances)
        if self.output_type == "generate_until" and metric == "exact_match":
            return self.commonest
        greedy = ("loglikelihood", "acc"), ("multiple_choice", "exact_match")
        return 0.0 if (self.output_type, metric) in greedy else None


def build_requests(task: Any, documents: Sequence[int] | None, **prompts: Any) -> None:
    """Build lm-eval's instances of some documents; None: of all. lm-eval numbers them anew, which is undone.

    Args:
        task: A loaded task.
        documents: Numbers, rising.
        prompts: lm-eval's arguments on templates and system instructions.
    """
    if documents is None or documents == range(len(documents)):
        task.build_all_requests(limit=None if documents is None else len(documents), rank=0, world_size=1, **prompts)
    else:
        task.build_all_requests(samples=frozenset(documents), rank=0, world_size=1, **prompts)
        for instance in task.instances:
            instance.doc_id = documents[instance.doc_id]


def by_document(instances: Sequence[Any]) -> dict[int, list[Any]]:
    """The instances of each document, in the order of its options."""
    groups: dict[int, list[Any]] = {}
    for instance in instances:
        groups.setdefault(instance.doc_id, []).append(instance)
    return {doc_id: sorted(group, key=lambda i: i.idx) for doc_id, group in groups.items()}


def commonest_answer(task: Any) -> float:
    """Share of the commonest reference answer over all documents of a task's evaluation split."""
    counts = Counter(str(task.doc_to_target(doc)) for doc in task.eval_docs)
    return max(counts.values()) / counts.total()


def questions(name: str, task: Any) -> pd.DataFrame:
    """The questions, reference answers and options of the documents that have instances; one row per document."""
    docs = {instance.doc_id: instance.doc for instance in task.instances}
    rows = [(name, doc_id, *_question(task, doc), identity(task, doc)) for doc_id, doc in docs.items()]
    return pd.DataFrame(rows, columns=["task", "doc_id", "question", "reference", "choices", "doc_hash"])


def identity(task: Any, doc: Any) -> str:
    """Hash by which a document is known in every task that asks it.

    It is lm-eval's own hash of the document (``doc_hash`` of its samples). Tasks that ask the same question from
    different files name the fields that make it the same in their YAML file (``metadata: {same_if: [question]}``), and
    only these are hashed.
    """
    from lm_eval.utils import handle_non_serializable, hash_string  # slow to import

    fields = (task.config.metadata or {}).get(SAME_IF)
    said = doc if fields is None else {field: doc[field] for field in fields}
    return hash_string(json.dumps(said, indent=2, default=handle_non_serializable, ensure_ascii=False))


def _question(task: Any, doc: Any) -> tuple[str, str, list[str] | None]:
    """Of one document, as text: the question without examples, the reference answer, and the options if it has some.

    Several accepted answers are joined by ``" | "``. Where the options are parts of the prompt (Winogrande), they are
    the sentences to choose from, and the question is what follows them.
    """
    text, target = task.doc_to_text(doc), task.doc_to_target(doc)
    options = task.doc_to_choice(doc) if task.config.doc_to_choice is not None else None
    if getattr(task, "multiple_input", 0):
        text, target = target, text
    answers = target if isinstance(target, list) else [target]
    if options is not None:
        answers = [options[a] if isinstance(a, int) and 0 <= a < len(options) else a for a in answers]
        options = [str(option) for option in options]
    return str(text), " | ".join(map(str, answers)), options


def _short(answer: Any) -> str:
    text = repr(answer)
    return text if len(text) <= 60 else f"{text[:57]}..."
