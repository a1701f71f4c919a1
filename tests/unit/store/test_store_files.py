"""Files of a store: nobody sees half of one, and one line says what cannot be read or written."""

import os
from datetime import timedelta

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from stores import parts

from depthlens.errors import UserError
from depthlens.store.files import StoreFiles
from depthlens.store.parts import Damaged, Store


class Renaming(MemoryFileSystem):
    """A file system as sftp is: it shows a file while it is being written, and renames at once."""

    protocol = "renaming"
    store: dict = {}  # noqa: RUF012  # as fsspec has it
    pseudo_dirs = [""]  # noqa: RUF012
    seen: list = []  # noqa: RUF012  # names that a reader finds while something is half written

    def pipe_file(self, path, value, **options):
        super().pipe_file(path, value[: len(value) // 2])
        self.seen.extend(self.find("/"))
        super().pipe_file(path, value)

    def mv(self, path1, path2, **options):
        super().pipe_file(path2, self.cat_file(path1))
        self.rm_file(path1)

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("renaming://", "memory://"))


@pytest.fixture(scope="module", autouse=True)
def registered():
    fsspec.register_implementation("renaming", Renaming, clobber=True)


def test_a_file_that_is_half_written_has_no_name_yet():
    files = StoreFiles("renaming://results")
    files.write("key/one.parquet", b"whole and sound")
    assert files.read("key/one.parquet") == b"whole and sound"
    assert [name for name, _, _ in files.entries("key")] == ["one.parquet"]
    (seen,) = Renaming.seen
    assert seen.startswith("/results/key/.new-")
    assert files.folder is None and files.exist


@pytest.mark.parametrize("location", ["memory://abandoned", "FOLDER"])
def test_only_temporary_files_that_nobody_writes_are_abandoned(tmp_path, location):
    files = StoreFiles(location.replace("FOLDER", str(tmp_path)))
    for name in (".new-old", ".new-now", "old.parquet"):
        files.write(f"key/{name}", b"half")
    hours_ago = timedelta(hours=2)
    for name in (".new-old", "old.parquet"):
        if files.folder:
            os.utime(tmp_path / "key" / name, (0, 0))
        else:
            fsspec.filesystem("memory").store[f"/abandoned/key/{name}"].modified -= hours_ago
    assert files.abandoned() == ["key/.new-old"]


@pytest.mark.parametrize(
    ("error", "raised", "says"),
    [
        (pa.ArrowInvalid("magic bytes"), Damaged, "no parquet file"),
        (pa.ArrowNotImplementedError("codec zstd"), UserError, "cannot read .*codec zstd; install"),
        (pa.ArrowMemoryError("malloc of size 9 failed"), MemoryError, "malloc"),
    ],
)
def test_a_part_is_damaged_only_if_it_is_no_parquet_file(tmp_path, monkeypatch, error, raised, says):
    """Memory that is short and a build of pyarrow without a codec say nothing about the part."""
    store = Store(str(tmp_path))
    store.entry({"model": "m"}, "task", {}).write(["L0"], ["a"], [0.5], [True], [None])
    (part,) = store.parts()
    assert store.load(part).num_rows == 1

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("depthlens.store.parts.pq.ParquetFile", fail)
    with pytest.raises(raised, match=says):
        store.load(part)
    assert parts(tmp_path)
