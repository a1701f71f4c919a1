"""Results on disk: parts that are written whole or not at all, named by their own hash, shared by processes.

A store is a folder, or any URL that fsspec opens::

    format.json                      {"format": 1}
    KEY/about.json                   what all rows below it share; KEY is the hash of it
    KEY/LABEL/DIGEST.parquet         one part: rows (condition, request) -> value, greedy, text; DIGEST is its hash
    KEY/LABEL/.reservations/         which process computes what now (`reservations`; in local folders only)
    damaged/                         parts that no longer are what their names say

A log-likelihood has a value and whether it is greedy, a number only a value. A written answer has a text, and in the
place of ``greedy`` whether it ended by itself (nothing, in older parts). Scores and summaries are never stored, because
they are computed from these rows every time. No file is changed in place, so a
killed process leaves whole parts and at worst a temporary file, whose name starts with a dot.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import platformdirs
import pyarrow as pa
import pyarrow.parquet as pq

from depthlens.errors import UserError
from depthlens.paths import writable_folder
from depthlens.store.files import StoreFiles

log = logging.getLogger(__name__)

FORMAT = 1
# of what the address of an entry is made of: raise it when something that decides answers is added, and entries made
# before are no longer read
ADDRESS = 2
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
_DAMAGED = "damaged"


class Damaged(Exception):
    """A part is not what its name and the schema say; the message says why."""


def open_store(where: str | os.PathLike[str] | Store | None = DEFAULT, *, make: bool = True) -> Store | None:
    """The store to use.

    Args:
        where: A folder or fsspec URL; ``auto``: what DEPTHLENS_STORE names, else the user's data folder; None, or the
            word ``none``: no store.
        make: Make one where there is none.

    Raises:
        UserError: it is none of these, cannot be made or read, is not a store, or is one of a newer version.
    """
    if isinstance(where, Store) or where is None:
        return where
    if not isinstance(where, str | os.PathLike):
        raise UserError(f"store {where!r}: give a folder or URL, 'auto' for the usual one, or None to do without")
    where = os.fspath(where)
    if where == DEFAULT:
        where = os.environ.get(ENVIRONMENT) or str(platformdirs.user_data_path("depthlens") / "results")
    if without(where):
        return None
    if not where.strip():
        raise UserError(f"store {where!r}: give a folder or URL, or None to do without")
    return Store(where, make=make)


def without(where: str) -> bool:
    """Whether a text says that there is to be no store."""
    return where.strip().lower() == WITHOUT


@dataclass(frozen=True)
class Part:
    """One file of a store.

    Attributes:
        name: DIGEST.parquet.
        key: Folder of what its rows share.
        label: Task, or what else was asked.
        size: Bytes.
    """

    name: str
    key: str
    label: str
    size: int

    @property
    def path(self) -> str:
        return f"{self.key}/{self.label}/{self.name}"


class Store:
    """A folder of parts.

    Args:
        location: Folder or URL.
        make: Make one where there is none.

    Attributes:
        location: Where it is, as it was given.
        files: Its files.
        folder: The same as a local folder; None for other file systems.
        writable: Whether parts can be added; from one that others own answers are only read.
    """

    def __init__(self, location: str, *, make: bool = True) -> None:
        self.location = location
        self.files = StoreFiles(location)
        self.folder = self.files.folder
        self.writable = True
        text = self.files.read("format.json")
        if self.folder and (make or text is not None):
            try:
                writable_folder(self.folder)
            except UserError:
                if text is None:
                    raise
                self.writable = False
        if text is None and not make:
            state = "is not a store" if self.files.exist else "does not exist"
            raise UserError(f"store {location!r} {state}; a sweep makes one, --store names another")
        self._check(text)

    def _check(self, text: bytes | None) -> None:
        """Make the store, or see that it is one we can read; ``text`` of its format file."""
        if text is None:
            names = [name for name, _, _ in self.files.entries("") if not name.startswith(".")]
            if "format.json" in names:  # another process has made the store since it was looked for
                self._check(self.files.read("format.json"))
                return
            if strange := names:
                fault = f"store {self.location!r} is a folder with other things in it ({strange[0]}, ...)"
                raise UserError(f"{fault}; name an empty folder or a new one")
            self.files.write("format.json", json.dumps({"format": FORMAT}).encode())
            return
        try:
            number = int(json.loads(text)["format"])
            if number < FORMAT:
                raise ValueError(f"there never was a format {number}")
        except (ValueError, KeyError, TypeError) as e:
            fault = f"store {self.location!r}: format.json is damaged"
            raise UserError(f'{fault}; put {{"format": {FORMAT}}} there, or name another store') from e
        if number != FORMAT:
            fault = f"store {self.location!r} was written by a newer depthlens (format {number}, this one has {FORMAT})"
            raise UserError(f"{fault}; update depthlens, or name another store")

    def entry(self, shared: Mapping[str, Any], label: str, made: Mapping[str, Any]) -> Entry:
        """Where rows of one kind are.

        Args:
            shared: What they have in common and no other rows have, JSON-able: the content address.
            label: Task, or what else was asked: parts of other labels are not read.
            made: What makes them now (versions, machine), written into every part.
        """
        shared = {"address": ADDRESS, **shared}
        key = _key(shared)
        safe = "".join(c if c.isalnum() or c in "-_. " else "_" for c in label).strip(". ") or "_"
        entry = Entry(self, key, safe, made)
        if entry.writable and self.about(key) != shared:  # new, or damaged since
            self.files.write(f"{key}/about.json", json.dumps(shared, indent=2, sort_keys=True).encode())
        if self.writable and not entry.writable:
            fault = f"store {self.location}: the folder {key}/{safe} belongs to somebody else"
            log.warning("%s: its answers are read, and new ones are not kept", fault)
        return entry

    def parts(self) -> Iterator[Part]:
        """Every part, whole or not."""
        for key, _, folder in sorted(self.files.entries("")):
            if folder and key != _DAMAGED:
                for label, _, inner in sorted(self.files.entries(key)):
                    if inner:
                        yield from self.parts_of(key, label)

    def parts_of(self, key: str, label: str) -> list[Part]:
        """Parts of one entry."""
        files = sorted(self.files.entries(f"{key}/{label}"))
        return [Part(n, key, label, size) for n, size, _ in files if n.endswith(".parquet") and n[0] != "."]

    def about(self, key: str) -> dict[str, Any]:
        """What all rows of an entry share; empty where that is missing or damaged, until its model is asked again."""
        try:
            shared = json.loads(self.files.read(f"{key}/about.json") or b"")
        except ValueError:
            return {}
        return shared if isinstance(shared, dict) and _key(shared) == key else {}

    def load(self, part: Part) -> pa.Table:
        """Rows of a part; the schema's metadata has what made it (`made`).

        Raises:
            Damaged: it is not what it was when it was written.
            FileNotFoundError: it is gone.
            UserError: this version of pyarrow cannot read it.
        """
        data = self.files.read(part.path)
        if data is None:
            raise FileNotFoundError(part.path)
        if part_digest(data) != part.name.removesuffix(".parquet"):
            raise Damaged(f"its checksum is not that of its {len(data)} bytes")
        try:
            # in this thread: a process that ends while Arrow starts threads for a part is aborted (pyarrow 26)
            table = pq.ParquetFile(io.BytesIO(data), pre_buffer=False).read(use_threads=False)
        except (pa.ArrowInvalid, OSError) as e:
            raise Damaged(f"it is no parquet file ({str(e).splitlines()[0]})") from e
        except pa.ArrowNotImplementedError as e:
            fault = f"store {self.location!r}: pyarrow {pa.__version__} cannot read {part.path}: {e}"
            raise UserError(f"{fault}; install the usual build of pyarrow, or name another store") from e
        if not table.schema.equals(SCHEMA):
            raise Damaged(f"its columns are {', '.join(table.schema.names)}, not {', '.join(SCHEMA.names)}")
        return table

    def set_aside(self, part: Part, why: str) -> str:
        """Move a damaged part out of the way, unless it cannot be moved here; returns where it is then."""
        if not Entry(self, part.key, part.label, {}).writable:
            log.warning("store: part %s is damaged: %s; it is not read", part.path, why)
            return part.path
        target = f"{_DAMAGED}/{part.key}.{part.label}.{part.name}"
        self.files.move(part.path, target)
        log.warning("store: part %s is damaged: %s; set aside as %s, to be computed again", part.path, why, target)
        return target

    def leftovers(self) -> list[str]:
        """Parts set aside, and temporary files that no living process is writing, as paths under the store."""
        damaged = [f"{_DAMAGED}/{name}" for name, _, folder in self.files.entries(_DAMAGED) if not folder]
        return [*damaged, *self.files.abandoned()]


class Entry:
    """Rows that share a model and a question; reads parts that others add, and writes its own.

    Attributes:
        store: Where it is.
        used: Names of the parts that gave or took rows so far.
    """

    def __init__(self, store: Store, key: str, label: str, made: Mapping[str, Any]) -> None:
        self.store = store
        self.key = key
        self.label = label
        self.used: set[str] = set()
        self._made = dict(made)

    @property
    def reservations_folder(self) -> Path | None:
        """Where reservations are; None where the store is not a local folder."""
        return self.store.folder / self.key / self.label / ".reservations" if self.store.folder else None

    @cached_property
    def writable(self) -> bool:
        """Whether rows can be added: somebody else may have made its folders. Of a URL only writing tells."""
        inner = self.reservations_folder
        folders = (inner.parent.parent, inner.parent, inner) if inner else ()
        return self.store.writable and all(os.access(f, os.W_OK | os.X_OK) for f in folders if f.exists())

    def fresh(self, seen: set[str]) -> Iterator[tuple[str, pa.Table]]:
        """Parts whose names are not in ``seen``, which are added to it; damaged parts are set aside with a warning."""
        for part in self.store.parts_of(self.key, self.label):
            if part.name not in seen:
                seen.add(part.name)
                try:
                    yield part.name, self.store.load(part)
                except Damaged as e:
                    self.store.set_aside(part, str(e))
                except FileNotFoundError:
                    continue  # removed since it was listed

    def write(
        self,
        conditions: Sequence[str],
        requests: Sequence[str],
        values: Sequence[float | None],
        greedy: Sequence[bool | None],
        texts: Sequence[str | None],
    ) -> str:
        """Write one part, a row an item of the sequences; returns its name."""
        columns = [pa.array(conditions).dictionary_encode(), pa.array(requests).dictionary_encode()]
        columns += [pa.array(values, pa.float64()), pa.array(greedy, pa.bool_()), pa.array(texts, pa.string())]
        table = pa.table(columns, schema=SCHEMA.with_metadata({_MADE: json.dumps(self._made).encode()}))
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        data = sink.getvalue()
        name = f"{part_digest(data)}.parquet"
        self.store.files.write(f"{self.key}/{self.label}/{name}", data)
        self.used.add(name)
        return name


def _key(shared: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(shared, sort_keys=True).encode(), digest_size=10).hexdigest()


def made(table: pa.Table) -> dict[str, Any]:
    """What made a part."""
    return json.loads((table.schema.metadata or {}).get(_MADE, b"{}"))


def part_digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
