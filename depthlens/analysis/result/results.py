"""What a sweep found: the score of every document under every condition, and the record needed to repeat it.

``docs`` and ``record`` are the only state. The summary, the baselines and every sentence are computed from them, so
that a table can never disagree with the documents below it. On disk a result is one folder with ``docs.parquet``,
``questions.parquet``, ``summary.parquet`` (for readers without depthlens) and ``record.json``.

A task is **at chance**, in sentences "not shown to be above chance", when its baseline is not above chance at the 0.01
level (one-sided exact binomial test, or t test for scores that are not 0 or 1), or when its 0/1 baseline is 0 whatever
chance is. Guessing and too few questions to tell are not told apart: there is nothing to lose, or too little to show a
loss, and no condition on it is called harmless or critical.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow.parquet

from depthlens import arguments
from depthlens.analysis.numbers import stats
from depthlens.analysis.numbers.means import in_top
from depthlens.analysis.numbers.stats import BASELINE, GROUP, Whole
from depthlens.analysis.result import documents, losses, questions
from depthlens.analysis.result.documents import DOCS_COLUMNS as DOCS_COLUMNS
from depthlens.analysis.result.findings import Finding, derived, paragraphs
from depthlens.analysis.result.folder import DOCS_FILE, QUESTIONS_FILE, RECORD_FILE, SUMMARY_FILE
from depthlens.analysis.result.losses import METRIC, Losses
from depthlens.errors import UserError
from depthlens.metrics import LOGPROBS

if TYPE_CHECKING:
    from depthlens.analysis.heads.scores import HeadScores
    from depthlens.analysis.result.broken import Broken
    from depthlens.analysis.show.explorer import Explorer


@dataclass(frozen=True, eq=False, repr=False)
class Result(Finding):
    """Scores of documents x conditions, with everything derived from them.

    Attributes:
        docs: One row per (model, task, metric, condition, document); the columns are ``DOCS_COLUMNS``, ``parsed``:
            whether the answer could be read (True for choices, NA where it is not known), and ``complete``: whether a
            written answer ended before it had as many tokens as were allowed (NA for choices).
        record: JSON-able; ``record["tasks"][task]["metrics"][metric]`` has ``higher_is_better``, ``chance``.
        asked: What `questions` reads; None where it is not known.

    Example:
        >>> result.critical()["condition"].tolist()
        ['L1', 'L2']
        >>> result.summary[["condition", "n", "value"]].round(2).head(2)
          condition   n  value
        0  baseline  12    1.0
        1        L0  12    1.0
        >>> figure = result.plot()
    """

    FILES: ClassVar[dict[str, str]] = {"asked": QUESTIONS_FILE}
    NEXT: ClassVar[str] = (
        "next: result.describe() says it in words, result.critical() lists what is shown to cost something, "
        "result.plot() draws it"
    )

    docs: pd.DataFrame
    record: dict[str, Any]
    asked: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "docs", documents.normalise(self.docs))
        if self.asked is not None:
            object.__setattr__(self, "asked", questions.of(questions.normalise(self.asked), self.docs))
        super().__post_init__()

    def questions(self) -> pd.DataFrame:
        """What each document asks, to be joined with `docs`: ``result.docs.merge(result.questions())``.

        ``question`` is the document's own text, without examples and chat template; ``reference`` the right answer
        (several accepted ones joined by ``" | "``); ``choices`` the options, or None; ``doc_hash`` what the document is
        known by in every task that asks it. See `depthlens.analysis.result.questions`.

        Raises:
            UserError: there are none, as in a folder of an older depthlens or a result made from tables.
        """
        if self.asked is None:
            raise UserError(f"this result holds no questions (no {QUESTIONS_FILE}); run the sweep again to have them")
        return self.asked.copy()

    @derived
    def every_losses(self) -> dict[tuple[str, str, str], Losses]:
        """`Losses` of every (model, task, metric), in the order of `docs`."""
        every = losses.every(self.docs, self.record, self.asked, self.n_layers)
        return {(each.model, each.task, each.metric): each for each in every}

    def losses(self, task: str | None = None, metric: str | None = None, model: str | None = None) -> Losses:
        """What every condition costs on a task: the one way from a result to a number.

        Args:
            task: Its name; may be left out where there is one.
            metric: Its name; may be left out where the task has one.
            model: Which model; may be left out where there is one.

        Raises:
            UserError: there is no such task, metric or model, or several and none is named.

        Example:
            >>> result.losses("organism_one_hop").critical()
            array([False,  True,  True, False, False, False])
        """
        keys = pd.DataFrame(self.every_losses.keys(), columns=GROUP)
        for column, name in (("model", model), ("task", task), ("metric", metric)):
            keys = keys[keys[column] == documents.only(keys, column, name)]
        return self.every_losses[tuple(keys.iloc[0])]

    @derived
    def summary(self) -> pd.DataFrame:
        """One row per (model, task, metric, condition): mean, paired change, its interval and p-values.

        ``delta`` is the mean change, and ``bounded`` the same with changes in nats clipped to 1 a document. Interval
        and ``p_value`` (of one condition alone) are of the latter, because no test of a mean can exclude a rare large
        change that was never seen (Bahadur & Savage 1956, Ann. Math. Stat. 27:1115-1122). ``p_adjusted`` is corrected
        over the conditions of a task and metric (`depthlens.analysis.numbers.means.max_t`).

        Conditions keep their order of first appearance, baseline first. The baseline row has delta 0, interval 0..0 and
        no p-value.
        """
        table = pd.concat([_summary(each) for each in self.every_losses.values()], ignore_index=True)
        places = table[["layer", "head"]].astype("Int64")
        table[["layer", "head"]] = places.mask(places == -1)
        return table.astype(dict.fromkeys([*GROUP, "condition"], "str"))[stats.SUMMARY_COLUMNS]

    @derived
    def baselines(self) -> pd.DataFrame:
        """One row per (model, task, metric): score of the whole model, its interval, and whether it is at chance."""
        rows = []
        for (model, task, metric), each in self.every_losses.items():
            self.metric_info(task, metric)
            rows.append((model, task, metric, *each.whole))
        columns = [*GROUP, *Whole._fields]
        return pd.DataFrame(rows, columns=columns).astype({"chance": "float64"})

    @property
    def n_layers(self) -> int:
        """Layers of the model: by the record, else up to the last layer that was removed."""
        n_layers = self.record.get("model", {}).get("dims", {}).get("n_layers")
        return int(self.docs["layer"].fillna(-1).max()) + 1 if n_layers is None else int(n_layers)

    def metric_info(self, task: str, metric: str) -> dict[str, Any]:
        """Properties of a metric: ``higher_is_better`` (True if unsaid), ``chance`` (or None) and ``min_effect``.

        ``floor`` is what a broken model scores (`depthlens.tasks.prepared_task`). Results that were saved before it was
        recorded do not have it.

        ``min_effect`` is the smallest change that is called an effect, because tiny changes of a continuous score can
        be significant, too.

        Raises:
            UserError: the record has no such metric.
        """
        try:
            info = self.record["tasks"][task]["metrics"][metric]
        except KeyError:
            fault = f"the record says nothing of metric {metric!r} of task {task!r}"
            raise UserError(f"{fault}; record['tasks'][{task!r}]['metrics'] needs it, with its chance") from None
        return METRIC | info

    @property
    def notes(self) -> list[str]:
        """What limits the conclusions: tasks at chance, too few documents, cut prompts, selections."""
        from depthlens.analysis.show import words  # what shows a result knows it

        return words.notes(self)

    def scores(self, task: str, metric: str, model: str | None = None) -> pd.DataFrame:
        """Scores of one task and metric.

        Args:
            task: Its name.
            metric: Its name.
            model: Which model; may be left out where there is one.

        Returns:
            Documents (rows, by rising id) x conditions (columns, in the order of the sweep).

        Raises:
            UserError: there is no such task, metric or model, or several models and none is named.
        """
        return documents.table(self.docs, "value", task, metric, model)

    def answers(
        self, condition: str, change: str = "broken", *, task: str | None = None, against: Result | None = None
    ) -> pd.DataFrame:
        """The answers that a condition changes, or in which two models differ: see `depthlens.analysis.result.answers`.

        Example:
            >>> result.answers("L2")[["question", "baseline_answer", "answer"]].columns.tolist()
            ['question', 'baseline_answer', 'answer']
        """
        from depthlens.analysis.result import answers

        return answers.answers(self, condition, change, task=task, against=against)

    def broken(self, conditions: str | Sequence[str], task: str | None = None) -> Broken:
        """What the questions that a condition breaks have in common; see `depthlens.analysis.result.broken`.

        ``result.broken("L11").by("region")`` crosses broken and kept questions with a field of the documents.

        Raises:
            UserError: there is no such condition or task, several tasks or models, or the questions are not known.

        Example:
            >>> print(result.broken("L2").describe()[0])
            L2 breaks 12 of 12 questions of organism_one_hop that the whole model can lose.
        """
        from depthlens.analysis.result import broken

        return broken.broken(self, conditions, task)

    def to_inspect(self, out: str | Path) -> list[Path]:
        """Write a log of Inspect for each task and condition into a folder, for ``inspect view --log-dir OUT``.

        The condition is among the arguments of the model; see `depthlens.analysis.result.inspect_logs`.

        Returns:
            The ``.eval`` files. Those of an earlier call for the same result are replaced.

        Raises:
            UserError: the folder cannot be written, or the questions are not known.

        Example:
            >>> len(result.to_inspect("logs"))
            7
        """
        from depthlens.analysis.result import inspect_logs

        return inspect_logs.write(self, out)

    def explore(self) -> Explorer:
        """What breaks: a map of the removed parts, and the answers that each of them changes.

        In JupyterLab ``view = result.explore()`` shows it, and the next cell reads ``view.condition`` and
        ``view.documents``.
        """
        from depthlens.analysis.show.explorer import Explorer

        return Explorer(self)

    def unparsed(self, task: str, metric: str, model: str | None = None) -> pd.DataFrame:
        """Share of unreadable answers by condition; see `depthlens.analysis.show.written_answers.unparsed`."""
        from depthlens.analysis.show import written_answers

        return written_answers.unparsed(self, task, metric, model)

    @derived
    def loss_table(self) -> pd.DataFrame:
        """What each condition costs: the rows of `summary` without baselines, and the sign settled for every metric.

        The columns are those of `summary`, and ``loss`` (positive is worse; of ``bounded``), ``loss_low``,
        ``loss_high`` (95% interval), ``min_effect`` (see `metric_info`), ``chance``, ``p_chance`` and ``at_chance`` (of
        the baseline), ``critical`` and ``gain`` (losses and gains that are shown: ``p_adjusted`` below 0.05, above
        ``min_effect``, and not at chance).
        """
        table = self.summary[self.summary["condition"] != BASELINE]
        table = table.merge(self.baselines[[*GROUP, "chance", "p_chance", "at_chance"]], on=GROUP, how="left")
        costs = pd.concat([pd.DataFrame(each.costs()) for each in self.every_losses.values()], ignore_index=True)
        return pd.concat([table, costs], axis=1)

    def critical(self) -> pd.DataFrame:
        """Rows of the summary whose loss is significant by step-down maxT, and above the metric's ``min_effect``.

        A task at chance yields no row and a warning that names it. ``in_top`` is how stable the ranking is: the
        share of bootstrap draws of questions in which the row is among the k costliest of its task and metric, where k
        are critical (`depthlens.analysis.numbers.means.in_top`).
        """
        from depthlens.analysis.show import words

        several = self.docs["model"].nunique() > 1
        for row in self.baselines.itertuples():
            if row.at_chance:
                warnings.warn(words.cannot_judge(row, several=several), stacklevel=2)
        tops = [in_top(each.mean(), int(each.critical().sum())) for each in self.every_losses.values()]
        table = self.loss_table.assign(in_top=np.concatenate([[], *tops]))
        return table.loc[table["critical"], [*stats.SUMMARY_COLUMNS, "in_top"]].reset_index(drop=True)

    def head_losses(self, task: str | None = None, metric: str | None = None) -> HeadScores:
        """Loss that removing each head causes, of a head sweep; see `depthlens.analysis.heads.effects.head_losses`."""
        from depthlens.analysis.heads import effects

        return effects.head_losses(self, documents.only(self.docs, "task", task), metric)

    def describe(
        self,
        conditions: str | Sequence[str] | None = None,
        *,
        tasks: str | Sequence[str] | None = None,
        metrics: str | Sequence[str] | None = None,
    ) -> list[str]:
        """What the result says, one sentence each.

        Args:
            conditions: What each of these costs: a sentence per condition, model, task and metric. None describes the
                whole result: for a head sweep how many heads are critical and which costs most, for a block sweep the
                largest block whose loss is shown to be small, and otherwise the critical conditions of each task.
            tasks: Of these tasks only.
            metrics: Of these metrics only.

        Raises:
            UserError: a condition, task or metric that the result does not have.
        """
        from depthlens.analysis.show import words

        result = self if tasks is None and metrics is None else self.select(tasks=tasks, metrics=metrics)
        if conditions is None:
            return words.describe(result)
        table = result.loss_table
        names = arguments.chosen("condition", conditions, table["condition"].unique())
        rows = table[table["condition"].isin(names)]
        return [words.sentence(result, row) for row in rows.itertuples()]

    def select(
        self,
        *,
        models: str | Sequence[str] | None = None,
        tasks: str | Sequence[str] | None = None,
        metrics: str | Sequence[str] | None = None,
        conditions: Sequence[str] | None = None,
    ) -> Result:
        """Keep some models, tasks, metrics or conditions; the baseline always stays.

        The correction then runs over the conditions that are left. Choose them before looking at their
        scores: choosing the largest effects and correcting for those alone would call noise critical. The
        selection is written into the record and stated by `notes`.
        """
        docs, record = self.docs, self.record
        choice = {"model": models, "task": tasks, "metric": metrics, "condition": conditions}
        for column, value in choice.items():
            if value is None:
                continue
            names = arguments.chosen(column, value, docs[column].unique())
            docs = docs[docs[column].isin([*names, BASELINE] if column == "condition" else names)]
        if conditions is not None:
            n_selected = docs.loc[docs["condition"] != BASELINE, "condition"].nunique()
            record = {**record, "selected_conditions": n_selected}
        if "tasks" in record:
            record = {**record, "tasks": {t: v for t, v in record["tasks"].items() if t in set(docs["task"])}}
        return Result(docs, record, self.asked)

    def primary(self, *, with_logprob: bool = False) -> Result:
        """Keep the metric of each task that stands for it; see `depthlens.analysis.result.documents.headline`.

        Args:
            with_logprob: Keep ``answer_logprob`` and ``token_logprob`` beside it, where they were measured.

        Returns:
            A result with the first metric of each task, ``flexible-extract`` before ``strict-match``, and ``acc_norm``
            of `depthlens.metrics.LENGTH_NORMALISED`. A log-likelihood of the reference answer is kept where it is the
            only one.
        """
        base = self.docs.loc[self.docs["condition"] == BASELINE, ["task", "metric"]].drop_duplicates()
        first = {
            task: documents.headline(task, metrics.tolist())
            for task, metrics in base.groupby("task", sort=False)["metric"]
        }
        kept = self.docs["metric"] == self.docs["task"].map(first)
        if with_logprob:
            kept |= self.docs["metric"].isin(LOGPROBS)
        return Result(self.docs[kept], self.record, self.asked)

    def contents(self) -> dict[str, Any]:
        """What its files hold: its own tables and the summary for other readers; its record is a file as it is."""
        return {**super().contents(), SUMMARY_FILE: self.summary, RECORD_FILE: self.record}

    def differs(self, folder: Path, record: dict[str, Any]) -> str:
        """In what the result in a folder differs from this one, "" if in nothing; see `Finding.differs`."""
        _ = record["tasks"]
        path = folder / DOCS_FILE
        n = pyarrow.parquet.read_metadata(path).num_rows if path.exists() else len(self.docs)
        rows = "" if n == len(self.docs) else f"{n} rows of documents, not {len(self.docs)}"
        return super().differs(folder, record) or rows

    @derived
    def needed_documents(self) -> dict[tuple[str, str, str], int | None]:
        """Documents that show a loss of 0.1 of a 0/1 metric in 80% of samples; None where there are as many.

        The keys are (model, task, metric). See `depthlens.analysis.numbers.stats.needed_documents`.
        """
        return {
            key: stats.needed_documents(each.base, len(each.conditions))
            if each.sign > 0 and stats.is_binary(each.base) and stats.is_binary(each.values)
            else None
            for key, each in self.every_losses.items()
        }

    def display(self) -> tuple[str, pd.DataFrame, list[str]]:
        """What is shown: the worst losses of each task and metric, and what limits the conclusions."""
        from depthlens.analysis.show import words

        return words.displayed(self)

    def _repr_html_(self) -> str:
        """In JupyterLab: the losses as small squares, three broken answers, and what limits the conclusions."""
        from depthlens.analysis.show.explorer import glance

        try:
            picture, limits = glance(self), self.notes
        except UserError:  # the record lacks what losses need: the table says what
            return super()._repr_html_()
        head = self.display()[0].partition(";")[0]
        return paragraphs([head]) + picture + paragraphs([*limits, self.NEXT])


def concat(results: Sequence[Result]) -> Result:
    """Join results of different tasks, models or kinds of condition into one.

    A document scored twice under one condition (the baseline, which every sweep computes) is kept once if
    both scores are equal. In the record, what all results agree on stays at the top; the records themselves
    are kept under ``parts``.

    Raises:
        UserError: two results disagree on a score, or on what a task is.

    Example:
        >>> attention = dl.layer_sweep(lens, "organism_one_hop", site="attn", limit=12)
        >>> dl.concat([result, attention]).summary["condition"].nunique()
        13
    """
    if not results:
        raise UserError("results []: give at least one result to join")
    key = [*GROUP, "condition", "doc_id"]
    docs = pd.concat([r.docs for r in results], ignore_index=True)
    docs = docs.drop_duplicates([*key, "value"], ignore_index=True)
    clash = docs[docs.duplicated(key)]
    if len(clash):
        first = " ".join(map(str, clash.iloc[0][key]))
        fault = f"the results disagree on {len(clash)} scores, first on {first}"
        raise UserError(f"{fault}; join results of the same settings")
    parts = [r.record for r in results]
    record = _agreed(parts) | {"tasks": _joined_tasks(parts), "parts": parts}
    if any("selected_conditions" in r for r in parts):
        record["selected_conditions"] = docs.loc[docs["condition"] != BASELINE, "condition"].nunique()
    joined = Result(docs, record, questions.joined(r.asked for r in results))
    _ = joined.summary  # documents that do not match are refused here, not at the first plot
    return joined


def _summary(each: Losses) -> pd.DataFrame:
    """Rows of `Result.summary` of one model, task and metric, the baseline first."""
    values, base, change = each.sign * each.values, each.sign * each.base.mean(), each.mean() * -each.sign
    columns = {"value": values.mean(0), "delta": (values - each.sign * each.base[:, None]).mean(0)}
    columns |= change.columns("bounded") | {"p_adjusted": each.p_adjusted}
    of_base = {"value": base} | {name: np.nan if name.startswith("p_") else 0.0 for name in (*columns,)[1:]}
    table = pd.DataFrame({name: np.r_[of_base[name], rest] for name, rest in columns.items()})
    places = {"condition": [BASELINE, *each.conditions], "layer": np.r_[-1, each.layers], "head": np.r_[-1, each.heads]}
    about = {"model": each.model, "task": each.task, "metric": each.metric, "n": len(each.base), "baseline": base}
    return table.assign(**places, **about)


def _agreed(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The entries that are the same in all records."""
    first, *others = records
    return {k: v for k, v in first.items() if all(k in r and r[k] == v for r in others)}


def _joined_tasks(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The tasks of all records.

    Raises:
        UserError: two records disagree on what a task or a metric is.
    """
    tasks: dict[str, dict] = {}
    for task, entry in (item for record in records for item in record.get("tasks", {}).items()):
        known = tasks.setdefault(task, entry)
        old, new = (e.get("metrics", {}) for e in (known, entry))
        fields = ("version", "num_fewshot", "output_type")
        pairs = {f"{field} of": (known.get(field), entry.get(field)) for field in fields}
        for metric, field in itertools.product(old.keys() & new.keys(), ("higher_is_better", "chance")):
            pairs[f"{field} of metric {metric!r} of"] = old[metric].get(field), new[metric].get(field)
        for what, values in pairs.items():
            if values[0] != values[1]:
                raise UserError(f"the results disagree on {what} task {task!r}: {list(values)}; name them apart")
        tasks[task] = _agreed([known, entry]) | {"metrics": {**old, **new, **old}}
    return tasks
