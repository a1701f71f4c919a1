"""Answers on disk: Parquet parts that are only added, in a folder or at any URL that fsspec opens.

::

    KEY/LABEL/NAME.parquet      one part: rows (condition, request) -> value, greedy, text

KEY is the hash of all that the rows below it share, which each part has in its metadata, with what made it. A
log-likelihood has a value and whether it is greedy, a number only a value. A written answer has a text, and in the
place of ``greedy`` whether it ended by itself. Scores and summaries are never stored, because they are computed from
these rows every time. No file is changed in place, so processes share a store, and a killed one leaves whole parts and
at worst a temporary file, whose name starts with a dot. Each page of a part has Parquet's checksum.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import fsspec
import pandas as pd
import platformdirs
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.dirfs import DirFileSystem

from depthlens.errors import UserError, blaming, first_line
from depthlens.requests import LoglikelihoodAnswer, WrittenAnswer

log = logging.getLogger(__name__)

ENVIRONMENT = "DEPTHLENS_STORE"
DEFAULT = "auto"
Address = tuple[str, str]  # of an answer: condition, request
Answer = LoglikelihoodAnswer | str | float  # of a log-likelihood request, a generation request, a named number
SCHEMA = pa.schema({"condition": "string", "request": "string", "value": "float64", "greedy": "bool", "text": "string"})
_MADE = b"depthlens"
COLUMNS = ("part", "model", "fingerprint", "label", "dtype", "device", "backend", "method", "time", "rows", "bytes")


def open_store(where: str | os.PathLike[str] | Store | None = DEFAULT, *, make: bool = True) -> Store | None:
    """The store to use.

    Args:
        where: A folder or fsspec URL; ``auto``: what DEPTHLENS_STORE names, else the user's data folder; None, or the
            word ``none``: no store.
        make: Make a folder that is not there.

    Raises:
        UserError: it is none of these, cannot be made or read, or is not a store.
    """
    if isinstance(where, Store) or where is None:
        return where
    if not isinstance(where, str | os.PathLike) or not os.fspath(where).strip():
        raise UserError(f"store {where!r}: give a folder or URL, 'auto' for the usual one, or None to do without")
    where = os.fspath(where)
    if where == DEFAULT:
        where = os.environ.get(ENVIRONMENT) or str(platformdirs.user_data_path("depthlens") / "answers")
    if where.strip().lower() == "none":
        return None
    with blaming(f"store {where!r} cannot be opened", "give a folder or URL that can be written"):
        return Store(where, make=make)


class Store:
    """A folder of parts.

    Args:
        location: Folder or URL.
        make: Make a folder that is not there.

    Attributes:
        location: Where it is, as it was given.
        fs: The store as a file system of its own: paths are those of parts.
        root: The path of the store on the file system that it is on.

    Raises:
        UserError: it is a folder with other things in it, such as a store of 0.2.
        OSError: it cannot be made or read.
    """

    def __init__(self, location: str, *, make: bool = True) -> None:
        self.location = location
        fs, self.root = fsspec.url_to_fs(location)
        self.fs = DirFileSystem(self.root, fs)
        if make or self.fs.isfile(""):  # where a file is, this says so
            self.fs.makedirs("", exist_ok=True)
        files = self.fs.find("", maxdepth=1)
        if foreign := [name for name in files if not name.startswith(".")]:
            fault = f"store {location!r} is a folder with other things in it ({foreign[0]}, ...)"
            raise UserError(f"{fault}; name an empty folder or a new one")

    def parts(self, folder: str = "") -> list[str]:
        """Paths of parts under the store, of one folder or of all."""
        self.fs.fs.invalidate_cache()
        return [path for path in self.fs.find(folder) if path.endswith(".parquet") and "/." not in path]

    def table(self) -> pd.DataFrame:
        """One row a part: its path, model, label, rows, bytes, time of writing, and what all its rows share."""
        found = []
        for path in self.parts():
            if (part := self.part(path, ["condition"])) is not None:
                made = json.loads((part.schema.metadata or {}).get(_MADE, b"{}"))
                conditions = part["condition"].unique().to_pylist()
                size = {"rows": part.num_rows, "bytes": self.fs.size(path), "conditions": conditions}
                found.append({**dict.fromkeys(COLUMNS), "part": path, **made, **size})
        return pd.DataFrame(found, columns=None if found else COLUMNS)

    def part(self, path: str, columns: Sequence[str] = SCHEMA.names) -> pa.Table | None:
        """Columns of a part; None where it cannot be read, or was removed since it was listed, which is logged."""
        try:
            with self.fs.open(path, "rb") as file:
                # in this thread: a process that ends while Arrow starts threads for a part is aborted (pyarrow 26)
                part = pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True)
                schema = pa.schema([SCHEMA.field(name) for name in columns], part.schema_arrow.metadata)
                return part.read(columns, use_threads=False).cast(schema)
        except (pa.ArrowException, OSError, ValueError) as error:
            log.warning("store: part %s cannot be read (%s); its rows are computed again", path, first_line(error))
            return None

    def read(self, folder: str, conditions: Collection[str], requests: Collection[str]) -> dict[Address, Answer]:
        """What all parts of a folder, KEY/LABEL, hold of some requests under some conditions."""
        known: dict[Address, Answer] = {}
        for path in self.parts(folder):
            if (part := self.part(path)) is not None:
                rows = zip(*(column.to_pylist() for column in part.columns), strict=True)
                known |= {(c, r): _answer(*answer) for c, r, *answer in rows if c in conditions and r in requests}
        return known

    def write(self, folder: str, made: Mapping[str, Any], answers: Mapping[Address, Answer]) -> None:
        """Write a part, whole or not at all.

        Args:
            folder: KEY/LABEL.
            made: What all rows under KEY share, and what makes these now (versions, machine).
            answers: By condition and request.

        Raises:
            UserError: that is not possible.
        """
        rows = [(*address, *_columns(answer)) for address, answer in answers.items()]
        table = pa.table(list(zip(*rows, strict=True)), schema=SCHEMA.with_metadata({_MADE: json.dumps(made)}))
        name, fix = f"{uuid.uuid4().hex}.parquet", "make room or name another store, and run again to go on"
        hidden = f"{folder}/.{name}"
        with blaming(f"store {self.location!r} cannot be written", fix):
            self.fs.makedirs(folder, exist_ok=True)
            with self.fs.open(hidden, "wb") as file:
                pq.write_table(table, file, compression="zstd", write_page_checksum=True)
            self.fs.mv(hidden, f"{folder}/{name}")


def _columns(answer: Answer) -> tuple[float | None, bool | None, str | None]:
    """Value, greedy and text of an answer, as a part has them."""
    if isinstance(answer, str):
        return None, answer.complete if isinstance(answer, WrittenAnswer) else None, answer
    return (answer.logprob, answer.is_greedy, None) if isinstance(answer, LoglikelihoodAnswer) else (answer, None, None)


def _answer(value: Any, greedy: bool | None, text: str | None) -> Answer:
    if text is not None:
        return WrittenAnswer(text, greedy)
    return value if greedy is None else LoglikelihoodAnswer(value, greedy)
