"""Texts that a model reads where no task is asked: those that come with depthlens, and C4.

C4 (Raffel et al. 2020, arXiv 1910.10683) is what angular distances are usually taken over (Gromov et al. 2024). Its
validation texts are streamed from the hub, from the first on, so that no more is downloaded than is read.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence

import datasets

from depthlens import arguments
from depthlens.errors import UserError, first_line, unknown
from depthlens.paths import data_dir
from depthlens.tasks.encoding import quiet

Texts = str | Sequence[str] | None
EMBEDDED, C4 = arguments.TEXT_SETS


def plain_texts() -> list[str]:
    """The embedded texts: 48 short ones of several kinds, which take turns."""
    lines = (data_dir() / "texts" / "plain.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def named(texts: Texts) -> str:
    """What a record calls some texts: the name of their set, or ``given``."""
    return EMBEDDED if texts is None else texts if isinstance(texts, str) else "given"


def chosen(texts: Texts, limit: int | None) -> list[str]:
    """The texts that are read.

    Args:
        texts: Any texts, or the name of a set: ``embedded`` (`plain_texts`) or ``c4``; None: ``embedded``.
        limit: Only the first so many; ``c4`` needs it.

    Raises:
        UserError: no texts, an unknown set, or a set that cannot be read.
    """
    if limit is not None:
        arguments.whole("limit", limit, 1)
    if texts is None or texts == EMBEDDED:
        return plain_texts()[:limit]
    if isinstance(texts, str):
        if texts != C4:
            raise unknown("text set", texts, arguments.TEXT_SETS, "or give texts as a list")
        return _c4(limit)
    if not isinstance(texts, Sequence) or not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"texts {texts!r}: give a list of at least one text")
    return list(texts[:limit])


def _c4(limit: int | None) -> list[str]:
    if limit is None:
        raise UserError("text set c4 has 364,608 texts; say how many of them are read, e.g. limit=128")
    try:
        with quiet():
            rows = datasets.load_dataset("allenai/c4", "en", split="validation", streaming=True)
            return [row["text"] for row in itertools.islice(rows, limit)]
    except (OSError, datasets.exceptions.DatasetsError) as error:
        why = "HF_HUB_OFFLINE=1" if os.environ.get("HF_HUB_OFFLINE") == "1" else first_line(error)
        raise UserError(f"text set c4 cannot be downloaded ({why}); go online, or use the embedded texts") from None
