"""lm-evaluation-harness in, requests out: its tasks become token requests, its scoring judges the answers.

Prompts, few-shot examples, tokenisation and truncation are lm-eval's own (`encoding`), and so are filters and
`process_results`. We only replace what happens between: the forward passes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from depthlens import encoding, resources
from depthlens.encoding import quiet
from depthlens.engine import Engine
from depthlens.errors import UserError, unknown
from depthlens.requests import Generate, Likelihood, Loglikelihood


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
    """

    name: str
    task: Any
    output_type: str
    requests: list[Loglikelihood] | list[Generate]
    windows: list[int]
    skipped: dict[str, str] = field(default_factory=dict)

    @cached_property
    def docs(self) -> dict[int, Any]:
        return {i.doc_id: i.doc for i in self.task.instances}

    def run(self, engine: Engine, conditions: Sequence[Any]) -> list[list[Any]]:
        """Answers of the engine, indexed [condition][request]."""
        kind = engine.generate_until if self.output_type == "generate_until" else engine.loglikelihood
        return kind(self.requests, conditions, desc=self.name)

    def score(self, answers: Sequence[Any]) -> Iterator[tuple[str, int, float, str]]:
        """Judge one condition's answers with lm-eval: yields (metric, doc_id, value, response)."""
        instances = self.task.instances
        done = iter(answers)
        for instance, n in zip(instances, self.windows, strict=True):
            got = [next(done) for _ in range(n)]
            instance.resps = [self._response(got)] * (instance.repeats or 1)
            instance.filtered_resps = {}
        self.task.apply_filters()
        by_doc: dict[int, list[Any]] = {}
        for instance in instances:
            by_doc.setdefault(instance.doc_id, []).append(instance)
        filters = list(instances[0].filtered_resps)
        for key in filters:
            for doc_id, group in by_doc.items():
                group.sort(key=lambda i: i.idx)
                results = self.task.process_results(group[0].doc, [i.filtered_resps[key] for i in group])
                for metric, value in results.items():
                    per_doc = self._value(metric, value)
                    if per_doc is not None:
                        name, number = per_doc
                        yield (
                            name if len(filters) == 1 else f"{name},{key}",
                            doc_id,
                            number,
                            self._text(group),
                        )

    def _response(self, got: list[Any]) -> Any:
        if self.output_type == "loglikelihood_rolling":
            return sum(a.logprob for a in got)
        return (got[0].logprob, got[0].is_greedy) if isinstance(got[0], Likelihood) else got[0]

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
            "num_fewshot": config.num_fewshot,
            "n_docs": len(self.docs),
            "output_type": self.output_type,
            "metrics": metrics,
            "skipped_metrics": self.skipped,
        }

    def _chance(self, metric: str) -> float | None:
        """Accuracy of guessing: among the options, or for written answers the commonest answer always."""
        if self.output_type == "multiple_choice" and metric in ("acc", "acc_norm"):
            counts: dict[int, int] = {}
            for i in self.task.instances:
                counts[i.doc_id] = counts.get(i.doc_id, 0) + 1
            # mutual-information variants ask each option twice, with and without its context
            per = 2 if "acc_mutual_info" in self.task.higher_is_better() else 1
            return sum(per / n for n in counts.values()) / len(counts)
        if self.output_type == "generate_until" and metric == "exact_match":
            targets = [str(self.task.doc_to_target(doc)) for doc in self.docs.values()]
            return max(map(targets.count, set(targets))) / len(targets)
        if self.output_type == "loglikelihood" and metric == "acc":
            return 0.0
        return None


