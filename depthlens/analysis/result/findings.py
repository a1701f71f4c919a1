"""Findings: tables, the record of how they were made, and what they say; a folder holds each.

`Finding` is the base of every result. A subclass is a frozen dataclass: its tables are written as Parquet files named
after their fields, and the rest as one JSON file, all together or not at all. A finding that has another inside, such
as a curve with the `depthlens.Result` below it, writes the files of that one unchanged and its own beside them, so that
``Result.load`` of the same folder works, too.

What is `derived` from a finding is computed once, and again after a table or a record of it was edited: what is said
and saved always belongs to what the finding holds.
"""

from __future__ import annotations

import copy
import html
import json
import re
from collections.abc import Sequence
from dataclasses import Field, fields
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any, ClassVar, TypeVar, get_args, get_type_hints

import pandas as pd
import pyarrow

from depthlens import arguments
from depthlens.analysis.numbers.words import plain
from depthlens.analysis.result.folder import RECORD_FILE, differences, refuse_other
from depthlens.errors import UserError, blaming
from depthlens.paths import writable_folder, write_files, writing_to

V = TypeVar("V")
F = TypeVar("F", bound="Finding")
BOLD = re.compile(r"\*\*(.+?)\*\*")
ROWS = 60  # that are shown of a table: all layers of most models


class Drawable:
    """What has figures of its own."""

    def plot(self, figure: str | None = None, **options: Any) -> Any:
        """Draw a figure that belongs to this kind of finding.

        Args:
            figure: Its name, where there are several; a wrong one is answered with all of them. By default the first;
                of a `depthlens.Result` a map for a sweep of heads or of blocks, and else a profile over depth.
            **options: Of the figure: ``title``, ``ax`` (matplotlib Axes into which one of a single panel is drawn), and
                its own, such as ``top`` of a map of heads.

        Returns:
            A matplotlib figure that a notebook shows; ``save`` writes it as PDF, PNG, SVG or CSV, ``table`` has its
            numbers.

        Raises:
            UserError: there is no such figure, or nothing to draw.

        Example:
            >>> figure = result.plot("protocol_comparison", title="What each layer costs")
        """
        from depthlens.plots import figures  # matplotlib is imported when something is drawn

        return figures.draw(self, figure, options)


