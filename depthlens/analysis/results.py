"""What a sweep found: the score of every document under every condition, and the record needed to repeat it.

``docs`` and ``record`` are the only state; the summary, the baselines and every verdict are computed from
them, so that a table can never disagree with the documents below it. On disk a result is one folder with
``docs.parquet``, ``questions.parquet``, ``summary.parquet`` (for readers without depthlens) and ``record.json``.

A task is **at chance** when its baseline is not above chance at the 0.05 level (one-sided exact binomial
test), or when its 0/1 baseline is 0 whatever chance is. Too few documents to tell are thus at chance, too:
such a task has nothing to lose, or too little to show a loss, and no condition on it is called harmless or
critical.
"""

from __future__ import annotations

import html
import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import pandas as pd
import pyarrow
import pyarrow.parquet

from depthlens import arguments
from depthlens.analysis import questions, result_display, result_folder, stats
from depthlens.analysis.result_folder import DOCS_FILE, FILES, RECORD_FILE, SUMMARY_FILE
from depthlens.analysis.stats import ALPHA, BASELINE, GROUP
from depthlens.errors import UserError, unknown
from depthlens.paths import writable_folder

DOCS_COLUMNS = [*GROUP, "condition", "layer", "head", "doc_id", "value", "response"]
_DTYPES = {"layer": "Int64", "head": "Int64", "doc_id": "int64", "value": "float64"}


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """Scores of documents x conditions, with everything derived from them.

    Attributes:
        docs: One row per (model, task, metric, condition, document); the columns are ``DOCS_COLUMNS``.
        record: JSON-able; ``record["tasks"][task]["metrics"][metric]`` has ``higher_is_better``, ``chance``.
        asked: What `questions` reads; None where it is not known.
    """

    docs: pd.DataFrame
    record: dict
    asked: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.docs, pd.DataFrame) or not isinstance(self.record, dict):
            kinds = f"{type(self.docs).__name__} and {type(self.record).__name__}"
            raise UserError(f"a result is made of a table of documents and a record, not of {kinds}; give these two")
        object.__setattr__(self, "docs", _normalise(self.docs))
        # Through JSON once: a result in memory equals the same result read back.
        try:
            object.__setattr__(self, "record", json.loads(json.dumps(self.record, allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise UserError(f"the record cannot be written as JSON: {error}; leave out what is not a value") from error
        if self.asked is not None:
            object.__setattr__(self, "asked", questions.normalise(self.asked))

    def questions(self) -> pd.DataFrame:
        """What each document asks, to be joined with `docs`: ``result.docs.merge(result.questions())``.

        ``question`` is the document's own text, without examples and chat template; ``reference`` the right answer
        (several accepted ones joined by ``" | "``); ``choices`` the options, or None. A folder of an older depthlens
        and a result made from tables have none, which is told as a `UserError`. See `depthlens.analysis.questions`.
        """
        if self.asked is None:
            raise UserError(f"this result holds no questions (no {questions.FILE}); run the sweep again to have them")
        return questions.of(self.asked, self.docs)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row per (model, task, metric, condition); see `depthlens.analysis.stats.summarise`."""
        return stats.summarise(self.docs)

    @cached_property
    def baselines(self) -> pd.DataFrame:
        """One row per (model, task, metric): unablated score, its interval, and whether it is at chance."""
        rows = []
        base = self.docs[self.docs["condition"] == BASELINE]
        for (model, task, metric), group in base.groupby(GROUP, sort=False):
            values = group["value"].to_numpy()
            info = self.metric_info(task, metric)
            binary, chance, better = stats.is_binary(values), info["chance"], info["higher_is_better"]
            if binary:
                low, high = stats.proportion_interval(int(values.sum()), len(values))
            else:
                low, high = stats.mean_interval(values)
            p = math.nan
            if chance is not None:  # a lower-is-better score beats chance where its complement does
                p = stats.above_chance(*((values, float(chance)) if better else (1 - values, 1.0 - chance)))
            floor = binary and better and not values.any()
            at_chance = bool(floor or (chance is not None and not p < ALPHA))
            rows.append((model, task, metric, len(values), values.mean(), low, high, chance, p, at_chance))
        columns = [*GROUP, "n", "baseline", "ci_low", "ci_high", "chance", "p_chance", "at_chance"]
        return pd.DataFrame(rows, columns=columns).astype({"chance": "float64"})

    def metric_info(self, task: str, metric: str) -> dict:
        """What the record says of a metric: ``higher_is_better`` (True if unsaid), ``chance`` (or None), ``least``.

        ``least`` is the smallest change worth a name: of a continuous score, tiny changes can be significant, too.
        """
        try:
            info = self.record["tasks"][task]["metrics"][metric]
        except KeyError:
            raise UserError(
                f"the record says nothing of metric {metric!r} of task {task!r}; "
                "record['tasks'][task]['metrics'][metric] needs higher_is_better and chance"
            ) from None
        return {"higher_is_better": True, "chance": None, "least": 0.0, **info}

    @property
    def notes(self) -> list[str]:
        """What stands between numbers and conclusions: tasks at chance, too few documents, cut prompts, selections."""
        notes = [_cannot_judge(row, self._name(row)) for row in self.baselines.itertuples() if row.at_chance]
        for row in self.baselines.itertuples():
            if not row.at_chance and (needed := self._needed[row.model, row.task, row.metric]):
                notes.append(
                    f"{self._name(row)}: {row.n} documents are too few for any loss to reach "
                    f"p_adjusted < {ALPHA}; take about {needed}"
                )
        notes += dict.fromkeys(result_display.truncation_notes(self.record))
        if count := self.record.get("selected_conditions"):
            notes.append(f"{count} conditions were selected, and p_adjusted corrects for these alone")
        return notes

    def critical(self, alpha: float = ALPHA) -> pd.DataFrame:
        """Rows of the summary whose loss is significant after Holm's correction (and not below the metric's least).

        A task at chance yields no row and a warning that names it.

        Args:
            alpha: Level that ``p_adjusted`` has to stay below.
        """
        if not isinstance(alpha, int | float) or not 0 < alpha < 1:
            raise UserError(f"alpha {alpha!r} is not between 0 and 1; 0.05 is usual")
        for row in self.baselines.itertuples():
            if row.at_chance:
                warnings.warn(_cannot_judge(row, self._name(row)), stacklevel=2)
        table = self._judged
        found = (table["p_adjusted"] < alpha) & (table["loss"] > table["least"]) & ~table["at_chance"]
        return table.loc[found, stats.SUMMARY_COLUMNS].reset_index(drop=True)

    def verdict(self, condition: str, task: str | None = None, metric: str | None = None) -> str:
        """Say in plain words what a condition costs: one sentence (a line) per model, task and metric."""
        if condition == BASELINE:
            raise UserError("the baseline is what the others are compared with; name another condition")
        table = self._judged
        for column, wanted in (("condition", condition), ("task", task), ("metric", metric)):
            if wanted is not None or column == "condition":
                if wanted not in list(table[column]):
                    raise unknown(column, wanted, [v for v in table[column].unique() if v != BASELINE])
                table = table[table[column] == wanted]
        return "\n".join(self._sentence(row) for row in table.itertuples())

    def select(
        self,
        *,
        models: str | Sequence[str] | None = None,
        tasks: str | Sequence[str] | None = None,
        metrics: str | Sequence[str] | None = None,
        conditions: Sequence[str] | None = None,
    ) -> Result:
        """Keep some models, tasks, metrics or conditions; the baseline always stays.

        Holm's correction then runs over the conditions that are left. Choose them before looking at their
        scores: choosing the largest effects and correcting for those alone would call noise critical. The
        selection is written into the record and told by `notes`.
        """
        docs, record = self.docs, self.record
        choice = {"model": models, "task": tasks, "metric": metrics, "condition": conditions}
        for column, wanted in choice.items():
            if wanted is None:
                continue
            names = arguments.chosen(column, wanted, docs[column].unique())
            docs = docs[docs[column].isin([*names, BASELINE] if column == "condition" else names)]
        if conditions is not None:
            kept = docs.loc[docs["condition"] != BASELINE, "condition"].nunique()
            record = {**record, "selected_conditions": kept}
        if "tasks" in record:
            record = {**record, "tasks": {t: v for t, v in record["tasks"].items() if t in set(docs["task"])}}
        return Result(docs, record, self.asked)

    def save(self, out: str | Path, *, overwrite: bool = False) -> None:
        """Write the files into folder ``out``, each replaced at once and none before all are written.

        Args:
            out: A folder, made where there is none.
            overwrite: Replace what the folder holds. Without it, only a result of the same sweep is replaced.

        Raises:
            UserError: ``out`` is a file, cannot be written, or holds another result or files of something else.
        """
        summary, folder = self.summary, writable_folder(out)
        if not overwrite:
            result_folder.refuse_other(folder, FILES, lambda record: self._differs(record, folder))
        text = json.dumps(self.record, indent=2, ensure_ascii=False) + "\n"
        writers: dict[str, Callable[[IO[bytes]], object]] = {
            DOCS_FILE: lambda file: self.docs.to_parquet(file, index=False),
            SUMMARY_FILE: lambda file: summary.to_parquet(file, index=False),
            RECORD_FILE: lambda file: file.write(text.encode()),
        }
        if self.asked is not None:
            writers[questions.FILE] = lambda file: self.questions().to_parquet(file, index=False)
        result_folder.write_together(folder, writers)
        if self.asked is None:  # those of an older result are not ours
            (folder / questions.FILE).unlink(missing_ok=True)

    def _differs(self, record: dict, folder: Path) -> str:
        """In what the result that lies in a folder differs from this one; "" if in nothing."""
        if why := result_folder.difference(record, self.record):
            return why
        path = folder / DOCS_FILE
        n = pyarrow.parquet.read_metadata(path).num_rows if path.exists() else len(self.docs)
        return "" if n == len(self.docs) else f"{n} rows of documents, not {len(self.docs)}"

    @classmethod
    def load(cls, out: str | Path) -> Result:
        """Read a folder that `save` wrote.

        Raises:
            UserError: a file is missing or is not what `save` writes.
        """
        if not isinstance(out, str | Path):
            raise UserError(f"folder {out!r}: give the folder that a sweep wrote")
        folder = Path(out)
        for name in (DOCS_FILE, RECORD_FILE):
            if not (folder / name).is_file():
                raise UserError(f"{str(folder)!r} holds no {name}; give a folder that a sweep wrote")
        try:
            docs = pd.read_parquet(folder / DOCS_FILE)
            record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
            asked = pd.read_parquet(folder / questions.FILE) if (folder / questions.FILE).is_file() else None
        except (OSError, pyarrow.ArrowException, ValueError) as error:
            fault = f"cannot read the result in {str(folder)!r}: {_line(error)}"
            raise UserError(f"{fault}; run the sweep again") from error
        if not isinstance(record, dict):
            raise UserError(f"{RECORD_FILE} in {str(folder)!r} is not a JSON object; run the sweep again")
        return cls(docs, record, asked)

    @cached_property
    def _judged(self) -> pd.DataFrame:
        """The summary without baselines, with ``loss`` (positive = worse), the ``least`` that counts, ``at_chance``."""
        table = self.summary[self.summary["condition"] != BASELINE]
        table = table.merge(self.baselines[[*GROUP, "chance", "p_chance", "at_chance"]], on=GROUP, how="left")
        infos = [self.metric_info(r.task, r.metric) for r in table.itertuples()]
        losses = [-d if i["higher_is_better"] else d for d, i in zip(table["delta"], infos, strict=True)]
        return table.assign(loss=losses, least=[i["least"] for i in infos])

    @cached_property
    def _needed(self) -> dict[tuple[str, str, str], int | None]:
        """Documents without which no loss of a 0/1 metric can be significant; None where there are enough."""
        needed: dict[tuple[str, str, str], int | None] = {}
        for key, group in self.docs.groupby(GROUP, sort=False):
            needed[key] = None
            base = group.loc[group["condition"] == BASELINE, "value"]
            right, m = int(base.sum()), group["condition"].nunique() - 1
            losable = self.metric_info(*key[1:])["higher_is_better"] and stats.is_binary(group["value"])
            if losable and m and right:
                enough = next(k for k in range(1, 1000) if stats.smallest_p(k, m) < ALPHA)
                if right < enough:
                    needed[key] = math.ceil(enough * len(base) / right)
        return needed

    def _name(self, row: object) -> str:
        model = f" of {row.model}" if self.docs["model"].nunique() > 1 else ""
        return f"{row.task} {row.metric}{model}"

    def _sentence(self, row: object) -> str:
        if row.at_chance:
            return f"{row.condition}: {_cannot_judge(row, self._name(row))}"
        better = self.metric_info(row.task, row.metric)["higher_is_better"]
        model = f" ({row.model})" if self.docs["model"].nunique() > 1 else ""
        where = f"{row.metric} of {row.task}{model}"
        if not row.p_adjusted < ALPHA:
            needed = self._needed[row.model, row.task, row.metric]
            few = f"; too few documents to show any loss, take about {needed}" if needed else ""
            return (
                f"{row.condition} shows no proven change of {where}: {row.delta:+.2g} "
                f"[{row.ci_low:.2g}, {row.ci_high:.2g}] (p_adjusted = {row.p_adjusted:.2g}{few})"
            )
        low, high = (row.ci_low, row.ci_high) if row.delta > 0 else (-row.ci_high, -row.ci_low)
        amount = f"{abs(row.delta):.2g} [{low:.2g}, {high:.2g}]"
        if better:
            text = f"{'costs' if row.loss > 0 else 'adds'} {amount} {where}"
        else:
            text = f"{'worsens' if row.loss > 0 else 'improves'} {where} by {amount}"
        return f"{row.condition} {text} (p_adjusted = {row.p_adjusted:.2g})"

    def _displayed(self) -> tuple[str, pd.DataFrame, list[str]]:
        try:
            notes, losses = self.notes, self._judged["loss"].tolist()
        except UserError as error:  # an incomplete record must not hide the table, though it does not say what is worse
            notes, losses = [str(error)], None
        head, table, rest = result_display.shown(self.summary, losses)
        return head, table, rest + notes

    def __repr__(self) -> str:
        head, table, rest = self._displayed()
        return "\n".join([head, table.to_string(index=False), *rest])

    def _repr_html_(self) -> str:
        head, table, rest = self._displayed()
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in rest)
        return f"<p>{html.escape(head)}</p>{table.to_html(index=False, border=0)}{lines}"


def concat(results: Sequence[Result]) -> Result:
    """Join results of different tasks, models or kinds of condition into one.

    A document scored twice under one condition (the baseline, which every sweep computes) is kept once if
    both scores are equal. In the record, what all results agree on stays at the top; the records themselves
    are kept under ``parts``.

    Raises:
        UserError: two results disagree on a score, or on what a task is.
    """
    if not isinstance(results, Sequence) or not results:
        raise UserError("no results to join; give at least one, in a list")
    for one in results:
        arguments.result(one)
    key = [*GROUP, "condition", "doc_id"]
    docs = pd.concat([r.docs for r in results], ignore_index=True)
    docs = docs.drop_duplicates([*key, "value"], ignore_index=True)
    clash = docs[docs.duplicated(key)]
    if len(clash):
        row = clash.iloc[0]
        raise UserError(
            f"the results disagree on {len(clash)} scores, first on {row['model']} {row['task']} "
            f"{row['metric']} {row['condition']} document {row['doc_id']}; join results of the same settings"
        )
    records = [r.record for r in results]
    record = _agreed(records)
    record["tasks"] = _joined_tasks(records)
    record["parts"] = records
    if any("selected_conditions" in r for r in records):
        record["selected_conditions"] = docs.loc[docs["condition"] != BASELINE, "condition"].nunique()
    joined = Result(docs, record, questions.joined(r.asked for r in results))
    _ = joined.summary  # documents that do not match are told here, not at the first plot
    return joined


def _joined_tasks(records: Sequence[dict]) -> dict[str, dict]:
    tasks: dict[str, dict] = {}
    for task in dict.fromkeys(t for r in records for t in r.get("tasks", {})):
        entries = [r["tasks"][task] for r in records if task in r.get("tasks", {})]
        for field in ("version", "num_fewshot", "output_type"):
            values = [e.get(field) for e in entries]
            if any(v != values[0] for v in values):
                raise UserError(f"the results disagree on {field} of task {task!r}: {values}; name them apart")
        made_of = [sorted(e["sha256"].values()) for e in entries if "sha256" in e]
        if any(hashes != made_of[0] for hashes in made_of):
            raise UserError(f"the results disagree on the files of task {task!r} (sha256); run the older one again")
        metrics: dict[str, dict] = {}
        for metric, info in ((m, i) for e in entries for m, i in e.get("metrics", {}).items()):
            known = metrics.setdefault(metric, dict(info))
            if any(known.get(k) != info.get(k) for k in ("higher_is_better", "chance")):
                raise UserError(f"the results disagree on metric {metric!r} of task {task!r}; name them apart")
        tasks[task] = {**_agreed(entries), "metrics": metrics}
    return tasks


def _normalise(docs: pd.DataFrame) -> pd.DataFrame:
    missing = [c for c in DOCS_COLUMNS if c not in docs.columns]
    extra = [str(c) for c in docs.columns if c not in DOCS_COLUMNS]
    if missing or extra:
        fault = f"lacks column {', '.join(missing)}" if missing else f"has unknown column {', '.join(extra)}"
        raise UserError(f"the table of documents {fault}; it needs exactly {', '.join(DOCS_COLUMNS)}")
    for column in (*GROUP, "condition", "doc_id", "response"):
        if docs[column].isna().any():
            raise UserError(f"the table of documents has a row without {column}; every row needs one")
    text = {c: "str" for c in (*GROUP, "condition", "response")}
    try:
        return docs[DOCS_COLUMNS].astype({**text, **_DTYPES}).reset_index(drop=True)
    except (TypeError, ValueError) as error:
        raise UserError(f"the table of documents has a column of the wrong type: {_line(error)}") from error


def _agreed(records: Sequence[dict]) -> dict:
    """The entries that are the same in all records."""
    first = records[0]
    return {k: v for k, v in first.items() if all(k in r and r[k] == v for r in records)}


def _cannot_judge(row: object, name: str) -> str:
    judged = row.chance == row.chance  # NaN: the task has no chance level, its baseline is 0
    why = f"chance {row.chance:.2g}, p = {row.p_chance:.2g}" if judged else "nothing to lose"
    return f"{name} is at chance: cannot judge (baseline {row.baseline:.2g}, {why}, n = {row.n})"


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
