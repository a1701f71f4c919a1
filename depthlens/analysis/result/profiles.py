"""Losses of the removed layers of one model, and of two models side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from depthlens.analysis.numbers.stats import GROUP
from depthlens.analysis.result import questions
from depthlens.analysis.result.folder import mismatches
from depthlens.analysis.result.losses import Losses, layer_third
from depthlens.analysis.result.results import Result
from depthlens.errors import UserError

# of a task and of a run: what has to be the same in two results
_SETTINGS = ("version", "num_fewshot", "output_type", "seed", "apply_chat_template", "system_instruction")


def third_conditions(n_layers: int) -> list[str]:
    """The thirds of a model's layers as conditions, first to last: ``L0-9``, ``L10-19``, ``L20-29`` of 30 layers.

    Example:
        >>> third_conditions(30)
        ['L0-9', 'L10-19', 'L20-29']
    """
    thirds = pd.Series(range(n_layers)).groupby(layer_third(np.arange(n_layers), n_layers)).agg(["min", "max"])
    return [f"L{first}-{last}" if last > first else f"L{first}" for first, last in thirds.itertuples(index=False)]


def by_layer(result: Result, suffix: str | None = None) -> list[Losses]:
    """The losses of every task and metric of a layer sweep, by rising layer.

    Args:
        result: A layer sweep.
        suffix: Which conditions, of a sweep that removes each layer in several ways: those whose text is a layer and
            this, such as "", ``[1:]`` or ``@mean``. None: there is one a layer.

    Raises:
        UserError: conditions that are not one a layer.
    """
    found = []
    for every in result.every_losses.values():
        pairs = zip(every.conditions, every.layers, strict=True)
        named = [suffix is None or name == f"L{layer}{suffix}" for name, layer in pairs]
        at = np.flatnonzero((every.layers >= 0) & (every.heads < 0) & named)
        at = at[np.argsort(every.layers[at], kind="stable")]
        if not len(at) or (np.diff(every.layers[at]) == 0).any():
            fault = f"task {every.task} has not one condition a layer"
            raise UserError(f"{fault}; give the result of a sweep of layers{suffix or ''}")
        found.append(every.select(at))
    return found


def comparable(a: Result, b: Result, columns: Sequence[str] = (*GROUP[1:], "condition", "doc_id")) -> list[str]:
    """Names of the models of two results that were asked the same in the same way.

    Args:
        a: A sweep.
        b: Another.
        columns: Of `depthlens.Result.docs`, in which they have to have the same rows.

    Raises:
        UserError: naming what differs.
    """
    models = [a.model, b.model]
    rows = [pd.MultiIndex.from_frame(result.docs[list(columns)]).unique() for result in (a, b)]
    if len(extra := rows[0].symmetric_difference(rows[1])):
        which = ", ".join(f"{column} {value}" for column, value in zip(columns, extra[0], strict=True))
        only = models[extra[0] in rows[1]]
        raise UserError(f"{which}: {only} alone has it; run both alike, or choose with select(...)")
    for task in a.docs["task"].unique():
        own, other = ({key: (r.record | r.record["tasks"][task]).get(key) for key in _SETTINGS} for r in (a, b))
        if differs := mismatches(own, other):
            raise UserError(f"task {task}: {models[0]} and {models[1]} have {differs[0]}; run both alike")
    return models


def paired(base: Result, distilled: Result) -> list[tuple[Losses, Losses]]:
    """The losses of two models by layer, task by task and document by document, once they are found comparable.

    Raises:
        UserError: naming what differs.
    """
    comparable(base, distilled)
    by_task = {(of.task, of.metric): of for of in by_layer(distilled)}
    return [by_document(of, by_task[of.task, of.metric]) for of in by_layer(base)]


def by_document(a: Losses, b: Losses) -> tuple[Losses, Losses]:
    """The losses of two `comparable` results on one task, with their documents in the same order.

    Raises:
        UserError: documents of equal numbers ask something else.
    """
    # an older result does not say what its documents are; their numbers are the same
    known = not any(name.startswith(f"{a.task}:") for name in (*a.documents, *b.documents))
    own, other = a.join(b if known else replace(b, documents=a.documents))
    if len(own.base) < len(a.base):
        raise UserError(f"task {a.task}: {a.model} and {b.model} were asked other documents; run both alike")
    return own, other


def subjects_note(result: Result) -> Iterator[str]:
    """A line for each group whose subjects are too few to be its units (`depthlens.analysis.result.questions`)."""
    for task in result.docs["task"].unique():
        of = questions.subtasks(result.docs, result.asked, task)
        if of is not None and 1 < (n := of.nunique()) < questions.SUBJECTS_AS_UNITS:
            yield f"{task}: {n} subjects are too few to stand for others; what is found holds for these alone"
