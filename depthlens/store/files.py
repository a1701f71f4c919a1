"""The files of a store, in a folder or at any URL that fsspec opens; what cannot be read or written is one line."""

from __future__ import annotations

import posixpath
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec

from depthlens.errors import UserError
from depthlens.paths import TEMPORARY, write_files

# a writer that lives renames its temporary file long before
_ABANDONED = timedelta(hours=1)


class StoreFiles:
    """Files by their paths under a folder or URL.

    Args:
        location: Folder or URL.

    Attributes:
        location: As it was given.
        folder: The same as a local folder; None for other file systems.

    Raises:
        UserError: fsspec opens no such URL. Every method raises one for what cannot be read or written.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        try:
            self._fs, self._root = fsspec.core.url_to_fs(location)
        except (ValueError, ImportError) as e:
            raise UserError(f"store {location!r} cannot be opened: {e}; give a folder or another URL") from e
        local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))
        self.folder = Path(self._root).expanduser() if local else None
        if self.folder:
            self._root = str(self.folder)

    @property
    def exist(self) -> bool:
        """Whether there is anything."""
        return self._fs.exists(self._root)

    def entries(self, path: str) -> list[tuple[str, int, bool]]:
        """Name, size and whether it is a folder of what a folder holds."""
        self._fs.invalidate_cache()
        try:
            entries = self._fs.ls(self._at(path), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as e:
            raise self._unreadable(e) from e
        named = ((posixpath.basename(entry["name"].rstrip("/")), entry) for entry in entries)
        return [(name, entry.get("size") or 0, entry["type"] == "directory") for name, entry in named]

    def read(self, path: str) -> bytes | None:
        """A whole file; None where there is none."""
        try:
            return self._fs.cat_file(self._at(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as e:
            raise self._unreadable(e) from e

    def write(self, path: str, data: bytes) -> None:
        """Write a file, whole or not at all."""
        try:
            if self.folder:
                target = self.folder / path
                write_files(target.parent, {target.name: lambda file: file.write(data)})
            else:
                self._put(self._at(path), data)
        except OSError as e:
            raise self.unwritable(e) from e

    def _put(self, path: str, data: bytes) -> None:
        folder = posixpath.dirname(path)
        self._fs.makedirs(folder, exist_ok=True)
        # object stores show a new object when it is whole; file systems that can rename (sftp, smb, hdfs) show half a
        # file, which a reader would take for damaged
        renames = type(self._fs).mv is not fsspec.AbstractFileSystem.mv
        new = posixpath.join(folder, f"{TEMPORARY}{uuid.uuid4().hex}") if renames else path
        self._fs.pipe_file(new, data)
        if renames:
            self._fs.mv(new, path)

    def move(self, path: str, target: str) -> None:
        """Move a file, unless it is gone."""
        with self._changing():
            self._fs.makedirs(posixpath.dirname(self._at(target)), exist_ok=True)
            self._fs.mv(self._at(path), self._at(target))

    def remove(self, path: str) -> None:
        """Delete a file, unless it is gone."""
        with self._changing():
            self._fs.rm_file(self._at(path))

    def abandoned(self) -> list[str]:
        """Temporary files that no living process is writing."""
        paths = (posixpath.relpath(path, self._root) for path in self._fs.find(self._root, detail=False))
        return [p for p in paths if posixpath.basename(p).startswith(TEMPORARY) and self._is_old(p)]

    def _is_old(self, path: str) -> bool:
        try:
            return datetime.now(UTC) - self._fs.modified(self._at(path)) > _ABANDONED
        except FileNotFoundError:  # its writer has renamed it
            return False
        except NotImplementedError:  # a file system that does not say
            return True

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Within the context a file may be missing, because another process was faster; other errors are one line."""
        try:
            yield
        except FileNotFoundError:
            pass
        except OSError as e:
            raise self.unwritable(e) from e

    def _unreadable(self, error: OSError) -> UserError:
        return UserError(f"store {self.location!r} cannot be read: {error.strerror or error}")

    def unwritable(self, error: OSError) -> UserError:
        """The one line for a store that cannot be written any more."""
        fault = f"store {self.location!r} cannot be written: {error.strerror or error}"
        fix = "what it held is whole: make room or name another store, and run again to go on"
        return UserError(f"{fault}; {fix}")

    def _at(self, path: str) -> str:
        return posixpath.join(self._root, path) if path else self._root