class Finding(Drawable):
    """Tables and a record that a folder can hold.

    Attributes:
        RECORD: Name of its JSON file.
        FILES: Names of the files of tables that are not named after their field.
        NEXT: What to do with it: the last line that is shown.
    """

    RECORD: ClassVar[str] = RECORD_FILE
    FILES: ClassVar[dict[str, str]] = {}
    NEXT: ClassVar[str] = ""
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    record: dict[str, Any]

    def __post_init__(self) -> None:
        # as it will be after it was written and read
        object.__setattr__(self, "record", json.loads(json.dumps(arguments.plain(self.record))))

    def describe(self) -> list[str]:
        """What the numbers say, one sentence each."""
        return list(getattr(self, "sentences", ()))

    def display(self) -> tuple[str, pd.DataFrame, Sequence[str]]:
        """What is shown: a headline, a table, which is rounded, and lines below it; each may be empty.

        Without more it is the first table, which is cut, so that no display grows with the model.
        """
        name = next(iter(self._tables()))
        table = getattr(self, name)
        if not len(table):
            return "", table, self.describe() or ["none"]
        left = len(table) - ROWS
        return "", table.head(ROWS), [f"{left} more rows in .{name}; describe() says it in words"] if left > 0 else []

    def __repr__(self) -> str:
        head, table, lines = self.display()
        middle = table.round(3).to_string(index=False, na_rep="") if len(table) else ""
        return plain("\n".join(filter(None, [head, middle, *lines, self.NEXT])))

    def _repr_html_(self) -> str:
        head, table, lines = self.display()
        middle = table.round(3).to_html(index=False, border=0, na_rep="") if len(table) else ""
        return paragraphs([head]) + middle + paragraphs([*lines, self.NEXT])

    @classmethod
    def _tables(cls) -> dict[str, str]:
        """The file of each table, by the name of its field."""
        hints = get_type_hints(cls)
        names = (f.name for f in fields(cls) if pd.DataFrame in (hints[f.name], *get_args(hints[f.name])))
        return {name: cls.FILES.get(name, f"{name}.parquet") for name in names}

    @classmethod
    def _inside(cls) -> dict[str, type[Finding]]:
        """The class of each finding inside, by the name of its field."""
        hints = {f.name: get_type_hints(cls)[f.name] for f in fields(cls)}
        return {name: of for name, of in hints.items() if isinstance(of, type) and issubclass(of, Finding)}

    def contents(self) -> dict[str, Any]:
        """What its files hold, by their names: tables, a JSON object, and None for a file that there is not to be."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        found = {file: values.pop(name) for name, file in self._tables().items()}
        for name in self._inside():
            found |= values.pop(name).contents()
        return {**found, self.RECORD: {"kind": type(self).__name__, **values}}

    @classmethod
    def files(cls) -> list[str]:
        """Names of the files that every folder of it has."""
        inside = [file for of in cls._inside().values() for file in of.files()]
        own = [file for name, file in cls._tables().items() if cls.__dataclass_fields__[name].default is not None]
        return [*inside, *own, cls.RECORD]

    def differs(self, folder: Path, record: dict) -> str:
        """In what the finding that a folder holds differs from this one, "" if in nothing.

        Args:
            folder: The folder.
            record: Its ``record.json``. A `KeyError` says that it belongs to a finding of another kind.
        """
        for name in self._inside():
            if why := getattr(self, name).differs(folder, record):
                return why
            if not (folder / self.RECORD).exists():
                return ""
            record = json.loads((folder / self.RECORD).read_text(encoding="utf-8"))
        own = self.contents()[self.RECORD]
        if record.get("kind") != own.get("kind"):
            raise KeyError("kind")
        named = ({key: of[key] for key in ("name", "unit") if key in of} for of in (record, own))
        return differences(*(of.get("record", of) | names for of, names in zip((record, own), named, strict=True)))

    def save(self, out: str | Path, *, overwrite: bool = False) -> None:
        """Write the files into folder ``out``: each is replaced at once, and none before all are written.

        Args:
            out: A folder. It is made where there is none.
            overwrite: Replace what the folder holds. Without it, only a finding of the same settings is replaced.

        Raises:
            UserError: ``out`` is a file, cannot be written, or holds another finding or files of something else.
        """
        contents = self.contents()
        folder = writable_folder(out)
        if not overwrite:
            refuse_other(folder, (*contents, RECORD_FILE), partial(self.differs, folder))
        with writing_to(folder):
            write_files(folder, {name: partial(_write, c) for name, c in contents.items() if c is not None})
            for name in (name for name, content in contents.items() if content is None):
                (folder / name).unlink(missing_ok=True)

    @classmethod
    def load(cls: type[F], out: str | Path) -> F:
        """Read a folder that `save` wrote.

        Raises:
            UserError: a file is missing, cannot be read or is not what `save` writes.
        """
        folder = Path(arguments.PATH("folder", out))
        kinds = OSError, pyarrow.ArrowException, ValueError, LookupError, TypeError, AttributeError
        with blaming(f"{str(out)!r} does not hold what {cls.__name__}.save writes", "make it again", kinds):
            return cls._read(folder)

    @classmethod
    def _read(cls: type[F], folder: Path) -> F:
        """The finding of a folder; errors are those of reading and of what was read."""
        if missing := [file for file in cls.files() if not (folder / file).is_file()]:
            raise UserError(f"{str(folder)!r} holds no {missing[0]}; give a folder that {cls.__name__}.save wrote")
        own = json.loads((folder / cls.RECORD).read_text(encoding="utf-8"))
        kind = own.get("kind", "Result")
        if kind != cls.__name__:
            raise UserError(f"{str(folder)!r} holds a {kind}, not a {cls.__name__}; read it with {kind}.load")
        files = {name: folder / file for name, file in cls._tables().items()}
        values: dict[str, Any] = {name: pd.read_parquet(file) for name, file in files.items() if file.exists()}
        if "kind" not in own:  # the record of a sweep, as it is
            own = {"record": own}
        for name, of in cls._inside().items():
            values[name] = of._read(folder)
        return cls(**{name: own[name] for name in own.keys() & {f.name for f in fields(cls)}} | values)

    def kept(self) -> dict[str, Any]:
        """What was derived from the tables and records as they are now, by name; empty after one was edited."""
        own, state = vars(self), self._state()
        if "_kept" not in own or not all(map(_equal, own["_kept"][0], state)):
            own["_kept"] = copy.deepcopy(state), {}
        return own["_kept"][1]

    def _state(self) -> list[Any]:
        """Its tables and records, with those of findings inside."""
        values = (getattr(self, f.name) for f in fields(self))
        return [part for value in values for part in (value._state() if isinstance(value, Finding) else [value])]


class derived(cached_property[V]):
    """A property of a `Finding` that is computed once for what it holds; a table is given as a copy."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        kept, name = instance.kept(), str(self.attrname)
        if name not in kept:
            kept[name] = self.func(instance)
        return copy.copy(kept[name])


def paragraphs(lines: Sequence[str]) -> str:
    """Lines as paragraphs of HTML, escaped, with what Markdown marks as bold; empty ones are left out."""
    return BOLD.sub(r"<b>\1</b>", "".join(f"<p>{html.escape(line)}</p>" for line in lines if line))


def _write(content: Any, file: IO[bytes]) -> None:
    if isinstance(content, pd.DataFrame):
        content.to_parquet(file, index=False)
    else:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def _equal(old: Any, new: Any) -> bool:
    return old.equals(new) if isinstance(old, pd.DataFrame) else bool(old == new)
