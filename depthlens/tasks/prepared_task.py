"""A task made ready for one model: what the engine is asked, and how its answers become values.

Filters and ``process_results`` are lm-eval's own; what a task's functions raise is told in one line that names the
document.

**Chance** is the accuracy of guessing. Among options: the mean, over the documents that are run, of the right options'
share of all. For written answers (``exact_match``): the share of the commonest reference answer over *all* documents
of the task's evaluation split, whatever ``limit`` is; several accepted answers of a document count as one. Where the
answer must be what greedy decoding writes (``acc`` of ``loglikelihood``, ``exact_match`` of ``multiple_choice``): 0.
Other metrics have none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from depthlens.engine.engine import Engine
from depthlens.errors import UserError, blaming
from depthlens.requests import GenerateRequest, LoglikelihoodAnswer, LoglikelihoodRequest
from depthlens.tasks import truncation

_AMONG_OPTIONS = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")


@dataclass
class Prepared:
    """A task made ready for one model: its requests, and how answers become values.

    Attributes:
        name: Task name.
        task: The lm-eval task, its instances built.
        output_type: lm-eval's: ``multiple_choice``, ``loglikelihood``, ``loglikelihood_rolling`` or ``generate_until``.
        requests: What the engine is asked, in order of the instances (rolling windows side by side).
        windows: Per instance, how many of ``requests`` belong to it (1 except for rolling log-likelihood).
        skipped: Metrics that have no value per document, and why.
        cut: Tokens that were cut from the left of each prompt that the model cannot read whole.
        commonest: Share of the commonest reference answer of a written task, see the module; else None.
        asked: What the documents ask, see `depthlens.analysis.questions`.
        source: Files that the task is made of, see `depthlens.tasks.task_files.source`.
    """

    name: str
    task: Any
    output_type: str
    requests: list[LoglikelihoodRequest] | list[GenerateRequest]
    windows: list[int]
    skipped: dict[str, str] = field(default_factory=dict)
    cut: list[int] = field(default_factory=list)
    commonest: float | None = None
    asked: pd.DataFrame | None = None
    source: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def docs(self) -> dict[int, Any]:
        return {i.doc_id: i.doc for i in self.task.instances}

    def run(self, engine: Engine, conditions: Sequence[Any]) -> list[list[Any]]:
        """Answers of the engine, indexed [condition][request]."""
        kind = engine.generate_until if self.output_type == "generate_until" else engine.loglikelihood
        return kind(self.requests, conditions, desc=self.name)

    def score(self, answers: Sequence[Any]) -> Iterator[tuple[str, int, float, str]]:
        """Judge one condition's answers with lm-eval: yields (metric, doc_id, value, response).

        Raises:
            UserError: the task's own functions or filters raise, or return no dictionary of numbers.
        """
        instances = self.task.instances
        done = iter(answers)
        for instance, n in zip(instances, self.windows, strict=True):
            got = [next(done) for _ in range(n)]
            instance.resps = [self._response(got)] * (instance.repeats or 1)
            instance.filtered_resps = {}
        with blaming(f"task {self.name}: its filters cannot be applied to the answers", "correct the filters"):
            self.task.apply_filters()
        by_doc: dict[int, list[Any]] = {}
        for instance in instances:
            by_doc.setdefault(instance.doc_id, []).append(instance)
        filters = list(instances[0].filtered_resps)
        for key in filters:
            for doc_id, group in by_doc.items():
                group.sort(key=lambda i: i.idx)
                for metric, number in self._judge(doc_id, group, [i.filtered_resps[key] for i in group]):
                    yield metric if len(filters) == 1 else f"{metric},{key}", doc_id, number, self._text(group)

    def _judge(self, doc_id: int, group: list[Any], answers: list[Any]) -> list[tuple[str, float]]:
        where = f"task {self.name}, document {doc_id}"
        with blaming(f"{where}: scoring the answer {_short(group[0].resps[0])} fails", "correct the task's scoring"):
            results = self.task.process_results(group[0].doc, answers)
            if not isinstance(results, dict):
                kind = type(results).__name__
                raise UserError(f"{where}: process_results returns {kind}; return a dict such as {{'acc': 1.0}}")
            values = [self._value(metric, value) for metric, value in results.items()]
        return [value for value in values if value is not None]

    def _response(self, got: list[Any]) -> Any:
        if self.output_type == "loglikelihood_rolling":
            return sum(a.logprob for a in got)
        return (got[0].logprob, got[0].is_greedy) if isinstance(got[0], LoglikelihoodAnswer) else got[0]

    def _text(self, group: list[Any]) -> str:
        if self.output_type == "generate_until":
            return group[0].resps[0]
        if self.output_type == "multiple_choice":
            return max(group, key=lambda i: i.resps[0][0]).args[1].strip()
        return str(group[0].resps[0])

    def _value(self, metric: str, value: Any) -> tuple[str, float] | None:
        """One number per document, or None for metrics that exist on the whole set only."""
        if isinstance(value, (tuple, list)):
            # (log-likelihood, weight) of perplexity metrics: nats per unit of this document
            if metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
                unit = "word" if metric.startswith("word") else "byte"
                bits = metric == "bits_per_byte"
                return f"{'bits' if bits else 'nats'}_per_{unit}", -value[0] / value[1] / (
                    0.6931471805599453 if bits else 1
                )
            self.skipped[metric] = "has no value per document"
            return None
        if metric == "perplexity":  # a cloze task's log-likelihood, which lm-eval turns into perplexity at the end
            return "nats", -float(value)
        if isinstance(value, (bool, int, float)) or hasattr(value, "item"):
            return metric, float(value)
        self.skipped[metric] = f"value is a {type(value).__name__}"
        return None

    def describe(self, docs: pd.DataFrame) -> dict[str, Any]:
        """What a record must hold of this task; ``docs`` are its rows, for the metrics that came out."""
        better = self.task.higher_is_better()
        config = self.task.config
        metrics = {}
        for metric in docs["metric"].unique():
            values = docs.loc[docs["metric"] == metric, "value"]
            name = metric.split(",")[0]
            metrics[metric] = {
                "higher_is_better": bool(better.get(name, not name.startswith(("nats", "bits")))),
                "chance": self._chance(name),
                "binary": bool(values.isin([0.0, 1.0]).all()),
            }
        return {
            "version": (config.metadata or {}).get("version"),
            **self.source,
            "num_fewshot": config.num_fewshot,
            "n_docs": len(self.docs),
            "output_type": self.output_type,
            **truncation.counted(self.cut),
            "metrics": metrics,
            "skipped_metrics": self.skipped,
        }

    def _chance(self, metric: str) -> float | None:
        """See the module."""
        if self.output_type == "multiple_choice" and metric in _AMONG_OPTIONS:
            counts = Counter(i.doc_id for i in self.task.instances)
            # mutual-information variants ask each option twice, with and without its context
            per = 2 if "acc_mutual_info" in self.task.higher_is_better() else 1
            targets = {doc_id: self.task.doc_to_target(doc) for doc_id, doc in self.docs.items()}
            right = {doc_id: len(set(t)) if isinstance(t, list) else 1 for doc_id, t in targets.items()}
            return sum(per * right[doc_id] / n for doc_id, n in counts.items()) / len(counts)
        if self.output_type == "generate_until" and metric == "exact_match":
            return self.commonest
        greedy = ("loglikelihood", "acc"), ("multiple_choice", "exact_match")
        return 0.0 if (self.output_type, metric) in greedy else None


def commonest_answer(task: Any) -> float:
    """Share of the commonest reference answer over all documents of a task's evaluation split."""
    counts = Counter(str(task.doc_to_target(doc)) for doc in task.eval_docs)
    return max(counts.values()) / counts.total()


def asked(name: str, task: Any) -> pd.DataFrame:
    """What the documents of a task ask, as far as its instances go; one row per document."""
    docs = {instance.doc_id: instance.doc for instance in task.instances}
    rows = [(name, doc_id, *_question(task, doc)) for doc_id, doc in docs.items()]
    return pd.DataFrame(rows, columns=["task", "doc_id", "question", "reference", "choices"])


def _question(task: Any, doc: Any) -> tuple[str, str, list[str] | None]:
    """Of one document, as text: the question without examples, the reference answer, and options where there are.

    Several accepted answers are joined by ``" | "``. Where the options stand in the prompt (Winogrande), they are the
    sentences to choose from, and the question is what follows them.
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
