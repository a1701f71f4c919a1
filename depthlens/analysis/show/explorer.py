"""What breaks: the answers that each removal changes, as a view for JupyterLab and as HTML for a page."""

from __future__ import annotations

import html
import os
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from depthlens.analysis.numbers.stats import BASELINE, is_binary
from depthlens.analysis.numbers.words import NOT_ABOVE_CHANCE, not_above_chance, plain
from depthlens.analysis.result import documents
from depthlens.analysis.result.answers import BROKEN, answers, logprobs, questions_of
from depthlens.analysis.result.broken import broken, common
from depthlens.analysis.result.results import Result
from depthlens.analysis.show.views import View
from depthlens.errors import UserError
from depthlens.paths import NO_ANSWERS

MOST_PARTS, MOST_ANSWERS, MOST_QUESTIONS = 8, 3, 5  # of the table that stands where no script runs
HEADS = "L#.H#"
FEWEST = 3  # conditions of one form that have a row of their own


class Explorer(View):
    """The answers of a sweep, to be looked at. Made by `depthlens.Result.explore`.

    Attributes:
        result: The sweep. Of each task the metric that stands for it is shown.
        model: Name of its model.

    Raises:
        UserError: a result that removes nothing.
    """

    def __init__(self, result: Result) -> None:
        if result.loss_table.empty:
            raise UserError("the result removes nothing, so that no answer breaks; sweep at least one condition")
        self.result, self.model = result, result.model

    @property
    def title(self) -> str:
        """Of a page of its own."""
        return f"{self.model}: what breaks?"

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the script reads: questions, right answers, answers and scores of every task."""
        primary = self.result.primary()
        losses = primary.loss_table
        rows = primary.baselines.itertuples()
        tasks = [_task(self.result, row, losses[losses["task"] == row.task]) for row in rows]
        if os.environ.get(NO_ANSWERS):
            for task in tasks:
                task |= {name: [""] * len(task[name]) for name in ("questions", "references", "texts")}
        scale = max(0.3, float(losses["loss"].abs().max()))
        metrics = ", ".join(dict.fromkeys(task["metric"] for task in tasks))
        asked = [self.result.record["tasks"].get(task["name"], {}) for task in tasks]
        shots = " or ".join(map(str, sorted({one.get("num_fewshot") or 0 for one in asked})))
        legend = (
            f"Red: a removal costs. Blue: it gains. Dot: critical. Hatched: the whole model is {NOT_ABOVE_CHANCE}. "
        )
        legend += f"At the right: {metrics} of the whole model. Worked examples before each question: {shots}."
        best = _first(losses)
        at = [task["name"] for task in tasks].index(best.task)
        start = {"task": at, "condition": tasks[at]["conditions"].index(best.condition), "change": BROKEN}
        return {"tasks": tasks, "scale": scale, "legend": legend, "start": start}

    @property
    def condition(self) -> str:
        """The part that is chosen now, such as ``L11``."""
        state = self.widget.state
        return str(self.data["tasks"][state["task"]]["conditions"][state["condition"]])

    @property
    def documents(self) -> pd.DataFrame:
        """The answers that are shown now; see `depthlens.Result.answers`."""
        state = self.widget.state
        found = answers(self.result, self.condition, state["change"], task=self.data["tasks"][state["task"]]["name"])
        text = found[["question", "reference", "baseline_answer", "answer"]].agg("\n".join, axis=1)
        return found[text.str.lower().str.contains(state.get("find", "").lower(), regex=False)].reset_index(drop=True)

    def table(self) -> str:
        """For each critical part its commonest new answers and some broken questions, as an HTML table."""
        rows = []
        losses = self.result.primary().loss_table
        for row in losses[losses["critical"]].nlargest(MOST_PARTS, "loss").itertuples():
            lost = answers(self.result, row.condition, BROKEN, task=row.task)
            often = lost["answer"].value_counts().head(MOST_ANSWERS)
            new = "; ".join(f"{_short(answer)} ({count})" for answer, count in often.items())
            asked = "; ".join(map(_short, lost["question"].head(MOST_QUESTIONS)))
            texts = ("", "") if os.environ.get(NO_ANSWERS) else (new, asked)
            rows.append([f"{row.condition}, {row.task}", f"{row.loss:.2f}", str(len(lost)), *texts])
        if not rows:
            return "<p>No removal is shown to break answers.</p>"
        columns = ["without", "loss", "broken answers", "answers instead (how often)", "broken questions"]
        cells = (zip(columns, map(html.escape, row), strict=True) for row in rows)
        lines = ("".join(f'<td data-label="{column}">{cell}</td>' for column, cell in row) for row in cells)
        heads = "".join(f'<th scope="col">{column}</th>' for column in columns)
        return f"<table><thead><tr>{heads}</tr></thead>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"

    def __repr__(self) -> str:
        return f"Explorer of {', '.join(task['name'] for task in self.data['tasks'])}"


def _task(result: Result, row: Any, losses: pd.DataFrame) -> dict[str, Any]:
    task, metric, score = row.task, row.metric, row.baseline
    values, texts = (documents.table(result.docs, column, task, metric) for column in ("value", "response"))
    conditions = [BASELINE, *(name for name in values if name != BASELINE)]
    values, texts = values[conditions], texts[conditions]
    codes, names = pd.factorize(texts.to_numpy().ravel())
    rows = losses.set_index("condition").reindex(conditions)
    costs = rows[["loss", "loss_low", "loss_high"]].fillna(0.0).round(4)
    critical = rows["critical"].eq(True)  # the baseline has no loss
    asked, likelihoods = questions_of(result, task, values.index), logprobs(result, task, values.index)
    likelihoods = likelihoods.sub(likelihoods[BASELINE], axis=0)
    binary = is_binary(values.to_numpy())
    telling = [*rows.index[critical]] if result.asked is not None and not os.environ.get(NO_ANSWERS) else []
    shared = broken(result, telling, task).table if telling else pd.DataFrame({"condition": []})
    return {
        "name": task,
        "metric": metric,
        "at_chance": not_above_chance(row.n) if row.at_chance else "",
        "sign": 1 if result.metric_info(task, metric)["higher_is_better"] else -1,
        "score": round(float(score), 4),
        "binary": binary,
        "conditions": conditions,
        "common": {name: plain(" ".join(common(shared[shared["condition"] == name]))) for name in telling},
        "rows": _rows(task, conditions),
        "losses": costs.astype(object).assign(critical=critical).to_numpy().tolist(),
        "ids": values.index.tolist(),
        "questions": asked["question"].tolist(),
        "references": asked["reference"].tolist(),
        "texts": names.tolist(),
        "answers": codes.reshape(texts.shape).T.tolist(),
        "values": values.to_numpy().astype(int).T.tolist() if binary else values.round(3).to_numpy().T.tolist(),
        "nats": None if likelihoods.isna().to_numpy().all() else likelihoods[conditions].round(2).to_numpy().T.tolist(),
    }


def _rows(task: str, conditions: list[str]) -> list[dict[str, Any]]:
    """The rows of buttons: conditions of one form, such as ``L#@mean``; of heads one a layer."""
    table = pd.DataFrame({"name": conditions[1:], "cell": range(1, len(conditions))})
    table["form"] = table["name"].str.replace(r"\d+", "#", regex=True)
    few = table.groupby("form")["cell"].transform("size") < FEWEST
    if not few.all():  # a few others stand behind the first row
        first = table.loc[~few, "form"].iloc[0]
        table = table.assign(form=table["form"].mask(few, first))
        table = pd.concat([table[table["form"] == first], table[table["form"] != first]])
    table["row"] = np.where(table["form"] == HEADS, table["name"].str.partition(".")[0], table["form"])
    rows = []
    for (form, name), group in table.groupby(["form", "row"], sort=False):
        label = name if form == HEADS else task if form == table["form"].iloc[0] else f"{task} {form.replace('#', '…')}"
        ticks = group["name"].str.replace(r"^(?:L\d+\.H|L)(\d+)\D*$", r"\1", regex=True).tolist()
        rows.append({"label": label, "cells": group["cell"].tolist(), "ticks": ticks, "grid": form == HEADS})
    return rows


def _first(losses: pd.DataFrame) -> Any:
    """The costliest single part, first critical ones, and those beyond the first two layers, which break every text."""
    single = losses["layer"].notna() & ~losses["condition"].str.contains("+", regex=False)
    ranks = losses.assign(single=single, later=losses["layer"].fillna(2) >= 2, judged=~losses["at_chance"])
    return ranks.sort_values(["judged", "single", "critical", "later", "loss"], kind="stable").iloc[-1]


def _short(text: str, most: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
