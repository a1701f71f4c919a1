"""Objects that one folder can hold: tables as Parquet files, records as JSON files, written together or not at all.

`Saveable` has the two methods `save` and `load` for every result of depthlens. A class says what it consists of
(`contents`) and how it is made from that (`from_contents`). An object with a `depthlens.Result` inside writes the files
of that result unchanged and its own beside them, so that ``Result.load`` of the same folder works, too.

What is `derived` from an object is computed once, and again after a table or a record of the object was edited: what is
said and saved always belongs to what the object holds.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any, ClassVar, TypeVar

import pandas as pd
import pyarrow

from depthlens import arguments
from depthlens.analysis import result_folder
from depthlens.analysis.result_folder import RECORD_FILE
from depthlens.errors import UserError, first_line
from depthlens.paths import writable_folder, write_files, writing_to

T = TypeVar("T", bound="Saveable")
V = TypeVar("V")
# of a record
_CIRCUMSTANCES = (
    *("depthlens", "git_commit", "platform", "python", "store", "time"),
    *("tree_attention", "versions", "work", "workers"),
)


@dataclass
class Contents:
    """What a folder holds of an object.

    Attributes:
        tables: Tables by file name.
        records: JSON objects by file name.
        absent: Files that an earlier save may have left and that do not belong to this object.
    """

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    records: dict[str, dict] = field(default_factory=dict)
    absent: tuple[str, ...] = ()


class Saveable:
    """A dataclass that a folder can hold: its tables as Parquet files named after their fields, the rest as JSON.

    Attributes:
        RECORD: Name of its own JSON file.
        OPTIONAL: Names of files that `load` reads where they exist.
        TABLES: Names of the Parquet files, where they are not its fields.
        INSIDE: Class of its field ``result``, if it has one.
    """

    RECORD: ClassVar[str] = RECORD_FILE
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    TABLES: ClassVar[tuple[str, ...] | None] = None
    INSIDE: ClassVar[type[Saveable] | None] = None
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    record: dict[str, Any]
    result: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "record", json_record(self.record, allow_nan=True))

    def kept(self) -> dict[str, Any]:
        """What was derived from the tables and records as they are now, by name; empty after one was edited."""
        before, values = vars(self).get("_kept", (None, {}))
        if before is None or not _unchanged(self, before):
            before, values = vars(self)["_kept"] = _copied(self), {}
        return values

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_kept"}

    @classmethod
    def files(cls) -> tuple[str, ...]:
        """Names of the files that `load` needs; the last is its own JSON file."""
        inside = cls.INSIDE.files() if cls.INSIDE else ()
        if cls.TABLES is not None:
            return (*inside, *cls.TABLES, cls.RECORD)
        return (*inside, *(f"{f.name}.parquet" for f in fields(cls) if f.type == "pd.DataFrame"), cls.RECORD)

    def contents(self) -> Contents:
        """What is to be written."""
        contents = self.result.contents() if self.INSIDE else Contents()
        own: dict[str, Any] = {"kind": type(self).__name__}
        for name, value in ((f.name, getattr(self, f.name)) for f in fields(self)):
            if isinstance(value, pd.DataFrame):
                contents.tables[f"{name}.parquet"] = value
            elif isinstance(value, Saveable):
                own["of"] = _digest(value.record)
            else:
                own[name] = value
        contents.records[self.RECORD] = own
        return contents

    @classmethod
    def from_contents(cls: type[T], contents: Contents) -> T:
        """The object that was written.

        Raises:
            UserError: it was saved beside another result, which was replaced since.
        """
        own = contents.records[cls.RECORD]
        values: dict[str, Any] = {}
        for name in (f.name for f in fields(cls)):
            if name == "result" and cls.INSIDE:
                values[name] = cls.INSIDE.from_contents(contents)
                if own["of"] != _digest(values[name].record):
                    raise UserError(f"{cls.RECORD} and {RECORD_FILE} belong to different results; make it again")
            else:
                file = f"{name}.parquet"
                values[name] = contents.tables[file] if file in contents.tables else own[name]
        return cls(**values)

    def differs(self, folder: Path, record: dict) -> str:
        """In what the object that a folder holds differs from this one, "" if in nothing.

        Args:
            folder: The folder.
            record: Its ``record.json``. A `KeyError` or `TypeError` says that it belongs to an object of another kind.
        """
        if self.INSIDE:
            if difference := self.result.differs(folder, record):
                return difference
            if not (folder / self.RECORD).exists():
                return ""
            record = json.loads((folder / self.RECORD).read_text(encoding="utf-8"))
        own = self.contents().records[self.RECORD]
        if record.get("kind", own["kind"]) != own["kind"]:
            raise KeyError("kind")
        return record_difference(record["record"], own["record"]) or result_folder.first_difference(
            (key, record.get(key), own[key]) for key in ("name", "unit") if key in own
        )

    def save(self, out: str | Path, *, overwrite: bool = False) -> None:
        """Write the files into folder ``out``: each is replaced at once, and none before all are written.

        Args:
            out: A folder. It is made where there is none.
            overwrite: Replace what the folder holds. Without it, only an object of the same settings is replaced.

        Raises:
            UserError: ``out`` is a file, cannot be written, or holds another object or files of something else.
        """
        contents = self.contents()
        folder = writable_folder(out)
        files = (*contents.tables, *contents.records)
        if not overwrite:
            result_folder.refuse_other(
                folder, (*files, *contents.absent, RECORD_FILE), lambda record: self.differs(folder, record)
            )
        writers: dict[str, Callable[[IO[bytes]], object]] = {
            name: partial(table.to_parquet, index=False) for name, table in contents.tables.items()
        }
        for name, record in contents.records.items():
            text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
            writers[name] = partial(_write, text.encode())
        with writing_to(folder):
            write_files(folder, writers)
            for name in contents.absent:
                (folder / name).unlink(missing_ok=True)

    @classmethod
    def load(cls: type[T], out: str | Path) -> T:
        """Read a folder that `save` wrote.

        Raises:
            UserError: a file is missing, cannot be read or is not what `save` writes.
        """
        writer = f"{cls.__name__}.save"
        if not isinstance(out, str | Path):
            raise UserError(f"folder {out!r}: give the folder that {writer} wrote")
        folder = Path(out)
        if missing := [name for name in cls.files() if not (folder / name).is_file()]:
            raise UserError(f"{str(folder)!r} holds no {missing[0]}; give a folder that {writer} wrote")
        contents = Contents()
        names = (*cls.files(), *(name for name in cls.OPTIONAL if (folder / name).is_file()))
        try:
            for name in names:
                if name.endswith(".parquet"):
                    contents.tables[name] = pd.read_parquet(folder / name)
                else:
                    contents.records[name] = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, pyarrow.ArrowException, ValueError) as error:
            raise UserError(f"cannot read {name} in {str(folder)!r}: {first_line(error)}; make it again") from error
        for name, record in contents.records.items():
            if not isinstance(record, dict):
                raise UserError(f"{name} in {str(folder)!r} is not a JSON object; make it again")
            if (kind := record.get("kind", cls.__name__)) != cls.__name__ and cls.RECORD == name:
                raise UserError(f"{str(folder)!r} holds a {kind}, not a {cls.__name__}; read it with {kind}.load")
        try:
            return cls.from_contents(contents)
        except (KeyError, TypeError, AttributeError) as error:
            fault = f"{str(folder)!r} does not hold what {writer} writes ({type(error).__name__}: {first_line(error)})"
            raise UserError(f"{fault}; make it again") from error


class derived(cached_property[V]):
    """A property of a `Saveable` that is computed once for what the object holds; a table is given as a copy."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        kept, name = instance.kept(), str(self.attrname)
        if name not in kept:
            kept[name] = self.func(instance)
        return kept[name].copy() if isinstance(kept[name], pd.DataFrame) else kept[name]


