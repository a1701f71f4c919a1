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

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import pandas as pd
import pyarrow.parquet

from depthlens import arguments
from depthlens.ablations.conditions import chosen
from depthlens.analysis.numbers.stats import BASELINE, GROUP, SUMMARY_COLUMNS, Whole
from depthlens.analysis.result import documents, losses, questions
from depthlens.analysis.result.findings import Finding, derived
from depthlens.analysis.result.folder import DOCS_FILE, QUESTIONS_FILE, RECORD_FILE, SUMMARY_FILE
from depthlens.analysis.result.losses import METRIC, Losses
from depthlens.errors import UserError
from depthlens.metrics import LOGPROBS


@dataclass(frozen=True, eq=False, repr=False)
class Scored(Finding):
    """What a `depthlens.Result` holds, and the tables that are made from it."""

    FILES: ClassVar[dict[str, str]] = {"asked": QUESTIONS_FILE}

    docs: pd.DataFrame
    record: dict[str, Any]
    asked: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "docs", documents.normalise(self.docs))
        if len(models := self.docs["model"].unique()) > 1:
            raise UserError(f"results of {', '.join(models)}: a result is of one model; keep one for each")
        if self.asked is not None:
            object.__setattr__(self, "asked", questions.of(questions.normalise(self.asked), self.docs))
        super().__post_init__()

    @property
    def model(self) -> str:
        """Name of the model."""
        return str(self.docs["model"].iloc[0])

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
    def every_losses(self) -> dict[tuple[str, str], Losses]:
        """`Losses` of every (task, metric), in the order of `docs`."""
        every = losses.every(self.docs, self.record, self.asked, self.n_layers)
        return {(each.task, each.metric): each for each in every}

    def losses(self, task: str | None = None, metric: str | None = None) -> Losses:
        """What every condition costs on a task: the one way from a result to a number.

        Args:
            task: Its name; may be left out where there is one.
            metric: Its name; may be left out where the task has one.

        Raises:
            UserError: there is no such task or metric, or several and none is named.

        Example:
            >>> result.losses("organism_one_hop").critical()
            array([False,  True,  True, False, False, False])
        """
        task = documents.only(self.docs, "task", task)
        return self.every_losses[task, documents.only(self.docs[self.docs["task"] == task], "metric", metric)]

    @derived
    def summary(self) -> pd.DataFrame:
        """One row per (task, metric, condition): mean, paired change, its interval and p-values.

        ``delta`` is the mean change, and ``bounded`` the same with changes in nats clipped to 1 a document. Interval
        and ``p_value`` (of one condition alone) are of the latter, because no test of a mean can exclude a rare large
        change that was never seen (Bahadur & Savage 1956, Ann. Math. Stat. 27:1115-1122). ``p_adjusted`` is corrected
        over the conditions of a task and metric (`depthlens.analysis.numbers.means.max_t`).

        Conditions keep their order of first appearance, baseline first. The baseline row has delta 0, interval 0..0 and
        no p-value.
        """
        table = pd.concat([each.summary() for each in self.every_losses.values()], ignore_index=True)
        places = table[["layer", "head"]].astype("Int64")
        table[["layer", "head"]] = places.mask(places == -1)
        return table.astype(dict.fromkeys([*GROUP, "condition"], "str"))[SUMMARY_COLUMNS]

    @derived
    def baselines(self) -> pd.DataFrame:
        """One row per (task, metric): score of the whole model, its interval, and whether it is at chance."""
        rows = []
        for (task, metric), each in self.every_losses.items():
            self.metric_info(task, metric)
            rows.append((self.model, task, metric, *each.whole))
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

    def scores(self, task: str, metric: str) -> pd.DataFrame:
        """Scores of one task and metric.

        Args:
            task: Its name.
            metric: Its name.

        Returns:
            Documents (rows, by rising id) x conditions (columns, in the order of the sweep).

        Raises:
            UserError: there is no such task or metric.
        """
        return documents.table(self.docs, "value", task, metric)

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

    def select(
        self,
        *,
        tasks: str | Sequence[str] | None = None,
        metrics: str | Sequence[str] | None = None,
        conditions: Sequence[str] | None = None,
    ) -> Self:
        """Keep some tasks, metrics or conditions; the baseline always stays.

        The correction then runs over the conditions that are left. Choose them before looking at their
        scores: choosing the largest effects and correcting for those alone would call noise critical. The
        selection is written into the record and stated by `notes`.
        """
        docs, record = self.docs, self.record
        choice = {"task": tasks, "metric": metrics, "condition": conditions}
        for column, value in choice.items():
            if value is None:
                continue
            known = docs[column].unique()
            names = chosen(value, known) if column == "condition" else arguments.chosen(column, value, known)
            docs = docs[docs[column].isin([*names, BASELINE] if column == "condition" else names)]
        if conditions is not None:
            n_selected = docs.loc[docs["condition"] != BASELINE, "condition"].nunique()
            record = {**record, "selected_conditions": n_selected}
        if "tasks" in record:
            record = {**record, "tasks": {t: v for t, v in record["tasks"].items() if t in set(docs["task"])}}
        return type(self)(docs, record, self.asked)

    def primary(self, *, with_logprob: bool = False) -> Self:
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
        return type(self)(self.docs[kept], self.record, self.asked)

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