def load_tasks(
    names: Sequence[str],
    *,
    include_path: str | Path | None = None,
    num_fewshot: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Find lm-eval tasks by name; groups and tags stand for all their tasks.

    Args:
        names: Tasks of lm-eval, embedded ones, or ones under ``include_path``.
        include_path: Folder with more lm-eval YAML files.
        num_fewshot: Worked examples before each question; None keeps what the task says.
        seed: Seed of the choice of examples.

    Returns:
        lm-eval tasks by name, in the order asked for.

    Raises:
        UserError: unknown task, missing folder, data that cannot be had, or more examples than there are.
    """
    if not names:
        raise UserError("no task given; name at least one, e.g. capitals_continuation")
    if num_fewshot is not None and (
        isinstance(num_fewshot, bool) or not isinstance(num_fewshot, int) or num_fewshot < 0
    ):
        raise UserError(f"num_fewshot {num_fewshot!r}: give a whole number from 0")
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(
            f"include_path {str(include_path)!r} is not a folder; give the folder with your task YAML files"
        )
    manager = task_manager(names, str(Path(include_path).resolve()) if include_path else None)
    tasks: dict[str, Any] = {}
    for name in names:
        if not isinstance(name, str) or name not in manager.task_index:
            raise unknown("task", name, sorted(manager.all_tasks), "your own YAML files need include_path")
        for leaf, task in _load(manager, name).items():
            _set_fewshot(leaf, task, num_fewshot)
            task.set_fewshot_seed(seed=seed)
            tasks[leaf] = task
    return tasks


def prepare(
    lens: Any,
    tasks: dict[str, Any],
    *,
    limit: int | None = None,
    chat: bool = False,
    system_prompt: str | None = None,
) -> list[Prepared]:
    """Build the requests of tasks for one model.

    Args:
        lens: The model, whose tokenizer and context length decide the tokens.
        tasks: From `load_tasks`.
        limit: First so many documents of each task; None for all.
        chat: Wrap prompts in the tokenizer's chat template, few-shot examples as turns (lm-eval's default).
        system_prompt: Instruction before everything else.

    Raises:
        UserError: a bad limit, a task that samples, or a chat template that the tokenizer does not have.
    """
    check_limit(limit)
    if chat and not lens.tokenizer.chat_template:
        raise UserError(f"chat: the tokenizer of {lens.name} has no chat template; leave chat out")
    lm = encoding.Encoder(lens)
    prepared = []
    for name, task in tasks.items():
        with _blaming(name), quiet():
            task.build_all_requests(
                limit=limit,
                rank=0,
                world_size=1,
                system_instruction=system_prompt,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
                chat_template=lm.apply_chat_template if chat else None,
                tokenizer_name=lm.tokenizer_name if chat else "",
            )
        asked = [lm.requests(instance) for instance in task.instances]
        windows = [len(a) for a in asked]
        prepared.append(Prepared(name, task, task.OUTPUT_TYPE, [q for a in asked for q in a], windows))
    return prepared


def check_limit(limit: int | None) -> None:
    """Refuse what is not a number of documents."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise UserError(f"limit {limit!r}: give a whole number of documents, at least 1, or leave it out for all")


@cache
def _index(include_path: str | None, *, of_lm_eval: bool) -> Any:
    """Task names: the embedded ones, and ``include_path``'s, and lm-eval's thousands of YAML files (five seconds)."""
    from lm_eval.tasks import TaskManager

    paths = [str(resources.tasks_dir())] + ([include_path] if include_path else [])
    with quiet():
        return TaskManager(include_path=paths, include_defaults=of_lm_eval)


def task_manager(names: Sequence[str], include_path: str | None = None) -> Any:
    """lm-eval's finder of tasks, with the smallest index that has all names.

    A user's own YAML files may build on any of lm-eval's, so these are indexed with them.
    """
    embedded = _index(None, of_lm_eval=False) if include_path is None else None
    if embedded and all(isinstance(name, str) and name in embedded.task_index for name in names):
        return embedded
    return _index(include_path, of_lm_eval=True)


def _load(manager: Any, name: str) -> dict[str, Any]:
    from datasets.exceptions import DatasetNotFoundError

    try:
        with _blaming(name), quiet():
            return manager.load([name])["tasks"]
    except OSError as e:
        if isinstance(e, FileNotFoundError) and not isinstance(e, DatasetNotFoundError):
            raise UserError(f"task {name}: {_first_line(e)}; correct data_files in its YAML file") from e
        first = _first_line(e)
        why = "HF_HUB_OFFLINE=1 and it is not in the local cache" if os.environ.get("HF_HUB_OFFLINE") == "1" else first
        raise UserError(f"task {name}: its data cannot be had ({why}); go online once, or use an embedded task") from e


@contextlib.contextmanager
def _blaming(name: str) -> Iterator[None]:
    """Name the task whose YAML file, template or documents made lm-eval stumble."""
    try:
        yield
    except UserError:
        raise
    except (jinja2.TemplateError, yaml.YAMLError, LookupError, ValueError, TypeError, AttributeError, ImportError) as e:
        fault = f"task {name}: lm-eval cannot use its YAML file or its documents"
        raise UserError(f"{fault} ({type(e).__name__}: {_first_line(e)}); correct the file") from e


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _set_fewshot(name: str, task: Any, num_fewshot: int | None) -> None:
    fixed = task.config.num_fewshot
    if num_fewshot is None:
        if fixed is None:
            task.set_config(key="num_fewshot", value=0)
        return
    if fixed == 0 and num_fewshot > 0:
        raise UserError(f"task {name} is fixed at 0 examples in its YAML file; leave num_fewshot out")
    if num_fewshot:
        available = len(task.fewshot_docs())
        if num_fewshot > available:
            raise UserError(f"num_fewshot {num_fewshot}: task {name} has {available} examples")
    task.set_config(key="num_fewshot", value=num_fewshot)
