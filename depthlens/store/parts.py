"""Answers on disk: Parquet parts that are only added, in a folder or at any URL that fsspec opens.

::

    format.json                 {"format": 2}
    KEY/about.json              what all rows below it share; KEY is the hash of it
    KEY/LABEL/NAME.parquet      one part: rows (condition, request) -> value, greedy, text

A log-likelihood has a value and whether it is greedy, a number only a value. A written answer has a text, and in the
place of ``greedy`` whether it ended by itself. Scores and summaries are never stored, because they are computed from
these rows every time. No file is changed in place, so processes share a store, and a killed one leaves whole parts and
at worst a temporary file, whose name starts with a dot. Each page of a part has Parquet's checksum.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import posixpath
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import platformdirs
import pyarrow as pa
import pyarrow.parquet as pq

from depthlens.errors import UserError, blaming
from depthlens.paths import TEMPORARY, write_files

log = logging.getLogger(__name__)

FORMAT = 2
ENVIRONMENT = "DEPTHLENS_STORE"
DEFAULT = "auto"
WITHOUT = "none"  # in any case of letters: no store
SCHEMA = pa.schema(
    [
        ("condition", pa.dictionary(pa.int32(), pa.string())),
        ("request", pa.dictionary(pa.int32(), pa.string())),
        ("value", pa.float64()),
        ("greedy", pa.bool_()),
        ("text", pa.string()),
    ]
)
_MADE = b"depthlens"
COLUMNS = ("part", "model", "fingerprint", "label", "dtype", "device", "backend", "method", "time", "rows", "bytes")


def open_store(where: str | os.PathLike[str] | Store | None = DEFAULT, *, make: bool = True) -> Store | None:
    """The store to use.

    Args:
        where: A folder or fsspec URL; ``auto``: what DEPTHLENS_STORE names, else the user's data folder; None, or the
            word ``none``: no store.
        make: Make one where there is none.

    Raises:
        UserError: it is none of these, cannot be made or read, is not a store, or is one of another version.
    """
    if isinstance(where, Store) or where is None:
        return where
    if not isinstance(where, str | os.PathLike) or not os.fspath(where).strip():
        raise UserError(f"store {where!r}: give a folder or URL, 'auto' for the usual one, or None to do without")
    where = os.fspath(where)
    if where == DEFAULT:
        where = os.environ.get(ENVIRONMENT) or str(platformdirs.user_data_path("depthlens") / "answers")
    if without(where):
        return None
    with blaming(f"store {where!r} cannot be opened", "give a folder or URL that can be written"):
        return Store(where, make=make)


def without(where: str) -> bool:
    """Whether a text says that there is to be no store."""
    return where.strip().lower() == WITHOUT


@cache  # once in a process, and not for every sweep of a notebook
def _say_read_only(location: str) -> None:
    log.warning("store %s cannot be written: answers are read, and new ones are not kept", location)


class Store:
    """A folder of parts.

    Args:
        location: Folder or URL.
        make: Make one where there is none.

    Attributes:
        location: Where it is, as it was given.
        writable: Whether parts can be added; from one that others own answers are only read.

    Raises:
        UserError: it is no store, or one of another version.
        OSError: it cannot be made or read.
    """

    def __init__(self, location: str, *, make: bool = True) -> None:
        self.location = location
        self.writable = True
        self.fs, root = fsspec.url_to_fs(location)
        self._local = isinstance(self.fs, fsspec.implementations.local.LocalFileSystem)
        self.root = str(Path(root).expanduser()) if self._local else root
        try:
            number = json.loads(self.fs.cat_file(self.at("format.json"))).get("format")
        except FileNotFoundError:
            self._make(make)
            return
        if number != FORMAT:
            fault = f"store {location!r} is of another version of depthlens (format {number}, this one has {FORMAT})"
            raise UserError(f"{fault}; name another store, and both are kept")
        self.writable = not self._local or os.access(self.root, os.W_OK)
        if not self.writable:
            _say_read_only(location)

    def _make(self, make: bool) -> None:
        there = [name for name in map(posixpath.basename, self._list("")) if not name.startswith(".")]
        if there and there != ["format.json"]:  # else another process has made it meanwhile
            fault = f"store {self.location!r} is a folder with other things in it ({there[0]}, ...)"
            raise UserError(f"{fault}; name an empty folder or a new one")
        if not make:
            raise UserError(f"store {self.location!r} does not exist; a sweep makes one, --store names another")
        self.write("format.json", json.dumps({"format": FORMAT}).encode())

    def at(self, *path: str) -> str:
        """The path of a file of the store on its file system."""
        return posixpath.join(self.root, *path)

    def _list(self, *path: str) -> list[str]:
        self.fs.invalidate_cache()
        try:
            return self.fs.ls(self.at(*path), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def write(self, path: str, data: bytes) -> None:
        """Write a file, whole or not at all."""
        target = self.at(path)
        if self._local:
            write_files(Path(target).parent, {Path(target).name: lambda file: file.write(data)})
            return
        self.fs.makedirs(posixpath.dirname(target), exist_ok=True)
        # object stores show a new object when it is whole; file systems that can rename show half a file before
        renames = type(self.fs).mv is not fsspec.AbstractFileSystem.mv
        new = posixpath.join(posixpath.dirname(target), f"{TEMPORARY}{uuid.uuid4().hex}") if renames else target
        self.fs.pipe_file(new, data)
        if renames:
            self.fs.mv(new, target)

    def entry(self, shared: Mapping[str, Any], label: str, made: Mapping[str, Any]) -> Entry:
        """Where rows of one kind are.

        Args:
            shared: What they have in common and no other rows have, JSON-able: the content address.
            label: Task, or what else was asked: parts of other labels are not read.
            made: What makes them now (versions, machine), written into every part.
        """
        text = json.dumps(shared, sort_keys=True, indent=2)
        key = hashlib.blake2b(text.encode(), digest_size=10).hexdigest()
        safe = "".join(c if c.isalnum() or c in "-_. " else "_" for c in label).strip(". ") or "_"
        if self.writable and not self.fs.exists(self.at(key, "about.json")):
            self.write(f"{key}/about.json", text.encode())
        return Entry(self, f"{key}/{safe}", label, made)

    def parts(self, folder: str | None = None) -> list[str]:
        """Paths of parts under the store, of one entry or of all."""
        if folder is None:
            keys = [posixpath.basename(key) for key in self._list("")]
            entries = [f"{key}/{posixpath.basename(label)}" for key in sorted(keys) for label in self._list(key)]
            return [part for entry in sorted(entries) for part in self.parts(entry)]
        names = sorted(posixpath.basename(path) for path in self._list(folder))
        return [f"{folder}/{name}" for name in names if name.endswith(".parquet") and not name.startswith(".")]

    def table(self) -> pd.DataFrame:
        """One row a part: its path, model, label, rows, bytes, time of writing, and what all its rows share."""
        found = []
        for path in self.parts():
            with self.fs.open(self.at(path), "rb") as file:
                try:
                    parquet = pq.ParquetFile(file)
                except (pa.ArrowInvalid, OSError) as error:
                    log.warning("store: part %s cannot be read (%s)", path, str(error).partition("\n")[0])
                    continue
                made = json.loads((parquet.schema_arrow.metadata or {}).get(_MADE, b"{}"))
                conditions = parquet.read(["condition"])["condition"].unique().to_pylist()
            about = json.loads(self.fs.cat_file(self.at(path.split("/")[0], "about.json")))
            size = {"rows": parquet.metadata.num_rows, "bytes": self.fs.size(self.at(path)), "conditions": conditions}
            found.append({"part": path, **about, **made, **size})
        return pd.DataFrame(found, columns=None if found else COLUMNS)

    def remove(self, paths: Sequence[str]) -> None:
        """Delete parts."""
        for path in paths:
            self.fs.rm_file(self.at(path))


class Entry:
    """Rows that share a model and a question; reads parts that others add, and writes its own.

    Attributes:
        store: Where it is.
        folder: KEY/LABEL under the store.
        label: Task, or what else was asked.
        writable: Whether rows can be added.
        used: Paths of the parts that gave or took rows so far.
    """

    def __init__(self, store: Store, folder: str, label: str, made: Mapping[str, Any]) -> None:
        self.store = store
        self.folder = folder
        self.label = label
        self.writable = store.writable
        self.used: set[str] = set()
        self._made = dict(made)

    def tables(self) -> Iterator[tuple[str, pa.Table]]:
        """All parts; one that cannot be read is logged, and its rows are computed again."""
        for path in self.store.parts(self.folder):
            try:
                data = io.BytesIO(self.store.fs.cat_file(self.store.at(path)))
                # in this thread: a process that ends while Arrow starts threads for a part is aborted (pyarrow 26)
                file = pq.ParquetFile(data, pre_buffer=False, page_checksum_verification=True)
                yield path, file.read(use_threads=False).cast(SCHEMA)
            except FileNotFoundError:
                continue  # removed since it was listed
            except (pa.ArrowException, OSError, ValueError) as error:
                why = str(error).partition("\n")[0]
                log.warning("store: part %s cannot be read (%s); its rows are computed again", path, why)

    def write(
        self,
        conditions: Sequence[str],
        requests: Sequence[str],
        values: Sequence[float | None],
        greedy: Sequence[bool | None],
        texts: Sequence[str | None],
    ) -> None:
        """Write one part, a row an item of the sequences."""
        columns = [pa.array(conditions).dictionary_encode(), pa.array(requests).dictionary_encode()]
        columns += [pa.array(values, pa.float64()), pa.array(greedy, pa.bool_()), pa.array(texts, pa.string())]
        table = pa.table(columns, schema=SCHEMA.with_metadata({_MADE: json.dumps(self._made).encode()}))
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        path = f"{self.folder}/{uuid.uuid4().hex}.parquet"
        try:
            self.store.write(path, sink.getvalue())
        except PermissionError:  # the folder of somebody else
            _say_read_only(self.store.location)
            self.writable = False
        except OSError as error:
            fault = f"store {self.store.location!r} cannot be written: {error.strerror or error}"
            raise UserError(f"{fault}; make room or name another store, and run again to go on") from error
        else:
            self.used.add(path)
