"""Files of a store: nobody sees half of one, and one line says what cannot be read or written."""

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from stores import parts

from depthlens.store.parts import Store


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
    store = Store("renaming://results")
    Renaming.seen.clear()
    store.write("key/task/one.parquet", b"whole and sound")
    assert store.fs.cat_file(store.at("key/task/one.parquet")) == b"whole and sound"
    assert store.parts() == ["key/task/one.parquet"]
    assert {name for name in Renaming.seen if "format" not in name} == {Renaming.seen[-1]}
    assert Renaming.seen[-1].startswith("/results/key/task/.new-")


@pytest.mark.parametrize(
    "error", [pa.ArrowInvalid("magic bytes"), OSError("torn"), pa.ArrowNotImplementedError("zstd")]
)
def test_a_part_that_cannot_be_read_is_logged_and_the_others_are_read(tmp_path, monkeypatch, caplog, error):
    entry = Store(str(tmp_path)).entry({"model": "m"}, "task", {})
    for name in "ab":
        assert entry.write({("L0", name): 0.5})
    read, asked = pq.ParquetFile, []

    def fail(*arguments, **options):
        asked.append(arguments)
        if len(asked) == 1:
            raise error
        return read(*arguments, **options)

    monkeypatch.setattr("depthlens.store.parts.pq.ParquetFile", fail)
    assert list(entry.read({"L0"}, {"a", "b"}).values()) == [0.5]
    assert f"cannot be read ({error}); its rows are computed again" in caplog.text and len(parts(tmp_path)) == 2
