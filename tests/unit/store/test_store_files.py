"""Parts of a store: one line says what cannot be read."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stores import parts

from depthlens.store.parts import Store


@pytest.mark.parametrize(
    "error", [pa.ArrowInvalid("magic bytes"), OSError("torn"), pa.ArrowNotImplementedError("zstd")]
)
def test_a_part_that_cannot_be_read_is_logged_and_the_others_are_read(tmp_path, monkeypatch, caplog, error):
    entry = Store(str(tmp_path)).entry({"model": "m"}, "task", {})
    for name in "ab":
        entry.write({("L0", name): 0.5})
    read, asked = pq.ParquetFile, []

    def fail(*arguments, **options):
        asked.append(arguments)
        if len(asked) == 1:
            raise error
        return read(*arguments, **options)

    monkeypatch.setattr("depthlens.store.parts.pq.ParquetFile", fail)
    assert list(entry.read({"L0"}, {"a", "b"}).values()) == [0.5]
    assert f"cannot be read ({error}); its rows are computed again" in caplog.text and len(parts(tmp_path)) == 2