def _copied(value: Any) -> Any:
    if isinstance(value, Saveable):
        return {f.name: _copied(getattr(value, f.name)) for f in fields(value)}
    return value.copy() if isinstance(value, pd.DataFrame) else copy.deepcopy(value)


def _unchanged(value: Any, before: Any) -> bool:
    """Whether a value is as it was when it was copied."""
    if isinstance(value, Saveable):
        return all(_unchanged(getattr(value, name), old) for name, old in before.items())
    return value.equals(before) if isinstance(value, pd.DataFrame) else value == before


def json_record(record: dict, *, allow_nan: bool = False) -> dict:
    """A record as it will be after it was written and read: an object in memory equals the same object read back.

    Raises:
        UserError: a value that JSON does not have.
    """
    try:
        return json.loads(json.dumps(arguments.plain(record), allow_nan=allow_nan))
    except (TypeError, ValueError) as error:
        raise UserError(f"the record cannot be written as JSON: {error}; leave out what is not a value") from error


def record_difference(old: dict, new: dict) -> str:
    """In what two records differ, besides time, machine, versions and the names of equal models; "" if in nothing."""
    fingerprints = [(record.get("model") or {}).get("fingerprint") for record in (old, new)]
    keys = dict.fromkeys(key for key in (*old, *new) if key not in ("model", "baseline", *_CIRCUMSTANCES))
    pairs = [("model fingerprint", *fingerprints), *((key, old.get(key), new.get(key)) for key in keys)]
    return result_folder.first_difference(pairs)


def _digest(record: dict) -> str:
    """A short name of a record's content without its circumstances."""
    content = {key: value for key, value in record.items() if key not in (*_CIRCUMSTANCES, "command")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)
