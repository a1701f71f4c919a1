"""Texts that a model reads where no task is asked, and numbers that are measured of them and kept in the store.

C4 (Raffel et al. 2020, arXiv 1910.10683) is what angular distances are usually taken over (Gromov et al. 2024). Its
validation texts are streamed from the hub, from the first on, so that no more is downloaded than is read.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from depthlens import arguments
from depthlens.analysis.numbers.means import UNLIMITED, mean
from depthlens.engine.walk_check import window_of
from depthlens.errors import UserError, first_line, unknown
from depthlens.models.lens import Lens
from depthlens.paths import data_dir
from depthlens.progress import quiet
from depthlens.store.answer_cache import AnswerStore

T = TypeVar("T")
Texts = str | Sequence[str] | None
EMBEDDED, C4 = arguments.TEXT_SETS


def plain_texts() -> list[str]:
    """The embedded texts: 48 short ones of several kinds, which take turns."""
    lines = (data_dir() / "texts" / "plain.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


FIRST = 16  # of the embedded texts, where a caller names neither texts nor a limit: minutes less than all 48


def named(texts: Texts) -> str:
    """What a record calls some texts: the name of their set, or ``given``."""
    return EMBEDDED if texts is None else texts if isinstance(texts, str) else "given"


def chosen(texts: Texts, limit: int | None) -> list[str]:
    """The texts that are read.

    Args:
        texts: Any texts, or the name of a set: ``embedded`` (`plain_texts`) or ``c4``; None: ``embedded``.
        limit: Only the first so many; ``c4`` needs it. None: all, but `FIRST` where no texts are named.

    Raises:
        UserError: no texts, an unknown set, or a set that cannot be read.
    """
    if limit is not None:
        limit = arguments.whole("limit", limit, 1)
    if texts is None or texts == EMBEDDED:
        return plain_texts()[: FIRST if texts is None and limit is None else limit]
    if isinstance(texts, str):
        if texts != C4:
            raise unknown("text set", texts, arguments.TEXT_SETS, "or give texts as a list")
        return _c4(limit)
    texts = arguments.plain(texts)
    if not isinstance(texts, Sequence) or not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"texts {texts!r}: give a list of at least one text")
    return list(texts[:limit])


def encoded(lens: Lens, texts: Texts, limit: int | None, max_tokens: int) -> list[list[int]]:
    """Token ids of the texts that are read layer by layer, of which no more tokens are than an attention window has.

    Args:
        lens: A loaded model.
        texts: See `chosen`.
        limit: See `chosen`.
        max_tokens: Of longer texts, only the first so many tokens are read.

    Raises:
        UserError: weights that are not here, no texts, or one of fewer than 2 tokens or more than are read.
    """
    lens.needs_weights("the geometry of the residual stream")
    max_tokens = arguments.whole("max_tokens", max_tokens, 2)
    read = chosen(texts, limit)
    reads = min(lens.max_length, window_of(lens) or max_tokens)
    rows = [lens.tokenizer(text).input_ids[:max_tokens] for text in read]
    for i, (text, row) in enumerate(zip(read, rows, strict=True)):
        if len(row) < 2:
            raise UserError(f"text {i} ({text!r}) has fewer than 2 tokens ({len(row)}); give longer ones")
        if len(row) > reads:
            raise UserError(f"text {i} has {len(row)} tokens; the model reads {reads} at once, set max_tokens={reads}")
    return rows


def tokens_of(lens: Lens, text: str | Sequence[int]) -> tuple[int, ...]:
    """Token ids of a text, as the tokenizer makes them by default; or those that are given in its place.

    Raises:
        UserError: it is no text, or an empty one.
    """
    tokens = lens.tokenizer(text).input_ids if isinstance(text, str) else arguments.plain(text)
    if not isinstance(tokens, Sequence) or not tokens or not all(type(token) is int for token in tokens):
        raise UserError(f"prompt {text!r}: give some text")
    return tuple(tokens)


def _c4(limit: int | None) -> list[str]:
    import datasets  # slow to import

    if limit is None:
        raise UserError("text set c4 has 364,608 texts; say how many of them are read, e.g. limit=128")
    try:
        with quiet():
            rows = datasets.load_dataset("allenai/c4", "en", split="validation", streaming=True)
            return [row["text"] for row in itertools.islice(rows, limit)]
    except (OSError, datasets.exceptions.DatasetsError) as error:
        why = "HF_HUB_OFFLINE=1" if os.environ.get("HF_HUB_OFFLINE") == "1" else first_line(error)
        raise UserError(f"text set c4 cannot be downloaded ({why}); go online, or use the embedded texts") from None


def measured(
    answers: AnswerStore,
    label: str,
    method: str,
    things: Sequence[T],
    names: Sequence[str],
    measure: Callable[[T], np.ndarray],
    *,
    cases: Sequence[Any] | None = None,
    unit: str = "text",
    progress: bool = False,
) -> np.ndarray:
    """Measure every thing that the store does not have; the numbers of all have the shape [thing, name].

    Args:
        answers: Where numbers are found and kept.
        label: Of what the store has numbers.
        method: What the numbers are; the progress bar says it, too.
        things: What is measured, such as texts.
        names: What each number is.
        measure: The numbers of a thing, in the order of ``names``.
        cases: What each thing is, as far as it decides the numbers: plain values, which the store hashes; None: itself.
        unit: What a thing is called in the bar.
        progress: Show it.
    """

    def run(members: list[int]) -> Iterator[tuple[list[int], np.ndarray]]:
        for i in members:
            yield [i], measure(things[i]).reshape(1, -1)

    cases = things if cases is None else cases
    return answers.entry(label, method=method).numbers(cases, names, run, desc=method, unit=unit, progress=progress)


def table_of_means(
    keys: list[str], places: Iterable[Any], measures: Mapping[str, tuple[np.ndarray, tuple[float, float]]]
) -> pd.DataFrame:
    """One row a place: means over cases, the ends of their 95% intervals, and the number of cases.

    Args:
        keys: Columns that name a place.
        places: What each of the numbers of a case is of.
        measures: Numbers of shape [case, place] by name, and the limits of what they can be.
    """
    table = pd.DataFrame(places, columns=keys)
    for name, (values, limits) in measures.items():
        found, prefix = mean(values, limits=UNLIMITED), name if len(measures) > 1 else "ci"
        low, high = np.clip(found.interval(), *limits)
        table = table.assign(**{name: found.value, f"{prefix}_low": low, f"{prefix}_high": high})
    return table.assign(n=len(values))
