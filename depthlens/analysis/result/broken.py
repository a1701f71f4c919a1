"""What the questions that a condition breaks have in common: broken and kept questions by fields of their documents.

Only questions that can fall are looked at: of right and wrong answers those that the whole model answers right. One is
broken if its score falls. A field is what the document says (`depthlens.analysis.result.questions`), the characters of
the question, the place of the right answer (the number of the option; else how far into the question it stands, from 0
to 1), or how sure the whole model is of its answer. A field of few values splits questions by each of them, a number of
many values at its median. Tested is the share of broken questions inside a group less that outside it. All groups of
all fields, and of all conditions that are asked for, are one family (`depthlens.analysis.numbers.means.max_t`).

Limit: a group of fewer than `FEWEST` questions, inside or outside, is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from depthlens.ablations.conditions import chosen
from depthlens.analysis.numbers.means import max_t
from depthlens.analysis.numbers.stats import ALPHA, BASELINE
from depthlens.analysis.numbers.words import estimate
from depthlens.analysis.result import documents
from depthlens.analysis.result.losses import AT_CHANCE
from depthlens.analysis.result.questions import FIELDS, SUBTASK
from depthlens.analysis.result.results import Result
from depthlens.analysis.result.tables import DescribedTable
from depthlens.errors import unknown

FEWEST = 10  # questions inside and outside a group
MOST_VALUES = 6  # a number of more is split at its median
COLUMNS = ["condition", "field", "value", "n", "broken", "others", "difference", "ci_low", "ci_high", "p_adjusted"]


class Broken(DescribedTable):
    """Broken and kept questions by fields of their documents; `Result.broken` made it.

    ``table`` has a row a condition, field and group: ``n`` (questions in the group), ``broken`` (the share of them that
    breaks), ``others`` (that of the rest), ``difference``, its 95% interval, and ``p_adjusted``, corrected over the
    whole table.
    """

    def by(self, field: str) -> pd.DataFrame:
        """The rows of a field.

        Raises:
            UserError: there is no such field, or none of its groups has enough questions.
        """
        if field not in (known := self.table["field"].unique()):
            raise unknown("field of the documents", field, known, f"a group needs {FEWEST} questions, and so do others")
        return self.table[self.table["field"] == field].reset_index(drop=True)


def broken(result: Result, conditions: str | Sequence[str], task: str | None = None) -> Broken:
    """See `depthlens.Result.broken`."""
    task = documents.only(result.docs, "task", task)
    every = result.select(tasks=task).primary()
    names = chosen(conditions, every.docs["condition"].unique())
    losses = every.losses(task)
    at = np.flatnonzero(losses.base > losses.limits[0])
    whole = every.docs[every.docs["condition"] == BASELINE].set_index("doc_id").sort_index()
    groups = list(_groups(fields(result, task, whole[documents.MARGIN]).iloc[at]))
    losses = losses.select(names, documents=at)
    lost, tables = (losses.loss > 0).astype(float), []
    if groups and not losses.at_chance:
        inside = np.column_stack([group for *_, group in groups])[:, None]  # [document, condition, group]
        parts = [losses.over(lost[..., None] * of, (0, 1)) / losses.over(of, (0, 1)) for of in (inside, 1 - inside)]
        found = parts[0] - parts[1]
        columns = found.ravel().columns() | {"p_adjusted": max_t(found.ravel())}
        columns |= {"broken": parts[0].value.ravel(), "others": parts[1].value.ravel()}
        about = [(name, field, value, int(of.sum())) for name in names for field, value, of in groups]
        tables.append(pd.DataFrame(about, columns=COLUMNS[:4]).assign(**columns))
    table = pd.concat(tables) if tables else pd.DataFrame(columns=COLUMNS)
    lines = []
    for name, of in zip(names, lost.T, strict=True):
        asked = f"{len(of)} questions of {task} that the whole model can lose"
        shared = common(table[table["condition"] == name])
        told = [f"The whole model is {AT_CHANCE}: cannot judge."] if losses.at_chance else shared
        lines += [f"{name} breaks {int(of.sum())} of {asked}.", *told]
    return Broken.of("broken", result, rows=table, columns=COLUMNS, lines=lines, conditions=names)


def common(rows: pd.DataFrame, most: int = 3) -> list[str]:
    """What the broken questions of a condition have in common, in sentences; that nothing is shown is said, too."""
    shown = rows[rows["p_adjusted"] < ALPHA]
    shown = shown.sort_values(["p_adjusted", "difference"], ascending=[True, False]).head(most)
    lines = [
        f"It breaks **{row.broken:.0%}** of those with {row.field} {row.value}, {row.others:.0%} of the others "
        f"(difference {estimate(row.difference, row.ci_low, row.ci_high)}, p_adjusted = {row.p_adjusted:.2g})."
        for row in shown.itertuples()
    ]
    tried = ", ".join(rows["field"].unique()) or "no field"
    return lines or [f"Nothing that they have in common is shown ({len(rows)} groups by {tried})."]


def fields(result: Result, task: str, margin: pd.Series) -> pd.DataFrame:
    """Fields of a task's documents, one row a document."""
    asked = result.questions()
    asked = asked[asked["task"] == task].set_index("doc_id").reindex(margin.index)
    table = pd.DataFrame([{} if pd.isna(said) else json.loads(said) for said in asked[FIELDS]], index=margin.index)
    if asked[SUBTASK].notna().any():
        table["subtask"] = asked[SUBTASK]
    places = [
        choices.index(right) if choices and right in choices else _place(right, text)
        for text, right, choices in asked[["question", "reference", "choices"]].itertuples(index=False)
    ]
    return table.assign(**{"question length": asked["question"].str.len(), "answer position": places, "margin": margin})


def _place(right: str, text: str) -> float:
    """How far into a text an answer stands, from 0 to 1; NaN where it does not."""
    at = text.find(right) if right else -1
    return at / len(text) if at >= 0 else np.nan


def _groups(table: pd.DataFrame) -> Iterator[tuple[str, str, np.ndarray]]:
    """Field, value and members of each group that is large enough; none is another one, or the rest of another one."""
    known: set[bytes] = set()
    for field, column in table.items():
        values = column.dropna()
        if pd.api.types.is_numeric_dtype(values) and values.nunique() > MOST_VALUES:
            middle = values.median()
            found = {f"above {middle:.3g}": column > middle}
        else:
            found = {f"= {value}": column == value for value in sorted(values.unique(), key=str)}
        for value, members in found.items():
            inside = members.to_numpy(dtype=float)
            if min(inside.sum(), len(inside) - inside.sum()) >= FEWEST and inside.tobytes() not in known:
                known |= {inside.tobytes(), (1 - inside).tobytes()}
                yield str(field), value, inside
